package natty

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Handler handles one message. What it returns is the verdict: nil acknowledges the message, an error lets it
// come again after the consumer's backoff, RetryAfter after a time of its own, Permanent never: it goes to the
// consumer's DeadLetter, as does one that fails at MaxDeliver. A panic counts as
// an error. A handler that settles the message itself (msg.Ack, msg.Nak, msg.Term) is respected, and its error then
// only reported. It may change the message's fields; the bytes of Data and the header map it must leave as they are,
// since they may be needed for the dead letter.
//
// ctx carries the values of the consumer's ctx and the Delivery. It outlives the consumer's: it ends when
// DrainTimeout is over.
type Handler func(ctx context.Context, msg *nats.Msg) error

// ConsumerConfig says what to consume and how. Only a durable's name must be known, from here or from
// Config.Name, and what to consume; everything else has a default. The JSON names are those of a service
// file, see LoadService.
type ConsumerConfig struct {
	// Stream is the stream to consume from. Default: the one that holds Subjects.
	Stream string `json:"stream_name,omitempty"`
	// Durable is the consumer's name on the server, under which its position is kept. Instances
	// that share it share the work. Default: made of Config.Name and the subject; required with several
	// subjects.
	Durable string `json:"consumer_group,omitempty"`
	// Subjects are the subjects to receive, wildcards allowed. Default: all of Stream, or what an existing durable
	// receives.
	Subjects []string `json:"subjects,omitempty"`
	// Concurrency is how many handlers run at once. Default 1.
	Concurrency int `json:"concurrency,omitempty"`
	// OrderBy gives a message's key: messages of one key are handled one at a time and in the order of the stream, those of
	// different keys in parallel. A message that fails is tried again in its place, and those of its key wait for it; when what
	// waits fills the buffer, the instance waits too, and Health names the key. MaxDeliver bounds that. The order is
	// kept through graceful restarts and lost connections, after which pulling may wait for up to AckWait. What an
	// instance that was killed had begun comes again after AckWait, behind what another one handled meanwhile.
	OrderBy func(*nats.Msg) string `json:"-"`
	// Exclusive makes one instance of all that share the durable the active one, and lets the others stand by: messages are
	// handled one at a time and in the order of the stream, whichever instance does it. A message that fails is tried
	// again in its place, and all others wait for it; MaxDeliver bounds that. The verdict is what the handler
	// returns, and nothing that it tells the server itself.
	//
	// When the active instance stops, the next one follows at once; when it dies, after ten seconds, or AckWait if that is
	// longer. One that is cut off ends its handler's ctx two seconds before another can follow: a handler that heeds
	// its ctx never runs beside another one's, unless the server itself forgot who was active (a restart, another leader
	// of the consumer), of which the instance learns a moment later.
	//
	// It needs a server of at least version 2.14, Concurrency 1, and no OrderBy. The durable acknowledges in runs (ack
	// policy all), except on a WorkQueue stream.
	Exclusive bool `json:"exclusive,omitempty"`
	// MaxPollRecords is the most messages held ahead of the handlers and in them. Default: as many as the
	// handlers get through in about one second, at least one for each, at most 2,000; with Exclusive 20,000.
	MaxPollRecords int `json:"max_poll_records,omitempty"`
	// Heartbeat is how often the server shows that it is there while there are no messages. Default 5s, at
	// least 100ms. Two missed ones in a row are looked into.
	Heartbeat time.Duration `json:"heartbeat_interval,omitempty"`
	// AckWait is how long the server waits for a sign of life of a message before it gives it to another
	// instance. Messages that wait here or are being handled give one three times in that time, however
	// long they take: it bounds the time to recover from a crash, not the time to handle a message. Default 10s for a
	// durable made here, else what it has.
	AckWait time.Duration `json:"ack_wait,omitempty"`
	// MaxDeliver makes a failure final at this delivery or a later one: the message goes to DeadLetter. Deliveries are
	// counted by the server, and a hand-back at a shutdown is one too; a message that did not fail is not
	// given up for its count, unless that is above 2·MaxDeliver + 5: then it is tried once more, while nothing else is
	// handled here, and if it comes again after that, it goes to DeadLetter as one that kills its process. 0: for ever.
	MaxDeliver int `json:"max_deliver,omitempty"`
	// DeadLetter is the subject that gets a copy of what is given up (Permanent, or MaxDeliver) before it is taken off. It
	// must be in a stream, and not among what the consumer receives itself. Required when MaxDeliver is set; without it
	// a Permanent failure is only reported.
	DeadLetter string `json:"dead_letter,omitempty"`
	// HandlerTimeout ends a handler's ctx after this time. Default: never.
	HandlerTimeout time.Duration `json:"handler_timeout,omitempty"`
	// Backoff is the pause before a failed message comes again. Default 250ms to one minute. In a service file
	// its two settings stand beside the others.
	Backoff Backoff `json:"-"`
	// DrainTimeout is how long handlers get to finish at the end, before their ctx ends. Default 20s.
	DrainTimeout time.Duration `json:"drain_timeout,omitempty"`
	// DeliverPolicy says where a durable that is made here begins: all (default), new, last, or
	// last per subject.
	DeliverPolicy jetstream.DeliverPolicy `json:"deliver_policy,omitempty"`
	// pinnedTTL is how long a silent active instance stays it. The tests shorten it.
	pinnedTTL time.Duration
	// OnError is told what goes wrong without ending the consumer: handlers' errors as *HandlerError, and what the
	// supervision saw and mended. It is called from one goroutine; when it is slow, errors beyond 256 are logged
	// only.
	OnError func(error) `json:"-"`
}

