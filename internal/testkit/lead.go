package testkit

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty"
)

// LeaseTTL is as short as a machine that is busy with other tests allows.
const LeaseTTL = 2 * time.Second

// Electing is the election that the tests hold.
func Electing(node string) natty.AsLeaderConfig {
	return natty.AsLeaderConfig{Bucket: "elections", Key: "job", NodeName: node, BucketTTL: LeaseTTL}
}

// Reign checks that at most one leads at a time, and that tokens grow. Mu guards what
// follows it.
type Reign struct {
	T      testing.TB
	Active atomic.Int32
	Mu     sync.Mutex
	token  uint64
	Terms  []string
	Began  []time.Time
	Ended  []time.Time
}

// Lead returns a function for Client.Lead that leads until its ctx ends or stop is
// closed.
func (r *Reign) Lead(node string, stop <-chan struct{}) func(context.Context, *natty.Term) error {
	return func(ctx context.Context, term *natty.Term) error {
		r.Begin(node, term)
		defer r.End()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stop:
			return nil
		}
	}
}

// Begin notes that a node leads.
func (r *Reign) Begin(node string, term *natty.Term) {
	assert.EqualValues(r.T, 1, r.Active.Add(1), "one leader at a time")
	r.Mu.Lock()
	defer r.Mu.Unlock()
	assert.Greater(r.T, term.Token(), r.token, "tokens grow")
	r.token = term.Token()
	r.Terms, r.Began = append(r.Terms, node), append(r.Began, time.Now())
}

// End notes that it leads no more.
func (r *Reign) End() {
	r.Mu.Lock()
	r.Ended = append(r.Ended, time.Now())
	r.Mu.Unlock()
	r.Active.Add(-1)
}

// Count returns how many terms have begun.
func (r *Reign) Count() int {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	return len(r.Terms)
}

// Leader returns the last node that led, or "".
func (r *Reign) Leader() string {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	if len(r.Terms) == 0 {
		return ""
	}
	return r.Terms[len(r.Terms)-1]
}

// Lead runs c.Lead in the background until stop is called. stop returns its error.
func Lead(
	t testing.TB, c *natty.Client, cfg natty.AsLeaderConfig, f func(context.Context, *natty.Term) error,
) (stop func() error) {
	t.Helper()
	return Background(t, "Lead", func(ctx context.Context) error { return c.Lead(ctx, cfg, f) })
}

// Door is the lock that the tests share.
func Door(ttl time.Duration) natty.LockConfig {
	return natty.LockConfig{Bucket: "locks", Key: "door", TTL: ttl}
}
