package natty

import (
	"time"

	"github.com/nats-io/nats.go"
)

// held is a message that the server counts as ours: waiting for a handler, or with one.
type held struct {
	deliveryCtx // the handler's ctx
	msg         *nats.Msg
	sent        sentMsg // msg as it came
	epoch       int64   // of the stream it came from, see engine.epoch
	size        int
	delivered   uint64 // the consumer sequence; Exclusive only
	key         string // what it is ordered by
	prev, next  *held
	// doubtful messages are tried alone, see doubt.go.
	doubtful bool
	// let means that it was given back: when it comes again, that is a new delivery.
	let bool
	// again is a delivery of the same message that came while the handler had it.
	again *held
	// rest runs while it waits here to be tried again.
	rest *time.Timer
}

// sentMsg is what a handler may change of a message, kept for the verdict and for the next attempt.
type sentMsg struct {
	subject, reply string
	header         nats.Header
	data           []byte
	sub            *nats.Subscription
}

func newHeld(m *nats.Msg) *held {
	return &held{msg: m, size: m.Size(), sent: sentMsg{m.Subject, m.Reply, m.Header, m.Data, m.Sub}}
}

// restore undoes what a handler has done to the message's fields. What the header map and the data hold is as it left it.
func (h *held) restore() {
	h.msg.Subject, h.msg.Reply = h.sent.subject, h.sent.reply
	h.msg.Header, h.msg.Data, h.msg.Sub = h.sent.header, h.sent.data, h.sent.sub
}

// heldList is a queue that gives up any of its members in constant time.
type heldList struct {
	head, tail *held
	n          int
}

func (l *heldList) push(h *held) {
	h.prev, h.next = l.tail, nil
	if l.tail == nil {
		l.head = h
	} else {
		l.tail.next = h
	}
	l.tail = h
	l.n++
}

func (l *heldList) remove(h *held) {
	if h.prev == nil {
		l.head = h.next
	} else {
		h.prev.next = h.next
	}
	if h.next == nil {
		l.tail = h.prev
	} else {
		h.next.prev = h.prev
	}
	h.prev, h.next = nil, nil
	l.n--
}