const (
	defaultHeartbeat    = 5 * time.Second
	defaultDrainTimeout = 20 * time.Second
	// endGrace is how long handlers get to notice that their ctx has ended.
	endGrace = time.Second
)

func (cfg ConsumerConfig) withDefaults(service string) ConsumerConfig {
	if cfg.Durable == "" && service != "" {
		switch {
		case len(cfg.Subjects) == 1:
			cfg.Durable = derivedDurable(service, cfg.Subjects[0])
		case len(cfg.Subjects) == 0 && cfg.Stream != "":
			cfg.Durable = derivedDurable(service, ">")
		}
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 1
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = defaultHeartbeat
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = defaultDrainTimeout
	}
	if cfg.pinnedTTL == 0 {
		cfg.pinnedTTL = defaultPinnedTTL
	}
	cfg.Backoff = cfg.Backoff.withDefaults()
	return cfg
}

// Consume calls cb for every message of subject, one at a time, until ctx ends or the Client is closed; it returns as
// Process does. A message is acknowledged when cb returns, unless cb settled it. When cb panics the
// message comes again later. Errors go to errorCh, which may be nil; one that is full never holds anything up,
// what finds no room is logged.
//
// The durable is made of Config.Name and the subject, and is never deleted.
func (c *Client) Consume(ctx context.Context, subject string, errorCh chan error, cb func(msg *nats.Msg)) error {
	if cb == nil {
		return &ConfigError{Field: "cb", Reason: "is nil; give a function that handles a message"}
	}
	cfg := ConsumerConfig{Subjects: []string{subject}}
	if errorCh != nil {
		cfg.OnError = func(err error) {
			select {
			case errorCh <- err:
			default:
				c.log.Warn("natty: errorCh is full, an error was not delivered", "error", err)
			}
		}
	}
	return c.Process(ctx, cfg, func(_ context.Context, msg *nats.Msg) error {
		cb(msg)
		return nil
	})
}

