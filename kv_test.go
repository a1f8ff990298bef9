package natty_test

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// config is a bucket's stream's.
func config(t testing.TB, c *natty.Client, bucket string) jetstream.StreamConfig {
	t.Helper()
	s, err := c.JetStream().Stream(testkit.Ctx(t), "KV_"+bucket)
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
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
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
		c := testkit.ConnectTo(t, node.URL())
		writers.Go(func() { assert.NoError(t, c.Put(testkit.Ctx(t), "b", fmt.Sprint(i), nil)) })
	}
	writers.Wait()
	keys, err := testkit.ConnectTo(t, node.URL()).Keys(testkit.Ctx(t), "b")
	require.NoError(t, err)
	assert.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6", "7"}, keys)
}

func TestADeletedKeyIsGoneAndCanBeCreatedAgain(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
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
	c := testkit.OnServer(t)
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b"})
	keys, err := c.Keys(testkit.Ctx(t), "b")
	require.NoError(t, err)
	assert.Empty(t, keys)
}

func TestKeysAreAllListed(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	kv := testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", History: 3})
	for i := range 1000 {
		_, err := kv.Put(testkit.Ctx(t), fmt.Sprintf("%03d", i%700), make([]byte, 10_000))
		require.NoError(t, err)
	}
	keys, err := c.Keys(testkit.Ctx(t), "b")
	require.NoError(t, err)
	assert.Len(t, keys, 700)
	assert.IsIncreasing(t, keys)
}

func TestUpdateOfAStaleRevisionNamesBoth(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
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
		clients[i] = testkit.ConnectTo(t, url)
	}
	testkit.Bucket(t, clients[0], jetstream.KeyValueConfig{Bucket: "b", Replicas: 3})
	for round := range 20 {
		key := fmt.Sprint(round)
		var created, updated atomic.Int64
		testkit.Race(8, func(i int) {
			err := clients[i%3].Create(testkit.Ctx(t), "b", key, fmt.Append(nil, i))
			if err == nil {
				created.Add(1)
				return
			}
			assert.ErrorIs(t, err, jetstream.ErrKeyExists)
		})
		require.EqualValues(t, 1, created.Load())
		revision := testkit.RevisionOf(t, clients[0], "b", key)
		testkit.Race(8, func(i int) {
			_, err := clients[i%3].Update(testkit.Ctx(t), "b", key, fmt.Append(nil, i), revision)
			if err == nil {
				updated.Add(1)
				return
			}
			assert.ErrorIs(t, err, jetstream.ErrKeyRevisionMismatch)
		})
		require.EqualValues(t, 1, updated.Load())
	}
}

func TestNamesThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	for _, name := range []string{"", "a.b", "a b", "a*", "a/b", "ä", "a=", strings.Repeat("x", 300)} {
		_, err := c.Get(ctx, name, "k")
		wantConfigError(t, err, "bucket")
		_, err = c.EnsureBucket(ctx, jetstream.KeyValueConfig{Bucket: name})
		wantConfigError(t, err, "bucket")
	}
	for _, key := range []string{"ä", "user:42"} {
		wantConfigError(t, c.Put(ctx, "b", key, nil), "key")
		wantConfigError(t, c.Create(ctx, "b", key, nil), "key")
		_, err := c.Update(ctx, "b", key, nil, 1)
		wantConfigError(t, err, "key")
		wantConfigError(t, c.Refresh(ctx, "b", key), "key")
	}
	for _, key := range []string{"", ".", "a.", ".a", "a..b", "a b", "*", "a.>", "a\n", strings.Repeat("x", 3001)} {
		_, err := c.Get(ctx, "b", key)
		wantConfigError(t, err, "key")
		wantConfigError(t, c.Put(ctx, "b", key, nil), "key")
		wantConfigError(t, c.Create(ctx, "b", key, nil), "key")
		_, err = c.Update(ctx, "b", key, nil, 1)
		wantConfigError(t, err, "key")
		wantConfigError(t, c.Refresh(ctx, "b", key), "key")
		wantConfigError(t, c.Delete(ctx, "b", key), "key")
	}
	for _, keys := range []string{"", "a..>", "a.>.b", "a b", ">.a"} {
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
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
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
	plain := testkit.ConnectTo(t, node.URL())
	for name, cfg := range map[string]natty.Config{"domain": {Domain: "hub"}, "prefix": {APIPrefix: "$JS.hub.API"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testkit.Ctx(t)
			proxy := nattytest.Proxy(t, node.URL())
			cfg.Servers = []string{proxy.URL()}
			c := testkit.Connect(t, cfg)
			require.NoError(t, c.Create(ctx, name, "k", []byte("1"), time.Minute))
			revision, err := c.Update(ctx, name, "k", []byte("2"), 1)
			require.NoError(t, err)
			require.NoError(t, c.Refresh(ctx, name, "k"))
			assert.Equal(t, "60s", testkit.TTLOf(t, plain, name, "k"))
			assert.Equal(t, revision+1, testkit.LastMessage(t, plain, name, "k").Sequence)
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
			testkit.Eventually(t, func() bool { return !testkit.IsKeyGone(ctx, plain, name, "lost") }, "it is stored")
			proxy.Cut()
			proxy.Thaw()
			require.NoError(t, testkit.Receive(t, lose))
			require.NoError(t, c.DeleteBucket(ctx, name))
		})
	}
}

