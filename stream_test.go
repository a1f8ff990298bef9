package natty_test

import (
	"context"
	"encoding/json"
	"fmt"
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

// settingsOf reads a stream's configuration as the server sends it.
func settingsOf(t testing.TB, c *natty.Client, stream string) map[string]any {
	t.Helper()
	msg, err := c.Conn().Request("$JS.API.STREAM.INFO."+stream, nil, testkit.Patience)
	require.NoError(t, err)
	var info struct {
		Config map[string]any  `json:"config"`
		Error  json.RawMessage `json:"error"`
	}
	require.NoError(t, json.Unmarshal(msg.Data, &info))
	require.Nil(t, info.Error)
	return info.Config
}

// writes counts the requests that make or change streams.
func writes(t testing.TB, c *natty.Client) (count func() int64) {
	t.Helper()
	var n atomic.Int64
	for _, verb := range []string{"CREATE", "UPDATE"} {
		_, err := c.Conn().Subscribe("$JS.API.STREAM."+verb+".>", func(*nats.Msg) { n.Add(1) })
		require.NoError(t, err)
	}
	require.NoError(t, c.Conn().Flush())
	return func() int64 {
		require.NoError(t, c.Conn().Flush())
		return n.Load()
	}
}

func ensureConfig(t testing.TB, c *natty.Client, cfg jetstream.StreamConfig) jetstream.Stream {
	t.Helper()
	s, err := c.EnsureStream(testkit.Ctx(t), cfg)
	require.NoError(t, err)
	return s
}

func TestEnsureStreamRefusesWhatCanNeverWork(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	count := writes(t, c)
	for _, cfg := range []jetstream.StreamConfig{
		{}, {Subjects: []string{"s"}}, {Name: "a.b"}, {Name: "a b"}, {Name: "a*"}, {Name: ">"}, {Name: "a/b"}, {Name: `a\b`}, {Name: "a\n"},
		{Name: "S", Subjects: []string{""}}, {Name: "S", Subjects: []string{"ok", "a..b"}}, {Name: "S", Subjects: []string{"a b"}},
		{Name: "S", Subjects: []string{".a"}}, {Name: "S", Subjects: []string{"a."}}, {Name: "S", Subjects: []string{">.a"}},
		{Name: "S", Duplicates: -time.Second},
	} {
		_, err := c.EnsureStream(testkit.Ctx(t), cfg)
		var wrong *natty.ConfigError
		require.ErrorAs(t, err, &wrong, "%+v", cfg)
		assert.Contains(t, []string{"Name", "Subjects", "Duplicates"}, wrong.Field)
	}
	assert.Zero(t, count(), "nothing was asked of the server")
}

func TestEnsureStreamReportsWhatTheServerRefuses(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	for name, tt := range map[string]struct {
		cfg  jetstream.StreamConfig
		code jetstream.ErrorCode
	}{
		"overlapping subjects": {jetstream.StreamConfig{Name: "T", Subjects: []string{"s.x"}}, 10065},
		"replicas alone":       {jetstream.StreamConfig{Name: "T", Replicas: 3}, 10074},
	} {
		begin := time.Now()
		_, err := c.EnsureStream(testkit.Ctx(t), tt.cfg)
		var refused *jetstream.APIError
		require.ErrorAs(t, err, &refused, name)
		assert.Equal(t, tt.code, refused.ErrorCode)
		assert.Contains(t, err.Error(), `natty: stream "T": `)
		assert.Less(t, time.Since(begin), testkit.AtOnce)
	}
}

func TestEnsureStreamWithoutPermissionFailsAtOnceAndNamesIt(t *testing.T) {
	t.Parallel()
	for missing, allowed := range map[string][]string{
		"$JS.API.STREAM.INFO.S":   {"s"},
		"$JS.API.STREAM.CREATE.S": {"$JS.API.STREAM.INFO.S"},
	} {
		c := testkit.Login(t, testkit.Restrict(t, allowed...).URL(), "app")
		begin := time.Now()
		_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S"})
		require.ErrorIs(t, err, nats.ErrPermissionViolation)
		require.ErrorContains(t, err, `"`+missing+`"`)
		assert.Less(t, time.Since(begin), testkit.AtOnce)
	}
}

func TestEnsureStreamShortensTheDuplicateWindowWithMaxAge(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	window := func(cfg jetstream.StreamConfig) time.Duration {
		return ensureConfig(t, c, cfg).CachedInfo().Config.Duplicates
	}
	require.Equal(t, 2*time.Minute, window(jetstream.StreamConfig{Name: "S"}))
	assert.Equal(t, 2*time.Minute, window(jetstream.StreamConfig{Name: "S", MaxAge: time.Hour}))
	assert.Equal(t, time.Minute, window(jetstream.StreamConfig{Name: "S", MaxAge: time.Minute}), "no longer than MaxAge")
	assert.Equal(t, time.Minute, window(jetstream.StreamConfig{Name: "New", MaxAge: time.Minute}), "as a new one's")
	assert.Equal(t, time.Minute, window(jetstream.StreamConfig{Name: "S", MaxAge: time.Hour}), "nobody asked for more")
	assert.Equal(t, time.Second, window(jetstream.StreamConfig{Name: "S", MaxAge: time.Minute, Duplicates: time.Second}))

	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", MaxAge: time.Minute, Duplicates: time.Hour})
	var drift *natty.DriftError
	require.ErrorAs(t, err, &drift, "the caller's own window is not changed")

	_, err = c.EnsureBucket(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "B"})
	require.NoError(t, err)
	_, err = c.EnsureBucket(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "B", TTL: 90 * time.Second})
	require.NoError(t, err, "a bucket is a stream")
}

