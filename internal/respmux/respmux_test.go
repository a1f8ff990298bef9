package respmux

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

// answers are what servers and services send: the seeds of the fuzz test.
var answers = []string{
	`{"stream":"S","seq":1}`, `{"stream":"S", "seq":1}`, `{"stream":"S","seq":18446744073709551615}`, `{"stream":"S","seq":18446744073709551616}`,
	`{"stream":"S","domain":"hub","seq":1}`, `{"stream":"S","seq":1,"duplicate": true}`, `{"stream":"S","seq":1,"val":"5"}`,
	`{"stream":"S","seq":01}`, `{"stream":"S","seq":0}`, `{"stream":"S","seq":-1}`, `{"stream":"S","seq":1.0}`, `{"stream":"S","seq":}`,
	`{"stream":"S""seq":1}`, `{"stream":"S",  "seq":1}`, `{"stream":"S" "seq":1}`, `{"stream":"","seq":1}`, `{"stream":"\u0041","seq":1}`,
	"{\"stream\":\"\xff\",\"seq\":1}", "{\"stream\":\"\n\",\"seq\":1}", "{\"stream\":\"ä\",\"seq\":1}", `{"stream":"S","seq":1}}`, `{"stream":"S","seq":1} `,
	`{"stream":"S","seq":1,"seq":2}`, `{"stream":"S","seq":1`, `{"error":{"code":400,"err_code":10071,"description":"x"},"stream":"S","seq":0}`,
	`{"error":{}}`, `{"error":null,"stream":"S","seq":2}`, ``, `{}`, `null`, `[]`, `"x"`, `+OK`,
}

// readAck is ParseAck without its shortcut.
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
		got, err := ParseAck(&nats.Msg{Data: data})
		switch {
		case refusal != nil:
			require.Equal(t, refusal, err)
		case want == nil:
			require.ErrorIs(t, err, errNoAck)
		default:
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		if IsPlainAck(data) {
			require.NotNil(t, want)
			require.Nil(t, refusal)
		}
	})
}

func TestPlainAcksAreReadWithoutAllocating(t *testing.T) {
	for _, ack := range []string{
		`{"stream":"ORDERS_1-a","seq":42}`,
		`{"stream":"ORDERS_1-a", "seq":42}`, // servers before 2.11
	} {
		data := []byte(ack)
		stream, sequence, ok := parsePlainAck(data)
		assert.True(t, ok)
		assert.Equal(t, "ORDERS_1-a", string(stream))
		assert.EqualValues(t, 42, sequence)
		assert.Zero(t, testing.AllocsPerRun(100, func() { IsPlainAck(data) }))
		assert.LessOrEqual(t, testing.AllocsPerRun(100, func() { _, _ = ParseAck(&nats.Msg{Data: data}) }), 2.0)
	}
}

func TestParseAckKnowsNoResponders(t *testing.T) {
	t.Parallel()
	_, err := ParseAck(&nats.Msg{Header: nats.Header{"Status": {"503"}}})
	require.ErrorIs(t, err, nats.ErrNoResponders)
	_, err = ParseAck(&nats.Msg{Header: nats.Header{"Status": {"503"}}, Data: []byte("{}")})
	require.ErrorIs(t, err, errNoAck)
}

func TestAbandonedWaiterGetsTheAnswerThatIsUnderWay(t *testing.T) {
	t.Parallel()
	mux := &Mux{Prefix: "_INBOX.x.", pending: map[uint64]*Waiter{}}
	for _, answer := range []func(reply string){
		func(reply string) { mux.receive(&nats.Msg{Subject: reply}) },
		func(string) { mux.Fail("s", nats.ErrDisconnected) },
		func(string) { mux.Fail("", nats.ErrDisconnected) },
	} {
		w, token, reply := mux.Expect("s", 0)
		answer(reply)
		_, ok := mux.Abandon(w, token)
		assert.True(t, ok)
		assert.Empty(t, w.Answer, "the pool gets it back without an answer in it")

		w, token, reply = mux.Expect("s", 0)
		_, ok = mux.Abandon(w, token)
		assert.False(t, ok)
		answer(reply)
		assert.Empty(t, w.Answer, "too late: the waiter may wait for another answer by now")
	}
	w, token, _ := mux.Expect("s", 0)
	mux.Fail("another", nats.ErrPermissionViolation)
	mux.receive(&nats.Msg{Subject: mux.Prefix + "not a token"})
	_, ok := mux.Abandon(w, token)
	assert.False(t, ok)
	assert.Empty(t, mux.pending)
}

// route keeps what a Mux says to it.
type route struct {
	tokens, failed []string
}

func (r *route) Receive(token string, _ *nats.Msg) { r.tokens = append(r.tokens, token) }

func (r *route) Fail(subject string, _ error) { r.failed = append(r.failed, subject) }

func TestRouteReceivesTheAnswersUnderItsOwnKey(t *testing.T) {
	t.Parallel()
	mux := &Mux{Prefix: "_INBOX.x.", pending: map[uint64]*Waiter{}}
	var a, b route
	keyA, keyB := mux.Attach(&a), mux.Attach(&b)
	assert.NotEqual(t, keyA, keyB)
	mux.receive(&nats.Msg{Subject: mux.Prefix + keyA + "-1z"})
	mux.receive(&nats.Msg{Subject: mux.Prefix + keyB + "-2"})
	mux.Fail("s", nats.ErrDisconnected)
	mux.Detach(keyA)
	mux.receive(&nats.Msg{Subject: mux.Prefix + keyA + "-3"})
	mux.Fail("", nats.ErrDisconnected)
	assert.Equal(t, route{[]string{"1z"}, []string{"s"}}, a)
	assert.Equal(t, route{[]string{"2"}, []string{"s", ""}}, b)
}

func TestRequestReturnsTheAnswerOrWhyThereIsNone(t *testing.T) {
	t.Parallel()
	nc, err := nats.Connect(nattytest.Server(t).URL())
	require.NoError(t, err)
	defer nc.Close()
	mux, err := New(nc)
	require.NoError(t, err)
	_, err = nc.Subscribe("echo", func(m *nats.Msg) { _ = m.RespondMsg(&nats.Msg{Data: m.Data, Header: m.Header}) })
	require.NoError(t, err)
	silent := make(chan *nats.Msg, 1)
	_, err = nc.ChanSubscribe("silent", silent)
	require.NoError(t, err)

	answer, err := mux.Request(t.Context(), nc, "echo", []byte("hi"))
	require.NoError(t, err)
	assert.Equal(t, "hi", string(answer.Data))
	answer, err = mux.RequestMsg(t.Context(), nc, &nats.Msg{Subject: "echo", Header: nats.Header{"A": {"b"}}})
	require.NoError(t, err)
	assert.Equal(t, "b", answer.Header.Get("A"))
	answer, err = mux.Request(t.Context(), nc, "nobody", nil)
	require.NoError(t, err)
	assert.True(t, NoResponders(answer))

	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-silent; cancel() }()
	_, err = mux.Request(ctx, nc, "silent", nil)
	require.ErrorIs(t, err, context.Canceled)
	go func() { <-silent; mux.Close() }()
	_, err = mux.Request(t.Context(), nc, "silent", nil)
	require.ErrorIs(t, err, nats.ErrConnectionClosed)
	assert.Empty(t, mux.pending)
}
