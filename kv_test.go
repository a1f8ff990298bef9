package natty_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
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

func TestAKeyWithATTLExpires(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	require.NoError(t, c.Put(ctx, "b", "put", nil, time.Second))
	require.NoError(t, c.Create(ctx, "b", "created", nil, time.Second))
	require.NoError(t, c.Put(ctx, "b", "stays", nil, time.Second))
	require.NoError(t, c.Put(ctx, "b", "stays", nil), "without a TTL it has none any more")
	eventually(t, func() bool {
		keys, err := c.Keys(ctx, "b")
		return err == nil && len(keys) == 1 && keys[0] == "stays"
	}, "the others expire")
	require.ErrorIs(t, c.Refresh(ctx, "b", "put"), jetstream.ErrKeyNotFound)
}

func TestATTLThatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	for _, ttl := range []time.Duration{-time.Second, 0, time.Millisecond, 1500 * time.Millisecond} {
		wantConfigError(t, c.Put(ctx, "b", "k", nil, ttl), "ttl", ttl.String(), "whole seconds")
		wantConfigError(t, c.Create(ctx, "b", "k", nil, ttl), "ttl", ttl.String(), "whole seconds")
	}
	wantConfigError(t, c.Put(ctx, "b", "k", nil, time.Second, time.Second), "ttl", "one TTL")
	_, err := c.Status(ctx, "b")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound, "nothing was made for them")

	bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", TTL: time.Minute})
	wantConfigError(t, c.Put(ctx, "b", "k", nil, 61*time.Second), "ttl", "1m1s", "1m0s", `"b"`)
	wantConfigError(t, c.Create(ctx, "b", "k", nil, 61*time.Second), "ttl", "1m1s", "1m0s")
	require.NoError(t, c.Put(ctx, "b", "k", nil, time.Minute))
	bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", TTL: time.Hour})
	require.NoError(t, c.Put(ctx, "b", "k", nil, 61*time.Second), "the bucket's TTL is looked at again")
}

func TestABucketWithoutMarkersGetsThemWithTheFirstTTL(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	_, err := c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", Description: "mine"})
	require.NoError(t, err)
	require.NoError(t, c.Put(ctx, "b", "k", nil))
	assert.False(t, config(t, c, "b").AllowMsgTTL, "not without a reason")
	require.NoError(t, c.Put(ctx, "b", "k", nil, time.Minute))
	cfg := config(t, c, "b")
	assert.True(t, cfg.AllowMsgTTL)
	assert.Equal(t, time.Minute, cfg.SubjectDeleteMarkerTTL)
	assert.Equal(t, "mine", cfg.Description)
	assert.Equal(t, "60s", ttlOf(t, c, "b", "k"))

	// Another bucket takes its place while its settings are remembered.
	_, err = c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "x"})
	require.NoError(t, err)
	require.NoError(t, c.JetStream().DeleteKeyValue(ctx, "b"))
	_, err = c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b"})
	require.NoError(t, err)
	require.NoError(t, c.Create(ctx, "b", "k", nil, time.Minute))
	assert.Equal(t, "60s", ttlOf(t, c, "b", "k"))
}