func TestEnsureStreamThatDriftedListsTheDifferencesAndChangesNothing(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	made := map[string]jetstream.StreamConfig{
		"LIMITS":    {},
		"INTEREST":  {Retention: jetstream.InterestPolicy},
		"WORKQUEUE": {Retention: jetstream.WorkQueuePolicy},
	}
	for name, cfg := range made {
		cfg.Name, cfg.Subjects = name, []string{name}
		ensureConfig(t, c, cfg)
	}
	count := writes(t, c)
	for name, tt := range map[string]struct {
		cfg  jetstream.StreamConfig
		want []natty.Difference
	}{
		"storage": {
			jetstream.StreamConfig{Name: "LIMITS", Storage: jetstream.MemoryStorage, MaxAge: time.Hour},
			[]natty.Difference{{Field: "storage", Have: `"file"`, Want: `"memory"`}},
		},
		"retention": {
			jetstream.StreamConfig{Name: "LIMITS", Retention: jetstream.WorkQueuePolicy},
			[]natty.Difference{{Field: "retention", Have: `"limits"`, Want: `"workqueue"`}},
		},
		"retention not said": {
			jetstream.StreamConfig{Name: "WORKQUEUE", MaxAge: time.Hour},
			[]natty.Difference{{Field: "retention", Have: `"workqueue"`, Want: `"limits"`}},
		},
		"retention that the server would change": {
			jetstream.StreamConfig{Name: "INTEREST", MaxAge: time.Hour},
			[]natty.Difference{{Field: "retention", Have: `"interest"`, Want: `"limits"`}},
		},
		"both": {
			jetstream.StreamConfig{Name: "WORKQUEUE", Storage: jetstream.MemoryStorage},
			[]natty.Difference{{Field: "retention", Have: `"workqueue"`, Want: `"limits"`}, {Field: "storage", Have: `"file"`, Want: `"memory"`}},
		},
		"mirror": {
			jetstream.StreamConfig{Name: "LIMITS", Mirror: &jetstream.StreamSource{Name: "INTEREST"}},
			[]natty.Difference{{Field: "mirror", Have: "not set", Want: `{"name":"INTEREST"}`}},
		},
	} {
		before := settingsOf(t, c, tt.cfg.Name)
		_, err := c.EnsureStream(testkit.Ctx(t), tt.cfg)
		var drift *natty.DriftError
		require.ErrorAs(t, err, &drift, name)
		assert.Equal(t, "stream", drift.Kind)
		assert.Equal(t, tt.cfg.Name, drift.Name)
		assert.Equal(t, tt.want, drift.Differences, name)
		assert.Contains(t, err.Error(), tt.want[0].Field+" is "+tt.want[0].Have+", wanted "+tt.want[0].Want)
		assert.Equal(t, before, settingsOf(t, c, tt.cfg.Name), name)
	}
	assert.Zero(t, count())
}

func TestEnsureStreamWhoseChangeTheServerRefusesIsDrift(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "TAKEN", "taken")
	testkit.Ensure(t, c, "S", "s")
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s", "taken"}})
	var drift *natty.DriftError
	require.ErrorAs(t, err, &drift)
	assert.Equal(t, []natty.Difference{{Field: "subjects", Have: `["s"]`, Want: `["s","taken"]`}}, drift.Differences)
	var refused *jetstream.APIError
	require.ErrorAs(t, err, &refused)
	assert.Contains(t, err.Error(), "server: ")
}

