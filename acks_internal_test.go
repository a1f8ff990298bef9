package natty

import (
	"encoding/json"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// answers are what servers and services say: the seeds of the fuzz test.
var answers = []string{
	`{"stream":"S","seq":1}`, `{"stream":"S", "seq":1}`, `{"stream":"S","seq":18446744073709551615}`, `{"stream":"S","seq":18446744073709551616}`,
	`{"stream":"S","domain":"hub","seq":1}`, `{"stream":"S","seq":1,"duplicate": true}`, `{"stream":"S","seq":1,"val":"5"}`,
	`{"stream":"S","seq":01}`, `{"stream":"S","seq":0}`, `{"stream":"S","seq":-1}`, `{"stream":"S","seq":1.0}`, `{"stream":"S","seq":}`,
	`{"stream":"S""seq":1}`, `{"stream":"S",  "seq":1}`, `{"stream":"S" "seq":1}`, `{"stream":"","seq":1}`, `{"stream":"\u0041","seq":1}`,
	"{\"stream\":\"\xff\",\"seq\":1}", "{\"stream\":\"\n\",\"seq\":1}", "{\"stream\":\"ä\",\"seq\":1}", `{"stream":"S","seq":1}}`, `{"stream":"S","seq":1} `,
	`{"stream":"S","seq":1,"seq":2}`, `{"stream":"S","seq":1`, `{"error":{"code":400,"err_code":10071,"description":"x"},"stream":"S","seq":0}`,
	`{"error":{}}`, `{"error":null,"stream":"S","seq":2}`, ``, `{}`, `null`, `[]`, `"x"`, `+OK`,
}

// readAck is parseAck without its shortcut.
func readAck(data []byte) (*jetstream.PubAck, *jetstream.APIError) {
	var resp struct {
		Error *jetstream.APIError `json:"error"`
		jetstream.PubAck
	}
	err := json.Unmarshal(data, &resp)
	if err == nil && resp.Error != nil {
		return nil, resp.Error
	}
	if err == nil && resp.Stream != "" {
		return &resp.PubAck, nil
	}
	return nil, nil
}

func FuzzParseAck(f *testing.F) {
	for _, a := range answers {
		f.Add([]byte(a))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		want, refusal := readAck(data)
		got, err := parseAck(&nats.Msg{Data: data})
		switch {
		case refusal != nil:
			require.Equal(t, refusal, err)
		case want == nil:
			require.ErrorIs(t, err, errNoAck)
		default:
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		plain := parsePlainAck(string(data))
		if plain != nil {
			require.Equal(t, want, plain)
			require.Nil(t, refusal)
		}
		if isPlainAck(data) {
			require.NotNil(t, plain)
		}
	})
}

func TestParseAckTakesTheShortWayForWhatServersSend(t *testing.T) {
	t.Parallel()
	want := &jetstream.PubAck{Stream: "ORDERS_1-a", Sequence: 42}
	assert.Equal(t, want, parsePlainAck(`{"stream":"ORDERS_1-a","seq":42}`))
	assert.Equal(t, want, parsePlainAck(`{"stream":"ORDERS_1-a", "seq":42}`), "servers before 2.11")
	assert.True(t, isPlainAck([]byte(`{"stream":"ORDERS_1-a","seq":42}`)))
	assert.True(t, isPlainAck([]byte(`{"stream":"ORDERS_1-a", "seq":42}`)))
}

func TestParseAckKnowsNoResponders(t *testing.T) {
	t.Parallel()
	_, err := parseAck(&nats.Msg{Header: nats.Header{"Status": {"503"}}})
	require.ErrorIs(t, err, nats.ErrNoResponders)
	_, err = parseAck(&nats.Msg{Header: nats.Header{"Status": {"503"}}, Data: []byte("{}")})
	require.ErrorIs(t, err, errNoAck)
}

func TestAbandonedWaiterGetsTheAnswerThatIsUnderWay(t *testing.T) {
	t.Parallel()
	a := &acks{prefix: "_INBOX.x.", pending: map[uint64]*ackWaiter{}}
	for _, answer := range []func(reply string){
		func(reply string) { a.receive(&nats.Msg{Subject: reply}) },
		func(string) { a.fail("s", nats.ErrDisconnected) },
		func(string) { a.fail("", nats.ErrDisconnected) },
	} {
		w, token, reply := a.expect("s")
		answer(reply)
		_, ok := a.abandon(w, token)
		assert.True(t, ok)
		assert.Empty(t, w.answer, "it goes back to the pool without an answer in it")

		w, token, reply = a.expect("s")
		_, ok = a.abandon(w, token)
		assert.False(t, ok)
		answer(reply)
		assert.Empty(t, w.answer, "too late: it may be another's by now")
	}
	w, token, _ := a.expect("s")
	a.fail("another", nats.ErrPermissionViolation)
	a.receive(&nats.Msg{Subject: a.prefix + "not a token"})
	_, ok := a.abandon(w, token)
	assert.False(t, ok)
	assert.Empty(t, a.pending)
}
