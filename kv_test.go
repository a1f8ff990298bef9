package natty_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// onServer returns a client of a server of its own.
func onServer(t testing.TB, opts ...nattytest.Option) *natty.Client {
	t.Helper()
	return connectTo(t, nattytest.Server(t, opts...).URL())
}

// bucket makes a bucket and returns nats.go's view of it.
func bucket(t testing.TB, c *natty.Client, cfg jetstream.KeyValueConfig) jetstream.KeyValue {
	t.Helper()
	kv, err := c.EnsureBucket(testCtx(t), cfg)
	require.NoError(t, err)
	return kv
}

// lastMessage is a key's last message as it is stored, headers included.
func lastMessage(t testing.TB, c *natty.Client, bucket, key string) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := c.JetStream().Stream(testCtx(t), "KV_"+bucket)
	require.NoError(t, err)
	m, err := s.GetLastMsgForSubject(testCtx(t), "$KV."+bucket+"."+key)
	require.NoError(t, err)
	return m
}

func ttlOf(t testing.TB, c *natty.Client, bucket, key string) string {
	t.Helper()
	return lastMessage(t, c, bucket, key).Header.Get(jetstream.MsgTTLHeader)
}

// config is a bucket's stream's.
func config(t testing.TB, c *natty.Client, bucket string) jetstream.StreamConfig {
	t.Helper()
	s, err := c.JetStream().Stream(testCtx(t), "KV_"+bucket)
	require.NoError(t, err)
	return s.CachedInfo().Config
}

func wantConfigError(t testing.TB, err error, field string, texts ...string) {
	t.Helper()
	var wrong *natty.ConfigError
	require.ErrorAs(t, err, &wrong)
	assert.Equal(t, field, wrong.Field)
	for _, text := range texts {
		assert.ErrorContains(t, err, text)
	}
}

func TestAWriteMakesAMissingBucketAndAReadDoesNot(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	_, err := c.Get(ctx, "b", "k")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
	require.NotErrorIs(t, err, jetstream.ErrKeyNotFound)
	_, err = c.Keys(ctx, "b")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
	_, err = c.Status(ctx, "b")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
	_, err = c.Update(ctx, "b", "k", nil, 0)
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
	require.ErrorIs(t, c.Refresh(ctx, "b", "k"), jetstream.ErrBucketNotFound)
	require.NoError(t, c.Delete(ctx, "b", "k"), "what is not there need not be deleted")
	require.NoError(t, c.DeleteBucket(ctx, "b"))
	for _, err := range c.Watch(ctx, "b", ">") {
		require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
	}
	_, err = c.JetStream().KeyValue(ctx, "b")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound, "none of these has made it")

	require.NoError(t, c.Put(ctx, "b", "k", []byte("v")))
	require.NoError(t, c.Create(ctx, "b2", "k", []byte("v"), time.Minute))
	for _, name := range []string{"b", "b2"} {
		v, err := c.Get(ctx, name, "k")
		require.NoError(t, err)
		assert.Equal(t, "v", string(v))
		status, err := c.Status(ctx, name)
		require.NoError(t, err)
		assert.EqualValues(t, 1, status.History())
		assert.Equal(t, time.Minute, status.LimitMarkerTTL())
		assert.Equal(t, 1, status.Config().Replicas)
	}
	_, err = c.Get(ctx, "b", "other")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	require.NotErrorIs(t, err, jetstream.ErrBucketNotFound)
	require.NoError(t, c.DeleteBucket(ctx, "b"))
	_, err = c.Get(ctx, "b", "k")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
}

func TestManyWritersMakeOneBucket(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	var writers sync.WaitGroup
	for i := range 8 {
		c := connectTo(t, node.URL())
		writers.Go(func() { assert.NoError(t, c.Put(testCtx(t), "b", fmt.Sprint(i), nil)) })
	}
	writers.Wait()
	keys, err := connectTo(t, node.URL()).Keys(testCtx(t), "b")
	require.NoError(t, err)
	assert.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6", "7"}, keys)
}

