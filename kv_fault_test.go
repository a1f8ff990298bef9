package natty_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// behindProxy returns a client behind a proxy and one that goes around it, with an empty bucket "b".
func behindProxy(t *testing.T) (c, direct *natty.Client, proxy *nattytest.Link) {
	t.Helper()
	node := nattytest.Server(t)
	direct, proxy = connectTo(t, node.URL()), nattytest.Proxy(t, node.URL())
	// When an account's last stream is deleted the server removes their folder at times from under the next one.
	ensure(t, direct, "STAYS", "stays")
	bucket(t, direct, jetstream.KeyValueConfig{Bucket: "b"})
	return connectTo(t, proxy.URL()), direct, proxy
}

// loseAnswer does a write whose answer is lost with the connection once stored says that it is stored; then meanwhile happens,
// before the client connects again.
func loseAnswer(t *testing.T, proxy *nattytest.Link, write func() error, stored func() bool, meanwhile func()) error {
	t.Helper()
	proxy.FreezeReplies()
	done := make(chan error, 1)
	go func() { done <- write() }()
	eventually(t, stored, "the write is stored")
	proxy.Refuse(true)
	proxy.Cut()
	proxy.Thaw()
	meanwhile()
	proxy.Refuse(false)
	return receive(t, done)
}

func TestALostAnswerToCreateIsFoundOutAbout(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(c *natty.Client) error{
		"of a new key":     func(*natty.Client) error { return nil },
		"of a deleted key": func(c *natty.Client) error { return errors.Join(c.Put(testCtx(t), "b", "k", nil), c.Delete(testCtx(t), "b", "k")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, direct, proxy := behindProxy(t)
			require.NoError(t, before(direct))
			err := loseAnswer(t, proxy,
				func() error { return c.Create(testCtx(t), "b", "k", []byte("mine"), time.Minute) },
				thawedUntilStored(t, proxy, direct, 0), func() {})
			require.NoError(t, err)
			assert.Equal(t, "mine", string(lastMessage(t, direct, "b", "k").Data))
			assert.Equal(t, "60s", ttlOf(t, direct, "b", "k"))
		})
	}
}

func TestACreateThatWasLostOnItsWayToADeletedKeyIsMadeAgain(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	require.NoError(t, direct.Put(testCtx(t), "b", "k", nil))
	require.NoError(t, direct.Delete(testCtx(t), "b", "k"))
	proxy.Freeze()
	done := make(chan error, 1)
	go func() { done <- c.Create(testCtx(t), "b", "k", []byte("mine")) }()
	<-time.After(700 * time.Millisecond) // beyond the first attempt
	proxy.Cut()
	proxy.Thaw()
	require.NoError(t, receive(t, done))
	assert.Equal(t, "mine", string(lastMessage(t, direct, "b", "k").Data))
}

func TestALostAnswerToCreateOfAKeyThatIsGoneAgainIsASuccess(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	err := loseAnswer(t, proxy,
		func() error { return c.Create(testCtx(t), "b", "k", []byte("mine")) },
		func() bool { return revisionOf(t, direct, "b", "k") > 0 },
		func() { assert.NoError(t, direct.Delete(testCtx(t), "b", "k")) })
	require.NoError(t, err)
	assert.True(t, isKeyGone(testCtx(t), direct, "b", "k"), "it is not made a second time")
}

func TestALostAnswerThatNobodyCanFindIsUnknown(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	err := loseAnswer(t, proxy,
		func() error { return c.Create(testCtx(t), "b", "k", []byte("mine")) },
		func() bool { return revisionOf(t, direct, "b", "k") > 0 },
		func() { assert.NoError(t, direct.Put(testCtx(t), "b", "k", []byte("theirs"))) })
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Equal(t, "theirs", string(lastMessage(t, direct, "b", "k").Data))
}

func TestALostAnswerToUpdateIsFoundOutAbout(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	require.NoError(t, c.Put(testCtx(t), "b", "k", []byte("1"), time.Minute))
	revision := revisionOf(t, direct, "b", "k")
	var updated uint64
	err := loseAnswer(t, proxy,
		func() (err error) {
			updated, err = c.Update(testCtx(t), "b", "k", []byte("2"), revision)
			return err
		},
		thawedUntilStored(t, proxy, direct, revision), func() {})
	require.NoError(t, err)
	assert.Equal(t, revisionOf(t, direct, "b", "k"), updated)
	assert.Equal(t, revision+1, updated, "it is stored once")
	assert.Equal(t, "60s", ttlOf(t, direct, "b", "k"))
}

