package natty

import (
	"context"
	"maps"
	"math"
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
	ends := make([]int, 0, 9) // of the tokens
	for i := 0; i < len(rest) && len(ends) < cap(ends); i++ {
		if rest[i] == '.' {
			ends = append(ends, i)
		}
	}
	begin, first := 0, 0 // of the stream's name, and which token it is
	if len(ends) > 6 {   // behind domain and account
		begin, first = ends[1]+1, 2
	}
	if len(ends) < first+6 {
		return Delivery{}, 0, false
	}
	t := ends[first : first+6]
	attempt, ok1 := digits(rest[t[1]+1 : t[2]])
	sequence, ok2 := digits(rest[t[2]+1 : t[3]])
	delivered, ok3 := digits(rest[t[3]+1 : t[4]])
	stored, ok4 := digits(rest[t[4]+1 : t[5]])
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return Delivery{}, 0, false
	}
	return Delivery{
		Stream: rest[begin:t[0]], Durable: rest[t[0]+1 : t[1]],
		Sequence: sequence, Attempt: int(attempt), Time: time.Unix(0, int64(stored)),
	}, delivered, true
}

// digits reads a number that fits in an int64.
func digits(s string) (n uint64, ok bool) {
	if s == "" || len(s) > len("9223372036854775807") {
		return 0, false
	}
	for i := range len(s) {
		d := s[i] - '0'
		if d > 9 {
			return 0, false
		}
		n = n*10 + uint64(d)
	}
	return n, n <= math.MaxInt64
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
