package deadletter

import (
	"bytes"
	"maps"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var stored = time.Unix(0, 1)

func failed(h nats.Header) Letter {
	return Letter{
		Subject: "s.a", Header: h, Data: []byte("data"), Reason: "no such customer",
		Stream: "S", Sequence: 7, Durable: "d", Deliveries: 3,
	}
}

func TestLetterIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	header := nats.Header{"Trace": {"1", "2"}, "Nats-TTL": {"1h"}, "Nats-Msg-Id": {"mine"}}
	want := failed(maps.Clone(header))
	begin := time.Now()
	m := For("dead.s", want, stored)
	assert.Equal(t, want.Header, header, "the message's own headers are left alone")
	assert.Equal(t, "dead.s", m.Subject)

	got, err := Read(m.Subject, encodeHeader(m.Header), m.Data)
	require.NoError(t, err)
	assert.WithinRange(t, got.Time, begin.Add(-time.Second), time.Now().Add(time.Second))
	got.Time = time.Time{}
	assert.Equal(t, want, got)
}

func TestLetterForTheSameMessageHasTheSameID(t *testing.T) {
	t.Parallel()
	id := func(l Letter, stored time.Time) string { return For("dead", l, stored).Header.Get("Nats-Msg-Id") }
	l := failed(nil)
	first := id(l, stored)
	l.Reason, l.Deliveries = "another", 9
	assert.Equal(t, first, id(l, stored), "it may be sent again after another attempt")
	assert.NotEqual(t, first, id(l, stored.Add(1)), "a new stream begins its sequences anew")
}

func TestMessageThatNattyDidNotWriteSaysWhatItHolds(t *testing.T) {
	t.Parallel()
	got, err := Read("dead.s", nil, []byte("x"))
	require.NoError(t, err)
	assert.Equal(t, Letter{Subject: "dead.s", Data: []byte("x")}, got)

	got, err = Read("dead.s", []byte("NATS/1.0\r\nTrace: 1\r\nNatty-Sequence: many\r\n\r\n"), nil)
	require.NoError(t, err)
	assert.Equal(t, Letter{Subject: "dead.s", Header: nats.Header{"Trace": {"1"}}}, got)

	_, err = Read("dead.s", []byte("no header"), nil)
	assert.Error(t, err)
}

// FuzzLetter puts anything into the headers of a message, sends its dead letter through
// nats.go's encoding, and reads it back.
func FuzzLetter(f *testing.F) {
	f.Add("Trace", "1", "Nats-TTL", "1h", "no such\r\ncustomer", []byte("data"))
	f.Add("nats-msg-id", "x", "NATS-Schedule", "@every 1s", strings.Repeat("ü", 1000), []byte(nil))
	f.Add("Natty-Redrive", "S/d", "natty-reason", "mine", "", []byte{0})
	f.Add("", "\r\n", "a:b", " c ", "\x00\xff", []byte("\r\n"))
	f.Add("X Trace", "1", "x(y)", "2", "", []byte(nil))
	f.Add("Natty-Original-Msg-Id", "x", "Natty-Sequence", "-1", "é\x80", []byte("NATS/1.0"))
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, reason string, data []byte) {
		header := nats.Header{name1: {value1}, name2: {value2, value1}}
		l := failed(header)
		l.Reason, l.Data = reason, data
		m := For("dead.s", l, stored)
		if !bytes.Equal(m.Data, data) || len(header[name2]) != 2 && name1 != name2 {
			t.Fatal("the message was written to")
		}
		for name := range m.Header {
			if strings.HasPrefix(strings.ToLower(name), "nats-") && name != "Nats-Msg-Id" {
				t.Errorf("the server would act on %q", name)
			}
		}
		r := m.Header.Get(headerReason)
		if strings.ContainsFunc(r, func(c rune) bool { return c < ' ' }) || len(r) > maxReason+len("…") ||
			utf8.ValidString(reason) && !utf8.ValidString(r) {
			t.Errorf("reason %q", r)
		}

		for name := range m.Header {
			if !sendable(name) {
				t.Errorf("nats.go would not send %q", name)
			}
		}
		back, err := Read("dead.s", encodeHeader(m.Header), data)
		if err != nil {
			t.Fatal(err)
		}
		if back.Reason != r || back.Subject != "s.a" || back.Stream != "S" || back.Durable != "d" ||
			back.Sequence != 7 || back.Deliveries != 3 {
			t.Errorf("%+v", back)
		}
	})
}

// encodeHeader is what nats.go sends.
func encodeHeader(h nats.Header) []byte {
	var b strings.Builder
	b.WriteString("NATS/1.0\r\n")
	for name, values := range h {
		for _, v := range values {
			b.WriteString(name + ": " + strings.NewReplacer("\r", " ", "\n", " ").Replace(v) + "\r\n")
		}
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}
