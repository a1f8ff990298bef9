package natty

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Lease is what a process has that owns a key: a lock, or the leadership of an election. The key expires on the server
// unless it is renewed, which a Lease does by itself every third of its TTL.
type Lease struct {
	key    leaseKey
	holder string
	token  uint64
	ctx    context.Context //nolint:containedctx // it ends with the lease
	end    context.CancelCauseFunc
	trust  trust

	stop     chan struct{} // asks renew to end
	renewing context.CancelFunc
	renewed  chan struct{} // closed when it has; nil before keep
	// revision is renew's while that runs.
	revision uint64

	locked     bool // by Lock, which stands back
	release    sync.Once
	releaseErr error
}

var (
	errNotRenewed = errors.New("it could not be renewed in time")
	errReleased   = errors.New("natty: the lease was released")
)

// Context ends when the lease can no longer be trusted: a fifth of its TTL before the server can give it to another, counted
// from when the last successful renewal was sent, whatever the network does. Its cause then matches ErrDeposed. It ends with
// Release too.
func (l *Lease) Context() context.Context { return l.ctx }

// Token grows with every owner of the key: whoever is given tokens can refuse the smaller ones.
func (l *Lease) Token() uint64 { return l.token }

// Release gives the lease back; the next owner follows at once. Its Context ends before. Again it does nothing. ErrDeposed
// says that it had been lost; any other error, that the server may not know, and the key expires by itself.
func (l *Lease) Release(ctx context.Context) error {
	l.release.Do(func() { l.releaseErr = l.giveBack(ctx) })
	return l.releaseErr
}

func (l *Lease) giveBack(ctx context.Context) error {
	defer l.key.c.leaveLease(l)
	if l.locked {
		defer l.key.c.standBackFrom(&l.key)
	}
	if l.renewed != nil {
		close(l.stop)
		select {
		case <-l.renewed:
		case <-ctx.Done():
		}
		l.renewing()
		<-l.renewed
	}
	if !l.trust.holds(time.Now()) {
		l.lose(errNotRenewed)
		return fmt.Errorf("natty: release %s: %w", l.key.name(), ErrDeposed)
	}
	l.trust.end()
	l.end(errReleased)
	ctx, cancel := context.WithTimeout(ctx, l.key.ttl) // by then it has expired
	defer cancel()
	w := l.key.removal(l.revision)
	_, _, err := l.key.store(ctx, &w)
	switch {
	case errors.Is(err, errLost):
		return fmt.Errorf("natty: release %s: %w", l.key.name(), ErrDeposed)
	case err != nil:
		return fmt.Errorf("natty: release %s, which expires by itself: %w", l.key.name(), err)
	}
	return nil
}

func (k *leaseKey) name() string { return fmt.Sprintf("key %q of bucket %q", k.key, k.bucket) }

// take makes this process the owner, if the key's revision still is the one at which nobody was. Before keep the lease is not
// renewed.
func (k *leaseKey) take(ctx context.Context, holder string, revision uint64) (*Lease, error) {
	span := k.ttl - k.ttl/5
	once, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	w := k.write(holder, revision)
	taken, sent, err := k.store(once, &w)
	if err != nil {
		if ctx.Err() != nil && !sent.IsZero() {
			k.undo(&w)
		}
		return nil, err
	}
	l := &Lease{key: *k, holder: holder, token: taken, revision: taken, stop: make(chan struct{})}
	l.ctx, l.end = context.WithCancelCause(context.WithoutCancel(ctx))
	l.trust.begin(sent, span, func() { l.lose(errNotRenewed) })
	return l, nil
}

// undo gives back at once what nobody waits for any more, if it was stored: else others would wait until it expires.
func (k *leaseKey) undo(w *leaseWrite) {
	ctx, cancel := context.WithTimeout(context.Background(), min(k.ttl/8, attemptTimeout.Min))
	defer cancel()
	if revision, _ := k.resolve(ctx, w); revision > 0 {
		r := k.removal(revision)
		_, _, _ = k.store(ctx, &r)
	}
}

// lose ends the lease's ctx. What it owned may be another's soon.
func (l *Lease) lose(why error) {
	l.trust.end()
	l.end(fmt.Errorf("natty: %s: %w: %w", l.key.name(), ErrDeposed, why))
}

// keep begins to renew.
func (l *Lease) keep() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.ctx))
	l.renewing, l.renewed = cancel, make(chan struct{})
	go func() {
		defer close(l.renewed)
		defer cancel()
		l.renew(ctx)
	}()
}

func (l *Lease) renew(ctx context.Context) {
	every := time.NewTicker(l.key.ttl / 3)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-l.stop:
			return
		case <-l.ctx.Done():
			return
		case <-ctx.Done():
			return
		}
		once, cancel := context.WithTimeout(ctx, l.trust.left(time.Now()))
		w := l.key.write(l.holder, l.revision)
		revision, sent, err := l.key.store(once, &w)
		cancel()
		switch {
		case err == nil:
			l.revision = revision
			l.trust.renew(sent)
		case errors.Is(err, errLost):
			l.lose(err)
			return
		case ctx.Err() != nil: // it is being released
		case l.trust.holds(time.Now()):
			l.key.trouble(fmt.Errorf("natty: %s: the lease could not be renewed: %w", l.key.name(), err))
		default: // it is lost, of which others are told by its ctx
			l.key.c.log.Warn("natty: a lease could not be renewed in time", "bucket", l.key.bucket, "key", l.key.key, "error", err)
		}
	}
}