func TestAKeyWithATTLExpires(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	require.NoError(t, c.Put(ctx, "b", "put", nil, time.Second))
	require.NoError(t, c.Create(ctx, "b", "created", nil, time.Second))
	require.NoError(t, c.Put(ctx, "b", "stays", nil, time.Second))
	require.NoError(t, c.Put(ctx, "b", "stays", nil), "without a TTL it has none any more")
	testkit.Eventually(t, func() bool {
		keys, err := c.Keys(ctx, "b")
		return err == nil && len(keys) == 1 && keys[0] == "stays"
	}, "the others expire")
	require.ErrorIs(t, c.Refresh(ctx, "b", "put"), jetstream.ErrKeyNotFound)
}

func TestATTLThatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	for _, ttl := range []time.Duration{-time.Second, 0, time.Millisecond, 1500 * time.Millisecond} {
		wantConfigError(t, c.Put(ctx, "b", "k", nil, ttl), "ttl", ttl.String(), "whole seconds")
		wantConfigError(t, c.Create(ctx, "b", "k", nil, ttl), "ttl", ttl.String(), "whole seconds")
	}
	const year = 365 * 24 * time.Hour
	wantConfigError(t, c.Put(ctx, "b", "k", nil, 250*year), "ttl", "hundred years")
	wantConfigError(t, c.Create(ctx, "b", "k", nil, 250*year), "ttl", "hundred years")
	wantConfigError(t, c.Put(ctx, "b", "k", nil, time.Second, time.Second), "ttl", "one TTL")
	_, err := c.Status(ctx, "b")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound, "nothing was made for them")

	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", TTL: time.Minute})
	wantConfigError(t, c.Put(ctx, "b", "k", nil, 61*time.Second), "ttl", "1m1s", "1m0s", `"b"`)
	wantConfigError(t, c.Create(ctx, "b", "k", nil, 61*time.Second), "ttl", "1m1s", "1m0s")
	require.NoError(t, c.Put(ctx, "b", "k", nil, time.Minute))
	_, err = c.JetStream().UpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", TTL: time.Hour, LimitMarkerTTL: time.Minute})
	require.NoError(t, err)
	require.NoError(t, c.Put(ctx, "b", "k", nil, 61*time.Second), "the bucket's TTL is looked at again")
}

