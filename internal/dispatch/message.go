package dispatch

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
)

// Message is a delivered message that the server counts as in flight here: it waits for
// a handler, or a handler has it.
type Message struct {
	deliveryCtx // the Delivery, and the handler's ctx
	// Msg is what the handler gets. The handler may keep it, change it, and read it in
	// other goroutines after it has returned. So nobody writes to it once a handler has
	// it, and only Settled reads it. Everything else uses what is kept in came.
	Msg         *nats.Msg
	came        came
	Epoch       int64 // of the stream it came from, as its consumer counts them
	Size        int
	ConsumerSeq uint64 // its number among the durable's deliveries; Exclusive only
	First       uint64 // its sequence when it failed first, before it was redriven; 0: as now
	Others      bool   // it is not for this consumer, which acknowledges and skips it
	Key         string // what it is ordered by
	prev, next  *Message
	// Quarantined messages may be poison, and Doubtful ones may yet turn out to be: see
	// quarantine.go.
	Quarantined, Doubtful bool
	// Handling is the call of the handler that a Tracer follows, until its outcome is
	// known; nil without a Tracer.
	Handling *Handling
	// Tried means that it is noted at the server that this one runs.
	Tried bool
	// returned means that the server has it again: another delivery is a new one.
	returned bool
	// repeatable means that a first delivery may repeat it.
	repeatable bool
	// Begun is when a handler got it.
	Begun time.Time
	// redelivery is another delivery of the message that came while this one was held.
	redelivery *Message
	// retryTimer runs while it is parked.
	retryTimer *time.Timer
}

// came is a message as it came. It shares the header map and the data with the handler,
// and so has what the handler wrote into them.
type came struct {
	subject, reply string
	header         nats.Header
	data           []byte
	sub            *nats.Subscription
}

// NewMessage returns a delivery of m, whose handler's ctx is made of ctx.
func NewMessage(ctx context.Context, m *nats.Msg, d Delivery) *Message {
	return &Message{
		deliveryCtx: deliveryCtx{Context: ctx, Delivery: d}, Msg: m, Size: m.Size(),
		came: came{m.Subject, m.Reply, m.Header, m.Data, m.Sub},
	}
}

// Ctx returns the ctx for the handler, which carries the Delivery.
func (m *Message) Ctx() context.Context { return &m.deliveryCtx }

// Subject returns the subject that the message came with.
func (m *Message) Subject() string { return m.came.subject }

// Reply returns the reply subject that the message came with. It names the delivery.
func (m *Message) Reply() string { return m.came.reply }

// Header returns the header that the message came with.
func (m *Message) Header() nats.Header { return m.came.header }

// Data returns the data that the message came with.
func (m *Message) Data() []byte { return m.came.data }

// Again returns the message as it came, for another attempt in its place. The handler of
// the last attempt may have kept that one's *nats.Msg and ctx.
func (m *Message) Again(d Delivery) *Message {
	o := &m.came
	return &Message{
		deliveryCtx: deliveryCtx{Context: m.Context, Delivery: d},
		Msg:         &nats.Msg{Subject: o.subject, Reply: o.reply, Header: o.header, Data: o.data, Sub: o.sub},
		came:        m.came, Epoch: m.Epoch, Size: m.Size, ConsumerSeq: m.ConsumerSeq, Key: m.Key,
		Quarantined: m.Quarantined, Doubtful: m.Doubtful, First: m.First,
	}
}

// Settled reports whether the handler has settled the message itself: acknowledged it,
// or returned it to the server. It asks the handler's own *nats.Msg, which alone knows.
func (m *Message) Settled() bool {
	switch err := m.Msg.Ack(askOnly...); {
	case errors.Is(err, nats.ErrMsgAlreadyAckd):
		return true
	case !errors.Is(err, nats.ErrMsgNotBound) && !errors.Is(err, nats.ErrMsgNoReply):
		return false
	}
	// The handler changed what the answer depends on, as one that forwards its message
	// does. A copy that has it again answers.
	again := *m.Msg
	again.Reply, again.Sub = m.came.reply, m.came.sub
	return errors.Is(again.Ack(askOnly...), nats.ErrMsgAlreadyAckd)
}

// askOnly makes (*nats.Msg).Ack tell whether the message was settled, and send nothing:
// these two options exclude each other, and Ack looks at the message first.
var askOnly = []nats.AckOpt{nats.Context(context.Background()), nats.AckWait(time.Second)}

// list is a queue from which any member is removed in constant time.
type list struct {
	head, tail *Message
	n, bytes   int
}

func (l *list) push(m *Message) {
	m.prev, m.next = l.tail, nil
	if l.tail == nil {
		l.head = m
	} else {
		l.tail.next = m
	}
	l.tail = m
	l.n++
	l.bytes += m.Size
}

func (l *list) remove(m *Message) {
	if m.prev == nil {
		l.head = m.next
	} else {
		m.prev.next = m.next
	}
	if m.next == nil {
		l.tail = m.prev
	} else {
		m.next.prev = m.prev
	}
	m.prev, m.next = nil, nil
	l.n--
	l.bytes -= m.Size
}
