package dispatch

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

func TestAnotherAttemptHasTheMessageAsItCame(t *testing.T) {
	t.Parallel()
	came := func() *nats.Msg {
		return &nats.Msg{Subject: "s", Reply: "r", Header: nats.Header{"a": {"1"}}, Data: []byte("x")}
	}
	m := NewMessage(t.Context(), came(), Delivery{Attempt: 1})
	m.Key, m.Epoch, m.ConsumerSeq, m.Quarantined = "k", 2, 3, true
	given, ctx := m.Msg, m.Ctx()
	given.Subject, given.Reply, given.Header, given.Data = "other", "", nil, nil
	again := m.Again(Delivery{Attempt: 2})
	assert.Equal(t, came(), again.Msg)
	assert.Equal(t, "other", given.Subject, "the handler's own is left alone")
	d, _ := DeliveryOf(ctx)
	assert.Equal(t, 1, d.Attempt, "and so is its ctx")
	again.Msg, again.deliveryCtx, m.Msg, m.deliveryCtx = nil, deliveryCtx{}, nil, deliveryCtx{}
	assert.Equal(t, m, again, "the rest is the same")
}

func TestMessageKnowsWhetherItsHandlerSettledIt(t *testing.T) {
	t.Parallel()
	nc, err := nats.Connect(nattytest.Server(t).URL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	sub, err := nc.SubscribeSync("s")
	require.NoError(t, err)
	answers, err := nc.SubscribeSync("r")
	require.NoError(t, err)
	for name, test := range map[string]struct {
		handler func(m *nats.Msg)
		settled bool
		sent    int // by the handler
	}{
		"left alone":             {func(*nats.Msg) {}, false, 0},
		"kept alive":             {func(m *nats.Msg) { _ = m.InProgress() }, false, 1},
		"acknowledged":           {func(m *nats.Msg) { _ = m.Ack() }, true, 1},
		"returned":               {func(m *nats.Msg) { _ = m.Nak() }, true, 1},
		"forwarded":              {func(m *nats.Msg) { m.Subject, m.Reply, m.Sub = "t", "", nil }, false, 0},
		"forwarded and returned": {func(m *nats.Msg) { _ = m.Nak(); m.Reply = "" }, true, 1},
		"returned and unbound":   {func(m *nats.Msg) { _ = m.Nak(); m.Sub = nil }, true, 1},
		"for another reply":      {func(m *nats.Msg) { m.Reply = "u" }, false, 0},
	} {
		require.NoError(t, nc.PublishRequest("s", "r", []byte(name)))
		msg, err := sub.NextMsg(5 * time.Second)
		require.NoError(t, err)
		m := NewMessage(t.Context(), msg, Delivery{})
		test.handler(m.Msg)
		assert.Equal(t, test.settled, m.Settled(), name)
		assert.Equal(t, test.settled, m.Settled(), "asking changes nothing: %s", name)
		require.NoError(t, nc.Flush())
		for range test.sent {
			_, err := answers.NextMsg(5 * time.Second)
			require.NoError(t, err, name)
		}
		n, _, err := answers.Pending()
		require.NoError(t, err)
		assert.Zero(t, n, "asking sends nothing: %s", name)
	}
}
