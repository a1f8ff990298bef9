package kv

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// stored is the answer to a direct read of a message with such headers.
func stored(h nats.Header) *nats.Msg {
	h["Nats-Sequence"] = append(h["Nats-Sequence"], "7")
	h["Nats-Time-Stamp"] = append(h["Nats-Time-Stamp"], "2026-01-02T03:04:05.000000006Z")
	return &nats.Msg{Header: h, Data: []byte("value")}
}

func TestHeadersOfAStoredMessageAreNotTheServers(t *testing.T) {
	t.Parallel()
	for _, h := range []nats.Header{
		{}, {"Status": {"404"}}, {"Status": {"503"}, "Description": {"No"}},
		{"Nats-Sequence": {"3"}, "Nats-Time-Stamp": {"never"}}, // copied from elsewhere
	} {
		var e entry
		require.NoError(t, e.take(stored(h)), "%v", h)
		assert.Equal(t, "value", string(e.value))
		assert.EqualValues(t, 7, e.revision)
		assert.Equal(t, jetstream.KeyValuePut, e.op)
		assert.Equal(t, 6, e.created.Nanosecond())
	}
	var e entry
	require.NoError(t, e.take(stored(nats.Header{HeaderOperation: {"DEL"}})))
	assert.Equal(t, jetstream.KeyValueDelete, e.op)
}

func TestAnswerWithoutAStoredMessageIsAnError(t *testing.T) {
	t.Parallel()
	var e entry
	missing := &nats.Msg{Header: nats.Header{"Status": {"404"}, "Description": {"Message Not Found"}}}
	require.ErrorIs(t, e.take(missing), jetstream.ErrMsgNotFound)
	refused := &nats.Msg{Header: nats.Header{"Status": {"408"}, "Description": {"Bad Request"}}}
	require.ErrorContains(t, e.take(refused), "408 Bad Request")
	var api *jetstream.APIError
	require.ErrorAs(t, e.take(&nats.Msg{Data: []byte(`{"error":{"code":503,"err_code":10039}}`)}), &api)
	require.Error(t, e.take(&nats.Msg{Data: []byte("anything")}))
	require.Error(t, e.take(&nats.Msg{}))
}