func TestADeletedKeyIsGoneAndCanBeCreatedAgain(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	require.NoError(t, c.Put(ctx, "b", "k", []byte("1")))
	require.NoError(t, c.Put(ctx, "b", "other", []byte("1")))
	require.ErrorIs(t, c.Create(ctx, "b", "k", []byte("2")), jetstream.ErrKeyExists)
	require.NoError(t, c.Delete(ctx, "b", "k"))
	require.NoError(t, c.Delete(ctx, "b", "k"))
	require.NoError(t, c.Delete(ctx, "b", "never"))
	_, err := c.Get(ctx, "b", "k")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	require.ErrorIs(t, c.Refresh(ctx, "b", "k"), jetstream.ErrKeyNotFound)
	keys, err := c.Keys(ctx, "b")
	require.NoError(t, err)
	assert.Equal(t, []string{"other"}, keys)
	require.NoError(t, c.Create(ctx, "b", "k", []byte("2")))
	v, err := c.Get(ctx, "b", "k")
	require.NoError(t, err)
	assert.Equal(t, "2", string(v))
}

func TestKeysOfAnEmptyBucketAreNone(t *testing.T) {
	t.Parallel()
	c := onServer(t)
	bucket(t, c, jetstream.KeyValueConfig{Bucket: "b"})
	keys, err := c.Keys(testCtx(t), "b")
	require.NoError(t, err)
	assert.Empty(t, keys)
}

func TestKeysAreAllListed(t *testing.T) {
	t.Parallel()
	c := onServer(t)
	kv := bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", History: 3})
	for i := range 1000 {
		_, err := kv.Put(testCtx(t), fmt.Sprintf("%03d", i%700), make([]byte, 10_000))
		require.NoError(t, err)
	}
	keys, err := c.Keys(testCtx(t), "b")
	require.NoError(t, err)
	assert.Len(t, keys, 700)
	assert.IsIncreasing(t, keys)
}

func TestUpdateOfAStaleRevisionNamesBoth(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	require.NoError(t, c.Put(ctx, "b", "k", []byte("1")))
	require.NoError(t, c.Put(ctx, "b", "k", []byte("2")))
	wantStale := func(have, want uint64) {
		_, err := c.Update(ctx, "b", "k", []byte("mine"), want)
		var stale *natty.RevisionError
		require.ErrorAs(t, err, &stale)
		assert.Equal(t, natty.RevisionError{Bucket: "b", Key: "k", Have: have, Want: want}, *stale)
		require.ErrorIs(t, err, jetstream.ErrKeyRevisionMismatch)
		assert.Equal(t, have == 0, errors.Is(err, jetstream.ErrKeyNotFound))
	}
	wantStale(2, 1)
	wantStale(2, 3)
	wantStale(2, 0)
	require.NoError(t, c.Delete(ctx, "b", "k"))
	wantStale(0, 2)
	wantStale(0, 3)
	revision, err := c.Update(ctx, "b", "k", []byte("3"), 0)
	require.NoError(t, err, "revision 0: it is not there")
	assert.EqualValues(t, 4, revision)
}

func TestOfConcurrentUpdatesOneWins(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	var clients [3]*natty.Client
	for i, url := range cluster.URLs() {
		clients[i] = connectTo(t, url)
	}
	bucket(t, clients[0], jetstream.KeyValueConfig{Bucket: "b", Replicas: 3})
	for round := range 20 {
		key := fmt.Sprint(round)
		var created, updated atomic.Int64
		race(8, func(i int) {
			err := clients[i%3].Create(testCtx(t), "b", key, fmt.Append(nil, i))
			if err == nil {
				created.Add(1)
				return
			}
			assert.ErrorIs(t, err, jetstream.ErrKeyExists)
		})
		require.EqualValues(t, 1, created.Load())
		revision := revisionOf(t, clients[0], "b", key)
		race(8, func(i int) {
			_, err := clients[i%3].Update(testCtx(t), "b", key, fmt.Append(nil, i), revision)
			if err == nil {
				updated.Add(1)
				return
			}
			assert.ErrorIs(t, err, jetstream.ErrKeyRevisionMismatch)
		})
		require.EqualValues(t, 1, updated.Load())
	}
}

func race(n int, f func(i int)) {
	var runners sync.WaitGroup
	for i := range n {
		runners.Go(func() { f(i) })
	}
	runners.Wait()
}

// revisionOf asks the bucket's leader.
func revisionOf(t testing.TB, c *natty.Client, bucket, key string) uint64 {
	t.Helper()
	_, err := c.Update(testCtx(t), bucket, key, nil, math.MaxUint64)
	var stale *natty.RevisionError
	require.ErrorAs(t, err, &stale)
	return stale.Have
}

func TestNamesThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	for _, name := range []string{"", "a.b", "a b", "a*", "a/b", "ä", "a=", strings.Repeat("x", 300)} {
		_, err := c.Get(ctx, name, "k")
		wantConfigError(t, err, "bucket")
		_, err = c.EnsureBucket(ctx, jetstream.KeyValueConfig{Bucket: name})
		wantConfigError(t, err, "bucket")
	}
	for _, key := range []string{"", ".", "a.", ".a", "a..b", "a b", "*", "a.>", "ä", "a\n", strings.Repeat("x", 3001)} {
		_, err := c.Get(ctx, "b", key)
		wantConfigError(t, err, "key")
		wantConfigError(t, c.Put(ctx, "b", key, nil), "key")
		wantConfigError(t, c.Create(ctx, "b", key, nil), "key")
		_, err = c.Update(ctx, "b", key, nil, 1)
		wantConfigError(t, err, "key")
		wantConfigError(t, c.Refresh(ctx, "b", key), "key")
		wantConfigError(t, c.Delete(ctx, "b", key), "key")
	}
	for _, keys := range []string{"", "a..>", "a.>.b", "ä", ">.a"} {
		for _, err := range c.Watch(ctx, "b", keys) {
			wantConfigError(t, err, "keys")
		}
	}
	long := strings.Repeat("x", 3000)
	require.NoError(t, c.Put(ctx, strings.Repeat("b", 200), long, []byte("v")))
	v, err := c.Get(ctx, strings.Repeat("b", 200), long)
	require.NoError(t, err)
	assert.Equal(t, "v", string(v))
	require.NoError(t, c.Put(ctx, "b", "a/b-c_d=e.F1", nil))
}

func TestABucketWithoutDirectGetIsRead(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	ensureConfig(t, c, jetstream.StreamConfig{Name: "KV_b", Subjects: []string{"$KV.b.>"}, MaxMsgsPerSubject: 1})
	require.NoError(t, c.Put(ctx, "b", "k", []byte("v")))
	v, err := c.Get(ctx, "b", "k")
	require.NoError(t, err)
	assert.Equal(t, "v", string(v))
	require.NoError(t, c.Delete(ctx, "b", "k"))
	for _, key := range []string{"k", "never"} {
		_, err = c.Get(ctx, "b", key)
		require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	}
}

func TestKeysOfAnotherDomainAreReachedThroughItsAPI(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStreamDomain = "hub" }))
	plain := connectTo(t, node.URL())
	for name, cfg := range map[string]natty.Config{"domain": {Domain: "hub"}, "prefix": {APIPrefix: "$JS.hub.API"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testCtx(t)
			proxy := nattytest.Proxy(t, node.URL())
			cfg.Servers = []string{proxy.URL()}
			c := connect(t, cfg)
			require.NoError(t, c.Create(ctx, name, "k", []byte("1"), time.Minute))
			revision, err := c.Update(ctx, name, "k", []byte("2"), 1)
			require.NoError(t, err)
			require.NoError(t, c.Refresh(ctx, name, "k"))
			assert.Equal(t, "60s", ttlOf(t, plain, name, "k"))
			assert.Equal(t, revision+1, lastMessage(t, plain, name, "k").Sequence)
			v, err := c.Get(ctx, name, "k")
			require.NoError(t, err)
			assert.Equal(t, "2", string(v))
			require.NoError(t, c.Put(ctx, name, "other", nil))
			keys, err := c.Keys(ctx, name)
			require.NoError(t, err)
			assert.Equal(t, []string{"k", "other"}, keys)
			require.NoError(t, c.Delete(ctx, name, "other"))
			var seen []string
			for e, err := range c.Watch(ctx, name, ">") {
				require.NoError(t, err)
				seen = append(seen, e.Key()+e.Operation().String())
				if len(seen) == 2 {
					break
				}
			}
			assert.Equal(t, []string{"kKeyValuePutOp", "otherKeyValuePurgeOp"}, seen)

			// A lost answer is found out about in the other domain, too.
			lose := make(chan error, 1)
			proxy.FreezeReplies()
			go func() { lose <- c.Create(ctx, name, "lost", []byte("mine"), time.Minute) }()
			eventually(t, func() bool { return !isKeyGone(ctx, plain, name, "lost") }, "it is stored")
			proxy.Cut()
			proxy.Thaw()
			require.NoError(t, receive(t, lose))
			require.NoError(t, c.DeleteBucket(ctx, name))
		})
	}
}
