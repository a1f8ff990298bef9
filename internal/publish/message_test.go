package publish

import (
	"math"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
)

func TestIDsAreShortAndNextMakesOneAllocation(t *testing.T) {
	ids := NewIDs()
	first := ids.Next()
	assert.NotEqual(t, first, ids.Next())
	assert.NotEqual(t, ids.prefix, NewIDs().prefix)
	assert.Equal(t, ids.prefix+"3", string(ids.append(nil)), "one counter for both")
	ids.n.Store(math.MaxUint64 - 1)
	assert.Len(t, ids.Next(), 29)
	ids.n.Store(math.MaxUint64 / 2)
	assert.LessOrEqual(t, testing.AllocsPerRun(100, func() { ids.Next() }), 1.0)
}

func TestACloneGetsHeadersThatItsOriginalDoesNot(t *testing.T) {
	t.Parallel()
	for _, h := range []nats.Header{nil, {}, {"A": {"1"}, "Empty": {}}} {
		msg := &nats.Msg{Subject: "s", Reply: "r", Header: h, Data: []byte("d")}
		c := Clone(msg)
		c.Header.Set("B", "2")
		assert.Empty(t, header(msg.Header, "B"))
		assert.Equal(t, header(msg.Header, "A"), header(c.Header, "A"))
		assert.Empty(t, header(c.Header, "Empty"))
		assert.Empty(t, c.Reply)
		assert.Equal(t, msg.Data, c.Data)
	}
}

func TestAnIDIsReadAsTheServerGetsIt(t *testing.T) {
	for id, want := range map[string]string{
		"": "", " ": "", "\r\n": "", "a": "a", " a\t": "a", "a\r\nb\n": "a  b", "a\tb": "a\tb", "\u00a0": "\u00a0",
	} {
		assert.Equal(t, want, messageID(nats.Header{jetstream.MsgIDHeader: {id}}), "%q", id)
	}
	assert.Empty(t, messageID(nil))
	h := nats.Header{jetstream.MsgIDHeader: {"a"}}
	assert.Zero(t, testing.AllocsPerRun(100, func() { messageID(h) }))
}

func TestABatchExpectsNothingThatNoStreamCanFulfil(t *testing.T) {
	t.Parallel()
	earlier := map[string]int{"a": 0}
	for name, test := range map[string]struct {
		i      int
		header nats.Header
		reason string
	}{
		"nothing":              {i: 1},
		"a sequence, first":    {i: 0, header: nats.Header{jetstream.ExpectedLastSeqHeader: {"1"}}},
		"a sequence, later":    {i: 1, header: nats.Header{jetstream.ExpectedLastSeqHeader: {"1"}}, reason: "only the first message"},
		"of its subject":       {i: 1, header: nats.Header{jetstream.ExpectedLastSubjSeqHeader: {"1"}}},
		"of an earlier's":      {i: 1, header: nats.Header{jetstream.ExpectedLastSubjSeqHeader: {"1"}, jetstream.ExpectedLastSubjSeqSubjHeader: {"a"}}, reason: "which msgs[0] writes"},
		"of a subject outside": {i: 1, header: nats.Header{jetstream.ExpectedLastSubjSeqHeader: {"1"}, jetstream.ExpectedLastSubjSeqSubjHeader: {"b"}}},
	} {
		reason := impossibleExpectation(test.i, &nats.Msg{Subject: "s", Header: test.header}, earlier)
		if test.reason == "" {
			assert.Empty(t, reason, name)
		} else {
			assert.Contains(t, reason, test.reason, name)
		}
	}
}
