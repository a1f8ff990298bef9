package natty

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
)

// FuzzLetter gives a dead letter whatever a message may have in its headers, sends it through nats.go's encoding, and reads it back.
func FuzzLetter(f *testing.F) {
	f.Add("Trace", "1", "Nats-TTL", "1h", "no such\r\ncustomer", []byte("data"))
	f.Add("nats-msg-id", "x", "NATS-Schedule", "@every 1s", strings.Repeat("ü", 1000), []byte(nil))
	f.Add("Natty-Redrive", "S/d", "natty-reason", "mine", "", []byte{0})
	f.Add("", "\r\n", "a:b", " c ", "\x00\xff", []byte("\r\n"))
	f.Add("Natty-Original-Msg-Id", "x", "Natty-Sequence", "-1", "é\x80", []byte("NATS/1.0"))
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, reason string, data []byte) {
		msg := &nats.Msg{Subject: "s.a", Data: data, Header: nats.Header{name1: {value1}, name2: {value2, value1}}}
		h := newHeld(msg)
		h.d = Delivery{Stream: "S", Durable: "d", Sequence: 7, Attempt: 3, Time: time.Unix(0, 1)}
		letter := letterFor("dead.s", h, errors.New(reason))
		if !bytes.Equal(letter.Data, data) || len(msg.Header[name2]) != 2 && name1 != name2 {
			t.Fatal("the message was written to")
		}
		for name := range letter.Header {
			if strings.HasPrefix(strings.ToLower(name), "nats-") && name != "Nats-Msg-Id" {
				t.Errorf("the server would act on %q", name)
			}
		}
		r := letter.Header.Get(headerReason)
		if strings.ContainsFunc(r, func(c rune) bool { return c < ' ' }) || len(r) > maxHeaderValue+len("…") ||
			utf8.ValidString(reason) && !utf8.ValidString(r) {
			t.Errorf("reason %q", r)
		}

		if !validHeaderName(name1) || !validHeaderName(name2) {
			return // nats.go refuses to send it
		}
		back, err := readLetter("DEAD", storedMsg{Subject: "dead.s", Header: encodeHeader(letter.Header), Data: data})
		if err != nil {
			t.Fatal(err)
		}
		if back.Reason != r || back.Subject != "s.a" || back.Stream != "S" || back.Durable != "d" || back.Sequence != 7 || back.Deliveries != 3 {
			t.Errorf("%+v", back)
		}
	})
}

// validHeaderName reports whether nats.go takes it.
func validHeaderName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == ':' || c >= 0x7f })
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
