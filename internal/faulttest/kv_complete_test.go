package faulttest_test

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// overwrite writes the keys over and over, those near the beginning and near the end in turn, until the test ends.
func overwrite(t *testing.T, c *natty.Client, bucket string, keys []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			n := i * 37 % len(keys)
			_ = c.Put(ctx, bucket, keys[n], []byte("2"))
			_ = c.Put(ctx, bucket, keys[len(keys)-1-n], []byte("2"))
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// Every key is there from before the first call until after the last one. With a History the server's own count of what has yet to
// come is too small, and on a replica a copy may begin behind the leader.
func TestNoAnswerLacksAKeyThatIsOverwrittenMeanwhile(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		history  uint8
		replicas int
	}{"history 1": {1, 1}, "history 3": {3, 1}, "replicas": {1, 3}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			urls := []string{nattytest.Server(t).URL()}
			if test.replicas > 1 {
				urls = nattytest.Cluster(t).URLs()
			}
			near := testkit.Connect(t, natty.Config{Servers: urls})
			link := nattytest.Proxy(t, urls[0])
			far := testkit.ConnectTo(t, link.URL())
			testkit.Bucket(t, near, jetstream.KeyValueConfig{Bucket: "b", History: test.history, Replicas: test.replicas, Storage: jetstream.MemoryStorage})
			keys := make([]string, 700)
			for i := range keys {
				keys[i] = fmt.Sprintf("%s.%03d", [...]string{"a", "b"}[i%2], i)
				require.NoError(t, near.Put(testkit.Ctx(t), "b", keys[i], []byte("1")))
			}
			link.Delay(2 * time.Millisecond)
			overwrite(t, near, "b", keys)
			b, err := natty.NewBucket[int](far, natty.BucketConfig{Bucket: "b"})
			require.NoError(t, err)
			for range 5 {
				all, err := far.Keys(testkit.Ctx(t), "b")
				require.NoError(t, err)
				require.Len(t, all, len(keys))
				ctx, cancel := context.WithCancel(testkit.Ctx(t))
				cache, err := b.Cached(ctx)
				require.NoError(t, err)
				require.Len(t, maps.Collect(cache.All()), len(keys))
				link.Cut()
				cut := time.Now()
				testkit.Eventually(t, func() bool { return cache.Age() < time.Since(cut) }, "it goes on")
				require.Len(t, maps.Collect(cache.All()), len(keys))
				cancel()
			}
		})
	}
}

func TestAWatchGoesOnWhenTheOnlyNodeOfItsBucketRestarts(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	setup := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	testkit.Bucket(t, setup, jetstream.KeyValueConfig{Bucket: "b", Replicas: 1})
	require.NoError(t, setup.Put(testkit.Ctx(t), "b", "k", []byte("1")))
	node := cluster.StreamLeader("KV_b")
	var others []string
	for _, n := range cluster.Nodes() {
		if n != node {
			others = append(others, n.URL())
		}
	}
	c := testkit.Connect(t, natty.Config{Servers: others})
	b, err := natty.NewBucket[int](c, natty.BucketConfig{Bucket: "b"})
	require.NoError(t, err)
	cache, err := b.Cached(testkit.Ctx(t))
	require.NoError(t, err)
	f := testkit.Follow(t, c, "b", ">")
	f.Wants(t, "k=1")
	node.Stop()
	testkit.Eventually(t, func() bool { return cache.Age() > 3*time.Second }, "the sessions notice that the node is away")
	require.NoError(t, node.Restart())
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", []byte("2")))
	f.Wants(t, "k=2")
	testkit.Eventually(t, func() bool { v, ok := cache.Get("k"); return ok && v == 2 }, "the copy goes on")
	f.Silent(t)
}

// The consumer of the last connection counts until the server removes it.
func TestAWatchGoesOnAtALimitOnConsumers(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	direct, proxy := testkit.ConnectTo(t, node.URL()), nattytest.Proxy(t, node.URL())
	_, err := direct.JetStream().CreateStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "KV_b", Subjects: []string{"$KV.b.>"}, MaxMsgsPerSubject: 1, MaxConsumers: 1,
		ConsumerLimits: jetstream.StreamConsumerLimits{InactiveThreshold: 2 * time.Second},
	})
	require.NoError(t, err)
	require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte("1")))
	f := testkit.Follow(t, testkit.ConnectTo(t, proxy.URL()), "b", ">")
	f.Wants(t, "k=1")
	proxy.Cut()
	require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte("2")))
	f.Wants(t, "k=2")
}

// An operator may limit what consumers ask for at a time.
func TestAWatchAsksForNoMoreThanTheServerAllows(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStreamLimits.MaxRequestBatch = 10 }))
	c := testkit.ConnectTo(t, node.URL())
	for i := range 35 {
		require.NoError(t, c.Put(testkit.Ctx(t), "b", fmt.Sprint(i), nil))
	}
	began := time.Now()
	keys, err := c.Keys(testkit.Ctx(t), "b")
	require.NoError(t, err)
	assert.Len(t, keys, 35)
	assert.Less(t, time.Since(began), time.Second, "no request is refused")
}

// Somebody else answers the requests for messages too, at once and with nothing.
func TestAWatchWhoseRequestsEndAtOnceAsksAFewTimesASecond(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c, direct := testkit.ConnectTo(t, node.URL()), testkit.ConnectTo(t, node.URL())
	require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte("1")))
	var requests atomic.Int64
	sub, err := direct.Conn().Subscribe("$JS.API.CONSUMER.MSG.NEXT.KV_b.>", func(m *nats.Msg) {
		requests.Add(1)
		_ = m.Respond(nil)
	})
	require.NoError(t, err)
	require.NoError(t, direct.Conn().Flush())
	f := testkit.Follow(t, c, "b", ">")
	f.Wants(t, "k=1")
	<-time.After(1500 * time.Millisecond)
	assert.Less(t, requests.Load(), int64(20))
	require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte("2")))
	f.Wants(t, "k=2")
	require.NoError(t, sub.Unsubscribe())
	f.Silent(t)
}
