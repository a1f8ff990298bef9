package kv

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/jsapi"
)

func TestNamesThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	s := offline()
	for _, bucket := range []string{"", "a.b", "a/b", "a=", "a b", "ä", strings.Repeat("b", 253)} {
		require.ErrorIs(t, s.ValidKey(bucket, "k"), errInvalid, "%q", bucket)
	}
	long := strings.Repeat("k", maxKeyLen)
	for _, key := range []string{"", ".a", "a.", "a..b", "a b", "*", "a.>", "ä", long + "k"} {
		require.ErrorIs(t, s.ValidKey("b", key), errInvalid, "%q", key)
	}
	for _, keys := range []string{"", "a..>", ">.a", "a.>.b", "a b"} {
		require.ErrorIs(t, s.validKeys("b", keys), errInvalid, "%q", keys)
	}
	for _, key := range []string{"a", "a.b", "a/b-c_d=e.F1", long} {
		require.NoError(t, s.ValidKey("b-1_B", key), "%q", key)
		require.NoError(t, s.validKeys("b", key), "%q", key)
	}
	for _, key := range []string{"a", "user:42", "ä", long} {
		require.NoError(t, s.ValidOldKey("b", key), "others may have made it")
	}
	for _, key := range []string{"", ".a", "a.", "a..b", "a b", "*", "a.>", "a\n", long + "k"} {
		require.ErrorIs(t, s.ValidOldKey("b", key), errInvalid, "%q", key)
	}
	for _, keys := range []string{">", "*", "a.*", "a.*.b", "*.>", "user:42"} {
		require.NoError(t, s.validKeys("b", keys), "%q", keys)
	}
}

func TestMissingStreamIsAMissingBucketAndAMissingMessageAMissingKey(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		jetstream.ErrStreamNotFound: `natty: bucket "b": nats: bucket not found`,
		jetstream.ErrMsgNotFound:    `natty: key "k" of bucket "b": nats: key not found`,
		errInvalid:                  `natty: key "k" of bucket "b": invalid`,
	} {
		require.EqualError(t, KeyError("b", "k", err), want)
	}
	require.EqualError(t, KeyError("b", "", errInvalid), `natty: bucket "b": invalid`)
	for err, want := range map[error]error{
		jetstream.ErrStreamNotFound: jetstream.ErrBucketNotFound,
		jetstream.ErrMsgNotFound:    jetstream.ErrKeyNotFound,
	} {
		require.ErrorIs(t, KeyError("b", "k", err), want)
	}
}

func TestKeysOfAnotherDomainAreWrittenThroughItsAPI(t *testing.T) {
	t.Parallel()
	s := offline()
	assert.Equal(t, "$KV.b.k", s.KeyTarget("b", "k"))
	s.API.Prefix = "$JS.hub.API."
	assert.Equal(t, "$JS.hub.API.$KV.b.k", s.KeyTarget("b", "k"))
}

func TestTTLOfAKeyIsWholeSeconds(t *testing.T) {
	t.Parallel()
	s := offline()
	for _, ttls := range [][]time.Duration{
		{0}, {-time.Second}, {time.Millisecond}, {1500 * time.Millisecond}, {time.Second, time.Second},
		{jsapi.LongestTTL + time.Second}, // in a server it would be over at once
	} {
		_, err := s.keyTTL(ttls)
		require.ErrorIs(t, err, errInvalid, "%v", ttls)
	}
	for ttl, want := range map[time.Duration]string{
		time.Second: "1s", time.Minute: "60s", 25 * time.Hour: "90000s", jsapi.LongestTTL: "3153600000s",
	} {
		got, err := s.keyTTL([]time.Duration{ttl})
		require.NoError(t, err)
		assert.Equal(t, want, ttlHeader(got))
	}
}

func TestTTLThatTheBucketWouldNotKeepIsRefused(t *testing.T) {
	t.Parallel()
	s := offline()
	good := bucketState{
		seen: time.Now(), markers: time.Minute, ttls: true, maxAge: time.Hour, history: 1, origin: "b",
		version: "2.15.0",
	}
	s.buckets.Store("b", good)
	cfg := jetstream.KeyValueConfig{Bucket: "b"}
	require.NoError(t, s.readyForTTL(t.Context(), cfg, time.Hour), "without a server: the bucket is known")
	refused := func(change func(*bucketState), ttl time.Duration) error {
		state := good
		change(&state)
		return s.wrongTTL("b", state, ttl)
	}
	for text, err := range map[string]error{
		"2h0m0s":               refused(func(*bucketState) {}, 2*time.Hour),
		"History of 1":         refused(func(s *bucketState) { s.history = 5 }, time.Minute),
		"History is -1":        refused(func(s *bucketState) { s.history = -1 }, time.Minute),
		"LimitMarkerTTL":       refused(func(s *bucketState) { s.ttls, s.markers = false, 0 }, time.Minute),
		`mirror of bucket "o"`: refused(func(s *bucketState) { s.mirror, s.origin = true, "o" }, time.Minute),
	} {
		require.ErrorIs(t, err, errInvalid)
		require.ErrorContains(t, err, text)
	}
	require.NoError(t, refused(func(s *bucketState) { s.markers = 0 }, time.Minute), "it expires without a marker")
	old := refused(func(s *bucketState) { s.ttls, s.markers, s.version = false, 0, "2.10 or older" }, time.Minute)
	require.ErrorIs(t, old, jsapi.ErrUnsupported)
}

func TestMessagesOfABucketSayWhatTheyDoToTheirKey(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		header nats.Header
		want   jetstream.KeyValueOp
	}{
		{nil, jetstream.KeyValuePut},
		{nats.Header{"Mine": {"x"}}, jetstream.KeyValuePut},
		{nats.Header{HeaderOperation: {"DEL"}}, jetstream.KeyValueDelete},
		{nats.Header{HeaderOperation: {"PURGE"}}, jetstream.KeyValuePurge},
		{nats.Header{jetstream.MarkerReasonHeader: {"Remove"}}, jetstream.KeyValueDelete},
		{nats.Header{jetstream.MarkerReasonHeader: {"MaxAge"}}, jetstream.KeyValuePurge},
		{nats.Header{jetstream.MarkerReasonHeader: {"Purge"}}, jetstream.KeyValuePurge},
	} {
		t.Run(fmt.Sprint(test.header), func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, test.want, operation(test.header))
			s := State{Seq: 5, op: operation(test.header)}
			assert.Equal(t, test.want == jetstream.KeyValuePut, s.Live())
			assert.Equal(t, s.Live(), s.revision() == 5)
		})
	}
	assert.False(t, State{}.Live())
}

func TestTTLAndHeadersOfAValueAreKeptAndThoseOfAMarkerAreNot(t *testing.T) {
	t.Parallel()
	s := State{Seq: 1, Header: nats.Header{
		"Mine": {"x"}, jetstream.MsgTTLHeader: {"5s"}, jetstream.MsgIDHeader: {"id"},
	}}
	assert.Equal(t, "5s", s.ttl())
	assert.Equal(t, nats.Header{"Mine": {"x"}}, s.ownHeader())
	assert.Len(t, s.Header, 3, "it is a copy")
	s.op = jetstream.KeyValuePurge
	assert.Empty(t, s.ttl())
}
