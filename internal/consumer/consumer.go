// Package consumer runs consumers: it pulls messages of a durable, gives them to
// handlers in the right order, settles them, and repairs what breaks meanwhile. It
// knows no client and no configuration of natty's; the errors for callers come from
// constructors that it is given. Read first:
//
//	consumer.go   a Consumer from Run to its end, and the mode that it runs in
//	supervise.go  the loop that keeps a pull request at the server; look.go asks it, as
//	              often as pace.go says; trouble.go pauses; recount.go keeps order
//	shared.go     mode 1: all instances share the work; stop.go ends it
//	settle.go     calls the handler; its error becomes an ack, a nak or a term
//	trace.go      who follows messages through their handlers
//	exclusive.go  mode 2: one instance is active, others stand by; handover.go ends it
//	claim.go      when an instance that got the pin may begin; retire.go gives it back
//	ownership.go  the work of the active instance; deliveries.go brings its messages
package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/deadletter"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/incident"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/pull"
	"github.com/natty-go/natty/internal/respmux"
)

// Client is what consumers run on.
type Client struct {
	durable.Manager
	Pub *publish.Publisher
	Log *slog.Logger
	// Tracer follows messages through their handlers; or nil.
	Tracer Tracer

	// Failed makes the error for a delivery that its handler did not accept.
	Failed func(subject string, d dispatch.Delivery, stack []byte, final bool, cause error) error
	// Removed makes the error for messages that were removed before they were handled.
	Removed func(r Removal) error
}

// Config says what to consume and how; see natty.ConsumerConfig. Defaults are set.
type Config struct {
	durable.Spec
	Concurrency    int
	OrderBy        func(*nats.Msg) string
	MaxPollRecords int
	Heartbeat      time.Duration
	HandlerTimeout time.Duration
	Backoff        backoff.Exp
	DrainTimeout   time.Duration
	OnError        func(error)
	Observe        func(stream, durable string, s State, err error)
}

// Handler handles one message; see natty.Handler.
type Handler func(ctx context.Context, msg *nats.Msg) error

var (
	// ErrDrainTimeout says that handlers still ran when DrainTimeout was over.
	ErrDrainTimeout = errors.New("handlers outlived the drain timeout")
	// ErrGoexit is the error of a handler that ended its goroutine.
	ErrGoexit = callback.ErrGoexit
	// RetryPrepare is the pause between attempts to find the stream and the durable.
	RetryPrepare = backoff.Exp{Min: 100 * time.Millisecond, Max: 5 * time.Second}
)

// EndGrace is how long handlers get to notice that their ctx has ended.
const EndGrace = time.Second

// Consumer is one running consumer. It waits for every goroutine that it starts, except
// for handlers that outlive DrainTimeout.
type Consumer struct {
	client      *Client
	api         *jsapi.Client // the client's
	cfg         Config
	handler     Handler
	Batch       *Batching // instead of handler; or nil
	mode        mode
	supervision *supervision
	durable     durable.Durable // the supervision's alone once it runs
	address     string          // of the durable, as redriven messages name it
	puller      *pull.Puller
	queue       *dispatch.Queue // empty in exclusive mode
	intake      intake          // with OrderBy, ahead of the queue
	acks        *dispatch.AckBatch
	ackTrouble  ackTrouble
	pullTrouble atomic.Pointer[string] // why there are no messages, or nil
	reports     *callback.Queue[error]
	removals    removals
	answers     answers
	letters     letterStream
	foreign     foreign
	told        incident.Log    // what the durable's settings were reported for
	strayedAt   uint64          // behind what messages may be skipped since "put right" in told
	passedOver  *uint64         // behind it, a new durable has passed what this instance asks for
	lastSeq     atomic.Uint64   // the consumer sequence of the last message; not in exclusive mode
	wentBack    atomic.Bool     // lastSeq did, since the last look
	wakeups     chan struct{}   // wakes the supervision
	handlerCtx  context.Context //nolint:containedctx // what handlers' ctx are made of
	endHandlers context.CancelCauseFunc

	lastMessage atomic.Int64 // Unix nanoseconds
	ackLimit    atomic.Int64 // the durable's max_ack_pending; 0: none
	// epoch counts the streams of this name. Each begins its sequences anew: an
	// acknowledgement of an older one's message would settle another message.
	epoch atomic.Int64
	// outdated means that the stream has changed, and the next look is to read it.
	outdated atomic.Bool
	// schedules means that the stream may hold schedules. To keep them, it has markers.
	schedules atomic.Bool
	pace      pace

	// mu guards what follows.
	mu             sync.Mutex
	unsentVerdicts []unsent
	health         Snapshot
	warnings       warnings
	ended          bool // nothing is observed any more
}

// mode is what differs between the two kinds of consumers. The supervision's goroutine
// alone calls it, except for role, load and oldest.
type mode interface {
	start() error
	// step does what can be done now; up says whether there is a connection.
	step(ctx context.Context, up bool) error
	onConnection(ctx context.Context, up bool) error
	onPullEnd(ctx context.Context)
	onFound(ctx context.Context, f finding) error
	onTick(ctx context.Context) error // only with a connection
	tick() time.Duration
	stop() error
	// role is the state while nothing is wrong.
	role() State
	// load returns how many messages are held, and how many of them handlers have.
	load() (held, handling int)
	// oldest is when the handler was called that has run for longest; zero if none runs.
	oldest() time.Time
}

