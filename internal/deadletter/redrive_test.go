package deadletter

import (
	"maps"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// redriven is l as a consumer receives it, after any number of failures and redrives.
func redriven(t *testing.T, l Letter, times int) *nats.Msg {
	t.Helper()
	for {
		letter := For("dead.s", l, stored)
		read, err := Read(letter.Subject, encodeHeader(letter.Header), letter.Data)
		require.NoError(t, err)
		m := Redrive(read, "id")
		if m.Header, err = nats.DecodeHeadersMsg(encodeHeader(m.Header)); times == 1 {
			require.NoError(t, err)
			return m
		}
		times--
		r, ok := Receive(m, l.Stream)
		require.True(t, ok)
		l.Header, l.Redrives, l.Sequence = m.Header, r.Redrives, r.Sequence
	}
}

func TestRedrivenMessageIsReceivedAsItWasPublished(t *testing.T) {
	t.Parallel()
	published := nats.Header{"Trace": {"1", "2"}, "Nats-Msg-Id": {"order-1"}, "Nats-Mine": {"a"}, "nats-mine": {"b"}, "X Trace": {"c"}}
	for _, times := range []int{1, 2, 5} {
		l := failed(maps.Clone(published))
		m := redriven(t, l, times)
		assert.Equal(t, "id", m.Header.Get("Nats-Msg-Id"), "the publisher's would be taken for a duplicate")
		r, ok := Receive(m, "S")
		require.True(t, ok)
		assert.Equal(t, Redriven{For: Address("S", "d"), Redrives: times, Sequence: 7}, r)
		assert.Equal(t, published, m.Header)
		assert.Equal(t, "s.a", m.Subject)
	}
}

// A consumer of dead letters can fail as well, and have dead letters of its own.
func TestDeadLetterOfADeadLetterKeepsWhatThatSays(t *testing.T) {
	t.Parallel()
	inner := failed(nats.Header{
		"Nats-Msg-Id": {"order-1"}, "Trace": {"1"}, "Nats-Natty-X": {"a"}, "Nats-Nats-X": {"b"}, "Natty-Original-X": {"c"},
	})
	inner.Redrives = 2
	letter := For("dead.s", inner, stored)
	published := maps.Clone(letter.Header)
	for _, times := range []int{1, 3} {
		outer := Letter{Subject: "dead.s", Header: maps.Clone(published), Stream: "DEAD", Sequence: 7, Durable: "d"}
		m := redriven(t, outer, times)
		_, ok := Receive(m, "DEAD")
		require.True(t, ok)
		assert.Equal(t, published, m.Header)
		back, err := Read(m.Subject, encodeHeader(m.Header), m.Data)
		require.NoError(t, err)
		back.Time, back.Data = inner.Time, inner.Data
		assert.Equal(t, inner, back)
	}
}

func TestRedriveLeavesOutWhatTheServerActsOn(t *testing.T) {
	t.Parallel()
	l := failed(nats.Header{
		"Nats-TTL": {"1h"}, "Nats-Rollup": {"all"}, "nats-rollup": {"all"}, "Nats-Expected-Stream": {"S"},
		"Nats-Schedule": {"@every 1s"}, "Nats-Schedule-Target": {"x"}, "Nats-Incr": {"1"}, "Nats-Trace-Dest": {"$JS.API.x"},
		"Nats-Batch-Id": {"b"}, "Nats-Marker-Reason": {"Purge"}, "Nats-Mine": {"a"},
	})
	m := redriven(t, l, 1)
	_, ok := Receive(m, "S")
	require.True(t, ok)
	assert.Equal(t, nats.Header{"Nats-Mine": {"a"}}, m.Header)
}

func TestForgedHeadersDoNotBecomeTheServers(t *testing.T) {
	t.Parallel()
	l, err := Read("dead", []byte("NATS/1.0\r\nNatty-Encoded-4e6174732d526f6c6c7570: all\r\nNatty-Original-Rollup: all\r\n\r\n"), nil)
	require.NoError(t, err)
	for name := range Redrive(l, "id").Header {
		assert.False(t, IsServerHeader(name) && name != "Nats-Msg-Id", name)
	}
}

func TestForwardedMessageIsNotTakenForARedrivenOne(t *testing.T) {
	t.Parallel()
	for name, subject := range map[string]string{"in another stream": "t.next", "in the same stream": "s.next"} {
		m := redriven(t, failed(nats.Header{"Trace": {"1"}}), 1)
		m.Subject = subject // by a client that is not natty's, or an old one
		_, ok := Receive(m, "S")
		assert.False(t, ok, name)
		assert.Equal(t, nats.Header{"Trace": {"1"}, "Nats-Msg-Id": {"id"}}, m.Header, name)
	}
	for stream, want := range map[string]bool{"S": true, "T": false} { // written by an older natty
		r, ok := Receive(&nats.Msg{Subject: "s.a", Header: nats.Header{"Natty-Redrive": {"S/d"}}}, stream)
		assert.Equal(t, want, ok, stream)
		assert.Equal(t, want, r.For == "S/d", stream)
	}
	plain := &nats.Msg{Subject: "s.a"}
	_, ok := Receive(plain, "S")
	assert.False(t, ok)
	assert.Nil(t, plain.Header)
}
