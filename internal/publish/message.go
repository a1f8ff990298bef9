package publish

import (
	"crypto/rand"
	"encoding/base64"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Clone returns a copy of msg whose headers can be set without changing the caller's.
// Header values are shared: natty and nats.go replace values and never edit them. What
// the message inherits is left out.
func Clone(msg *nats.Msg) *nats.Msg {
	h := make(nats.Header, len(msg.Header)+1)
	for name, values := range msg.Header {
		if !inherited(msg.Header, name) {
			h[name] = values
		}
	}
	return &nats.Msg{Subject: msg.Subject, Data: msg.Data, Header: h}
}

// inherited reports whether a header says how a stored message came into its stream: in
// an atomic batch, from a schedule, or as the server's marker for a subject. A handler
// that passes on the headers of its message passes on these as well. The server would act
// on them once more: it would wait for the rest of that batch, remove the schedule, or
// remove all other messages of a subject.
func inherited(h nats.Header, name string) bool {
	switch name {
	case jetstream.MsgRollup:
		return header(h, jetstream.MarkerReasonHeader) != ""
	case headerBatchID, headerBatchSequence, headerBatchCommit, jetstream.SchedulerHeader, jetstream.ScheduleNextHeader:
		return true
	}
	return false
}

// outgoing is the message of a Publish. It is pooled, because allocations are a large
// part of what a publish costs here; nats.go has copied the message when it returns.
type outgoing struct {
	msg    nats.Msg
	header nats.Header
	id     [1]string // the header's value
}

var outgoings = sync.Pool{New: func() any {
	o := &outgoing{header: make(nats.Header, 1)}
	o.msg.Header = o.header
	return o
}}

func (o *outgoing) release() {
	clear(o.header)
	o.msg = nats.Msg{Header: o.header}
	outgoings.Put(o)
}

// header returns the first value of a header. Unlike nats.Header.Get it accepts a
// header without values, which a caller's message may have.
func header(h nats.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// messageID returns the id of a message as the server gets it. A blank id is none.
func messageID(h nats.Header) string { return AsSent(header(h, jetstream.MsgIDHeader)) }

// AsSent returns a header's value as nats.go sends it: without blanks around it, and
// with spaces for its line breaks.
func AsSent(value string) string { return lineBreaks.Replace(textproto.TrimString(value)) }

var lineBreaks = strings.NewReplacer("\r", " ", "\n", " ")

// MaxHeader is how many bytes of headers a stream stores.
const MaxHeader = 1<<16 - 1

// size is what the server's limits count: headers and data.
func size(m *nats.Msg) int { return m.Size() - len(m.Subject) - len(m.Reply) }

// IDs makes message ids: a random prefix for each Client, then a counter. They are
// short, because the server keeps every id in memory for the duplicate window. They
// take no lock, which many publishing goroutines would feel.
type IDs struct {
	prefix string
	n      atomic.Uint64
}

// NewIDs returns ids with a random prefix.
func NewIDs() *IDs {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return &IDs{prefix: base64.RawURLEncoding.EncodeToString(b[:])}
}

// Next returns another id.
func (g *IDs) Next() string {
	var b [32]byte // on the stack; an id has 29 at most
	return string(g.append(b[:0]))
}

// append appends another id to b.
func (g *IDs) append(b []byte) []byte {
	return strconv.AppendUint(append(b, g.prefix...), g.n.Add(1), 36)
}
