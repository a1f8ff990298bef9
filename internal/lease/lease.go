// Package lease owns keys that at most one process owns at a time: acquiring, renewing,
// fencing and releasing them. It does not know what a key is owned for: the root makes
// locks and elections of leases. Read first:
//
//	lease.go    a lease from Take to its end
//	standby.go  waiting for one; hints.go hears of changes early
//	key.go      a lease's key, and how it is read and written
//	term.go     writes that fail once a later leader exists
//	bucket.go   the bucket of the keys
package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/natty-go/natty/internal/expiry"
	"github.com/natty-go/natty/internal/kv"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/publish"
)

// Lease is what a process has that owns a key. After Keep it renews itself every third
// of its TTL.
type Lease struct {
	Key   Key
	Owner string
	Token uint64
	Ctx   context.Context //nolint:containedctx // it ends with the lease
	end   context.CancelCauseFunc
	Trust expiry.Guard

	stop       chan struct{}      // asks renew to end
	stopRenew  context.CancelFunc // stops the renewal under way
	renewEnded chan struct{}      // nil before Keep
	revision   uint64             // the renewing goroutine's, while that runs
}

// ErrDeposed says that a lease is lost: it could not be renewed in time, or somebody
// else has it.
var ErrDeposed = errors.New("the lease is lost")

// renewing is the kind of trouble of a lease that could not be renewed, and may be yet.
const renewing = "renew"

var (
	errNotRenewed = errors.New("it could not be renewed in time")
	errReleased   = errors.New("natty: the lease was released")
)

// Take makes this process the owner if the key still is at revision, at which nobody
// owned it. The lease is not renewed before Keep.
func (k *Key) Take(ctx context.Context, owner string, revision uint64) (*Lease, error) {
	span := k.ttl - k.ttl/5
	once, cancel := context.WithTimeout(ctx, span)
	defer cancel()
	w := k.write(owner, revision)
	taken, sent, err := k.store(once, w)
	if err != nil {
		if ctx.Err() != nil && !sent.IsZero() {
			k.undo(w)
		}
		return nil, err
	}
	l := &Lease{Key: *k, Owner: owner, Token: taken, revision: taken, stop: make(chan struct{})}
	l.Ctx, l.end = context.WithCancelCause(context.WithoutCancel(ctx))
	l.Trust.Begin(sent, span, func() { l.lose(errNotRenewed) })
	return l, nil
}

// undo takes back a write for a caller who does not wait any more. Otherwise others would
// wait until the key expires. A look alone could overtake a write that is on its way, so
// undo first writes behind it: either w is stored by then, or never will be.
func (k *Key) undo(w *kv.Write) {
	ctx, cancel := context.WithTimeout(context.Background(), min(k.ttl/8, publish.AttemptTimeout.Min))
	defer cancel()
	if _, _, err := k.store(ctx, k.removal(w.Expected)); err == nil {
		return
	}
	if now, err := k.Look(ctx); err == nil && now.write == w.ID {
		_, _, _ = k.store(ctx, k.removal(now.Revision))
	}
}

// Keep begins to renew.
func (l *Lease) Keep() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.Ctx))
	l.stopRenew, l.renewEnded = cancel, make(chan struct{})
	go func() {
		defer close(l.renewEnded)
		defer cancel()
		l.renew(ctx)
	}()
}

func (l *Lease) renew(ctx context.Context) {
	k := &l.Key
	every := time.NewTicker(k.ttl / 3)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-l.stop:
			return
		case <-l.Ctx.Done():
			return
		case <-ctx.Done():
			return
		}
		once, cancel := context.WithTimeout(ctx, l.Trust.Left(time.Now()))
		if err := k.sameBucket(once); err != nil {
			cancel()
			l.lose(err)
			return
		}
		if mutant.BlindRenewal {
			l.Trust.Renew(time.Now())
		}
		revision, sent, err := k.store(once, k.write(l.Owner, l.revision))
		cancel()
		switch {
		case err == nil:
			l.revision = revision
			l.Trust.Renew(sent)
			k.troubles.Resolve(renewing)
		case errors.Is(err, kv.ErrRefused):
			l.lose(err)
			return
		case ctx.Err() != nil: // Release ended it
		case l.Trust.Holds(time.Now()):
			k.trouble(renewing, fmt.Errorf("natty: %s: the lease could not be renewed: %w", k.Name(), err))
		default: // Ctx says that the lease is lost
			k.kv().Log.Warn("natty: a lease could not be renewed in time",
				"bucket", k.Bucket, "key", k.Key, "error", err)
		}
	}
}

// lose ends the lease's ctx. Somebody else may own the key soon.
func (l *Lease) lose(why error) {
	l.Trust.End()
	l.end(fmt.Errorf("natty: %s: %w", l.Key.Name(), fmt.Errorf("%w: %w", ErrDeposed, why)))
}

// Release ends the lease: the next owner follows at once.
func (l *Lease) Release(ctx context.Context) error {
	if l.renewEnded != nil {
		close(l.stop)
		select {
		case <-l.renewEnded:
		case <-ctx.Done():
		}
		l.stopRenew()
		<-l.renewEnded
	}
	if !l.Trust.Holds(time.Now()) {
		l.lose(errNotRenewed) // if it was not lost before, for another reason
		return fmt.Errorf("natty: release %s: %w", l.Key.Name(), errors.Unwrap(context.Cause(l.Ctx)))
	}
	l.Trust.End()
	l.end(errReleased)
	ctx, cancel := context.WithTimeout(ctx, l.Key.ttl) // by then it has expired
	defer cancel()
	err := l.Key.sameBucket(ctx)
	if err != nil {
		return fmt.Errorf("natty: release %s: %w: %w", l.Key.Name(), ErrDeposed, err)
	}
	_, _, err = l.Key.store(ctx, l.Key.removal(l.revision))
	switch {
	case errors.Is(err, kv.ErrRefused):
		return fmt.Errorf("natty: release %s: %w", l.Key.Name(), ErrDeposed)
	case err != nil:
		return fmt.Errorf("natty: release %s, which expires by itself: %w", l.Key.Name(), err)
	}
	return nil
}
