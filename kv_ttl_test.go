package natty_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

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
	_, err = c.JetStream().UpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", TTL: time.Hour, LimitMarkerTTL: time.Minute})
	require.NoError(t, err)
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

func TestTheMarkerOfADeletedKeyGoesAway(t *testing.T) {
	t.Parallel()
	c, ctx := onServer(t), testCtx(t)
	bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", LimitMarkerTTL: time.Second})
	require.NoError(t, c.Put(ctx, "b", "k", []byte("v")))
	f := follow(t, c, "b", ">")
	f.wants(t, "k=v")
	require.NoError(t, c.Delete(ctx, "b", "k"))
	f.wants(t, "-k")
	eventually(t, func() bool {
		status, err := c.Status(ctx, "b")
		return err == nil && status.Values() == 0
	}, "nothing is left")
	require.NoError(t, c.Create(ctx, "b", "k", []byte("again")))
	f.wants(t, "k=again")

	bucket(t, c, jetstream.KeyValueConfig{Bucket: "h", LimitMarkerTTL: time.Second, History: 2})
	require.NoError(t, c.Put(ctx, "h", "k", []byte("v")))
	require.NoError(t, c.Delete(ctx, "h", "k"))
	assert.Empty(t, ttlOf(t, c, "h", "k"), "else an older value would come to light")
	assert.Equal(t, "DEL", lastMessage(t, c, "h", "k").Header.Get("KV-Operation"))

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
	const rounds, keys = 100, 20 // so that the history of a key has room for all its rounds
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