// New returns a consumer that calls h, or Batch's handler if that is set before Run.
func New(client *Client, cfg Config, h Handler) *Consumer {
	c := &Consumer{
		client: client, api: client.API, cfg: cfg, handler: h,
		queue:   dispatch.New(cfg.OrderBy != nil && !mutant.NoOrder),
		wakeups: make(chan struct{}, 1),
		health: Snapshot{
			Stream: cfg.Stream, Durable: cfg.Durable, State: stateStarting, Since: time.Now(),
		},
	}
	c.acks = dispatch.NewAckBatch(cfg.Concurrency, func(reply string) { c.send(reply, ack) })
	c.supervision, c.intake.c = &supervision{c: c}, c
	if cfg.Exclusive {
		c.mode = newExclusive(c)
	} else {
		c.mode = &shared{supervision: c.supervision}
	}
	return c
}

// Run consumes until ctx ends or something cannot be repaired.
func (c *Consumer) Run(ctx context.Context) error {
	c.cfg.PinnedTTL, c.pace = pinnedTTL(ctx, c.cfg.PinnedTTL), paceOf(ctx)
	err := c.run(ctx)
	c.enterState(stateStopped, err)
	c.logEnd(err)
	return err
}

func (c *Consumer) run(ctx context.Context) error {
	c.mu.Lock()
	c.observeLocked(nil)
	c.mu.Unlock()
	c.reports = callback.New("OnError", c.cfg.OnError, c.client.Log)
	defer c.reports.Close()
	if err := c.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	c.handlerCtx, c.endHandlers = context.WithCancelCause(context.WithoutCancel(ctx))
	defer c.endHandlers(nil)
	defer c.watchRefusals()()
	if err := c.mode.start(); err != nil {
		return err
	}
	c.log("natty: consumer started")
	err := c.supervision.run(ctx, c.mode)
	c.setState(stateStopping)
	return errors.Join(err, c.mode.stop())
}

// prepare finds out what to consume, and makes the durable. It waits for a server that
// is not there, has no leader yet, or cannot do it at the moment. It reports each kind of
// trouble once.
func (c *Consumer) prepare(ctx context.Context) error {
	var reported incident.Log
	for n := 1; ; n++ {
		err := c.ensure(ctx)
		// A durable that is missing was deleted just after this call had made it.
		passing := jsapi.Passing(err) || errors.Is(err, jetstream.ErrConsumerNotFound)
		if err == nil && reported.ResolveAll() {
			c.clearError()
		}
		if err == nil || !passing || ctx.Err() != nil {
			return err
		}
		c.reportStart(&reported, err)
		if RetryPrepare.Wait(ctx, n) != nil {
			return err
		}
	}
}

// reportStart reports an error that keeps the consumer from starting, once for each code
// of the server's.
func (c *Consumer) reportStart(reported *incident.Log, err error) {
	kind := strconv.Itoa(int(jsapi.Code(err)))
	if errors.Is(err, respmux.ErrInbox) {
		kind = "inbox"
	}
	if reported.Open(kind) {
		c.report(err)
	} else {
		c.noteError(err)
	}
}

func (c *Consumer) ensure(ctx context.Context) error {
	if err := c.api.Link.Wait(ctx, time.Time{}); err != nil {
		return fmt.Errorf("natty: consume %q: %w", c.cfg.Durable, err)
	}
	stream, err := c.client.FindStream(ctx, c.cfg.Spec)
	if err != nil {
		return err
	}
	c.durable, err = c.client.EnsureDurable(ctx, stream, c.cfg.Spec)
	if err == nil {
		err = c.client.KeepUp(ctx, c.durable)
	}
	if err == nil {
		err = c.client.CheckDeadLetter(ctx, c.cfg.Spec, c.durable)
	}
	if err != nil {
		return err
	}
	if err := c.noteForeign(ctx, c.durable); err != nil {
		if jsapi.Passing(err) {
			return err
		}
		c.report(c.errorf("note which messages it returns: %w", err))
	}
	c.address = deadletter.Address(stream, c.durable.Name)
	c.setDurable(c.durable)
	c.removals.begin(c.durable)
	return nil
}

// setDurable stores what the server says about the durable.
func (c *Consumer) setDurable(d durable.Durable) {
	c.durable = d
	c.ackTrouble.look(d)
	c.ackLimit.Store(int64(max(d.Config.MaxAckPending, 0)))
	c.schedules.Store(d.Schedules)
	warning := c.durableWarning(d)
	c.mu.Lock()
	h := &c.health
	h.Stream, h.AckFloor, h.Replicas = d.Stream, d.Floor, d.Replicas
	h.Pending, h.AckPending, h.MaxAckPending = d.Waiting, d.Unacked, d.Config.MaxAckPending
	c.mu.Unlock()
	c.warn(warnDurable, warning) // told by kind
}

// newPuller subscribes for the answers to requests like this one.
func (c *Consumer) newPuller(r pull.Request, onMsg func(*nats.Msg), onEnd func()) (*pull.Puller, error) {
	c.ackTrouble.forget()
	return pull.New(c.api.NC, c.api.Link, c.durable.Pulls(&c.client.Manager), c.durable.Config, r, onMsg, onEnd)
}

// wake makes the supervision look at what there is to do.
func (c *Consumer) wake() { signal(c.wakeups) }

// signal wakes who waits for a channel with room for one signal.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (c *Consumer) isLast(d dispatch.Delivery) bool {
	return c.cfg.MaxDeliver > 0 && d.Attempt >= c.cfg.MaxDeliver
}
