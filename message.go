package natty

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Delivery is what the server says about one delivery of a message.
type Delivery struct {
	Stream   string
	Durable  string
	Sequence uint64 // of the message in the stream
	// Attempt counts deliveries from 1, as the server does: hand-backs at a shutdown
	// and lost connections count too.
	Attempt int
	// Last says that a failure now is final.
	Last bool
	// Time is when the message was stored.
	Time time.Time
}

type deliveryKey struct{}

// deliveryCtx carries a Delivery without the second allocation of context.WithValue.
type deliveryCtx struct {
	context.Context //nolint:containedctx // this is a context
	d               Delivery
}

func (c *deliveryCtx) Value(key any) any {
	if key == (deliveryKey{}) {
		return &c.d
	}
	return c.Context.Value(key)
}

// DeliveryFrom returns the Delivery of the message that a Handler was called
// with; false outside of a Handler.
func DeliveryFrom(ctx context.Context) (Delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*Delivery)
	if !ok {
		return Delivery{}, false
	}
	return *d, true
}

// WithDelivery returns a ctx that carries d, to test a Handler without a server.
func WithDelivery(ctx context.Context, d Delivery) context.Context {
	return &deliveryCtx{Context: ctx, d: d}
}

// parseDelivery reads the reply subject of a delivered message, which is all that the
// server says about a delivery (ADR-15):
//
//	$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<the same seven>[.<more>]
//
// It does what (*nats.Msg).Metadata does, without its allocations: it runs for every message.
func parseDelivery(reply string) (Delivery, bool) {
	d, _, ok := parseReply(reply)
	return d, ok
}

// parseReply also returns the consumer sequence, which counts what the durable delivered.
func parseReply(reply string) (_ Delivery, delivered uint64, ok bool) {
	rest, ok := strings.CutPrefix(reply, "$JS.ACK.")
	if !ok {
		return Delivery{}, 0, false
	}
	if strings.Count(rest, ".") > 6 {
		_, rest, _ = strings.Cut(rest, ".") // domain
		_, rest, _ = strings.Cut(rest, ".") // account
	}
	var d Delivery
	var attempt, seq, count, stored string
	d.Stream, rest, _ = strings.Cut(rest, ".")
	d.Durable, rest, _ = strings.Cut(rest, ".")
	attempt, rest, _ = strings.Cut(rest, ".")
	seq, rest, _ = strings.Cut(rest, ".")
	count, rest, _ = strings.Cut(rest, ".")
	stored, _, ok = strings.Cut(rest, ".")
	if !ok {
		return Delivery{}, 0, false
	}
	n, err := strconv.Atoi(attempt)
	if err != nil {
		return Delivery{}, 0, false
	}
	d.Attempt = n
	if d.Sequence, err = strconv.ParseUint(seq, 10, 64); err != nil {
		return Delivery{}, 0, false
	}
	if delivered, err = strconv.ParseUint(count, 10, 64); err != nil {
		return Delivery{}, 0, false
	}
	nanos, err := strconv.ParseInt(stored, 10, 64)
	if err != nil {
		return Delivery{}, 0, false
	}
	d.Time = time.Unix(0, nanos)
	return d, delivered, true
}

// copyForSending returns a message that can be given headers without the caller's seeing
// them. Values are shared: what natty and nats.go do to headers replaces them.
func copyForSending(msg *nats.Msg) *nats.Msg {
	h := maps.Clone(msg.Header)
	if h == nil {
		h = nats.Header{}
	}
	return &nats.Msg{Subject: msg.Subject, Data: msg.Data, Header: h}
}
