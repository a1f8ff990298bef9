package natty_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestEnsureBucketMakesWhatNatsGoWouldMakeWithMarkers(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	kv := testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", TTL: 30 * time.Second, Storage: jetstream.MemoryStorage})
	assert.Equal(t, "b", kv.Bucket())
	_, err := c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: "theirs", TTL: 30 * time.Second, Storage: jetstream.MemoryStorage, LimitMarkerTTL: time.Minute,
	})
	require.NoError(t, err)
	want := config(t, c, "theirs")
	want.Name, want.Subjects = "KV_b", []string{"$KV.b.>"}
	assert.Equal(t, want, config(t, c, "b"))
}

func TestEnsureBucketChangesWhatIsSetAndLeavesTheRest(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	_, err := c.JetStream().CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: "b", Description: "theirs", MaxBytes: 1 << 20, History: 5, TTL: time.Hour, Metadata: map[string]string{"a": "1"},
	})
	require.NoError(t, err)
	before := config(t, c, "b")
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b"})
	assert.Equal(t, before, config(t, c, "b"), "nothing is asked for")

	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", History: 2, TTL: time.Second, Metadata: map[string]string{"b": "2"}})
	after := config(t, c, "b")
	assert.Equal(t, "theirs", after.Description)
	assert.EqualValues(t, 1<<20, after.MaxBytes)
	assert.EqualValues(t, 2, after.MaxMsgsPerSubject)
	assert.Equal(t, time.Second, after.MaxAge)
	assert.Equal(t, time.Second, after.Duplicates, "the window is within the age")
	assert.Equal(t, "1", after.Metadata["a"])
	assert.Equal(t, "2", after.Metadata["b"])
	assert.False(t, after.AllowMsgTTL)
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", LimitMarkerTTL: 5 * time.Second, Compression: true, MaxValueSize: 100})
	after = config(t, c, "b")
	assert.True(t, after.AllowMsgTTL)
	assert.Equal(t, 5*time.Second, after.SubjectDeleteMarkerTTL)
	assert.Equal(t, jetstream.S2Compression, after.Compression)
	require.ErrorIs(t, c.Put(ctx, "b", "k", make([]byte, 200)), natty.ErrTooLarge)
}

func TestEnsureBucketRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b"})
	_, err := c.EnsureBucket(ctx, jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.MemoryStorage})
	var drift *natty.DriftError
	require.ErrorAs(t, err, &drift)
	assert.Equal(t, "bucket", drift.Kind)
	assert.Equal(t, "b", drift.Name)
	assert.Equal(t, []natty.Difference{{Field: "storage", Have: `"file"`, Want: `"memory"`}}, drift.Differences)

	for field, cfg := range map[string]jetstream.KeyValueConfig{
		"Mirror, Sources": {Mirror: &jetstream.StreamSource{Name: "x"}},
		"History":         {History: 65},
		"Replicas":        {Replicas: 6},
		"TTL":             {TTL: time.Millisecond},
		"LimitMarkerTTL":  {LimitMarkerTTL: 1500 * time.Millisecond},
	} {
		cfg.Bucket = "b"
		_, err := c.EnsureBucket(ctx, cfg)
		wantConfigError(t, err, field)
	}
}

func TestMoreReplicasThanServersIsAClearError(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, Replicas: 3})
	_, err := c.EnsureBucket(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "b"})
	wantConfigError(t, err, "Replicas", `"3"`, "more than there are servers")
	wantConfigError(t, c.Put(testkit.Ctx(t), "b", "k", nil), "Replicas", `"3"`)
	wantConfigError(t, c.Create(testkit.Ctx(t), "b", "k", nil, time.Second), "Replicas", `"3"`)
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b", Replicas: 1})

	cluster := nattytest.Cluster(t)
	c = testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = c.EnsureBucket(ctx, jetstream.KeyValueConfig{Bucket: "b", Replicas: 5})
	wantConfigError(t, err, "Replicas", `"5"`, "more than there are servers")
}

func TestBucketsAreReplicatedAsConfigured(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", nil))
	assert.Equal(t, 3, config(t, c, "b").Replicas)
	b := typed[string](t, c, natty.BucketConfig{Bucket: "b2", Replicas: 1})
	require.NoError(t, b.Put(testkit.Ctx(t), "k", "v"))
	assert.Equal(t, 1, config(t, c, "b2").Replicas)
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b2", Replicas: 3})
	assert.Equal(t, 3, config(t, c, "b2").Replicas)
}

func typed[T any](t testing.TB, c *natty.Client, cfg natty.BucketConfig) *natty.Bucket[T] {
	t.Helper()
	b, err := natty.NewBucket[T](c, cfg)
	require.NoError(t, err)
	return b
}

type user struct {
	Name string `json:"name"`
	Age  int    `json:"age"`
}

