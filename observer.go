package natty

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/publish"
)

// Tracer follows messages on their way out and through handlers, see WithTracer. It is
// the place for traces, and for metrics of messages. The modules nattyotel and nattyprom
// have one each.
//
// PublishStart and PublishEnd surround each message that is published: by Publish and
// PublishMsg, in a batch, by a Writer, as a schedule, as a dead letter, and by Redrive.
// Keys of buckets are not messages. HandleStart and HandleEnd surround each call of a
// handler. What a Start returns is the ctx for what it surrounds, and for its End: keep
// there what End needs.
//
// The methods are called from many goroutines, and must return at once. PublishEnd for a
// Writer may run on the goroutine that receives the server's answers: while it blocks,
// no publish of the Client gets its answer. The other methods hold up the publish or the
// handler that they surround. A panic is logged, and then counts as a call that did
// nothing.
type Tracer interface {
	// PublishStart is called before the message is sent first. msg is natty's own copy:
	// PublishStart may add headers to msg.Header, which is not nil, and changes nothing
	// else. It does not keep msg. For a schedule, msg is the message that the server
	// publishes later, and gets the headers.
	PublishStart(ctx context.Context, msg *nats.Msg) context.Context
	// PublishEnd is called when the outcome is known, once for each PublishStart. That
	// of a Writer's message may come a little after Flush returns, but Close waits for
	// it.
	PublishEnd(ctx context.Context, r PublishResult)
	// HandleStart is called before a Handler, with one message, and before a
	// BatchHandler, with all messages of the batch. It must not write to them.
	HandleStart(ctx context.Context, msgs []*nats.Msg, deliveries []Delivery) context.Context
	// HandleEnd is called when it is decided what becomes of the messages, in the order
	// in which HandleStart got them; after the copy of a dead letter is stored.
	HandleEnd(ctx context.Context, verdicts []Verdict)
}

// PublishResult is what became of a message that was published.
type PublishResult struct {
	// MsgID is the message id that it was sent with; empty if there is none.
	MsgID string
	// Stream is where the server stored the message. Stream, Sequence and Duplicate are
	// empty for schedules, for messages of a Writer that had to be sent again, and for a
	// batch that is stored though the server's answer was lost.
	Stream string
	// Sequence is that of the message in Stream.
	Sequence uint64
	// Duplicate says that Stream already had a message with MsgID.
	Duplicate bool
	// Err is nil if the server acknowledged the message. It is the error that the
	// caller gets, and matches ErrOutcomeUnknown if the message may be stored.
	Err error
}

// Outcome is what became of a delivery whose handler has returned.
type Outcome string

// The outcomes of a delivery.
const (
	// OutcomeAcked means that the handler accepted the message.
	OutcomeAcked = Outcome(dispatch.Acked)
	// OutcomeRetried means that the handler failed, and that the message runs again.
	OutcomeRetried = Outcome(dispatch.Retried)
	// OutcomeDeadLettered means that the handler failed for good, and that the message's
	// copy is stored on ConsumerConfig.DeadLetter.
	OutcomeDeadLettered = Outcome(dispatch.DeadLettered)
	// OutcomeTerminated means that the handler failed for good, and that the consumer
	// has no DeadLetter: the message is gone.
	OutcomeTerminated = Outcome(dispatch.Terminated)
	// OutcomeKept means that the handler failed for good, and that the copy could not be
	// stored: the message runs again.
	OutcomeKept = Outcome(dispatch.Kept)
	// OutcomeSettled means that the handler settled the message itself.
	OutcomeSettled = Outcome(dispatch.Settled)
	// OutcomeAbandoned means that the answer of the handler does not count any more: the
	// stream was deleted, or, with Exclusive, another instance may be active, and the
	// message runs again there.
	OutcomeAbandoned = Outcome(dispatch.Abandoned)
)

// Verdict is what became of one delivery.
type Verdict struct {
	// Outcome says whether the message is acked, runs again, or is gone.
	Outcome Outcome
	// Err is the handler's error; with OutcomeKept also why the copy was not stored.
	Err error
	// Delay is the pause before the message runs again, with OutcomeRetried and
	// OutcomeKept.
	Delay time.Duration
}

// tracing calls the Tracers of a Client.
type tracing struct {
	all []Tracer
	log *slog.Logger
}

// ctxOf calls start, which may panic. A ctx that it does not return is the given one.
func (t *tracing) ctxOf(ctx context.Context, start func() context.Context) (started context.Context) {
	started = ctx
	defer t.rescue()
	if c := start(); c != nil {
		started = c
	}
	return started
}

