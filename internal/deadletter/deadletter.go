// Package deadletter is the format of dead letters: the message that holds a copy of
// another message that a consumer could not handle, and how to read and redrive it. It
// sends and stores nothing, and knows no consumer and no stream.
//
//   - deadletter.go: a letter, written and read
//   - redrive.go: the message that is put back, as it is sent and as it is received
//   - header.go: which headers travel under another name
package deadletter

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers that a dead letter has besides those of its message. A redriven message has
// some of them too, see Redrive.
const (
	headerReason     = "Natty-Reason"
	headerSubject    = "Natty-Subject"
	headerStream     = "Natty-Stream"
	headerSequence   = "Natty-Sequence" // where it was when it failed first
	headerDurable    = "Natty-Durable"
	headerDeliveries = "Natty-Deliveries"
	headerRedrives   = "Natty-Redrives" // only if there were any
	headerTime       = "Natty-Time"     // RFC 3339
)

// maxReason bounds the reason, so that a long error does not make a message too large.
const maxReason = 1024

// Letter is what a dead letter says; see natty.DeadLetter.
type Letter struct {
	Subject    string
	Header     nats.Header
	Data       []byte
	Reason     string
	Stream     string
	Sequence   uint64
	Durable    string
	Deliveries int
	Redrives   int
	Time       time.Time // set by For
}

// For returns the dead letter to store on a subject; stored is when the stream stored
// the message of l. The message id is the same however often it is called for one
// message. It leaves l.Header as it is.
func For(subject string, l Letter, stored time.Time) *nats.Msg {
	header := make(nats.Header, len(l.Header)+9)
	for name, values := range l.Header {
		header[aside(name)] = values
	}
	delete(header, aside(headerRedrive)) // it may be redriven again, for another durable
	header.Set(headerReason, headerValue(l.Reason))
	header.Set(headerSubject, l.Subject)
	header.Set(headerStream, l.Stream)
	header.Set(headerSequence, strconv.FormatUint(l.Sequence, 10))
	header.Set(headerDurable, l.Durable)
	header.Set(headerDeliveries, strconv.Itoa(l.Deliveries))
	if l.Redrives > 0 {
		header.Set(headerRedrives, strconv.Itoa(l.Redrives))
	}
	header.Set(headerTime, time.Now().UTC().Format(time.RFC3339Nano))
	id := fmt.Sprintf("natty-dead-%s-%s-%d-%d", l.Stream, l.Durable, l.Sequence, stored.UnixNano())
	header.Set(jetstream.MsgIDHeader, id)
	return &nats.Msg{Subject: subject, Header: header, Data: l.Data}
}

// headerValue makes a text fit for a header: one line, not too long.
func headerValue(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return strings.TrimSpace(s)
}

// Read reads a dead letter that is stored on a subject; header is in the form of the
// wire. A letter that natty did not write says only what it holds. A header of natty's
// that does not parse leaves its field zero.
//
// Anyone who may publish on the subject can have written the letter. Nothing in it is
// to be believed.
func Read(subject string, header, data []byte) (Letter, error) {
	l := Letter{Subject: subject, Data: data}
	if len(header) == 0 {
		return l, nil
	}
	h, err := nats.DecodeHeadersMsg(header)
	if err != nil {
		return l, err
	}
	take := func(name string) string {
		value := first(h, name)
		h.Del(name)
		return value
	}
	l.Reason, l.Stream, l.Durable = take(headerReason), take(headerStream), take(headerDurable)
	if s := take(headerSubject); s != "" {
		l.Subject = s
	}
	l.Sequence, _ = strconv.ParseUint(take(headerSequence), 10, 64)
	l.Deliveries, _ = strconv.Atoi(take(headerDeliveries))
	l.Redrives = count(take(headerRedrives))
	l.Time, _ = time.Parse(time.RFC3339Nano, take(headerTime))
	h.Del(jetstream.MsgIDHeader)
	l.Header = make(nats.Header, len(h))
	for name, values := range h {
		l.Header[original(name)] = values
	}
	return l, nil
}

// first returns the first value of a header, or "".
func first(h nats.Header, name string) string {
	if values := h[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// count reads a number that is not negative; 0 if it is none.
func count(s string) int {
	n, _ := strconv.ParseUint(s, 10, 31)
	return int(n) // it has 31 bits
}