// thawedUntilStored lets the answers to reads through, which come before the write, until the key is stored once more.
func thawedUntilStored(t *testing.T, proxy *nattytest.Link, direct *natty.Client, revision uint64) func() bool {
	return func() bool {
		if revisionOf(t, direct, "b", "k") > revision {
			return true
		}
		proxy.Thaw()
		proxy.FreezeReplies()
		return false
	}
}

func TestCallsWaitForAConnection(t *testing.T) {
	t.Parallel()
	c, _, proxy := behindProxy(t)
	require.NoError(t, c.Put(testCtx(t), "b", "k", []byte("v"), time.Minute))
	proxy.Refuse(true)
	proxy.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Get(ctx, "b", "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, c.Refresh(ctx, "b", "k"), context.DeadlineExceeded)
	_, err = c.Keys(ctx, "b")
	require.ErrorIs(t, err, context.DeadlineExceeded)

	var calls sync.WaitGroup
	for _, call := range []func() error{
		func() error { _, err := c.Get(testCtx(t), "b", "k"); return err },
		func() error { return c.Put(testCtx(t), "b", "put", nil, time.Minute) },
		func() error { return c.Create(testCtx(t), "b", "created", nil) },
		func() error { return c.Delete(testCtx(t), "b", "deleted") },
		func() error { return c.Refresh(testCtx(t), "b", "k") },
		func() error { _, err := c.Keys(testCtx(t), "b"); return err },
		func() error { _, err := c.Status(testCtx(t), "b"); return err },
	} {
		calls.Go(func() { assert.NoError(t, call()) })
	}
	<-time.After(50 * time.Millisecond)
	proxy.Refuse(false)
	calls.Wait()
}

func TestCompareAndSetCountsRightWhileLeadersAreKilled(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	b, err := natty.NewBucket[int](c, natty.BucketConfig{Bucket: "b"})
	require.NoError(t, err)
	require.NoError(t, b.Put(testCtx(t), "n", 0))
	const workers = 4
	end := make(chan struct{})
	var mu sync.Mutex
	sure, unsure := 0, 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		race(workers, func(int) {
			for !isClosed(end) {
				err := b.Modify(testCtx(t), "n", func(n int) (int, error) { return n + 1, nil })
				mu.Lock()
				switch {
				case err == nil:
					sure++
				case errors.Is(err, natty.ErrOutcomeUnknown):
					unsure++
				default:
					assert.NoError(t, err)
				}
				mu.Unlock()
			}
		})
	}()
	for range 2 {
		leader := cluster.StreamLeader("KV_b")
		leader.Stop()
		require.NoError(t, leader.Restart())
		cluster.WaitReady()
	}
	close(end)
	receive(t, done)
	var n int
	require.NoError(t, b.Modify(testCtx(t), "n", func(v int) (int, error) { n = v; return v, nil }))
	t.Logf("%d sure, %d unsure, counted %d", sure, unsure, n)
	assert.GreaterOrEqual(t, n, sure)
	assert.LessOrEqual(t, n, sure+unsure)
	assert.Positive(t, sure)
}

// following collects what a watch brings, as "key=value" or "-key".
type following struct {
	entries chan string
	err     chan error // the watch's, nil when it ended without
	stop    func()
}

func follow(t *testing.T, c *natty.Client, bucket, keys string) *following {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &following{entries: make(chan string, 10_000), err: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var last error
		for e, err := range c.Watch(ctx, bucket, keys) {
			switch {
			case err != nil:
				last = err
			case e.Operation() == jetstream.KeyValuePut:
				f.entries <- e.Key() + "=" + string(e.Value())
			default:
				f.entries <- "-" + e.Key()
			}
		}
		f.err <- last
	}()
	f.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(f.stop)
	return f
}

// wants receives exactly these.
func (f *following) wants(t *testing.T, entries ...string) {
	t.Helper()
	for _, want := range entries {
		require.Equal(t, want, receive(t, f.entries))
	}
}

// silent asserts that nothing more has come.
func (f *following) silent(t *testing.T) {
	t.Helper()
	select {
	case e := <-f.entries:
		require.Empty(t, e, "nothing more comes")
	default:
	}
}