func TestABucketWithoutMarkersGetsThemOnlyWhenAskedTo(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	_, err := c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", Description: "mine"})
	require.NoError(t, err)
	require.NoError(t, c.Put(ctx, "b", "k", nil))
	wantConfigError(t, c.Put(ctx, "b", "k", nil, time.Minute), "ttl", "EnsureBucket", "LimitMarkerTTL")
	wantConfigError(t, c.Create(ctx, "b", "new", nil, time.Minute), "ttl", "EnsureBucket", "LimitMarkerTTL")
	assert.False(t, config(t, c, "b").AllowMsgTTL, "older clients cannot read markers")
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", LimitMarkerTTL: time.Minute})
	require.NoError(t, c.Put(ctx, "b", "k", nil, time.Minute))
	cfg := config(t, c, "b")
	assert.Equal(t, time.Minute, cfg.SubjectDeleteMarkerTTL)
	assert.Equal(t, "mine", cfg.Description)
	assert.Equal(t, "60s", testkit.TTLOf(t, c, "b", "k"))

	// Another bucket takes its place while its settings are remembered.
	require.NoError(t, c.JetStream().DeleteKeyValue(ctx, "b"))
	_, err = c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b"})
	require.NoError(t, err)
	wantConfigError(t, c.Create(ctx, "b", "k", nil, time.Minute), "ttl", "EnsureBucket")
	_, err = c.Get(ctx, "b", "k")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
}

func TestATTLInABucketWithAHistoryIsRefused(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "h", History: 5})
	wantConfigError(t, c.Put(ctx, "h", "k", nil, time.Second), "ttl", "History is 5", "History of 1")
	wantConfigError(t, c.Create(ctx, "h", "k", nil, time.Second), "ttl", "History is 5")
	require.NoError(t, c.Put(ctx, "h", "k", nil))
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "h", History: 1})
	require.NoError(t, c.Put(ctx, "h", "k", nil, time.Second), "the bucket is looked at again")
}

func TestAnEntryHasTheRevisionThatUpdateWants(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	before := time.Now()
	require.NoError(t, c.Put(ctx, "b", "other", nil))
	require.NoError(t, c.Put(ctx, "b", "k", []byte("1")))
	ensureConfig(t, c, jetstream.StreamConfig{Name: "KV_plain", Subjects: []string{"$KV.plain.>"}, MaxMsgsPerSubject: 1})
	require.NoError(t, c.Put(ctx, "plain", "k", []byte("1")))
	for _, bucket := range []string{"b", "plain"} { // with direct reads, and without
		e, err := c.GetEntry(ctx, bucket, "k")
		require.NoError(t, err)
		assert.Equal(t, bucket, e.Bucket())
		assert.Equal(t, "k", e.Key())
		assert.Equal(t, "1", string(e.Value()))
		assert.Equal(t, jetstream.KeyValuePut, e.Operation())
		assert.WithinRange(t, e.Created(), before, time.Now())
		revision, err := c.Update(ctx, bucket, "k", []byte("2"), e.Revision())
		require.NoError(t, err)
		assert.Equal(t, e.Revision()+1, revision)
		require.NoError(t, c.Delete(ctx, bucket, "k"))
		e, err = c.GetEntry(ctx, bucket, "k")
		require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
		assert.Nil(t, e)
	}
}

func TestAKeyThatOthersMadeIsReadAndDeleted(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b"})
	for _, key := range []string{"user:42", "größe"} {
		_, err := c.PublishMsg(ctx, &nats.Msg{Subject: "$KV.b." + key, Data: []byte("v"), Header: nats.Header{"Status": {"404"}}})
		require.NoError(t, err)
		v, err := c.Get(ctx, "b", key)
		require.NoError(t, err)
		assert.Equal(t, "v", string(v))
		keys, err := c.Keys(ctx, "b")
		require.NoError(t, err)
		assert.Equal(t, []string{key}, keys)
		testkit.Follow(t, c, "b", key).Wants(t, key+"=v")
		require.NoError(t, c.Delete(ctx, "b", key))
		_, err = c.Get(ctx, "b", key)
		require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	}
}