// Process calls h for the messages of a durable consumer, which is made if it is missing, until ctx ends or the Client
// is closed. Of an existing durable it changes what cfg sets and leaves the rest as it is; what cannot be changed is a
// *DriftError. It never deletes one.
//
// It survives lost connections, restarts of servers and changes of leaders, each reported once. A durable that is deleted is
// made again where its whole group had got to when it was last asked, at most a few seconds before; what was handled
// since then comes again. A stream that is deleted is waited for, and begun anew. A configuration that cannot work and a
// subject that no stream holds (ErrNoStream) end it with an error.
//
// At the end of ctx it stops pulling, hands back at once what no handler has begun, and lets running handlers
// finish within DrainTimeout; then it returns nil. When some were still running, their ctx ends and the
// error wraps ErrDrainTimeout.
func (c *Client) Process(ctx context.Context, cfg ConsumerConfig, h Handler) error {
	if h == nil {
		return &ConfigError{Field: "h", Reason: "is nil; give a function that handles a message"}
	}
	return c.consume(ctx, cfg, h, nil)
}

// consume runs a consumer for a handler of messages, or of batches.
func (c *Client) consume(ctx context.Context, cfg ConsumerConfig, h Handler, batch *batching) error {
	cfg = cfg.withDefaults(c.cfg.Name)
	if err := cfg.validate(); err != nil {
		return err
	}
	e := newEngine(c, cfg, h)
	e.batch = batch
	if err := c.enter(e); err != nil {
		return err
	}
	defer c.leave(e)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	err := e.run(ctx)
	e.enterState(ConsumerStopped, err)
	return err
}

// engine is one running consumer. It owns every goroutine it starts and waits for them, except for
// handlers that outlive DrainTimeout.
type engine struct {
	c        *Client
	cfg      ConsumerConfig
	handler  Handler
	batch    *batching // instead of handler; or nil
	durable  durable   // the supervision's alone once it runs
	self     string    // stream and durable, as redriven messages are addressed
	dispatch *dispatch
	// exclusive runs the consumer instead of dispatch, when there is one active instance.
	exclusive *exclusive
	puller    *puller
	burst     *ackBurst
	reports   *reports[error]
	removals  removals
	kick      chan struct{}   // there may be room for more messages
	base      context.Context //nolint:containedctx // what handlers' ctx are made of
	endBase   context.CancelCauseFunc

	lastMessage atomic.Int64 // Unix nanoseconds
	// epoch counts the streams of this name. Sequences begin anew with each, so that a verdict on a message of an older one
	// would be taken for one of another message.
	epoch atomic.Int64

	// mu guards what follows.
	mu     sync.Mutex
	owed   []answer // verdicts that found no connection
	health ConsumerHealth
}

func newEngine(c *Client, cfg ConsumerConfig, h Handler) *engine {
	e := &engine{
		c: c, cfg: cfg, handler: h,
		dispatch: newDispatch(cfg.OrderBy != nil),
		kick:     make(chan struct{}, 1),
		health: ConsumerHealth{
			Stream: cfg.Stream, Durable: cfg.Durable, State: ConsumerStarting, Since: time.Now(),
		},
	}
	e.burst = newAckBurst(cfg.Concurrency, func(m *nats.Msg) { e.tell(answer{msg: m, kind: ack}) })
	if cfg.Exclusive {
		e.exclusive = newExclusive(e)
	}
	return e
}

// run finds the stream, makes the durable, consumes until ctx ends, and cleans up.
func (e *engine) run(ctx context.Context) error {
	e.mu.Lock()
	e.observeLocked(nil)
	e.mu.Unlock()
	e.reports = newReports("OnError", e.cfg.OnError, e.c.log)
	defer e.reports.close()
	if err := e.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	e.base, e.endBase = context.WithCancelCause(context.WithValue(context.WithoutCancel(ctx), handlerOf{}, e.c))
	defer e.endBase(nil)
	if e.exclusive != nil {
		return e.exclusive.run(ctx)
	}
	var err error
	wish := pullRequest{MaxBytes: e.byteBudget(), Expires: max(pullExpiry, 2*e.cfg.Heartbeat), Heartbeat: e.cfg.Heartbeat}
	if e.cfg.OrderBy != nil {
		wish.Expires, wish.Heartbeat = orderedExpiry, 0
	}
	if e.puller, err = newPuller(e.c, e.durable, wish, e.receive, e.more); err != nil {
		return err
	}
	work := e.work
	if e.batch != nil {
		work = e.workBatches
	}
	for range e.cfg.Concurrency {
		go work()
	}
	err = e.supervise(ctx)
	e.setState(ConsumerStopping)
	return errors.Join(err, e.stop())
}