func TestAWatchBringsWhatThereIsAndThenWhatChanges(t *testing.T) {
	t.Parallel()
	c := onServer(t)
	put := func(key, value string, ttl ...time.Duration) {
		require.NoError(t, c.Put(testCtx(t), "b", key, []byte(value), ttl...))
	}
	put("a.1", "x")
	put("a.2", "x")
	put("b", "x")
	put("a.1", "y")
	require.NoError(t, c.Delete(testCtx(t), "b", "a.2"))
	all, some, one := follow(t, c, "b", ">"), follow(t, c, "b", "a.*"), follow(t, c, "b", "b")
	all.wants(t, "b=x", "a.1=y", "-a.2")
	some.wants(t, "a.1=y", "-a.2")
	one.wants(t, "b=x")
	put("a.3", "z", time.Second)
	put("b", "z")
	all.wants(t, "a.3=z", "b=z", "-a.3")
	some.wants(t, "a.3=z", "-a.3")
	one.wants(t, "b=z")
	require.NoError(t, c.DeleteBucket(testCtx(t), "b"))
	for _, f := range []*following{all, some, one} {
		require.ErrorIs(t, receive(t, f.err), jetstream.ErrBucketNotFound)
		f.silent(t)
	}
}

func TestAWatchLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	require.NoError(t, c.Put(ctx, "b", "k", nil))
	subscriptions := c.Conn().NumSubscriptions()
	for _, err := range c.Watch(ctx, "b", ">") {
		require.NoError(t, err)
		break
	}
	cancelled, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, err := range c.Watch(cancelled, "b", ">") {
		require.NoError(t, err)
		cancel()
	}
	assert.Equal(t, subscriptions, c.Conn().NumSubscriptions())
	s, err := c.JetStream().Stream(ctx, "KV_b")
	require.NoError(t, err)
	eventually(t, func() bool {
		info, err := s.Info(ctx)
		return err == nil && info.State.Consumers == 0
	}, "the consumers are deleted")
}

func TestAWatchEndsWithTheClient(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c, err := natty.Connect(testCtx(t), natty.Config{Name: "test", Servers: []string{node.URL()}}, quiet)
	require.NoError(t, err)
	require.NoError(t, c.Put(testCtx(t), "b", "k", []byte("v")))
	f := follow(t, c, "b", ">")
	f.wants(t, "k=v")
	require.NoError(t, c.Close(testCtx(t)))
	require.NoError(t, receive(t, f.err))
	for _, err := range c.Watch(testCtx(t), "b", ">") {
		require.ErrorIs(t, err, natty.ErrClosed)
	}
}

func TestAWatchGoesOnAtOnceAfterARestart(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := connectTo(t, node.URL())
	require.NoError(t, c.Put(testCtx(t), "b", "k", []byte("1")))
	require.NoError(t, c.Put(testCtx(t), "b", "other", []byte("1")))
	f := follow(t, c, "b", ">")
	f.wants(t, "k=1", "other=1")
	for i := range 3 {
		node.Stop()
		require.NoError(t, node.Restart())
		value := fmt.Sprint("again", i)
		require.NoError(t, c.Put(testCtx(t), "b", "k", []byte(value)))
		put := time.Now()
		f.wants(t, "k="+value)
		assert.Less(t, time.Since(put), 5*time.Second, "nats.go's watcher is blind for 10 to 20s")
		f.silent(t)
	}
}

func TestAWatchGoesOnWhileItsCallerTakesItsTime(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	for i := range 1000 {
		require.NoError(t, direct.Put(testCtx(t), "b", fmt.Sprint(i), nil))
	}
	n := 0
	for e, err := range c.Watch(testCtx(t), "b", ">") {
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(n), e.Key())
		if n++; n == 300 {
			proxy.Cut()
			<-time.After(3 * time.Second) // longer than the server may be silent
		}
		if n == 1000 {
			break
		}
	}
}

func TestAWatchOfAFrozenConnectionGoesOn(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	require.NoError(t, direct.Put(testCtx(t), "b", "k", []byte("1")))
	f := follow(t, c, "b", ">")
	f.wants(t, "k=1")
	proxy.Freeze()
	require.NoError(t, direct.Put(testCtx(t), "b", "k", []byte("2")))
	<-time.After(4 * time.Second)
	proxy.Thaw()
	f.wants(t, "k=2")
	require.NoError(t, direct.Put(testCtx(t), "b", "k", []byte("3")))
	f.wants(t, "k=3")
	f.silent(t)
}