func TestAMirrorIsReadAsWhatItMirrors(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	require.NoError(t, c.Put(ctx, "origin", "k", []byte("1")))
	require.NoError(t, c.Put(ctx, "origin", "gone", nil))
	require.NoError(t, c.Delete(ctx, "origin", "gone"))
	_, err := c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: "copy", Mirror: &jetstream.StreamSource{Name: "origin"},
	})
	require.NoError(t, err)
	testkit.Eventually(t, func() bool {
		v, err := c.Get(ctx, "copy", "k")
		return err == nil && string(v) == "1"
	}, "it has copied")
	_, err = c.Get(ctx, "copy", "gone")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	keys, err := c.Keys(ctx, "copy")
	require.NoError(t, err)
	assert.Equal(t, []string{"k"}, keys)
	f := testkit.Follow(t, c, "copy", "k")
	f.Wants(t, "k=1")
	require.NoError(t, c.Put(ctx, "origin", "k", []byte("2")))
	f.Wants(t, "k=2")

	wantReadOnly := func(err error) {
		t.Helper()
		wantConfigError(t, err, "bucket", `"copy"`, `mirror of bucket "origin"`)
	}
	wantReadOnly(c.Put(ctx, "copy", "k", nil))
	wantReadOnly(c.Put(ctx, "copy", "k", nil, time.Minute))
	wantReadOnly(c.Create(ctx, "copy", "new", nil))
	wantReadOnly(c.Create(ctx, "copy", "new", nil, time.Minute))
	wantReadOnly(c.Delete(ctx, "copy", "k"))
	wantReadOnly(c.Refresh(ctx, "copy", "k"))
	_, err = c.Update(ctx, "copy", "k", nil, 1)
	wantReadOnly(err)
	_, err = c.EnsureBucket(ctx, jetstream.KeyValueConfig{Bucket: "copy", TTL: time.Hour})
	wantReadOnly(err)
	b := typed[int](t, c, natty.BucketConfig{Bucket: "copy"})
	wantReadOnly(b.Modify(ctx, "n", func(n int) (int, error) { return n + 1, nil }))
}

func TestDeleteSaysSoIfTheStreamDoesNotTakeTheKey(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	ensureConfig(t, c, jetstream.StreamConfig{Name: "KV_b", Subjects: []string{"$KV.b.mine.>"}, MaxMsgsPerSubject: 1})
	require.ErrorIs(t, c.Delete(ctx, "b", "k"), natty.ErrNoStream)
}

func TestReadsCanBeAllowedForSomeKeysOnly(t *testing.T) {
	t.Parallel()
	node := testkit.Restrict(t, "$JS.API.STREAM.INFO.KV_b", "$JS.API.DIRECT.GET.KV_b.$KV.b.pub.>",
		"$JS.API.CONSUMER.CREATE.KV_b.*.$KV.b.pub.>", "$JS.API.CONSUMER.MSG.NEXT.KV_b.>")
	root, app := testkit.Login(t, node.URL(), "root"), testkit.Login(t, node.URL(), "app")
	ctx := testkit.Ctx(t)
	require.NoError(t, root.Put(ctx, "b", "pub.k", []byte("v")))
	require.NoError(t, root.Put(ctx, "b", "secret.k", []byte("v")))
	v, err := app.Get(ctx, "b", "pub.k")
	require.NoError(t, err)
	assert.Equal(t, "v", string(v))
	_, err = app.Get(ctx, "b", "pub.none")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	testkit.Follow(t, app, "b", "pub.>").Wants(t, "pub.k=v")

	_, err = app.Get(ctx, "b", "secret.k")
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorContains(t, err, "$JS.API.DIRECT.GET.KV_b.$KV.b.secret.k")
	_, err = app.Keys(ctx, "b")
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorContains(t, err, "$JS.API.CONSUMER.CREATE.KV_b.")
}

func TestAWatchSaysThatItMayNotAskForMessages(t *testing.T) {
	t.Parallel()
	node := testkit.Restrict(t, "$JS.API.STREAM.INFO.KV_b", "$JS.API.CONSUMER.CREATE.KV_b.>")
	root, app := testkit.Login(t, node.URL(), "root"), testkit.Login(t, node.URL(), "app")
	require.NoError(t, root.Put(testkit.Ctx(t), "b", "k", nil))
	_, err := app.Keys(testkit.Ctx(t), "b")
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorContains(t, err, "$JS.API.CONSUMER.MSG.NEXT.KV_b.")
}