func TestUpdateKeepsTheTTLOfAKey(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	require.NoError(t, c.Put(ctx, "b", "k", []byte("1"), time.Minute))
	revision := lastMessage(t, c, "b", "k").Sequence
	revision, err := c.Update(ctx, "b", "k", []byte("2"), revision)
	require.NoError(t, err)
	m := lastMessage(t, c, "b", "k")
	assert.Equal(t, m.Sequence, revision)
	assert.Equal(t, "2", string(m.Data))
	assert.Equal(t, "60s", m.Header.Get(jetstream.MsgTTLHeader))

	require.NoError(t, c.Put(ctx, "b", "k", []byte("3")))
	assert.Empty(t, ttlOf(t, c, "b", "k"), "Put sets the one given, or none")
	_, err = c.Update(ctx, "b", "k", []byte("4"), revision+1)
	require.NoError(t, err)
	assert.Empty(t, ttlOf(t, c, "b", "k"))
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

func TestRefreshBeginsALifeAnew(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	require.NoError(t, c.Put(ctx, "b", "ttl", []byte("v"), 2*time.Second))
	require.NoError(t, c.Put(ctx, "b", "none", []byte("v")))
	bucket(t, c, jetstream.KeyValueConfig{Bucket: "aged", TTL: time.Hour})
	msg := &nats.Msg{Subject: "$KV.aged.k", Data: []byte("v"), Header: nats.Header{"Mine": {"kept"}, "Nats-Msg-Id": {"x"}}}
	_, err := c.PublishMsg(ctx, msg)
	require.NoError(t, err)
	_, err = c.PublishMsg(ctx, &nats.Msg{Subject: "$KV.aged.never", Header: nats.Header{jetstream.MsgTTLHeader: {"never"}}})
	require.NoError(t, err)

	before := lastMessage(t, c, "aged", "k")
	require.NoError(t, c.Refresh(ctx, "aged", "k"))
	after := lastMessage(t, c, "aged", "k")
	assert.Greater(t, after.Sequence, before.Sequence, "the bucket's TTL begins anew")
	assert.Equal(t, before.Data, after.Data)
	assert.Equal(t, "kept", after.Header.Get("Mine"))
	assert.Empty(t, after.Header.Get("Nats-TTL"))

	for _, of := range [][2]string{{"b", "none"}, {"aged", "never"}} {
		before := lastMessage(t, c, of[0], of[1])
		require.NoError(t, c.Refresh(ctx, of[0], of[1]))
		assert.Equal(t, before.Sequence, lastMessage(t, c, of[0], of[1]).Sequence, "what does not expire is not written")
	}

	end := time.Now().Add(4 * time.Second)
	for time.Now().Before(end) {
		require.NoError(t, c.Refresh(ctx, "b", "ttl"), "it outlives its TTL")
		v, err := c.Get(ctx, "b", "ttl")
		require.NoError(t, err)
		require.Equal(t, "v", string(v))
		<-time.After(100 * time.Millisecond)
	}
	assert.Equal(t, "2s", ttlOf(t, c, "b", "ttl"))
	eventually(t, func() bool { return isKeyGone(ctx, c, "b", "ttl") }, "and expires without")
}

func isKeyGone(ctx context.Context, c *natty.Client, bucket, key string) bool {
	_, err := c.Get(ctx, bucket, key)
	return err != nil
}

// A holds the key's value "a…" and refreshes it; B takes it over in every way there is. The stream, which keeps all that
// happened, shows that no refresh wrote anything but the value that was there just before it.
func TestRefreshNeverBringsBackAnotherOwnersValue(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	a, b := connectTo(t, node.URL()), connectTo(t, node.URL())
	kv := bucket(t, a, jetstream.KeyValueConfig{Bucket: "b", History: 64, LimitMarkerTTL: time.Minute})
	refreshed, lost := 0, 0
	const rounds, keys = 1000, 100 // so that the history of a key has room for all its rounds
	takeOver := [](func(key string, value []byte) error){
		func(key string, value []byte) error { return b.Put(testCtx(t), "b", key, value, time.Hour) },
		func(key string, _ []byte) error { return b.Delete(testCtx(t), "b", key) },
		func(key string, value []byte) error {
			err := errors.Join(b.Delete(testCtx(t), "b", key), b.Create(testCtx(t), "b", key, value, time.Hour))
			if errors.Is(err, jetstream.ErrKeyExists) {
				return nil // the refresh, of what was read in between
			}
			return err
		},
	}
	for i := range rounds {
		key := fmt.Sprint(i % keys)
		require.NoError(t, a.Put(testCtx(t), "b", key, fmt.Appendf(nil, "a%d", i), time.Hour))
		race(2, func(who int) {
			if who == 1 {
				assert.NoError(t, takeOver[i%3](key, fmt.Appendf(nil, "b%d", i)))
				return
			}
			err := a.Refresh(testCtx(t), "b", key)
			if err == nil {
				refreshed++
				return
			}
			assert.True(t, errors.Is(err, jetstream.ErrKeyRevisionMismatch) || errors.Is(err, jetstream.ErrKeyNotFound), "%v", err)
			lost++
		})
	}
	t.Logf("of %d refreshes %d went through, %d lost", rounds, refreshed, lost)
	assert.Positive(t, refreshed)
	assert.Positive(t, lost)
	for key := range keys {
		entries, err := kv.History(testCtx(t), fmt.Sprint(key))
		require.NoError(t, err)
		require.Less(t, len(entries), 64, "nothing has fallen out")
		seen, before := map[string]bool{}, ""
		for _, e := range entries {
			value := string(e.Value())
			if value != "" && seen[value] {
				require.Equal(t, before, value, "a value comes again only behind itself")
			}
			seen[value], before = true, value
		}
	}
}

func TestCreateOfAnExpiredKeySucceeds(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	const n = 40
	for i := range n {
		require.NoError(t, c.Create(ctx, "b", fmt.Sprint(i), nil, time.Second))
	}
	race(n, func(i int) {
		// Whatever the moment: it exists, or it is created; and the marker may come in between.
		eventually(t, func() bool {
			err := c.Create(ctx, "b", fmt.Sprint(i), []byte("again"), time.Hour)
			if err != nil {
				assert.ErrorIs(t, err, jetstream.ErrKeyExists)
			}
			return err == nil
		}, "it expires")
	})
	for i := range n {
		v, err := c.Get(ctx, "b", fmt.Sprint(i))
		require.NoError(t, err)
		require.Equal(t, "again", string(v))
	}
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
			assert.Equal(t, []string{"kKeyValuePutOp", "otherKeyValueDeleteOp"}, seen)

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
