package natty_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// cached is a copy, and a look at whether it holds what is wanted.
func cached[T any](t testing.TB, ctx context.Context, b *natty.Bucket[T]) *natty.Cache[T] { //nolint:revive // as testing does
	t.Helper()
	cache, err := b.Cached(ctx)
	require.NoError(t, err)
	return cache
}

func holds[T comparable](cache *natty.Cache[T], key string, want T) func() bool {
	return func() bool {
		v, ok := cache.Get(key)
		return ok && v == want
	}
}

func lacks[T any](cache *natty.Cache[T], key string) func() bool {
	return func() bool {
		_, ok := cache.Get(key)
		return !ok
	}
}

func TestACacheIsCompleteAndFollows(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	b := typed[int](t, c, natty.BucketConfig{Bucket: "b"})
	for i := range 300 {
		require.NoError(t, b.Put(ctx, fmt.Sprint(i), i))
	}
	require.NoError(t, b.Delete(ctx, "0"))
	life, end := context.WithCancel(ctx)
	defer end()
	subscriptions := c.Conn().NumSubscriptions()
	cache := cached(t, life, b)
	for i := 1; i < 300; i++ {
		require.True(t, holds(cache, fmt.Sprint(i), i)(), i)
	}
	require.True(t, lacks(cache, "0")())
	assert.Less(t, cache.Age(), time.Second)

	require.NoError(t, b.Put(ctx, "1", -1))
	require.NoError(t, b.Delete(ctx, "2"))
	require.NoError(t, b.Put(ctx, "3", 3, time.Second))
	testkit.Eventually(t, holds(cache, "1", -1), "a change arrives")
	testkit.Eventually(t, lacks(cache, "2"), "a deletion arrives")
	testkit.Eventually(t, lacks(cache, "3"), "an expiry arrives")
	assert.Less(t, cache.Age(), 2*time.Second)

	end()
	testkit.Eventually(t, func() bool { return c.Conn().NumSubscriptions() == subscriptions }, "it ends with ctx")
	require.True(t, holds(cache, "1", -1)(), "and stays as it is")
	age := cache.Age()
	<-time.After(10 * time.Millisecond)
	assert.Greater(t, cache.Age(), age)
}

func TestACacheOfAMissingBucketIsEmptyAndFills(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	b := typed[int](t, c, natty.BucketConfig{Bucket: "b"})
	cache := cached(t, ctx, b)
	assert.Less(t, cache.Age(), 2*time.Second)
	assert.Empty(t, maps.Collect(cache.All()))
	changed := cache.Changed()
	looks, err := c.Conn().SubscribeSync("$JS.API.*.*.KV_b")
	require.NoError(t, err)
	for range 3 {
		_, err := looks.NextMsg(testkit.Patience)
		require.NoError(t, err)
	}
	select {
	case <-changed:
		assert.Fail(t, "a look that finds no bucket changes nothing")
	default:
	}
	require.NoError(t, b.Put(ctx, "k", 1))
	testkit.Receive(t, changed)
	assert.Equal(t, map[string]int{"k": 1}, maps.Collect(cache.All()))
}

func TestACacheTellsOfEveryChange(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	b := typed[int](t, c, natty.BucketConfig{Bucket: "b"})
	require.NoError(t, b.Put(ctx, "k", 1))
	cache := cached(t, ctx, b)
	changed := cache.Changed()
	assert.Equal(t, changed, cache.Changed(), "until there is a change")
	assert.False(t, testkit.IsClosed(changed))
	require.NoError(t, b.Put(ctx, "k", 2))
	testkit.Receive(t, changed)
	require.True(t, holds(cache, "k", 2)())
	changed = cache.Changed()
	require.NoError(t, b.Delete(ctx, "k"))
	testkit.Receive(t, changed)
	require.True(t, lacks(cache, "k")())

	require.NoError(t, b.Put(ctx, "a", 1))
	require.NoError(t, b.Put(ctx, "b", 2))
	testkit.Eventually(t, holds(cache, "b", 2), "it arrives")
	seen := 0
	for key := range cache.All() {
		_, ok := cache.Get(key)
		assert.True(t, ok, "the copy can be read, and changed, meanwhile")
		require.NoError(t, b.Put(ctx, fmt.Sprint("new", seen), 3))
		seen++
	}
	assert.Equal(t, 2, seen)
}

// rude is a codec that does what values tell it to.
type rude struct{}

func (rude) Marshal(v any) ([]byte, error) { return fmt.Append(nil, v), nil }
func (rude) ContentType() string           { return "" }

func (rude) Unmarshal(data []byte, v any) error {
	switch s := string(data); s {
	case "error":
		return errors.New("bad value")
	case "panic":
		panic("bad value")
	case "goexit":
		runtime.Goexit()
	default:
		*v.(*string) = s //nolint:forcetypeassert // a test's
	}
	return nil
}