func TestAWatchEndsAtOnceWithTheNameOfWhatTheServerRefuses(t *testing.T) {
	t.Parallel()
	for refused, allowed := range map[string][]string{
		"$JS.API.CONSUMER.CREATE.KV_b.":   {"$JS.API.STREAM.INFO.KV_b", "$JS.API.CONSUMER.MSG.NEXT.KV_b.>"},
		"$JS.API.CONSUMER.MSG.NEXT.KV_b.": {"$JS.API.STREAM.INFO.KV_b", "$JS.API.CONSUMER.CREATE.KV_b.>"},
	} {
		node := testkit.Restrict(t, allowed...)
		root, app := testkit.Login(t, node.URL(), "root"), testkit.Login(t, node.URL(), "app")
		require.NoError(t, root.Put(testkit.Ctx(t), "b", "k", nil))
		begin := time.Now()
		f := testkit.Follow(t, app, "b", ">")
		err := testkit.Receive(t, f.Err)
		require.ErrorIs(t, err, nats.ErrPermissionViolation)
		require.ErrorContains(t, err, refused)
		assert.Less(t, time.Since(begin), testkit.AtOnce)
	}
}

func TestAWatchWhoseSubscriptionIsRefusedSaysSoAndGoesOnWhenItIsAccepted(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.MaxSubs = 2 }))
	require.NoError(t, testkit.ConnectTo(t, node.URL()).Put(testkit.Ctx(t), "b", "k", []byte("v")))
	log, logger := testkit.NewLog()
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}}, natty.WithLogger(logger))
	other, err := c.Conn().SubscribeSync("other")
	require.NoError(t, err)
	f := testkit.Follow(t, c, "b", ">")
	said := func() []testkit.Entry { return log.Of("natty: a watch receives nothing") }
	testkit.Eventually(t, func() bool { return len(said()) > 0 }, "it says so")
	assert.Contains(t, fmt.Sprint(said()[0]), "refuses the subscription")
	keys, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = c.Keys(keys, "b")
	require.ErrorContains(t, err, "refuses the subscription")
	require.NoError(t, other.Unsubscribe())
	f.Wants(t, "k=v")
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", []byte("w")))
	f.Wants(t, "k=w")
}

func TestTheMarkerOfADeletedKeyGoesAway(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", LimitMarkerTTL: time.Second})
	require.NoError(t, c.Put(ctx, "b", "k", []byte("v")))
	f := testkit.Follow(t, c, "b", ">")
	f.Wants(t, "k=v")
	require.NoError(t, c.Delete(ctx, "b", "k"))
	f.Wants(t, "-k")
	testkit.Eventually(t, func() bool {
		status, err := c.Status(ctx, "b")
		return err == nil && status.Values() == 0
	}, "nothing is left")
	require.NoError(t, c.Create(ctx, "b", "k", []byte("again")))
	f.Wants(t, "k=again")

	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "h", LimitMarkerTTL: time.Second, History: 2})
	require.NoError(t, c.Put(ctx, "h", "k", []byte("v")))
	require.NoError(t, c.Delete(ctx, "h", "k"))
	assert.Empty(t, testkit.TTLOf(t, c, "h", "k"), "else an older value would come to light")
	assert.Equal(t, "DEL", testkit.LastMessage(t, c, "h", "k").Header.Get("KV-Operation"))

	// Another bucket takes its place, whose keys have no TTL.
	require.NoError(t, c.JetStream().DeleteKeyValue(ctx, "b"))
	_, err := c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b"})
	require.NoError(t, err)
	require.NoError(t, c.Put(ctx, "b", "k", []byte("v")))
	require.NoError(t, c.Delete(ctx, "b", "k"))
	_, err = c.Get(ctx, "b", "k")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
}