func TestEnsureStreamChangesWhatTheCallerSetsAndLeavesTheRest(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := ensureConfig(t, c, jetstream.StreamConfig{
		Name: "S", Subjects: []string{"a", "b"}, MaxAge: time.Hour, MaxMsgs: 10, Description: "theirs",
		Discard: jetstream.DiscardNew, DenyDelete: true, AllowDirect: true, Compression: jetstream.S2Compression,
		Metadata: map[string]string{"theirs": "1", "both": "old"},
	})
	require.NoError(t, c.Publish(testkit.Ctx(t), "a", nil))
	want := settingsOf(t, c, "S")

	ensureConfig(t, c, jetstream.StreamConfig{
		Name: "S", Subjects: []string{"b", "c", "a"}, MaxMsgs: 20, MaxBytes: 1_000_003,
		Metadata: map[string]string{"both": "new", "ours": "2"},
	})
	want["subjects"] = []any{"b", "c", "a"}
	want["max_msgs"], want["max_bytes"] = float64(20), float64(1_000_003)
	metadata, ok := want["metadata"].(map[string]any)
	require.True(t, ok)
	metadata["both"], metadata["ours"] = "new", "2"
	assert.Equal(t, want, settingsOf(t, c, "S"))
	assert.EqualValues(t, 1, testkit.Stored(t, s))
}

func TestEnsureStreamWritesNothingWhenThereIsNoDifference(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "SOURCE", "source")
	start := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600))
	for i, cfg := range []jetstream.StreamConfig{
		{},
		{Subjects: []string{"b", "a.*", "c.>"}},
		{
			Subjects: []string{"full"}, Description: "d", Retention: jetstream.InterestPolicy, MaxConsumers: 5, MaxMsgs: 6, MaxBytes: 7000,
			Discard: jetstream.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: 3, MaxAge: time.Hour, MaxMsgSize: 500,
			Storage: jetstream.MemoryStorage, Replicas: 1, Duplicates: time.Minute, AllowRollup: true,
			SubjectTransform: &jetstream.SubjectTransformConfig{Source: "full", Destination: "renamed"},
			RePublish:        &jetstream.RePublish{Source: ">", Destination: "again.>", HeadersOnly: true},
			AllowDirect:      true, ConsumerLimits: jetstream.StreamConsumerLimits{InactiveThreshold: time.Minute, MaxAckPending: 10},
			Metadata:    map[string]string{"k": "v"},
			AllowMsgTTL: true, SubjectDeleteMarkerTTL: time.Minute, FirstSeq: 100,
		},
		{Subjects: []string{"unlimited"}, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1, MaxConsumers: -1, MaxMsgsPerSubject: -1},
		{Subjects: []string{"marker"}, SubjectDeleteMarkerTTL: time.Minute, DenyDelete: true},
		{Subjects: []string{"compressed"}, Compression: jetstream.S2Compression, AllowMsgSchedules: true, AllowAtomicPublish: true},
		{Subjects: []string{"counter"}, AllowMsgCounter: true},
		{Subjects: []string{"async"}, PersistMode: jetstream.AsyncPersistMode},
		{Placement: &jetstream.Placement{Tags: []string{}}},
		{Placement: &jetstream.Placement{}},
		{RePublish: &jetstream.RePublish{Destination: "again2.>"}, Subjects: []string{"republished"}},
		{Mirror: &jetstream.StreamSource{Name: "SOURCE", OptStartSeq: 3, FilterSubject: "source"}, MirrorDirect: true},
		{Mirror: &jetstream.StreamSource{Name: "ELSEWHERE", Domain: "leaf"}},
		{Sources: []*jetstream.StreamSource{
			{Name: "SOURCE", OptStartTime: &start},
			{Name: "ELSEWHERE", Domain: "leaf"},
			{Name: "FAR", External: &jetstream.ExternalStream{APIPrefix: "$JS.far.API", DeliverPrefix: "deliver.far"}},
			{Name: "RENAMED", SubjectTransforms: []jetstream.SubjectTransformConfig{{Source: "x", Destination: "y"}}},
		}},
	} {
		cfg.Name = fmt.Sprintf("S%d", i)
		ensureConfig(t, c, cfg)
		before := settingsOf(t, c, cfg.Name)
		count := writes(t, c)
		ensureConfig(t, c, cfg)
		for a, b := 0, len(cfg.Subjects)-1; a < b; a, b = a+1, b-1 {
			cfg.Subjects[a], cfg.Subjects[b] = cfg.Subjects[b], cfg.Subjects[a]
		}
		ensureConfig(t, c, cfg)
		assert.Zero(t, count(), "%+v", cfg)
		assert.Equal(t, before, settingsOf(t, c, cfg.Name))
	}
}