func (t *tracing) rescue() {
	if p := recover(); p != nil { //nolint:revive // it is deferred
		t.log.Error("natty: a Tracer panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}

// PublishStart implements publish.Tracer. Of msg a Tracer can change the headers only.
func (t *tracing) PublishStart(ctx context.Context, msg *nats.Msg) context.Context {
	subject, data := msg.Subject, msg.Data
	defer func() {
		if msg.Subject, msg.Data = subject, data; msg.Header == nil {
			msg.Header = nats.Header{}
		}
	}()
	for _, one := range t.all {
		ctx = t.ctxOf(ctx, func() context.Context { //nolint:fatcontext // it grows by one for each Tracer
			return one.PublishStart(ctx, msg)
		})
	}
	return ctx
}

// PublishEnd implements publish.Tracer.
func (t *tracing) PublishEnd(ctx context.Context, r publish.Result) {
	for _, one := range slices.Backward(t.all) {
		func() {
			defer t.rescue()
			one.PublishEnd(ctx, PublishResult(r))
		}()
	}
}

// HandleStart implements consumer.Tracer.
func (t *tracing) HandleStart(
	ctx context.Context, msgs []*nats.Msg, deliveries []dispatch.Delivery,
) context.Context {
	for _, one := range t.all {
		ds := make([]Delivery, len(deliveries))
		for i, d := range deliveries {
			ds[i] = Delivery(d)
		}
		own := slices.Clone(msgs)                   // a Tracer may keep or sort it
		ctx = t.ctxOf(ctx, func() context.Context { //nolint:fatcontext // it grows by one for each Tracer
			return one.HandleStart(ctx, own, ds)
		})
	}
	return ctx
}

// HandleEnd implements consumer.Tracer.
func (t *tracing) HandleEnd(ctx context.Context, verdicts []dispatch.Verdict) {
	for _, one := range slices.Backward(t.all) {
		vs := make([]Verdict, len(verdicts))
		for i, v := range verdicts {
			vs[i] = Verdict{Outcome: Outcome(v.Outcome), Err: v.Err, Delay: v.Delay}
		}
		func() {
			defer t.rescue()
			one.HandleEnd(ctx, vs)
		}()
	}
}

var (
	_ publish.Tracer  = (*tracing)(nil)
	_ consumer.Tracer = (*tracing)(nil)
)

// Observer receives what happens to a Client, see WithObserver: to its connection,
// consumers, elections and locks. A Tracer follows messages. For a health endpoint use
// Health.
//
// One goroutine calls Observe, one event after the other, in the order in which they
// happened. Observe holds nothing up: while it blocks, 256 events wait for it. Further
// ones are dropped, logged and counted in Health. A panic is logged. Close waits for
// queued events for a second at most.
type Observer interface {
	// Observe is called with each event.
	Observe(e Event)
}

// observe is what calls the Observers; nil if there is none.
func (o *options) observe(log *slog.Logger) func(Event) {
	switch len(o.observers) {
	case 0:
		return nil
	case 1:
		return o.observers[0].Observe
	}
	return func(e Event) {
		for _, one := range o.observers {
			func() {
				defer func() {
					if p := recover(); p != nil {
						log.Error("natty: an Observer panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
					}
				}()
				one.Observe(e)
			}()
		}
	}
}

// ObserverFunc is a function that is an Observer.
type ObserverFunc func(Event)

// Observe calls f.
func (f ObserverFunc) Observe(e Event) { f(e) }

// Event is a ConnectionEvent, ConsumerEvent, ElectionEvent or LockEvent. None of them
// holds a secret. Later versions may have more kinds and more fields: use a type switch
// with a default.
type Event interface{ event() }

// ConnectionEvent says that the connection was made or lost, or what is wrong with it.
type ConnectionEvent struct {
	// Connected says whether there is a connection now.
	Connected bool
	// Server is the URL last connected to, without credentials.
	Server string
	// Err is why there is no connection, or an error that the connection reports. It is
	// nil when Connected has changed.
	Err error
}

// ConsumerEvent says that a consumer has another state, or what went wrong with it.
type ConsumerEvent struct {
	// Stream is what is consumed; empty until it is known.
	Stream string
	// Durable is the name of the consumer on the server.
	Durable string
	// State is what the consumer is doing now. The first is ConsumerStarting, the last
	// ConsumerStopped. A connection that is lost and restored at once may cause
	// ConnectionEvents only.
	State ConsumerState
	// Err is the error that OnError gets; with ConsumerStopped, the one that Process
	// returns. It is nil when State has changed and nothing is wrong.
	Err error
}

// ElectionEvent says that a call of Lead or AsLeader leads, or no longer leads, or what
// keeps it from leading.
type ElectionEvent struct {
	// Bucket holds the election.
	Bucket string
	// Key names the election.
	Key string
	// NodeName is the name of the candidate.
	NodeName string
	// Leading says whether the candidate leads now.
	Leading bool
	// Token is the term's, or 0 while the candidate stands by.
	Token uint64
	// Err is nil when it is elected, and when it has released the leadership. It
	// matches ErrDeposed when it has lost the leadership. Any other error means:
	//   - if Leading is true: the lease could not be renewed; the term goes on for now
	//   - if Leading is false and Token is 0: it cannot be elected
	//   - if Leading is false and Token is set: the term is over, and the server may not
	//     know that
	Err error
}

// LockEvent says that a lock was lost. Its Lease's Context ends too.
type LockEvent struct {
	// Bucket holds the lock.
	Bucket string
	// Key names the lock.
	Key string
	// Owner is the value of the key while it was locked.
	Owner string
	// Token is that of the Lease.
	Token uint64
	// Err says why the lock was lost. It matches ErrDeposed.
	Err error
}

func (ConnectionEvent) event() {}
func (ConsumerEvent) event()   {}
func (ElectionEvent) event()   {}
func (LockEvent) event()       {}
