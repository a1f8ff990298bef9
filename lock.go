package natty

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/kv"
	"github.com/natty-go/natty/internal/lease"
)

// LockConfig says what to lock.
type LockConfig struct {
	// Bucket holds this lock, and maybe others. It is made if it is missing.
	Bucket string
	// Key is what to lock.
	Key string
	// Owner is the value of the key while it is locked, for people to read. Default
	// Config.Name.
	Owner string
	// TTL is how long the lock survives its owner's crash: whole seconds, at least 1s.
	// Default 10s.
	TTL time.Duration
	// ReplicaCount is the number of copies of a new bucket. Default Config.Replicas.
	ReplicaCount int
}

// Lock waits until this call has the lock, and no other call, in this process or
// another one. It keeps the lock until Release, and while it can be renewed. Work under
// the lock must heed the Lease's Context, or be checked against its Token. Close
// releases locks that are still held.
//
// Waiting costs the server nothing. When a lock is released, one of the waiting calls
// takes it at once. The Client that released it waits for a moment before it takes the
// lock again.
func (c *Client) Lock(ctx context.Context, cfg LockConfig) (*Lease, error) {
	return c.lock(ctx, cfg, func(ctx context.Context, k *lease.Key, owner string) (*lease.Lease, error) {
		return k.Acquire(ctx, owner)
	})
}

// TryLock is Lock without waiting: ErrLocked says that somebody else has the lock.
func (c *Client) TryLock(ctx context.Context, cfg LockConfig) (*Lease, error) {
	return c.lock(ctx, cfg, func(ctx context.Context, k *lease.Key, owner string) (*lease.Lease, error) {
		ctx, cancel := jsapi.WithTimeout(ctx, jsapi.APITimeout)
		defer cancel()
		err := k.Ready(ctx)
		var now lease.KeyState
		if err == nil {
			now, err = k.Look(ctx)
		}
		if err == nil && now.Owned {
			err = fmt.Errorf("%w (%s)", ErrLocked, now.Owner)
		}
		var l *lease.Lease
		if err == nil {
			l, err = k.Take(ctx, owner, now.Revision)
		}
		if errors.Is(err, kv.ErrRefused) {
			err = ErrLocked
		}
		if err != nil {
			return nil, k.About(err)
		}
		return l, nil
	})
}

func (c *Client) lock(ctx context.Context, cfg LockConfig,
	acquire func(ctx context.Context, k *lease.Key, owner string) (*lease.Lease, error),
) (*Lease, error) {
	cfg.Owner, cfg.TTL = cmp.Or(cfg.Owner, c.cfg.Name), min(cmp.Or(cfg.TTL, defaultLeaseTTL), longest)
	err := cmp.Or(c.validLease(cfg.Bucket, cfg.Key, "Owner", cfg.Owner), validLeaseTTL("TTL", cfg.TTL))
	if err != nil {
		return nil, err
	}
	log := c.log.With("bucket", cfg.Bucket, "key", cfg.Key)
	var deafness string
	k := c.leases.Key(
		lease.Bucket{Name: cfg.Bucket, Replicas: cfg.ReplicaCount, TTL: cfg.TTL, PerKey: true}, cfg.Key,
		lease.Events{
			Trouble: func(err error) { log.Warn("natty: lock", "error", err) },
			Standby: func(deaf string) {
				if deaf != "" && deafness == "" {
					log.Info("natty: "+lookingOften, "reason", deaf)
				}
				deafness = deaf
			},
		})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	// Close waits for this call, so that there still is a connection to take back what the
	// call has stored.
	if err := c.whileOpen(func() { c.locking.Add(1) }); err != nil {
		return nil, err
	}
	defer c.locking.Done()
	var taken *lease.Lease
	if err = c.standBack(ctx, &k); err == nil {
		taken, err = acquire(ctx, &k, cfg.Owner)
	}
	switch {
	case err != nil && c.life.Err() != nil:
		return nil, k.About(ErrClosed)
	case err != nil:
		return nil, err
	}
	return c.locked(ctx, taken)
}

