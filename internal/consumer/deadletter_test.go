package consumer

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/deadletter"
	"github.com/natty-go/natty/internal/dispatch"
)

func TestRedrivenMessageIsForOneDurable(t *testing.T) {
	t.Parallel()
	c := New(quiet(), Config{}, nil)
	c.address = deadletter.Address("S", "d")
	in := dispatch.Delivery{Stream: "S", Durable: "d", Sequence: 9, Attempt: 1}
	assert.False(t, c.newMessage(t.Context(), &nats.Msg{Subject: "a"}, in).Others)
	for durable, others := range map[string]bool{"d": false, "e": true} {
		sent := deadletter.Redrive(deadletter.Letter{
			Subject: "a", Stream: "S", Durable: durable, Sequence: 7, Redrives: 1,
			Header: nats.Header{"Nats-Msg-Id": {"order-1"}},
		}, "id")
		m := c.newMessage(t.Context(), sent, in)
		assert.Equal(t, others, m.Others, durable)
		assert.EqualValues(t, 7, m.First)
		assert.Equal(t, dispatch.Delivery{
			Stream: "S", Durable: "d", Subject: "a", Header: nats.Header{"Nats-Msg-Id": {"order-1"}},
			MsgID: "order-1", Sequence: 9, Attempt: 1, Redrives: 2,
		}, m.Delivery)
	}
}

func TestLetterWithNamesThatNoMessageHasIsRefused(t *testing.T) {
	t.Parallel()
	long := string(make([]byte, 5000))
	for name, l := range map[string]deadletter.Letter{
		"no stream":            {Subject: "a", Durable: "d"},
		"no durable":           {Subject: "a", Stream: "S"},
		"dot in the stream":    {Subject: "a", Stream: "S.d", Durable: "d"},
		"wildcard as durable":  {Subject: "a", Stream: "S", Durable: "*"},
		"long durable":         {Subject: "a", Stream: "S", Durable: long},
		"wildcard as subject":  {Subject: "a.>", Stream: "S", Durable: "d"},
		"subject with a space": {Subject: "a b", Stream: "S", Durable: "d"},
		"long subject":         {Subject: long, Stream: "S", Durable: "d"},
		"key of a bucket":      {Subject: "$KV.b.k", Stream: "KV_b", Durable: "d"},
		"API":                  {Subject: "$JS.API.STREAM.DELETE.S", Stream: "S", Durable: "d"},
	} {
		err := checkNames(l)
		require.Error(t, err, name)
		assert.Less(t, len(err.Error()), 300, name)
	}
	assert.NoError(t, checkNames(deadletter.Letter{Subject: "a", Stream: "S", Durable: "d"}))
}