func TestUpdateKeepsTheTTLOfAKey(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	require.NoError(t, c.Put(ctx, "b", "k", []byte("1"), time.Minute))
	revision := testkit.LastMessage(t, c, "b", "k").Sequence
	revision, err := c.Update(ctx, "b", "k", []byte("2"), revision)
	require.NoError(t, err)
	m := testkit.LastMessage(t, c, "b", "k")
	assert.Equal(t, m.Sequence, revision)
	assert.Equal(t, "2", string(m.Data))
	assert.Equal(t, "60s", m.Header.Get(jetstream.MsgTTLHeader))

	require.NoError(t, c.Put(ctx, "b", "k", []byte("3")))
	assert.Empty(t, testkit.TTLOf(t, c, "b", "k"), "Put sets the one given, or none")
	_, err = c.Update(ctx, "b", "k", []byte("4"), revision+1)
	require.NoError(t, err)
	assert.Empty(t, testkit.TTLOf(t, c, "b", "k"))
}

func TestRefreshBeginsALifeAnew(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	require.NoError(t, c.Put(ctx, "b", "ttl", []byte("v"), 2*time.Second))
	require.NoError(t, c.Put(ctx, "b", "none", []byte("v")))
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "aged", TTL: time.Hour})
	msg := &nats.Msg{Subject: "$KV.aged.k", Data: []byte("v"), Header: nats.Header{"Mine": {"kept"}, "Nats-Msg-Id": {"x"}}}
	_, err := c.PublishMsg(ctx, msg)
	require.NoError(t, err)
	_, err = c.PublishMsg(ctx, &nats.Msg{Subject: "$KV.aged.never", Header: nats.Header{jetstream.MsgTTLHeader: {"never"}}})
	require.NoError(t, err)

	before := testkit.LastMessage(t, c, "aged", "k")
	require.NoError(t, c.Refresh(ctx, "aged", "k"))
	after := testkit.LastMessage(t, c, "aged", "k")
	assert.Greater(t, after.Sequence, before.Sequence, "the bucket's TTL begins anew")
	assert.Equal(t, before.Data, after.Data)
	assert.Equal(t, "kept", after.Header.Get("Mine"))
	assert.Empty(t, after.Header.Get("Nats-TTL"))

	for _, of := range [][2]string{{"b", "none"}, {"aged", "never"}} {
		before := testkit.LastMessage(t, c, of[0], of[1])
		require.NoError(t, c.Refresh(ctx, of[0], of[1]))
		assert.Equal(t, before.Sequence, testkit.LastMessage(t, c, of[0], of[1]).Sequence, "what does not expire is not written")
	}

	end := time.Now().Add(4 * time.Second)
	for time.Now().Before(end) {
		require.NoError(t, c.Refresh(ctx, "b", "ttl"), "it outlives its TTL")
		v, err := c.Get(ctx, "b", "ttl")
		require.NoError(t, err)
		require.Equal(t, "v", string(v))
		<-time.After(100 * time.Millisecond)
	}
	assert.Equal(t, "2s", testkit.TTLOf(t, c, "b", "ttl"))
	testkit.Eventually(t, func() bool { return testkit.IsKeyGone(ctx, c, "b", "ttl") }, "and expires without")
}

