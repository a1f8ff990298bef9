package kv

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// seen is what a watch has yielded.
type seen []string

func (s *seen) yield(e jetstream.KeyValueEntry) bool {
	*s = append(*s, fmt.Sprint(e.Key(), e.Revision(), " ", e.Operation()))
	return true
}

// taken returns what was yielded since the last time.
func (s *seen) taken() []string {
	all := *s
	*s = nil
	return all
}

func watching() (*session, *seen) {
	w, got := NewWatcher(offline(), "b", ">"), &seen{}
	w.Yield = got.yield
	return &session{Watcher: w}, got
}

// listedAt gives the session a list of the leader's, as of a revision.
func (s *session) listedAt(revision uint64, keys ...string) {
	l := &listing{first: &page{}, keys: map[string]struct{}{}}
	l.first.State.LastSeq = revision
	for _, key := range keys {
		l.keys[key] = struct{}{}
	}
	s.list, s.end, s.listed = l, revision, time.Now()
}

func value(key string, revision uint64) *entry {
	return &entry{bucket: "b", key: key, revision: revision, op: jetstream.KeyValuePut}
}

func TestEntriesThatWereSeenAreNotYieldedAgain(t *testing.T) {
	t.Parallel()
	s, got := watching()
	for _, revision := range []uint64{1, 2, 1, 2, 3} { // the replica lags behind
		assert.True(t, s.pass(value("k", revision)))
	}
	assert.Equal(t, []string{"k1 KeyValuePutOp", "k2 KeyValuePutOp", "k3 KeyValuePutOp"}, got.taken())
	deletion := value("k", 4)
	deletion.op = jetstream.KeyValueDelete
	assert.True(t, s.pass(deletion))
	assert.Empty(t, s.known)
}

func TestRestartInTheSameBucketYieldsOnlyTheDifferences(t *testing.T) {
	t.Parallel()
	s, got := watching()
	for revision, key := range []string{1: "same", 2: "changed", 3: "gone"} {
		if key != "" {
			assert.True(t, s.pass(value(key, uint64(revision))))
		}
	}
	got.taken()
	s.stale = map[string]uint64{}
	s.restart(true)
	assert.True(t, s.pass(value("same", 1)))
	assert.True(t, s.pass(value("changed", 2)))
	assert.True(t, s.pass(value("changed", 3)))
	s.listedAt(3, "same", "changed")
	require.NoError(t, s.catchUp(t.Context(), false))
	assert.Equal(t, []string{"changed3 KeyValuePutOp", "gone3 KeyValuePurgeOp"}, got.taken())
	assert.True(t, s.caughtUp)
}

func TestRestartInAnotherBucketOfTheSameNameYieldsEverything(t *testing.T) {
	t.Parallel()
	s, got := watching()
	assert.True(t, s.pass(value("k", 1)))
	got.taken()
	s.stale = map[string]uint64{}
	s.restart(false)
	assert.True(t, s.pass(value("k", 1)))
	s.listedAt(1, "k")
	require.NoError(t, s.catchUp(t.Context(), false))
	assert.Equal(t, []string{"k1 KeyValuePutOp"}, got.taken(), "its revisions say nothing about the other's")
}

func TestKeysWithoutAMessageHaveVanishedUnlessTheyAreNewer(t *testing.T) {
	t.Parallel()
	s, got := watching()
	s.known = map[string]uint64{"there": 1, "gone": 2, "newer": 9}
	s.listedAt(7, "there")
	assert.True(t, s.reportVanished())
	assert.Equal(t, []string{"gone7 KeyValuePurgeOp"}, got.taken())
	assert.Equal(t, map[string]uint64{"there": 1, "newer": 9}, s.known)
}

func TestSessionIsNotCompleteBeforeEveryListedKeyHasCome(t *testing.T) {
	t.Parallel()
	s, got := watching()
	s.Synced = func(time.Time) bool { return true }
	marker := value("deleted", 1)
	marker.op = jetstream.KeyValueDelete
	assert.True(t, s.pass(marker))
	assert.True(t, s.pass(value("a", 2)))
	// b is overwritten all the time: its message is always another one, still to come.
	s.next = 3
	s.listedAt(2, "deleted", "a", "b")
	s.missing = map[string]struct{}{"b": {}}
	require.NoError(t, s.catchUp(t.Context(), false))
	assert.False(t, s.caughtUp)
	assert.False(t, s.worthALook(2))
	assert.True(t, s.pass(value("b", 9)))
	assert.True(t, s.worthALook(9))
	require.NoError(t, s.catchUp(t.Context(), false))
	assert.True(t, s.caughtUp)
	assert.Equal(t, []string{"deleted1 KeyValueDeleteOp", "a2 KeyValuePutOp", "b9 KeyValuePutOp"}, got.taken())
}

func TestAsManyKeysAsHaveComeAreAllThereAre(t *testing.T) {
	t.Parallel()
	s, _ := watching()
	marker := value("deleted", 1)
	marker.op, marker.created = jetstream.KeyValueDelete, time.Now()
	assert.True(t, s.pass(marker))
	assert.True(t, s.pass(value("a", 2)))
	info := &page{}
	info.TimeStamp, info.Config.SubjectDeleteMarkerTTL = time.Now(), time.Minute
	for subjects, want := range map[uint64]bool{1: false, 2: true, 3: false} {
		info.State.NumSubjects = subjects
		assert.Equal(t, want, s.counted(info), "%d subjects", subjects)
	}
	info.State.NumSubjects = 2
	s.keys = "a.*"
	assert.False(t, s.counted(info), "the stream has others")
	s.keys = ">"
	info.TimeStamp, info.State.NumSubjects = info.TimeStamp.Add(2*time.Minute), 1
	assert.True(t, s.counted(info), "the marker has expired")
}

