package natty_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func door(ttl time.Duration) natty.LockConfig {
	return natty.LockConfig{Bucket: "locks", Key: "door", TTL: ttl}
}

func TestLockIsHeldByOneAtATimeAndNobodyStarves(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	const clients, turns = 4, 10
	var inside atomic.Int32
	var mu sync.Mutex
	var token uint64
	got := map[int]int{}
	var wg sync.WaitGroup
	for i := range clients {
		c := connectTo(t, server.URL())
		wg.Go(func() {
			for range turns {
				l, err := c.Lock(testCtx(t), door(leaseTTL))
				if err != nil {
					t.Error(err)
					return
				}
				assert.EqualValues(t, 1, inside.Add(1))
				mu.Lock()
				assert.Greater(t, l.Token(), token)
				token = l.Token()
				got[i]++
				// While all of them still want it, nobody is far ahead.
				for _, n := range got {
					if len(got) == clients && got[i] > n+turns-2 {
						assert.Fail(t, "one is left behind", "%v", got)
					}
				}
				mu.Unlock()
				inside.Add(-1)
				assert.NoError(t, l.Release(testCtx(t)))
				assert.NoError(t, l.Release(testCtx(t)), "again does nothing")
			}
		})
	}
	wg.Wait()
}

func TestTryLockDoesNotWait(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	a, b := connectTo(t, server.URL()), connectTo(t, server.URL())
	l, err := a.TryLock(testCtx(t), door(leaseTTL))
	require.NoError(t, err)
	_, err = b.TryLock(testCtx(t), door(leaseTTL))
	require.ErrorIs(t, err, natty.ErrLocked)
	require.ErrorContains(t, err, "test", "who has it")
	<-time.After(leaseTTL * 3 / 2)
	require.NoError(t, l.Context().Err(), "it is renewed")
	_, err = b.TryLock(testCtx(t), door(leaseTTL))
	require.ErrorIs(t, err, natty.ErrLocked)
	require.NoError(t, l.Release(testCtx(t)))
	require.Error(t, l.Context().Err())
	l, err = b.TryLock(testCtx(t), door(leaseTTL))
	require.NoError(t, err)
	require.NoError(t, l.Release(testCtx(t)))
}

func TestLockOfACutOffProcessIsLostBeforeAnotherOneHasIt(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	first, err := connectTo(t, link.URL()).Lock(testCtx(t), door(leaseTTL))
	require.NoError(t, err)
	link.Freeze()
	second, err := connectTo(t, server.URL()).Lock(testCtx(t), door(leaseTTL))
	require.NoError(t, err)
	require.ErrorIs(t, context.Cause(first.Context()), natty.ErrDeposed)
	assert.Greater(t, second.Token(), first.Token())
	link.Thaw()
	require.ErrorIs(t, first.Release(testCtx(t)), natty.ErrDeposed)
	require.NoError(t, second.Context().Err())
	require.NoError(t, second.Release(testCtx(t)))
}

func TestLockIsNotWaitedForBeyondTheCtx(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	l, err := c.Lock(testCtx(t), door(leaseTTL))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.Lock(ctx, door(leaseTTL))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, l.Release(testCtx(t)))
}

func TestLockThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	_, err := c.JetStream().CreateKeyValue(testCtx(t), jetstream.KeyValueConfig{Bucket: "short", TTL: time.Second, LimitMarkerTTL: time.Second})
	require.NoError(t, err)
	_, err = c.JetStream().CreateKeyValue(testCtx(t), jetstream.KeyValueConfig{Bucket: "plain"})
	require.NoError(t, err)
	l, err := c.Lock(testCtx(t), natty.LockConfig{Bucket: "plain", Key: "a", TTL: leaseTTL})
	require.NoError(t, err, "a bucket without markers gets them")
	require.NoError(t, l.Release(testCtx(t)))
	for want, cfg := range map[string]natty.LockConfig{
		"bucket: is empty":  {Key: "a"},
		"key: is empty":     {Bucket: "b"},
		"whole seconds":     {Bucket: "b", Key: "a", TTL: 1},
		"ends a lock of 2s": {Bucket: "short", Key: "a", TTL: leaseTTL},
	} {
		t.Run(fmt.Sprint(cfg), func(t *testing.T) {
			t.Parallel()
			_, err := c.Lock(testCtx(t), cfg)
			require.ErrorContains(t, err, want)
		})
	}
}
