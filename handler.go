package natty

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/subject"
)

// Handler handles one message. The error that it returns decides what happens next:
//
//   - nil acknowledges the message.
//   - An error lets the message run again after the consumer's backoff.
//   - RetryAfter does so after a pause of its own.
//   - Permanent is final: the message goes to the consumer's DeadLetter, as does one
//     that fails at MaxDeliver.
//
// A panic counts as an error. If the handler settles the message itself (msg.Ack,
// msg.Nak, msg.Term), that counts, and its error is only reported. With Exclusive it does
// not count: a handler that naks and returns nil has accepted the message. The handler
// may change the message's fields. It must not change the bytes of Data and the header
// map, which the dead letter may need.
//
// ctx carries the values of the consumer's ctx and the Delivery. It lives longer than
// the consumer's ctx: it ends when DrainTimeout is over.
type Handler func(ctx context.Context, msg *nats.Msg) error

// Permanent marks err as final: the message is not retried. It goes to the consumer's
// DeadLetter; without one it is terminated and err is reported. A nil err is a failure
// all the same.
func Permanent(err error) error {
	return dispatch.Permanent(err)
}

// RetryAfter asks for the message again after d, instead of after the consumer's
// backoff; zero or less means at once. A nil err is a failure all the same: it says
// "not yet".
func RetryAfter(d time.Duration, err error) error {
	return dispatch.RetryAfter(d, err)
}

// IsPermanent reports whether a handler's error is final: Permanent made it, or an error
// that it wraps. Middleware and the unit tests of handlers can so ask for a verdict.
func IsPermanent(err error) bool {
	v, ok := dispatch.VerdictOf(err)
	return ok && v.Permanent
}

// RetryDelay returns the pause that RetryAfter asks for in a handler's error. It returns
// false for other errors, for which the consumer's Backoff counts, or which are final.
func RetryDelay(err error) (time.Duration, bool) {
	v, ok := dispatch.VerdictOf(err)
	if !ok || v.Permanent {
		return 0, false
	}
	return v.After, true
}

// Delivery is what the server says about one delivery of a message.
type Delivery struct {
	// Stream is where the message is stored.
	Stream string
	// Durable is the consumer that the message was delivered to.
	Durable string
	// Subject is what the message was published on.
	Subject string
	// Filter is the one of ConsumerConfig.Subjects that the message is for; empty without
	// Subjects. Name metrics and spans by it: there are few filters and many subjects.
	Filter string
	// Header is that of the message. Do not write to it.
	Header nats.Header
	// MsgID is the message id (Nats-Msg-Id) of the publisher, also after any number of
	// redrives, each of which stores the message under another id. natty gives an id to
	// every message that it publishes; from other clients it may be empty.
	MsgID string
	// Sequence is that of the message in the stream.
	Sequence uint64
	// Attempt counts deliveries from 1, as the server does. It also counts deliveries
	// that ended with a lost connection, or that an instance returned when it stopped.
	Attempt int
	// Last means that a failure now is final.
	Last bool
	// Redrives is how often Redrive has put the message back.
	Redrives int
	// Time is when the message was stored.
	Time time.Time
}

// DeliveryFrom returns the Delivery of the message for which a Handler runs. It returns
// false outside of a Handler.
func DeliveryFrom(ctx context.Context) (Delivery, bool) {
	d, ok := dispatch.DeliveryOf(ctx)
	return Delivery(d), ok
}

// ClientFrom returns the Client that runs the Handler with this ctx, to publish with,
// for example; within Lead's function, the Client that leads. Elsewhere it returns false.
func ClientFrom(ctx context.Context) (*Client, bool) {
	c, ok := ctx.Value(handlerOf{}).(*Client)
	return c, ok
}

// WithDelivery returns a ctx that carries d, to test a Handler without a server.
func WithDelivery(ctx context.Context, d Delivery) context.Context {
	return dispatch.WithDelivery(ctx, dispatch.Delivery(d))
}

// Mux gives each message to the handler for its subject, so that one durable has a
// handler for each:
//
//	mux := natty.NewMux()
//	mux.Handle("orders.new", create)
//	mux.Handle("orders.*", change)
//	cfg := natty.ConsumerConfig{Durable: "orders", Subjects: mux.Subjects()}
//	err := c.Process(ctx, cfg, mux.Process)
//
// It is used from many goroutines.
type Mux struct {
	mu     sync.RWMutex
	routes []route // the most specific first; written by Handle only
}

type route struct {
	subject string
	handler Handler
}

// NewMux returns a Mux without handlers.
func NewMux() *Mux { return &Mux{} }

// Handle makes h handle the messages of a subject, which may have wildcards. Where
// several subjects match a message, the most specific one counts: at the first token in
// which they differ, a token that is spelled out beats *, and * beats >. So orders.new
// beats orders.*, which beats orders.>.
//
// Handle panics if the subject is invalid or has a handler, or if h is nil: these are
// mistakes in the program.
func (m *Mux) Handle(subject string, h Handler) {
	if err := m.handle(subject, h); err != nil {
		panic(err)
	}
}

func (m *Mux) handle(s string, h Handler) error {
	if wrong := subject.InvalidFilter(s); wrong != "" {
		return invalid("subject", s, wrong+"; expected tokens separated by single dots", nil)
	}
	if h == nil {
		return invalid("h", "", fmt.Sprintf("is nil; give a function that handles the messages of %q", s), nil)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	at, found := slices.BinarySearchFunc(m.routes, s, func(r route, s string) int { return compareRoutes(r.subject, s) })
	if found {
		return invalid("subject", s, "has a handler already; give each subject one", nil)
	}
	m.routes = slices.Insert(m.routes, at, route{s, h})
	return nil
}

// compareRoutes orders subjects token by token: those spelled out, by name, then *,
// then >.
func compareRoutes(a, b string) int {
	rank := func(token string) int { return slices.Index([]string{"*", ">"}, token) }
	return slices.CompareFunc(strings.Split(a, "."), strings.Split(b, "."), func(x, y string) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), cmp.Compare(x, y))
	})
}

// Subjects returns the subjects for ConsumerConfig.Subjects. A durable's subjects must
// not overlap, so Subjects leaves out a subject if a wider one with a handler includes
// it, as orders.* includes orders.new. Process refuses subjects that overlap only
// partly, such as a.* and *.b. For these, also handle a subject that includes both, such
// as *.*.
func (m *Mux) Subjects() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []string
	for _, r := range m.routes {
		held := slices.ContainsFunc(m.routes, func(other route) bool {
			return other.subject != r.subject && subject.Covers(other.subject, r.subject)
		})
		if !held {
			all = append(all, r.subject)
		}
	}
	return all
}

// Process is the Handler to give to Client.Process. It calls the handler for the
// message's subject and returns its error. A message without a handler fails, and is
// retried: an instance of another version may have a handler for it. MaxDeliver and
// DeadLetter bound that.
func (m *Mux) Process(ctx context.Context, msg *nats.Msg) error {
	if h := m.handlerFor(msg.Subject); h != nil {
		return h(ctx, msg)
	}
	return fmt.Errorf("natty: Mux has no handler for subject %q; it has some for %s",
		msg.Subject, cmp.Or(strings.Join(m.Subjects(), ", "), "none"))
}

func (m *Mux) handlerFor(s string) Handler {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, r := range m.routes {
		if subject.Covers(r.subject, s) {
			return r.handler
		}
	}
	return nil
}