// acquire waits for the key to be free, and takes it. It asks the server nothing while the owner renews: the owner's writes
// come to whoever listens on their subject, as hints; the truth under them is a timer, as long as the TTL.
func (k *leaseKey) acquire(ctx context.Context, holder string) (*Lease, error) {
	w := waiting{key: k, hints: make(chan *nats.Msg, 64)}
	sub, err := k.c.nc.Subscribe(k.publishSubject, func(m *nats.Msg) {
		select {
		case w.hints <- m:
		default: // there is enough to look at
		}
	})
	if err != nil {
		return nil, fmt.Errorf("natty: %s: %w: %w", k.name(), ErrClosed, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	for n := 1; ; n++ {
		now, err := k.look(ctx)
		if err == nil && !now.held {
			var l *Lease
			if l, err = k.take(ctx, holder, now.revision); err == nil {
				return l, nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("natty: %s: %w", k.name(), ctx.Err())
		case err == nil:
			err = w.wait(ctx, now)
			n = 0
		case errors.Is(err, errLost): // another was faster
			err = nil
		case final(err) || missing(err):
			return nil, fmt.Errorf("natty: %s: %w", k.name(), err)
		default:
			w.found = time.Time{} // what was seen before says nothing about meanwhile
			err = sleep(ctx, retryAcquire.delay(n))
		}
		if err != nil {
			return nil, fmt.Errorf("natty: %s: %w", k.name(), err)
		}
	}
}

var retryAcquire = Backoff{Min: 20 * time.Millisecond, Max: time.Second}

// waiting is for an owner's end.
type waiting struct {
	key   *leaseKey
	hints chan *nats.Msg
	seen  string    // the owner's last write that is known
	since time.Time // when it was
	// revision is what the last look found, found when a look found that first, and told that it was reported.
	revision uint64
	found    time.Time
	told     bool
	// expected is the least revision that the owner's next write expects: hints of other writes are refused ones, which
	// must not put off the next look.
	expected uint64
	// released is the revision under which the owner gave the key back. The hint of that can be faster than the stream: as long
	// as the key has this revision, it is looked at again soon, and looks counts how often.
	released uint64
	looks    int
}

// releasePause is the pause before a key is looked at again that was released.
var releasePause = Backoff{Min: 2 * time.Millisecond, Max: time.Second}

// wait returns when it is worth a look.
func (w *waiting) wait(ctx context.Context, now holding) error {
	if now.write != w.seen || w.since.IsZero() { // its hint was missed
		w.seen, w.since = now.write, time.Now().Add(-min(max(now.age, 0), w.key.ttl))
	}
	w.expected = max(w.expected, now.revision)
	w.tellStuck(now)
	left := w.left()
	if now.revision == w.released {
		w.looks++
		left = min(left, releasePause.delay(w.looks))
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	_, changed := w.key.c.link.watch()
	for {
		select {
		case m := <-w.hints:
			if header(m.Header, headerOperation) != "" { // released
				w.released, _ = strconv.ParseUint(header(m.Header, jetstream.ExpectedLastSubjSeqHeader), 10, 64)
				w.looks = 0
				return nil
			}
			if w.hint(m) {
				timer.Reset(w.left())
			}
		case <-timer.C:
			return nil
		case <-changed: // hints may have been missed
			w.found = time.Time{}
			return w.key.c.link.wait(ctx, time.Time{})
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tellStuck reports a key that does not expire: somebody who is not natty has put it there, and it would be waited for in
// silence for ever.
func (w *waiting) tellStuck(now holding) {
	k := w.key
	if now.revision != w.revision {
		w.revision, w.told, w.found = now.revision, false, time.Time{}
	}
	if w.found.IsZero() {
		w.found = time.Now()
	}
	if held := time.Since(w.found); held > 2*k.ttl && !w.told {
		w.told = true
		k.trouble(fmt.Errorf("natty: %s does not expire: it was put there by hand, or by another program, without a TTL, and has had revision %d for %v, though nobody renews it; delete the key",
			k.name(), now.revision, held.Round(time.Second)))
	}
}

// hint takes note of a write that may be the owner's.
func (w *waiting) hint(m *nats.Msg) bool {
	expected, err := strconv.ParseUint(header(m.Header, jetstream.ExpectedLastSubjSeqHeader), 10, 64)
	if err != nil || expected < w.expected {
		return false
	}
	w.seen, w.since, w.expected = header(m.Header, headerLease), time.Now(), expected+1
	return true
}

// left is how long it takes at most until the owner's last write expires; after that, when to look again: the server
// removes what has expired a little later.
func (w *waiting) left() time.Duration {
	if left := w.key.ttl - time.Since(w.since); left > 0 {
		return left
	}
	if w.told { // only somebody's write will change that, which is heard
		return w.key.ttl
	}
	return max(w.key.ttl/40, 25*time.Millisecond)
}