// A holds the key's value "a…" and refreshes it; B takes it over in every way there is. The stream, which keeps all that
// happened, shows that no refresh wrote anything but the value that was there just before it.
func TestRefreshNeverBringsBackAnotherOwnersValue(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	a, b := testkit.ConnectTo(t, node.URL()), testkit.ConnectTo(t, node.URL())
	kv := testkit.Bucket(t, a, jetstream.KeyValueConfig{Bucket: "b", History: 64, TTL: time.Hour})
	refreshed, lost := 0, 0
	const rounds, keys = 100, 20 // so that the history of a key has room for all its rounds
	takeOver := [](func(key string, value []byte) error){
		func(key string, value []byte) error { return b.Put(testkit.Ctx(t), "b", key, value) },
		func(key string, _ []byte) error { return b.Delete(testkit.Ctx(t), "b", key) },
		func(key string, value []byte) error {
			err := errors.Join(b.Delete(testkit.Ctx(t), "b", key), b.Create(testkit.Ctx(t), "b", key, value))
			if errors.Is(err, jetstream.ErrKeyExists) {
				return nil // the refresh, of what was read in between
			}
			return err
		},
	}
	for i := range rounds {
		key := fmt.Sprint(i % keys)
		require.NoError(t, a.Put(testkit.Ctx(t), "b", key, fmt.Appendf(nil, "a%d", i)))
		testkit.Race(2, func(who int) {
			if who == 1 {
				assert.NoError(t, takeOver[i%3](key, fmt.Appendf(nil, "b%d", i)))
				return
			}
			err := a.Refresh(testkit.Ctx(t), "b", key)
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
		entries, err := kv.History(testkit.Ctx(t), fmt.Sprint(key))
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
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	const n = 40
	for i := range n {
		require.NoError(t, c.Create(ctx, "b", fmt.Sprint(i), nil, time.Second))
	}
	testkit.Race(n, func(i int) {
		// Whatever the moment: it exists, or it is created; and the marker may come in between.
		testkit.Eventually(t, func() bool {
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

func TestAWatchBringsWhatThereIsAndThenWhatChanges(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	put := func(key, value string, ttl ...time.Duration) {
		require.NoError(t, c.Put(testkit.Ctx(t), "b", key, []byte(value), ttl...))
	}
	put("a.1", "x")
	put("a.2", "x")
	put("b", "x")
	put("a.1", "y")
	require.NoError(t, c.Delete(testkit.Ctx(t), "b", "a.2"))
	all, some, one := testkit.Follow(t, c, "b", ">"), testkit.Follow(t, c, "b", "a.*"), testkit.Follow(t, c, "b", "b")
	all.Wants(t, "b=x", "a.1=y", "-a.2")
	some.Wants(t, "a.1=y", "-a.2")
	one.Wants(t, "b=x")
	put("a.3", "z", time.Second)
	put("b", "z")
	all.Wants(t, "a.3=z", "b=z", "-a.3")
	some.Wants(t, "a.3=z", "-a.3")
	one.Wants(t, "b=z")
	require.NoError(t, c.DeleteBucket(testkit.Ctx(t), "b"))
	for _, f := range []*testkit.Following{all, some, one} {
		require.ErrorIs(t, testkit.Receive(t, f.Err), jetstream.ErrBucketNotFound)
		f.Silent(t)
	}
}

func TestAWatchLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
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
	testkit.Eventually(t, func() bool {
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
	for name, opts := range map[string][]natty.Option{"its own connection": {testkit.Quiet}, "one that stays": {testkit.Quiet, natty.WithConn(nc)}} {
		c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test", Servers: []string{node.URL()}}, opts...)
		require.NoError(t, err, name)
		require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", []byte("v")))
		f := testkit.Follow(t, c, "b", ">")
		f.Wants(t, "k=v")
		require.NoError(t, c.Close(testkit.Ctx(t)))
		require.NoError(t, testkit.Receive(t, f.Err), name)
		for _, err := range c.Watch(testkit.Ctx(t), "b", ">") {
			require.ErrorIs(t, err, natty.ErrClosed)
		}
	}
}

func TestAWatchNoticesExpiryInABucketWithoutMarkers(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	kv, err := c.JetStream().CreateKeyValue(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "b", TTL: time.Second})
	require.NoError(t, err)
	f := testkit.Follow(t, c, "b", ">")
	_, err = kv.Put(testkit.Ctx(t), "k", []byte("v"))
	require.NoError(t, err)
	f.Wants(t, "k=v", "-k")
}

func TestAWatchThatIsRefusedSaysSo(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	direct := testkit.ConnectTo(t, node.URL())
	_, err := direct.JetStream().CreateStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "KV_b", Subjects: []string{"$KV.b.>"}, MaxMsgsPerSubject: 1, MaxConsumers: 1,
	})
	require.NoError(t, err)
	_, err = direct.JetStream().CreateConsumer(testkit.Ctx(t), "KV_b", jetstream.ConsumerConfig{Durable: "d"})
	require.NoError(t, err)
	f := testkit.Follow(t, direct, "b", ">")
	err = testkit.Receive(t, f.Err)
	var refused *jetstream.APIError
	require.ErrorAs(t, err, &refused)
	require.NotErrorIs(t, err, nats.ErrTimeout)
}