func TestABucketHoldsTypedValues(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	b := typed[user](t, c, natty.BucketConfig{Bucket: "users", TTL: time.Hour})
	_, err := b.Get(ctx, "ada")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
	require.NoError(t, b.Create(ctx, "ada", user{"Ada", 36}, time.Minute))
	require.ErrorIs(t, b.Create(ctx, "ada", user{}), jetstream.ErrKeyExists)
	require.NoError(t, b.Put(ctx, "bob", user{"Bob", 1}))
	wantConfigError(t, b.Put(ctx, "bob", user{}, 2*time.Hour), "ttl", "1h0m0s")
	ada, err := b.Get(ctx, "ada")
	require.NoError(t, err)
	assert.Equal(t, user{"Ada", 36}, ada)
	assert.JSONEq(t, `{"name":"Ada","age":36}`, string(testkit.LastMessage(t, c, "users", "ada").Data))
	assert.Equal(t, time.Hour, config(t, c, "users").MaxAge)
	keys, err := b.Keys(ctx)
	require.NoError(t, err)
	assert.Equal(t, []string{"ada", "bob"}, keys)
	require.NoError(t, b.Delete(ctx, "bob"))
	_, err = b.Get(ctx, "bob")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)

	require.NoError(t, c.Put(ctx, "users", "bad", []byte("{")))
	_, err = b.Get(ctx, "bad")
	var syntax *json.SyntaxError
	require.ErrorAs(t, err, &syntax)
	require.ErrorContains(t, err, `"bad"`)
	require.ErrorContains(t, err, "natty_test.user")
	var seen []natty.Entry[user]
	for e, err := range b.Watch(ctx, ">") {
		require.Equal(t, e.Key == "bad", err != nil, "%v", err)
		if seen = append(seen, e); len(seen) == 3 {
			break
		}
	}
	assert.Equal(t, user{"Ada", 36}, seen[0].Value)
	assert.EqualValues(t, 1, seen[0].Revision)
	assert.NotZero(t, seen[0].Created)
	assert.Equal(t, jetstream.KeyValuePurge, seen[1].Operation)
	assert.Equal(t, "bad", seen[2].Key)
	for _, err := range b.Watch(ctx, "") {
		wantConfigError(t, err, "keys")
	}
	require.ErrorContains(t, typed[func()](t, c, natty.BucketConfig{Bucket: "f"}).Put(ctx, "k", nil), "encode func()")
}

func TestABucketThatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	for field, cfg := range map[string]natty.BucketConfig{
		"bucket": {}, "TTL": {Bucket: "b", TTL: -1}, "Replicas": {Bucket: "b", Replicas: -1},
	} {
		_, err := natty.NewBucket[int](c, cfg)
		wantConfigError(t, err, field)
	}
	_, err := natty.NewBucket[int](nil, natty.BucketConfig{Bucket: "b"})
	wantConfigError(t, err, "c")
}

// bigEndian is a codec for uint32.
type bigEndian struct{}

func (bigEndian) Marshal(v any) ([]byte, error) { return binary.Append(nil, binary.BigEndian, v) }

func (bigEndian) Unmarshal(data []byte, v any) error {
	_, err := binary.Decode(data, binary.BigEndian, v)
	return err
}

func (bigEndian) ContentType() string { return "application/octet-stream" }

func TestABucketUsesItsCodec(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	b := typed[uint32](t, c, natty.BucketConfig{Bucket: "b", Codec: bigEndian{}})
	require.NoError(t, b.Put(testkit.Ctx(t), "k", 7))
	assert.Equal(t, []byte{0, 0, 0, 7}, testkit.LastMessage(t, c, "b", "k").Data)
	v, err := b.Get(testkit.Ctx(t), "k")
	require.NoError(t, err)
	assert.EqualValues(t, 7, v)
}

func TestModifyLosesNoChange(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	const workers, each = 8, 25
	testkit.Race(workers, func(int) {
		b := typed[int](t, testkit.ConnectTo(t, node.URL()), natty.BucketConfig{Bucket: "b"})
		for range each {
			assert.NoError(t, b.Modify(testkit.Ctx(t), "n", func(n int) (int, error) { return n + 1, nil }))
		}
	})
	n, err := typed[int](t, testkit.ConnectTo(t, node.URL()), natty.BucketConfig{Bucket: "b"}).Get(testkit.Ctx(t), "n")
	require.NoError(t, err)
	assert.Equal(t, workers*each, n)
}

func TestModifyKeepsTheTTLAndEndsWithAnError(t *testing.T) {
	t.Parallel()
	c, ctx := testkit.OnServer(t), testkit.Ctx(t)
	b := typed[string](t, c, natty.BucketConfig{Bucket: "b"})
	mine := errors.New("mine")
	require.Equal(t, mine, b.Modify(ctx, "k", func(v string) (string, error) { return "x", mine }))
	_, err := b.Get(ctx, "k")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound, "nothing is written, and nothing made for it")
	theirs := &natty.RevisionError{}
	require.Equal(t, error(theirs), b.Modify(ctx, "k", func(v string) (string, error) { return "x", theirs }))

	require.NoError(t, b.Put(ctx, "k", "a", time.Minute))
	require.NoError(t, b.Modify(ctx, "k", func(v string) (string, error) { return v + "b", nil }))
	v, err := b.Get(ctx, "k")
	require.NoError(t, err)
	assert.Equal(t, "ab", v)
	assert.Equal(t, "60s", testkit.TTLOf(t, c, "b", "k"))

	require.NoError(t, b.Delete(ctx, "k"))
	require.NoError(t, b.Modify(ctx, "k", func(v string) (string, error) { return v + "new", nil }))
	assert.Equal(t, `"new"`, string(testkit.LastMessage(t, c, "b", "k").Data), "a key that is gone is the zero value")
	assert.Empty(t, testkit.TTLOf(t, c, "b", "k"))

	// Somebody is always faster.
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	calls := 0
	err = b.Modify(short, "k", func(string) (string, error) {
		if calls++; calls == 3 {
			cancel()
		}
		return "", b.Put(ctx, "k", fmt.Sprint(calls))
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, calls)
	wantConfigError(t, b.Modify(ctx, "a b", nil), "key")
	wantConfigError(t, b.Modify(ctx, "a", nil), "f", "is nil")
	require.NoError(t, c.Put(ctx, "b", "k", []byte("{")))
	require.ErrorContains(t, b.Modify(ctx, "k", func(v string) (string, error) { return v, nil }), "decode")
}
