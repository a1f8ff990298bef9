package natty_test

import (
	"context"
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
	nc, err := nats.Connect(node.URL())
	require.NoError(t, err)
	defer nc.Close()
	for name, opts := range map[string][]natty.Option{"its own connection": {quiet}, "one that stays": {quiet, natty.WithConn(nc)}} {
		c, err := natty.Connect(testCtx(t), natty.Config{Name: "test", Servers: []string{node.URL()}}, opts...)
		require.NoError(t, err, name)
		require.NoError(t, c.Put(testCtx(t), "b", "k", []byte("v")))
		f := follow(t, c, "b", ">")
		f.wants(t, "k=v")
		require.NoError(t, c.Close(testCtx(t)))
		require.NoError(t, receive(t, f.err), name)
		for _, err := range c.Watch(testCtx(t), "b", ">") {
			require.ErrorIs(t, err, natty.ErrClosed)
		}
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
	fastest := time.Hour
	for i := range 3 {
		node.Stop()
		require.NoError(t, node.Restart())
		value := fmt.Sprint("again", i)
		require.NoError(t, c.Put(testCtx(t), "b", "k", []byte(value)))
		put := time.Now()
		f.wants(t, "k="+value)
		fastest = min(fastest, time.Since(put))
		f.silent(t)
	}
	assert.Less(t, fastest, 700*time.Millisecond, "it does not wait for heartbeats to be missing; nats.go's is blind for 10 to 20s")
}

func TestAWatchGoesOnAtOnceAfterALostConnection(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	f := follow(t, c, "b", ">")
	fastest := time.Hour
	for i := range 3 {
		value := fmt.Sprint(i)
		require.NoError(t, direct.Put(testCtx(t), "b", "before", []byte(value)))
		f.wants(t, "before="+value)
		proxy.Cut()
		require.NoError(t, direct.Put(testCtx(t), "b", "k", []byte(value)))
		put := time.Now()
		f.wants(t, "k="+value)
		fastest = min(fastest, time.Since(put))
	}
	assert.Less(t, fastest, 700*time.Millisecond, "it does not wait for heartbeats to be missing")
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
	before := consumersOf(t, direct, "b")
	require.Len(t, before, 1)
	proxy.Freeze()
	require.NoError(t, direct.Put(testCtx(t), "b", "k", []byte("2")))
	<-time.After(4 * time.Second)
	proxy.Thaw()
	f.wants(t, "k=2")
	require.NoError(t, direct.Put(testCtx(t), "b", "k", []byte("3")))
	f.wants(t, "k=3")
	f.silent(t)
	eventually(t, func() bool {
		after := consumersOf(t, direct, "b")
		return len(after) == 1 && after[0] != before[0]
	}, "it has given up the silent consumer, and leaves one behind")
}

func consumersOf(t *testing.T, c *natty.Client, bucket string) (names []string) {
	t.Helper()
	s, err := c.JetStream().Stream(testCtx(t), "KV_"+bucket)
	require.NoError(t, err)
	for name := range s.ConsumerNames(testCtx(t)).Name() {
		names = append(names, name)
	}
	return names
}

func TestAWatchFollowsABucketWhoseLeadersAreKilled(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	require.NoError(t, c.Put(testCtx(t), "b", "n", []byte("start")))
	f := follow(t, c, "b", ">")
	f.wants(t, "n=start")
	for i := range 2 {
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