// prepare finds out what to consume, and makes the durable. A server that is not there or has no leader yet is waited for.
func (e *engine) prepare(ctx context.Context) error {
	for n := 1; ; n++ {
		err := e.ensure(ctx)
		// A durable that was made and is missing was deleted by somebody in between.
		if err == nil || !passing(err) && !errors.Is(err, jetstream.ErrConsumerNotFound) || ctx.Err() != nil {
			return err
		}
		e.report(err)
		if sleep(ctx, retryPrepare.delay(n)) != nil {
			return err
		}
	}
}

var retryPrepare = Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}

func (e *engine) ensure(ctx context.Context) error {
	if err := e.c.link.wait(ctx, time.Time{}); err != nil {
		return fmt.Errorf("natty: consume %q: %w", e.cfg.Durable, err)
	}
	stream, err := e.c.findStream(ctx, e.cfg)
	if err != nil {
		return err
	}
	e.durable, err = e.c.ensureDurable(ctx, stream, e.cfg)
	if err == nil {
		err = e.c.keepUp(ctx, e.durable)
	}
	if err == nil {
		err = e.c.checkDeadLetter(ctx, e.cfg, e.durable)
	}
	if err == nil {
		e.warnOfLimit()
		e.self = stream + "/" + e.durable.name
		e.setDurable(e.durable)
		e.removals.begin(e.durable)
	}
	return err
}

// warnOfLimit reports a limit that somebody else set on the durable: the server stops delivering a message at it, whatever
// became of it. natty leaves it, unless it has a limit of its own to keep.
func (e *engine) warnOfLimit() {
	if n := e.durable.config.MaxDeliver; n > 0 {
		e.report(fmt.Errorf("natty: consumer %q: the durable's own max_deliver of %d makes the server drop a message silently after as many deliveries; set it to -1, or set MaxDeliver and DeadLetter here", e.cfg.Durable, n))
	}
}

// work handles messages until there are no more.
func (e *engine) work() {
	normal := false
	defer func() {
		if !normal { // runtime.Goexit in a handler ends this goroutine, not the work
			go e.work()
		}
	}()
	for {
		h, ok := e.dispatch.next()
		if !ok {
			normal = true
			return
		}
		e.handle(h)
	}
}

// receive takes a message from the puller.
func (e *engine) receive(m *nats.Msg) {
	h := newHeld(m)
	h.epoch = e.epoch.Load()
	h.Context = e.base
	h.d, _ = parseDelivery(m.Reply)
	h.d.Last = e.last(h.d)
	h.doubtful = e.doubtful(h.d)
	if h.d.Attempt > 1 {
		e.removals.came(h.d.Sequence)
	}
	h.key = e.keyOf(m)
	e.lastMessage.Store(e.puller.heard.Load())
	if isHolder(m) || e.forAnother(m) {
		e.tell(answer{msg: m, kind: ack})
		return
	}
	switch e.dispatch.push(h) {
	case taken, repeated:
	case refused:
		e.handBack(h)
	}
}

// keyOf returns what a message is ordered by. Messages for which OrderBy panics are kept in order among themselves.
func (e *engine) keyOf(m *nats.Msg) (key string) {
	if e.cfg.OrderBy == nil {
		return ""
	}
	defer func() {
		if p := recover(); p != nil {
			e.report(fmt.Errorf("natty: consumer %q: OrderBy panicked on %q: %v", e.cfg.Durable, m.Subject, p))
		}
	}()
	return e.cfg.OrderBy(m)
}

// more wakes the supervision, if it would have something to do.
func (e *engine) more() {
	if !e.puller.idle() {
		return
	}
	if e.room() <= 0 {
		return
	}
	select {
	case e.kick <- struct{}{}:
	default:
	}
}
