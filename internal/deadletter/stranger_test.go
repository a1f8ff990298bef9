package deadletter

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// FuzzLetterOfAStranger reads a letter that anybody wrote, and redrives it as often as it
// takes to see whether that grows.
func FuzzLetterOfAStranger(f *testing.F) {
	for _, header := range []string{
		"", "no header", "NATS/1.0\r\n\r\n", "NATS/1.0 503\r\n\r\n",
		"NATS/1.0\r\nNatty-Stream: S\r\nNatty-Durable: d\r\nNatty-Subject: s.a\r\nNatty-Redrives: 99999999999\r\n\r\n",
		"NATS/1.0\r\nNatty-Redrives: 2147483647\r\nNatty-Sequence: -1\r\nNatty-Deliveries: -9\r\nNatty-Time: x\r\n\r\n",
		"NATS/1.0\r\nNatty-Encoded-4e6174732d526f6c6c7570: all\r\nNatty-Original-Rollup: all\r\n\r\n",
		"NATS/1.0\r\nNatty-Original-Natty-Redrive: S/d\r\nNatty-Original-: x\r\nNatty-Encoded-: y\r\nNatty-Encoded-00: z\r\n\r\n",
		"NATS/1.0\r\nNatty-Original-Msg-Id: a\r\nnatty-original-msg-id: b\r\nNatty-Redrive: x\r\nNats-Msg-Id\r\n\r\n",
		"NATS/1.0\r\nNatty-Stream: \r0\r\nNatty-Durable: d\r \r\n\r\n",
		"NATS/1.0\r\nNatty-Encoded-6e617473206d7367: a\r\nNatty-Encoded-4e617473: b\r\nNATS-TTL: 1s\r\n\r\n",
	} {
		f.Add("dead.s", []byte(header), []byte("data"))
	}
	f.Fuzz(func(t *testing.T, subject string, header, data []byte) {
		l, err := Read(subject, header, data)
		if err != nil {
			return
		}
		assert.GreaterOrEqual(t, l.Redrives, 0)
		m := Redrive(l, "id")
		for name := range m.Header {
			require.True(t, sendable(name), "nats.go would not send %q", name)
			require.False(t, name != "Nats-Msg-Id" && isActedOn(name), "the server would act on %q", name)
		}
		require.Equal(t, []string{"id"}, m.Header["Nats-Msg-Id"])
		require.Len(t, m.Header[headerRedrive], 1)

		received := &nats.Msg{Subject: m.Subject, Data: m.Data}
		received.Header, err = nats.DecodeHeadersMsg(encodeHeader(m.Header))
		require.NoError(t, err)
		r, ok := Receive(received, l.Stream)
		require.NotContains(t, received.Header, headerRedrive)
		for _, name := range []string{headerSubject, headerSequence, headerRedrives} {
			if _, own := l.Header[name]; !own || !ok { // the message may be a letter itself
				require.NotContains(t, received.Header, name)
			}
		}
		if ok {
			// natty does not redrive a letter whose names hold a line break.
			assert.Equal(t, oneLine(Address(l.Stream, l.Durable)), r.For)
			assert.Positive(t, r.Redrives)
			again := For("dead.s", Letter{Subject: m.Subject, Header: received.Header, Redrives: r.Redrives}, stored)
			for name := range again.Header {
				require.True(t, sendable(name), "nats.go would not send %q", name)
				require.False(t, name != "Nats-Msg-Id" && IsServerHeader(name), "the server would act on %q", name)
			}
		}
	})
}

// oneLine is what nats.go sends of a header's value.
func oneLine(s string) string {
	return strings.TrimLeft(strings.NewReplacer("\r", " ", "\n", " ").Replace(s), " \t")
}