func TestMemoryForMarkersIsBounded(t *testing.T) {
	t.Parallel()
	s, _ := watching()
	s.done()
	for i := range uint64(2 * maxMarkers) {
		marker := value(fmt.Sprint(i), i+1)
		marker.op = jetstream.KeyValueDelete
		assert.True(t, s.pass(marker))
	}
	assert.Empty(t, s.gone)
	assert.False(t, s.counted(&page{}), "it cannot know")
}

func TestKeyHasVanishedOnlyOnceWhatIsOlderThanTheListHasCome(t *testing.T) {
	t.Parallel()
	s, got := watching()
	s.resumed, s.whole = true, true
	assert.True(t, s.pass(value("k", 1)))
	got.taken()
	s.listedAt(3) // without k, whose revision 2 is on its way
	require.NoError(t, s.catchUp(t.Context(), false))
	assert.Empty(t, got.taken())
	assert.True(t, s.pass(value("k", 2)))
	require.NoError(t, s.catchUp(t.Context(), true), "there is nothing more to come")
	assert.Equal(t, []string{"k2 KeyValuePutOp", "k3 KeyValuePurgeOp"}, got.taken())
	assert.Empty(t, s.known)
}

func TestBucketsWhoseKeysVanishWithoutAMarkerAreVerified(t *testing.T) {
	t.Parallel()
	for want, cfgs := range map[bool][]jetstream.StreamConfig{
		true:  {{MaxAge: time.Hour}, {AllowMsgTTL: true}},
		false: {{}, {MaxAge: time.Hour, AllowMsgTTL: true, SubjectDeleteMarkerTTL: time.Minute}},
	} {
		for _, cfg := range cfgs {
			s, _ := watching()
			s.config = cfg
			s.verifyLater()
			assert.Equal(t, want, s.verify != nil, "%+v", cfg)
		}
	}
}

// Somebody gives a bucket without markers a TTL while a watch follows it.
func TestBucketIsVerifiedOnceItsKeysVanishWithoutAMarker(t *testing.T) {
	t.Parallel()
	c, ctx := online(t, jetstream.KeyValueConfig{})
	require.NoError(t, c.DeleteBucket(ctx, "b"))
	_, err := c.API.JS.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b"})
	require.NoError(t, err)
	begin := func() *session {
		s := &session{Watcher: NewWatcher(c, "b", ">"), patience: watchPatience.Min}
		require.NoError(t, s.begin(ctx))
		s.caughtUp = true
		return s
	}
	s, resumed := begin(), begin()
	stream, err := c.API.JS.Stream(ctx, StreamName("b"))
	require.NoError(t, err)
	cfg := stream.CachedInfo().Config
	cfg.MaxAge = time.Hour
	_, err = c.API.JS.UpdateStream(ctx, cfg)
	require.NoError(t, err)

	s.lookAtSettings(ctx)
	assert.Nil(t, s.verify, "it has looked just now")
	s.heeded = time.Now().Add(-watchExpiry)
	s.lookAtSettings(ctx)
	assert.NotNil(t, s.verify)
	require.NoError(t, resumed.resume(ctx))
	assert.NotNil(t, resumed.verify, "an interruption is a look as well")
}

func TestSessionGoesOnBehindTheLastOne(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	got := &seen{}
	w := NewWatcher(s, "b", ">")
	w.Yield, w.Synced = got.yield, func(time.Time) bool { return false }
	session := func() []string {
		require.NoError(t, w.Run(ctx))
		return got.taken()
	}
	for _, key := range []string{"a", "b", "c"} {
		require.NoError(t, s.put(ctx, key))
	}
	assert.Equal(t, []string{"a1 KeyValuePutOp", "b2 KeyValuePutOp", "c3 KeyValuePutOp"}, session())
	assert.Empty(t, session(), "nothing has happened")

	stream, err := s.API.JS.Stream(ctx, "KV_b")
	require.NoError(t, err)
	require.NoError(t, stream.Purge(ctx, jetstream.WithPurgeSubject("$KV.b.b")), "it vanishes without a marker")
	require.NoError(t, s.put(ctx, "a"))
	require.NoError(t, s.Delete(ctx, "b", "c"))
	assert.Equal(t, []string{"a4 KeyValuePutOp", "c5 KeyValuePurgeOp", "b5 KeyValuePurgeOp"}, session())

	require.NoError(t, s.DeleteBucket(ctx, "b"))
	require.ErrorIs(t, w.Run(ctx), jetstream.ErrStreamNotFound)
}

func TestBucketIsMadeOnceAndThenChanged(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{History: 3})
	kv, err := s.EnsureBucket(ctx, jetstream.KeyValueConfig{Bucket: "b", TTL: time.Second})
	require.NoError(t, err)
	status, err := kv.Status(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 3, status.History(), "what is not asked for stays")
	assert.Equal(t, time.Second, status.TTL())
	state, err := s.askForBucket(ctx, "b")
	require.NoError(t, err)
	assert.Equal(t, bucketState{
		seen: state.seen, maxAge: time.Second, markers: MarkerTTL, window: time.Second, history: 3,
		ttls: true, origin: "b", version: state.version,
	}, state)
}
