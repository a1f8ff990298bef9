package natty_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestLockIsHeldByOneAtATime(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	const clients, turns = 4, 10
	var inside atomic.Int32
	var mu sync.Mutex
	var token uint64
	var wg sync.WaitGroup
	for range clients {
		c := testkit.ConnectTo(t, server.URL())
		wg.Go(func() {
			for range turns {
				l, err := c.Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
				if err != nil {
					t.Error(err)
					return
				}
				assert.EqualValues(t, 1, inside.Add(1))
				mu.Lock()
				assert.Greater(t, l.Token(), token)
				token = l.Token()
				mu.Unlock()
				inside.Add(-1)
				assert.NoError(t, l.Release(testkit.Ctx(t)))
				assert.NoError(t, l.Release(testkit.Ctx(t)), "again does nothing")
			}
		})
	}
	wg.Wait()
}

func TestLockThatIsBeingTakenWhenTheClientClosesIsFree(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	others := testkit.ConnectTo(t, server.URL())
	for round := range 5 {
		c := testkit.ConnectTo(t, server.URL())
		var wg sync.WaitGroup
		first, taken := make(chan struct{}), sync.Once{}
		for i := range 50 {
			wg.Go(func() {
				key := fmt.Sprintf("%d.%d", round, i)
				_, err := c.Lock(testkit.Ctx(t), natty.LockConfig{Bucket: "locks", Key: key, TTL: time.Hour})
				assert.True(t, err == nil || errors.Is(err, natty.ErrClosed), "%v", err)
				taken.Do(func() { close(first) })
			})
		}
		testkit.Receive(t, first)
		require.NoError(t, c.Close(testkit.Ctx(t)))
		wg.Wait()
		locked, err := others.Keys(testkit.Ctx(t), "locks")
		require.NoError(t, err)
		require.Empty(t, locked)
		_, err = c.TryLock(testkit.Ctx(t), testkit.Door(time.Second))
		require.ErrorIs(t, err, natty.ErrClosed)
	}
}

// Whoever releases a lock is the first to know, and would be the first to have it again.
func TestReleasedLockGoesToOneThatIsFartherAway(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	near, far := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, link.URL())
	link.Delay(time.Millisecond)
	var turns atomic.Int32 // of far
	done := make(chan struct{})
	go func() {
		defer close(done)
		for turns.Load() < 3 {
			l, err := far.Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
			if !assert.NoError(t, err) {
				return
			}
			turns.Add(1)
			assert.NoError(t, l.Release(testkit.Ctx(t)))
		}
	}()
	const limit = 100
	n := 0
	for ; n < limit && turns.Load() < 3; n++ {
		l, err := near.Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
		require.NoError(t, err)
		require.NoError(t, l.Release(testkit.Ctx(t)))
	}
	assert.Less(t, n, limit, "turns of the one that is near")
	<-done
}

func TestTryLockDoesNotWait(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	a, b := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL())
	l, err := a.TryLock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err)
	_, err = b.TryLock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.ErrorIs(t, err, natty.ErrLocked)
	require.ErrorContains(t, err, "test", "who has it")
	<-time.After(testkit.LeaseTTL * 3 / 2)
	require.NoError(t, l.Context().Err(), "it is renewed")
	_, err = b.TryLock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.ErrorIs(t, err, natty.ErrLocked)
	require.NoError(t, l.Release(testkit.Ctx(t)))
	require.Error(t, l.Context().Err())
	l, err = b.TryLock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err)
	require.NoError(t, l.Release(testkit.Ctx(t)))
}

func TestLockOfACutOffProcessIsLostBeforeAnotherOneHasIt(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	first, err := testkit.ConnectTo(t, link.URL()).Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err)
	link.Freeze()
	second, err := testkit.ConnectTo(t, server.URL()).Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err)
	require.ErrorIs(t, context.Cause(first.Context()), natty.ErrDeposed)
	assert.Greater(t, second.Token(), first.Token())
	link.Thaw()
	err = first.Release(testkit.Ctx(t))
	require.ErrorIs(t, err, natty.ErrDeposed)
	require.ErrorContains(t, err, "the lease is lost: it could not be renewed in time")
	require.NoError(t, second.Context().Err())
	require.NoError(t, second.Release(testkit.Ctx(t)))
}

func TestLockIsNotWaitedForBeyondTheCtx(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	l, err := c.Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.Lock(ctx, testkit.Door(testkit.LeaseTTL))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, l.Release(testkit.Ctx(t)))
}

func TestLockThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	_, err := c.JetStream().CreateKeyValue(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "short", TTL: time.Second, LimitMarkerTTL: time.Second})
	require.NoError(t, err)
	_, err = c.JetStream().CreateKeyValue(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "plain"})
	require.NoError(t, err)
	for want, cfg := range map[string]natty.LockConfig{
		"bucket: is empty":  {Key: "a"},
		"LimitMarkerTTL":    {Bucket: "plain", Key: "a"},
		"key: is empty":     {Bucket: "b"},
		"whole seconds":     {Bucket: "b", Key: "a", TTL: 1},
		"ends a lock of 2s": {Bucket: "short", Key: "a", TTL: testkit.LeaseTTL},
	} {
		t.Run(fmt.Sprint(cfg), func(t *testing.T) {
			t.Parallel()
			_, err := c.Lock(testkit.Ctx(t), cfg)
			require.ErrorContains(t, err, want)
		})
	}
}

func TestTTLsAreRefusedOrWorkWhateverTheyAre(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	for i, ttl := range []time.Duration{1, -1, math.MinInt64, time.Second, math.MaxInt64 - 1, math.MaxInt64} {
		ctx, name := testkit.Ctx(t), fmt.Sprint("b", i)
		var bad *natty.ConfigError
		refused := func(err error, what string) {
			t.Helper()
			if ttl < time.Second {
				require.ErrorAs(t, err, &bad, "%s %d", what, ttl)
			} else {
				require.NoError(t, err, "%s %d", what, ttl)
			}
		}
		l, err := c.TryLock(ctx, natty.LockConfig{Bucket: "locks", Key: name, Owner: "a", TTL: ttl})
		if refused(err, "lock"); err == nil {
			require.NoError(t, l.Context().Err())
			require.NoError(t, l.Release(ctx))
		}
		cfg := testkit.Electing("a")
		cfg.Bucket, cfg.BucketTTL = name, ttl
		refused(c.Lead(ctx, cfg, func(ctx context.Context, _ *natty.Term) error { return ctx.Err() }), "lead")
		if err = c.Put(ctx, "kv", name, nil, ttl); ttl < time.Second || err != nil {
			require.ErrorAs(t, err, &bad, "put %d", ttl)
		} else {
			_, err = c.Get(ctx, "kv", name)
			require.NoError(t, err, "put %d", ttl)
		}
		b, err := natty.NewBucket[int](c, natty.BucketConfig{Bucket: "own" + name, TTL: ttl})
		if err == nil {
			if err = b.Put(ctx, "k", 1); err == nil {
				_, err = b.Get(ctx, "k")
			}
		}
		refused(err, "bucket")
	}
}