func TestAWatchFollowsABucketWhoseLeadersAreKilled(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	require.NoError(t, c.Put(testCtx(t), "b", "n", []byte("start")))
	f := follow(t, c, "b", ">")
	f.wants(t, "n=start")
	for i := range 3 {
		leader := cluster.StreamLeader("KV_b")
		leader.Stop()
		value := fmt.Sprint(i)
		require.NoError(t, c.Put(testCtx(t), "b", "n", []byte(value)))
		put := time.Now()
		f.wants(t, "n="+value)
		t.Logf("seen after %v", time.Since(put))
		require.NoError(t, leader.Restart())
		cluster.WaitReady()
	}
	f.silent(t)
}

func TestAWatchLosesNothingOnAConnectionThatKeepsBreaking(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	f := follow(t, c, "b", ">")
	const n = 500
	for i := range n {
		if rand.N(20) == 0 {
			proxy.Cut()
		}
		require.NoError(t, direct.Put(testCtx(t), "b", fmt.Sprint(i), nil))
	}
	for i := range n {
		f.wants(t, fmt.Sprint(i, "="))
	}
	f.silent(t)
}

// What happens while the watch is blind, and leaves no trace that it could be told of.
func TestAWatchReportsWhatHasVanishedWithoutATrace(t *testing.T) {
	t.Parallel()
	for name, vanish := range map[string]func(t *testing.T, c *natty.Client){
		"purged": func(t *testing.T, c *natty.Client) {
			s, err := c.JetStream().Stream(testCtx(t), "KV_b")
			require.NoError(t, err)
			require.NoError(t, s.Purge(testCtx(t), jetstream.WithPurgeSubject("$KV.b.gone")))
		},
		"made again": func(t *testing.T, c *natty.Client) {
			require.NoError(t, c.DeleteBucket(testCtx(t), "b"))
			require.NoError(t, c.Put(testCtx(t), "b", "stays", []byte("new")))
		},
		"made again with more in it": func(t *testing.T, c *natty.Client) {
			require.NoError(t, c.DeleteBucket(testCtx(t), "b"))
			for range 10 {
				require.NoError(t, c.Put(testCtx(t), "b", "stays", []byte("new")))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, direct, proxy := behindProxy(t)
			for _, key := range []string{"gone", "stays"} {
				require.NoError(t, direct.Put(testCtx(t), "b", key, []byte("v")))
			}
			f := follow(t, c, "b", ">")
			f.wants(t, "gone=v", "stays=v")
			proxy.Refuse(true)
			proxy.Cut()
			vanish(t, direct)
			proxy.Refuse(false)
			if name != "purged" {
				f.wants(t, "stays=new")
			}
			f.wants(t, "-gone")
			require.NoError(t, direct.Put(testCtx(t), "b", "gone", []byte("back")))
			f.wants(t, "gone=back")
			f.silent(t)
		})
	}
}

func TestAWatchNoticesExpiryInABucketWithoutMarkers(t *testing.T) {
	t.Parallel()
	c := onServer(t)
	kv, err := c.JetStream().CreateKeyValue(testCtx(t), jetstream.KeyValueConfig{Bucket: "b", TTL: time.Second})
	require.NoError(t, err)
	f := follow(t, c, "b", ">")
	_, err = kv.Put(testCtx(t), "k", []byte("v"))
	require.NoError(t, err)
	f.wants(t, "k=v", "-k")
}

func TestAWatchThatIsRefusedSaysSo(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	direct := connectTo(t, node.URL())
	_, err := direct.JetStream().CreateStream(testCtx(t), jetstream.StreamConfig{
		Name: "KV_b", Subjects: []string{"$KV.b.>"}, MaxMsgsPerSubject: 1, MaxConsumers: 1,
	})
	require.NoError(t, err)
	_, err = direct.JetStream().CreateConsumer(testCtx(t), "KV_b", jetstream.ConsumerConfig{Durable: "d"})
	require.NoError(t, err)
	f := follow(t, direct, "b", ">")
	err = receive(t, f.err)
	var refused *jetstream.APIError
	require.ErrorAs(t, err, &refused)
	require.NotErrorIs(t, err, nats.ErrTimeout)
}
