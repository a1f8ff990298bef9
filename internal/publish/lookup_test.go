package publish

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/jsapi"
)

func TestOnlyAStreamThatDiscardsNewMessagesIsFull(t *testing.T) {
	t.Parallel()
	subjects := map[string]uint64{"s": 2}
	state := jetstream.StreamState{Msgs: 10, Bytes: 1000, Subjects: subjects}
	for name, test := range map[string]struct {
		cfg         jetstream.StreamConfig
		msgs, bytes uint64
		limit       string
	}{
		"no limits":     {jetstream.StreamConfig{}, 1, 50, ""},
		"room":          {jetstream.StreamConfig{MaxMsgs: 11, MaxBytes: 1050}, 1, 50, ""},
		"messages":      {jetstream.StreamConfig{MaxMsgs: 10}, 1, 50, "max_msgs (10)"},
		"of two, one":   {jetstream.StreamConfig{MaxMsgs: 11}, 2, 100, "max_msgs (11)"},
		"bytes":         {jetstream.StreamConfig{MaxBytes: 1049}, 1, 50, "max_bytes (1049)"},
		"per subject":   {jetstream.StreamConfig{MaxMsgsPerSubject: 2, DiscardNewPerSubject: true}, 1, 50, "max_msgs_per_subject (2)"},
		"room for s":    {jetstream.StreamConfig{MaxMsgsPerSubject: 3, DiscardNewPerSubject: true}, 1, 50, ""},
		"drops s's old": {jetstream.StreamConfig{MaxMsgsPerSubject: 2}, 1, 50, ""},
	} {
		info := &jetstream.StreamInfo{Config: test.cfg, State: state}
		assert.Empty(t, limitReached(info, "s", test.msgs, test.bytes), "%s, but it drops old ones", name)
		info.Config.Discard = jetstream.DiscardNew
		assert.Equal(t, test.limit, limitReached(info, "s", test.msgs, test.bytes), name)
	}
}

func TestALookupIsSharedForASecondUnlessItWasAboutOneSubject(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := knows(jetstream.StreamConfig{}, jetstream.StreamState{})
		k.known[0].info.Config.Subjects = []string{"s.>"}
		p := publication{pub: offline(), msg: &nats.Msg{Subject: "s.a"}, streams: k}
		require.NoError(t, p.lookUpRecent(t.Context()))
		assert.Equal(t, "S", p.stream.Config.Name)

		other := publication{pub: offline(), msg: &nats.Msg{Subject: "t.a"}, streams: k}
		require.Error(t, other.lookUpRecent(canceledCtx), "another stream's")
		k.known[0].info.Config.DiscardNewPerSubject = true
		require.Error(t, p.lookUpRecent(canceledCtx))
		k.known[0].info.Config.DiscardNewPerSubject = false
		require.NoError(t, p.lookUpRecent(canceledCtx))
		time.Sleep(streamIsKnown + 1) // fake time
		require.Error(t, p.lookUpRecent(canceledCtx), "too old")
		assert.Empty(t, k.known)
	})
}

func TestNothingIsSentAgainWhereTheWindowMayHaveEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stream := &jetstream.StreamConfig{Name: "S", Duplicates: 10 * time.Second}
		first := time.Now()
		time.Sleep(9 * time.Second) // fake time
		require.NoError(t, insideWindow(stream, first, errSilent))
		time.Sleep(time.Nanosecond) // fake time
		err := insideWindow(stream, first, errSilent)
		require.ErrorIs(t, err, errSilent)
		require.ErrorContains(t, err, `beyond the duplicate window (10s) of stream "S"`)
	})
}

func TestAnotherDomainsKeyIsStoredWithoutThePrefixOfItsAPI(t *testing.T) {
	t.Parallel()
	pub := &Publisher{API: &jsapi.Client{Prefix: "$JS.hub.API."}}
	for sent, stored := range map[string]string{
		"$JS.hub.API.$KV.b.k": "$KV.b.k",
		"$KV.b.k":             "$KV.b.k",
		"$JS.hub.API.other":   "$JS.hub.API.other",
		"orders.new":          "orders.new",
	} {
		assert.Equal(t, stored, pub.storedSubject(&nats.Msg{Subject: sent}))
	}
}
