package dispatch

import (
	"cmp"
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Delivery is what the server says about one delivery of a message; see natty.Delivery.
type Delivery struct {
	Stream   string
	Durable  string
	Subject  string
	Filter   string
	Header   nats.Header
	MsgID    string
	Sequence uint64
	Attempt  int
	Last     bool
	Redrives int
	Time     time.Time
}

// DeliveryOf returns the Delivery that a ctx carries.
func DeliveryOf(ctx context.Context) (Delivery, bool) {
	d, ok := ctx.Value(deliveryKey{}).(*Delivery)
	if !ok {
		return Delivery{}, false
	}
	return *d, true
}

// WithDelivery returns a ctx that carries d.
func WithDelivery(ctx context.Context, d Delivery) context.Context {
	return &deliveryCtx{Context: ctx, Delivery: d}
}

type deliveryKey struct{}

// deliveryCtx carries a Delivery without the second allocation of context.WithValue.
type deliveryCtx struct {
	context.Context //nolint:containedctx // this is a context
	Delivery        Delivery
}

// Value returns the Delivery, or what the parent ctx carries.
func (c *deliveryCtx) Value(key any) any {
	if key == (deliveryKey{}) {
		return &c.Delivery
	}
	return c.Context.Value(key)
}

// ParseReply reads the reply subject of a delivered message, which is all that the
// server says about a delivery (ADR-15):
//
//	$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<the same seven>[.<more>]
//
// It does what (*nats.Msg).Metadata does without its allocations, since it runs for
// every message. consumerSeq numbers the durable's deliveries.
func ParseReply(reply string) (d Delivery, consumerSeq uint64, ok bool) {
	rest, ok := strings.CutPrefix(reply, ackPrefix)
	if !ok {
		return Delivery{}, 0, false
	}
	var room [9]int
	begin, t := ends(room[:0], rest)
	if len(t) < 6 {
		return Delivery{}, 0, false
	}
	var n [4]uint64 // attempt, stream sequence, consumer sequence, time
	for i := range n {
		if n[i], ok = digits(rest[t[i+1]+1 : t[i+2]]); !ok {
			return Delivery{}, 0, false
		}
	}
	return Delivery{
		Stream: rest[begin:t[0]], Durable: rest[t[0]+1 : t[1]],
		Sequence: n[1], Attempt: int(n[0]), Time: time.Unix(0, int64(n[3])),
	}, n[2], true
}

// NoMessage returns a reply subject of the same consumer that belongs to no message. The
// server answers what is sent there behind all that was sent before, and does nothing:
// a progress report on a message itself would replace the pause that its nak asked for.
func NoMessage(reply string) string {
	rest, _ := strings.CutPrefix(reply, ackPrefix)
	if _, t := ends(nil, rest); len(t) >= 6 {
		// Sequence 0 would get no answer.
		return ackPrefix + rest[:t[2]+1] + strconv.FormatInt(math.MaxInt64, 10) + rest[t[3]:]
	}
	return reply
}

const ackPrefix = "$JS.ACK."

// ends appends where the tokens of a delivery end to t: the stream's first. begin is
// where that one begins.
func ends(t []int, rest string) (begin int, _ []int) {
	for i := 0; i < len(rest) && len(t) < 9; i++ {
		if rest[i] == '.' {
			t = append(t, i)
		}
	}
	if len(t) > 6 { // behind domain and account
		return t[1] + 1, t[2:]
	}
	return 0, t
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

// VerdictError is a handler's error that says what happens to its message.
type VerdictError struct {
	Err       error
	Permanent bool          // the message never runs again
	After     time.Duration // otherwise, the pause before it does
}

// Error returns the text of the error that the handler marked.
func (v *VerdictError) Error() string { return v.Err.Error() }

// Unwrap returns the error that the handler marked.
func (v *VerdictError) Unwrap() error { return v.Err }

// VerdictOf returns what a handler's error says about its message. Of several verdicts
// in one error, the first counts. There is none in a plain error.
func VerdictOf(err error) (v *VerdictError, ok bool) { return errors.AsType[*VerdictError](err) }

// Permanent marks err as final; see natty.Permanent.
func Permanent(err error) error {
	return &VerdictError{Err: cmp.Or(err, errors.New("permanent failure")), Permanent: true}
}

// RetryAfter asks for another attempt after d; see natty.RetryAfter.
func RetryAfter(d time.Duration, err error) error {
	return &VerdictError{Err: cmp.Or(err, errors.New("not yet")), After: max(d, 0)}
}