func TestABadValueLeavesTheLastGoodOneInTheCache(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"error", "panic", "goexit"} {
		t.Run(bad, func(t *testing.T) {
			t.Parallel()
			var log logged
			c, ctx := testkit.Connect(t, natty.Config{Servers: []string{nattytest.Server(t).URL()}}, natty.WithLogger(log.logger())), testkit.Ctx(t)
			b := typed[string](t, c, natty.BucketConfig{Bucket: "b", Codec: rude{}})
			require.NoError(t, b.Put(ctx, "k", "good"))
			require.NoError(t, b.Put(ctx, "bad-from-the-start", bad))
			cache := cached(t, ctx, b)
			for range 3 {
				require.NoError(t, b.Put(ctx, "k", bad))
			}
			require.NoError(t, b.Put(ctx, "mark", "1"))
			testkit.Eventually(t, holds(cache, "mark", "1"), "the copy goes on")
			require.True(t, holds(cache, "k", "good")())
			require.NoError(t, b.Put(ctx, "k", "better"))
			testkit.Eventually(t, holds(cache, "k", "better"), "the next good one comes")
			require.NoError(t, b.Delete(ctx, "k"))
			testkit.Eventually(t, lacks(cache, "k"), "a key that is gone is gone")
			assert.Equal(t, 2, strings.Count(log.String(), `msg="natty: a value cannot be decoded`), "once for each key")
		})
	}
}

func TestACacheSurvivesWhatHappensToItsServerAndItsBucket(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c, ctx := testkit.ConnectTo(t, node.URL()), testkit.Ctx(t)
	testkit.Ensure(t, c, "STAYS", "stays")
	b := typed[int](t, c, natty.BucketConfig{Bucket: "b"})
	require.NoError(t, b.Put(ctx, "k", 1))
	require.NoError(t, b.Put(ctx, "gone", 1))
	cache := cached(t, ctx, b)
	node.Stop()
	require.True(t, holds(cache, "k", 1)(), "it is read without a server")
	testkit.Eventually(t, func() bool { return cache.Age() > 1500*time.Millisecond }, "its age tells")
	require.NoError(t, node.Restart())
	require.NoError(t, b.Put(ctx, "k", 2))
	testkit.Eventually(t, holds(cache, "k", 2), "it goes on")
	testkit.Eventually(t, func() bool { return cache.Age() < time.Second }, "it is young again")

	require.NoError(t, c.DeleteBucket(ctx, "b"))
	testkit.Eventually(t, lacks(cache, "k"), "a dropped bucket is empty")
	require.NoError(t, b.Put(ctx, "k", 3))
	testkit.Eventually(t, holds(cache, "k", 3), "it is filled again")
	require.True(t, lacks(cache, "gone")())
}

func TestACacheEndsWithItsClient(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	var log logged
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test", Servers: []string{node.URL()}}, natty.WithLogger(log.logger()))
	require.NoError(t, err)
	b := typed[int](t, c, natty.BucketConfig{Bucket: "b"})
	require.NoError(t, b.Put(testkit.Ctx(t), "k", 1))
	cache := cached(t, testkit.Ctx(t), b)
	require.NoError(t, c.Close(testkit.Ctx(t)))
	assert.NotContains(t, log.String(), "WARN", "that is no fault")
	require.True(t, holds(cache, "k", 1)())
	_, err = b.Cached(testkit.Ctx(t))
	require.ErrorIs(t, err, natty.ErrClosed)
}

func TestACacheIsReadWhileItChanges(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	b := typed[int](t, c, natty.BucketConfig{Bucket: "b"})
	require.NoError(t, b.Put(ctx, "k", 0))
	cache := cached(t, ctx, b)
	var writing atomic.Bool
	writing.Store(true)
	testkit.Race(5, func(i int) {
		if i == 0 {
			defer writing.Store(false)
			for n := range 200 {
				if err := b.Put(ctx, "k", n); err != nil {
					t.Error(err)
				}
			}
			return
		}
		for last := 0; writing.Load(); {
			v, ok := cache.Get("k")
			if !assert.True(t, ok) || !assert.GreaterOrEqual(t, v, last, "it never goes back") {
				return
			}
			last = v
		}
	})
}

func BenchmarkCacheGet(b *testing.B) {
	c := testkit.OnServer(b)
	users := typed[user](b, c, natty.BucketConfig{Bucket: "users"})
	for i := range 1000 {
		require.NoError(b, users.Put(testkit.Ctx(b), fmt.Sprint("user.", i), user{"Ada", i}))
	}
	cache := cached(b, b.Context(), users)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if v, ok := cache.Get("user.500"); !ok || v.Age != 500 {
				b.Error("missing")
				return
			}
		}
	})
}