// locked makes the caller's Lease of what was taken, unless the Client is closing: then
// the lock is released.
func (c *Client) locked(ctx context.Context, taken *lease.Lease) (*Lease, error) {
	l := &Lease{l: taken, c: c, locked: true}
	context.AfterFunc(taken.Ctx, l.reportLoss)
	taken.Keep()
	err := c.locks.enter(l)
	if err == nil {
		return l, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), jsapi.APITimeout)
	defer cancel()
	_ = l.Release(ctx) // a lock that the server does not hear of expires by itself
	return nil, err
}

// reportLoss reports a lock that ended without a Release to the log and the Observer.
func (l *Lease) reportLoss() {
	if cause := context.Cause(l.l.Ctx); errors.Is(cause, ErrDeposed) {
		k := &l.l.Key
		k.Trouble(cause)
		l.c.events.Add(LockEvent{Bucket: k.Bucket, Key: k.Key, Owner: l.l.Owner, Token: l.l.Token, Err: cause})
	}
}

// lookingOften says what a standby does that cannot hear of the end of a lease.
const lookingOften = "the end of a lease cannot be heard of; looking for it twice a second"

// courtesy is how long a Client waits before it takes a lock again that it has
// released. Others need a moment to learn of the release. Without it, the last owner
// would always be the fastest.
const courtesy = 10 * time.Millisecond

// standBackFrom notes that this Client released a lock.
func (c *Client) standBackFrom(subject string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(c.released, func(_ string, at time.Time) bool { return now.Sub(at) > time.Second })
	c.released[subject] = now
}

// standBack waits for the rest of the courtesy.
func (c *Client) standBack(ctx context.Context, k *lease.Key) error {
	c.mu.Lock()
	last := c.released[k.Subject]
	c.mu.Unlock()
	if last.IsZero() {
		return nil
	}
	if err := backoff.Sleep(ctx, courtesy-time.Since(last)); err != nil {
		return k.About(err)
	}
	return nil
}

// Lease is the ownership of a key by a process: a lock, or the leadership of an
// election. The key expires on the server unless it is renewed. A Lease renews it by
// itself, every third of its TTL.
type Lease struct {
	l      *lease.Lease
	c      *Client
	locked bool // by Lock, which stands back

	release    sync.Once
	releaseErr error
}

// Context returns a ctx that ends when the lease can no longer be trusted: a fifth of
// its TTL before another owner can follow, counted from when the last successful
// renewal was sent, whatever the network does. Its cause then matches ErrDeposed. It
// ends with Release too.
func (l *Lease) Context() context.Context { return l.l.Ctx }

// Token returns a number that grows with every owner of the key. A service that gets
// tokens with its requests can refuse the lower ones.
func (l *Lease) Token() uint64 { return l.l.Token }

// Release ends the lease, its Context first; the next owner follows at once. A second
// Release does nothing. ErrDeposed says that the lease was lost before. After any other
// error the server may not know of the release, and the key expires by itself.
func (l *Lease) Release(ctx context.Context) error {
	l.release.Do(func() {
		defer l.c.locks.leave(l)
		if l.locked {
			defer l.c.standBackFrom(l.l.Key.Subject)
		}
		l.releaseErr = l.l.Release(ctx)
	})
	return l.releaseErr
}

// validLease checks the names of a lease. The owner is given in the field ownerField;
// "" if there is none.
func (c *Client) validLease(bucket, key, ownerField, owner string) error {
	switch err := c.kv.ValidKey(bucket, key); {
	case err != nil:
		return err
	case strings.HasSuffix(key, lease.TermSuffix):
		return invalid("key", key,
			"ends in "+lease.TermSuffix+", which natty uses; use another name", nil)
	case ownerField != "" && owner == "":
		return invalid(ownerField, "", "is empty; say who this is", nil)
	}
	return nil
}

func validLeaseTTL(field string, ttl time.Duration) error {
	if ttl < time.Second || ttl%time.Second != 0 {
		return invalid(field, ttl.String(),
			"is not a number of whole seconds, at least one, which is all that the server knows", nil)
	}
	return nil
}
