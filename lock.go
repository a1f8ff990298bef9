package natty

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// LockConfig says what to lock.
type LockConfig struct {
	// Bucket holds locks, and is made if it is missing; Key is what to lock. Owner is what the key says while it is locked, for
	// people to read. Default Config.Name.
	Bucket, Key, Owner string
	// TTL is how long the lock of a process lasts that has died: whole seconds, at least 1s. Default 10s.
	TTL time.Duration
	// ReplicaCount of the bucket, if it is made. Default Config.Replicas.
	ReplicaCount int
}

// Lock waits until this call has the lock, and nobody else: no other call, of this process or another one. It is kept
// until Release, and while it can be renewed: what is done under it is to heed the Lease's Context, or to be checked
// against its Token. Close releases what is still locked.
//
// Waiting costs the server nothing. A lock that is released is taken at once by one of those that wait; whoever had
// it last stands back for a moment.
func (c *Client) Lock(ctx context.Context, cfg LockConfig) (*Lease, error) {
	return c.lock(ctx, cfg, func(ctx context.Context, k *leaseKey, owner string) (*Lease, error) { return k.acquire(ctx, owner) })
}

// TryLock is Lock without waiting: ErrLocked says that somebody else has it.
func (c *Client) TryLock(ctx context.Context, cfg LockConfig) (*Lease, error) {
	return c.lock(ctx, cfg, func(ctx context.Context, k *leaseKey, owner string) (*Lease, error) {
		ctx, cancel := withDefaultTimeout(ctx, apiTimeout)
		defer cancel()
		now, err := k.look(ctx)
		if err != nil {
			return nil, fmt.Errorf("natty: %s: %w", k.name(), err)
		}
		if now.held {
			return nil, fmt.Errorf("natty: %s: %w (%s)", k.name(), ErrLocked, now.holder)
		}
		l, err := k.take(ctx, owner, now.revision)
		if errors.Is(err, errLost) {
			return nil, fmt.Errorf("natty: %s: %w", k.name(), ErrLocked)
		}
		if err != nil {
			return nil, fmt.Errorf("natty: %s: %w", k.name(), err)
		}
		return l, nil
	})
}

func (c *Client) lock(ctx context.Context, cfg LockConfig, acquire func(ctx context.Context, k *leaseKey, owner string) (*Lease, error)) (*Lease, error) {
	cfg.Owner, cfg.TTL = cmp.Or(cfg.Owner, c.cfg.Name), cmp.Or(cfg.TTL, defaultLeaseTTL)
	if err := cmp.Or(validLease(cfg.Bucket, cfg.Key, "Owner", cfg.Owner), validLeaseTTL("TTL", cfg.TTL)); err != nil {
		return nil, err
	}
	bucket := leaseBucket{name: cfg.Bucket, perKey: cfg.TTL, replicas: cfg.ReplicaCount}
	if err := c.ensureLeaseBucket(ctx, bucket); err != nil {
		return nil, err
	}
	k := c.leaseKey(cfg.Bucket, cfg.Key, cfg.TTL, true)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	if err := c.standBack(ctx, &k); err != nil {
		return nil, err
	}
	l, err := acquire(ctx, &k, cfg.Owner)
	if err != nil && c.life.Err() != nil {
		return nil, fmt.Errorf("natty: %s: %w", k.name(), ErrClosed)
	}
	if err != nil {
		return nil, err
	}
	l.locked = true
	context.AfterFunc(l.ctx, l.tellLoss)
	l.keep()
	if err := c.keepLease(l); err != nil {
		_ = l.Release(ctx)
		return nil, err
	}
	return l, nil
}

// tellLoss tells the log and the Observer of a lock that ended and was not released.
func (l *Lease) tellLoss() {
	if cause := context.Cause(l.ctx); errors.Is(cause, ErrDeposed) {
		k := &l.key
		k.trouble(cause)
		k.c.events.add(LockEvent{Bucket: k.bucket, Key: k.key, Owner: l.holder, Token: l.token, Err: cause})
	}
}

// courtesy is for how long a lock is not taken again where it was released: those who wait need a moment to learn
// of it, and who has it most often is always the fastest.
const courtesy = 10 * time.Millisecond

// standBackFrom notes that a lock was released.
func (c *Client) standBackFrom(k *leaseKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(c.released, func(_ string, at time.Time) bool { return now.Sub(at) > time.Second })
	c.released[k.subject] = now
}

// standBack waits for the rest of that time.
func (c *Client) standBack(ctx context.Context, k *leaseKey) error {
	c.mu.Lock()
	last := c.released[k.subject]
	c.mu.Unlock()
	if last.IsZero() {
		return nil
	}
	return sleep(ctx, courtesy-time.Since(last))
}