func TestEnsureStreamDoesNotWriteToTheCallersConfiguration(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	start := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600))
	made := func() jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name: "S", Subjects: []string{"b", "a"}, Metadata: map[string]string{"k": "v"},
			Sources: []*jetstream.StreamSource{{Name: "X", Domain: "leaf", OptStartTime: &start}},
		}
	}
	cfg := made()
	ensureConfig(t, c, cfg)
	cfg.MaxAge = time.Hour
	ensureConfig(t, c, cfg)
	cfg.MaxAge = 0
	assert.Equal(t, made(), cfg)
	assert.Equal(t, "$JS.leaf.API", settingsOf(t, c, "S")["sources"].([]any)[0].(map[string]any)["external"].(map[string]any)["api"])
}

func TestEnsureStreamFromManyInstancesAtOnceMakesOne(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	var instances sync.WaitGroup
	for range 10 {
		c := testkit.ConnectTo(t, node.URL())
		instances.Go(func() {
			_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, MaxMsgs: 100})
			assert.NoError(t, err)
		})
	}
	instances.Wait()
	assert.InEpsilon(t, 100, settingsOf(t, testkit.ConnectTo(t, node.URL()), "S")["max_msgs"], 0)
}

func TestEnsureStreamFromManyInstancesThatDisagreeEndsWithOneOfTheirs(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	var instances sync.WaitGroup
	for i := range 10 {
		c := testkit.ConnectTo(t, node.URL())
		instances.Go(func() {
			_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, MaxMsgs: int64(100 + i), MaxBytes: int64(5000 + i)})
			assert.NoError(t, err)
		})
	}
	instances.Wait()
	final := settingsOf(t, testkit.ConnectTo(t, node.URL()), "S")
	assert.InDelta(t, 4900, final["max_bytes"].(float64)-final["max_msgs"].(float64), 0, "of one, not a mixture: %v", final)
}

func TestEnsureStreamOnAFreshClusterTakesReplicasFromTheConfiguration(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	var instances sync.WaitGroup
	for i := range 10 {
		c := testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
		instances.Go(func() {
			s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, MaxMsgs: int64(100 + i%2)})
			if assert.NoError(t, err) {
				assert.Equal(t, 3, s.CachedInfo().Config.Replicas)
			}
		})
	}
	instances.Wait()
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	s := ensureConfig(t, c, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	assert.Equal(t, 3, s.CachedInfo().Config.Replicas, "another default does not change what is there")
	s = ensureConfig(t, c, jetstream.StreamConfig{Name: "T", Subjects: []string{"t"}})
	assert.Equal(t, 1, s.CachedInfo().Config.Replicas)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", nil))
}

func TestEnsureStreamWaitsForTheServersThatReplicasNeed(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	down := cluster.Nodes()[0]
	if down == cluster.MetaLeader() {
		down = cluster.Nodes()[1]
	}
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	cfg := jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Placement: &jetstream.Placement{Tags: []string{"nowhere"}}}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := c.EnsureStream(ctx, cfg)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	var refused *jetstream.APIError
	require.ErrorAs(t, err, &refused)
	assert.EqualValues(t, 10005, refused.ErrorCode)
	assert.NotContains(t, err.Error(), "is it enabled")
	down.Stop()
	require.NoError(t, down.Restart())
	ensureConfig(t, c, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
}

func TestEnsureStreamSurvivesAServerThatRestarts(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	node.Stop()
	done := make(chan error, 1)
	go func() {
		_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
		done <- err
	}()
	require.NoError(t, node.Restart())
	require.NoError(t, testkit.Receive(t, done))
}

func TestEnsureStreamThroughADomainKeepsWhatNATSDoesNotKnow(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStreamDomain = "hub" }))
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, Domain: "hub"})
	// A service in the place of JetStream has a setting that nats.go has no name for.
	updated := make(chan []byte, 1)
	for subject, answer := range map[string]string{
		"FAKE.STREAM.INFO.S":   `{"config":{"name":"S","retention":"limits","storage":"file","from_the_future":{"n":18446744073709551615},"max_age":3600000000000,"num_replicas":1,"max_bytes":-1}}`,
		"FAKE.STREAM.UPDATE.S": `{}`,
	} {
		_, err := c.Conn().Subscribe(subject, func(m *nats.Msg) {
			if len(m.Data) > 0 {
				updated <- m.Data
			}
			assert.NoError(t, m.Respond([]byte(answer)))
		})
		require.NoError(t, err)
	}
	require.NoError(t, c.Conn().Flush())
	fake := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, APIPrefix: "FAKE"})
	_, err := fake.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", MaxMsgs: 5})
	require.NoError(t, err)
	assert.JSONEq(t, `{"name":"S","retention":"limits","storage":"file","from_the_future":{"n":18446744073709551615},"max_age":3600000000000,"num_replicas":1,"max_bytes":-1,"max_msgs":5}`,
		string(testkit.Receive(t, updated)))
	testkit.Ensure(t, c, "REAL", "real")
}
