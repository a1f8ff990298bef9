package consumer

import (
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/pull"
)

const headerPin = "Nats-Pin-Id"

// request is what requests of this instance look like; without a pin it stands by.
func (x *exclusive) request(pin string) pull.Request {
	r := pull.Request{
		MaxBytes: x.c.byteBudget(), Expires: x.times.expires, Heartbeat: x.times.heartbeat,
		Group: durable.PinGroup, Pin: pin,
	}
	if pin == "" {
		r.Expires, r.Heartbeat = x.times.standbyExpires, x.times.standbyHeartbeat
	}
	return r
}

// pinGrant is a pin.
type pinGrant struct {
	pin   string
	since time.Time // from when on the server has answered, without an interruption
	// fresh means that nobody has received anything since the last reset.
	fresh bool
}

func grantOf(m *nats.Msg, since time.Time) pinGrant {
	_, consumerSeq, _ := dispatch.ParseReply(m.Reply)
	return pinGrant{pinOf(m), since, consumerSeq == 1}
}

// pinOf returns the pin for which a message came. The server writes its header behind
// those of the message.
func pinOf(m *nats.Msg) string {
	if pins := m.Header[headerPin]; len(pins) > 0 {
		return pins[len(pins)-1]
	}
	return ""
}

// deliveries brings messages to an ownership, from one reset of the durable on.
type deliveries struct {
	o      *ownership
	epoch  uint64
	begun  bool        // the durable was reset for it; the supervision's alone
	broken atomic.Bool // a message is missing, or not for this pin

	// The subscription's alone.
	consumerSeq uint64 // of the last message
	last        uint64 // the highest stream sequence
}

// receive takes a message. The consumer sequence counts from 1 after a reset. A gap in
// it means that messages were lost, or that somebody else has reset the durable.
func (d *deliveries) receive(msg *nats.Msg) {
	o, c := d.o, d.o.c
	if d.broken.Load() {
		return
	}
	delivery, consumerSeq, ok := dispatch.ParseReply(msg.Reply)
	if !ok || consumerSeq != d.consumerSeq+1 || pinOf(msg) != o.pin {
		o.resetByOther.Store(consumerSeq <= d.consumerSeq)
		d.broken.Store(true)
		c.wake()
		return
	}
	d.consumerSeq = consumerSeq
	c.lastMessage.Store(o.puller.Load().Heard.Load())
	if delivery.Sequence <= d.last {
		c.cameAgain(delivery)
		return // AckWait was over. An acknowledgement of the first delivery is good for this one
	}
	d.last = delivery.Sequence
	if len(msg.Header) == 1 { // the pin alone
		msg.Header = nil
	} else {
		delete(msg.Header, headerPin)
	}
	m := c.newMessage(o.ctx, msg, delivery)
	m.ConsumerSeq = consumerSeq
	o.push(d.epoch, m)
}
