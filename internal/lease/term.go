package lease

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/kv"
)

// TermSuffix ends the name of the key that fences the writes of a term.
const TermSuffix = "._term"

// Term is one time of owning a key. The server refuses its writes once there is
// another.
type Term struct {
	Lease   *Lease
	fence   string        // the key that was written when the term began; "": there is none
	writing chan struct{} // its one place is taken by whoever uses the fields below

	sequence uint64              // the fence's revision
	own      map[string]struct{} // keys that were no election's when this term first wrote them
	strays   bool                // copies of Puts under this fence may still come in
	renewal  *kv.Write           // of the fence, without an outcome yet
}

// BeginTerm writes the key that fences the writes of a term, if the lease still is this
// process's. That key outlives the bucket's TTL. Where the bucket does not heed the TTL
// of a key there is none, and no Put. ErrDeposed says that the lease was lost meanwhile.
func (l *Lease) BeginTerm() (*Term, error) {
	t := &Term{Lease: l, writing: make(chan struct{}, 1)}
	if !l.Key.found.ttls {
		return t, nil
	}
	ctx, cancel := context.WithTimeout(l.Ctx, l.Trust.Left(time.Now()))
	defer cancel()
	t.fence = l.Key.Key + TermSuffix
	var err error
	t.sequence, _, err = l.Key.store(ctx, l.Key.fenced(t.fence, []byte(l.Owner), l.Key.Key, l.revision))
	switch {
	case err == nil:
		return t, nil
	case errors.Is(err, kv.ErrRefused):
		l.lose(err)
	}
	if ctx.Err() != nil || l.Ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", ErrDeposed, err)
	}
	return nil, err
}

// Put writes a key for as long as there is no later owner; see natty.Term.
func (t *Term) Put(ctx context.Context, key string, data []byte) error {
	k := &t.Lease.Key
	if err := k.kv().ValidKey(k.Bucket, key); err != nil {
		return err
	}
	ctx, cancel := jsapi.WithTimeout(ctx, k.kv().Pub.Timeout)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(t.Lease.Ctx, func() { end(ErrDeposed) })()
	select {
	case t.writing <- struct{}{}: // one at a time: the server refuses concurrent ones under one fence
		defer func() { <-t.writing }()
	case <-ctx.Done():
		return fmt.Errorf("natty: put %q: %w", key, context.Cause(ctx))
	}
	switch err := k.sameBucket(ctx); {
	case err != nil:
		t.Lease.lose(err)
		return fmt.Errorf("natty: put %q: %w: %w", key, ErrDeposed, err)
	case t.fence == "":
		return k.kv().Invalid("bucket", k.Bucket, "does not heed the TTL of a key, which a term's writes need to "+
			"outlive the bucket's own TTL; use another bucket, or call EnsureBucket with its name, its TTL and a "+
			"LimitMarkerTTL", nil)
	}
	if err := t.mayWrite(ctx, key); err != nil {
		return err
	}
	var sent time.Time
	err := t.renewFence(ctx)
	w := k.fenced(key, data, t.fence, t.sequence)
	if err == nil {
		_, sent, err = k.store(ctx, w)
		t.strays = w.Strays > 0
	}
	if err != nil {
		return t.notPut(ctx, key, w, sent, err)
	}
	if t.own == nil {
		t.own = map[string]struct{}{}
	}
	t.own[key] = struct{}{}
	return nil
}

// notPut is the error of a Put that failed.
func (t *Term) notPut(ctx context.Context, key string, w *kv.Write, sent time.Time, err error) error {
	k := &t.Lease.Key
	failed := func(unknown bool, err error) error {
		return k.kv().Pub.Failed(kv.KeySubject(k.Bucket, key), w.ID, unknown, err)
	}
	switch {
	case errors.Is(err, kv.ErrRefused):
		t.Lease.lose(err)
		return fmt.Errorf("natty: put %q: %w", key, ErrDeposed)
	case ctx.Err() != nil:
		return failed(!sent.IsZero(), fmt.Errorf("%w: %w", context.Cause(ctx), err))
	case w.Strays > 0:
		return failed(true, err)
	}
	return fmt.Errorf("natty: put %q: %w", key, err)
}

// renewFence writes the fence again if copies of an earlier Put may still come in,
// maybe behind a newer Put: the server refuses all copies that were sent under the old
// fence.
func (t *Term) renewFence(ctx context.Context) error {
	if !t.strays {
		return nil
	}
	k := &t.Lease.Key
	if t.renewal == nil {
		t.renewal = k.fenced(t.fence, []byte(t.Lease.Owner), t.fence, t.sequence)
	}
	sequence, _, err := k.store(ctx, t.renewal)
	if err != nil {
		return err // the fence may be written: the next Put finds out with the same write
	}
	t.sequence, t.strays, t.renewal = sequence, false, nil
	return nil
}

// ownKeyLook bounds the look at a key that this term has written.
const ownKeyLook = 250 * time.Millisecond

// mayWrite refuses the keys of elections, and of whoever else has leased a key of the
// bucket. It asks before each Put: what was a term's key may be an election's by now.
// Should an election begin between the answer and the write, its leader is deposed. A
// key that this term has written is taken for its own when no answer comes soon: an
// election could begin there only if somebody had deleted it.
func (t *Term) mayWrite(ctx context.Context, key string) error {
	k := &t.Lease.Key
	election := strings.TrimSuffix(key, TermSuffix)
	if election != key || key == k.Key {
		return t.leased(key)
	}
	leased, err := t.isLeased(ctx, key)
	switch {
	case leased:
		return t.leased(key)
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("natty: put %q: %w: %w", key, context.Cause(ctx), err)
	case err != nil:
		return fmt.Errorf("natty: put %q: %w", key, err)
	}
	return nil
}

// isLeased reports whether a key belongs to an election or a lock.
func (t *Term) isLeased(ctx context.Context, key string) (bool, error) {
	k := &t.Lease.Key
	_, own := t.own[key]
	if own {
		left, _ := ctx.Deadline() // Put has made sure that there is one
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, min(time.Until(left)/4, ownKeyLook))
		defer cancel()
	}
	now, err := k.lookAt(ctx, key)
	switch {
	case err != nil && own:
		return false, nil
	case err != nil, now.Owned && now.write != "": // a term writes its keys for ever
		return err == nil && now.ttl != kv.TTLNever, err
	}
	fence, err := k.lookAt(ctx, key+TermSuffix)
	if err != nil && own {
		return false, nil
	}
	return fence.Revision != 0, err
}

func (t *Term) leased(key string) error {
	k := &t.Lease.Key
	return k.kv().Invalid("key", key, "belongs to an election or a lock of bucket "+k.Bucket+"; use another one", nil)
}
