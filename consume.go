package natty

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/pull"
	"github.com/natty-go/natty/internal/subject"
)

// ConsumerConfig says what to consume and how. Required are only the name of the
// durable, from here or from Config.Name, and what to consume. Everything else has a
// default. The JSON names are those of a service file, see LoadService.
type ConsumerConfig struct {
	// Stream is the stream to consume from. Default: the one that holds Subjects.
	Stream string `json:"stream_name,omitempty"`
	// Durable is the consumer's name on the server, which keeps its position under it.
	// Instances that share it share the work. Default: made of Config.Name and the
	// subject. It is required with several subjects.
	Durable string `json:"consumer_group,omitempty"`
	// Subjects are the subjects to receive; wildcards are allowed. Default: what an
	// existing durable receives, else all of Stream.
	Subjects []string `json:"subjects,omitempty"`
	// ReplaceSubjects makes the durable receive Subjects and nothing else. Without it,
	// the subjects of all instances that share the durable add up: an instance adds its
	// Subjects and never removes others. So an older version of a service that restarts
	// does not remove the subjects of the newer version. An instance that asks for fewer
	// subjects also receives messages that it did not ask for. It reports that once, and
	// returns these messages to the server, for another instance, with a pause of 100 ms
	// that grows to 10 s. These returns do not count as failures. With Exclusive, such an
	// instance only stands by.
	//
	// Messages of subjects that are taken off are not delivered any more. Without
	// Subjects it changes nothing.
	ReplaceSubjects bool `json:"replace_subjects,omitempty"`
	// Concurrency is how many handlers run at once. Default 1. From 8 on, acks are
	// batched for up to 1 ms. A free handler gets a message even when the buffer is full
	// of large ones. So plan memory for one message in each handler, and for up to 16 MiB
	// of messages that wait.
	Concurrency int `json:"concurrency,omitempty"`
	// OrderBy returns the key of a message. Messages of one key are handled one at a
	// time and in the order of the stream, those of different keys in parallel. A
	// message that fails runs again in its place, and the others of its key wait for
	// it; MaxDeliver bounds that. Keys that wait take no handler from others. When
	// waiting messages fill the buffer (2,000 or MaxPollRecords, or 8 MiB), the instance
	// waits too, and Health names the key. If OrderBy panics, the message is handled in
	// order with all others of that kind, and the panic is reported.
	//
	// The order survives graceful restarts and lost connections, after which pulling
	// may pause for up to AckWait. When an instance is killed, the messages that it had
	// begun are redelivered after AckWait, behind what others handled meanwhile.
	OrderBy func(*nats.Msg) string `json:"-"`
	// Exclusive makes one of the instances that share the durable the active one; the
	// others are standbys. Messages are handled one at a time and in the order of the
	// stream, whichever instance is active. A message that fails runs again in its
	// place, and all others wait for it; MaxDeliver bounds that. Only the error that
	// the handler returns decides; what it sends to the server itself does not count.
	//
	// When the active instance stops, a standby takes over at once. When it dies, a
	// standby takes over after ten seconds, or AckWait if that is longer. On an
	// instance that is cut off, the handler's ctx ends two seconds before another
	// instance can take over. A handler that obeys its ctx so never runs beside another
	// one's. The exception is a server that itself forgot who was active (a restart,
	// another leader of the consumer): the instance learns that a moment later.
	//
	// It needs a server of version 2.14 or later, Concurrency 1, and no OrderBy. The
	// durable acknowledges cumulatively (ack policy all), except on a WorkQueue stream.
	Exclusive bool `json:"exclusive,omitempty"`
	// MaxPollRecords is the most messages fetched but not yet settled; it caps
	// Concurrency. Default: as many as the handlers get through in about one second, at
	// least one for each, at most 2,000; with Exclusive 20,000. After a lost connection
	// the server may still answer old requests, and deliver more than that. The instance
	// returns what is too much to the server at once. It also returns buffered messages
	// when its handlers have become slow and another instance is idle. With OrderBy it
	// does neither.
	MaxPollRecords int `json:"max_poll_records,omitempty"`
	// Heartbeat is how often the server shows that it is alive while there are no
	// messages. Default 5s, at least 100ms. Two missed ones are looked into.
	Heartbeat time.Duration `json:"heartbeat_interval,omitempty"`
	// MaxAckPending is how many messages, of all instances together, may be delivered and
	// not settled; messages that wait for a retry count as well. At the limit the server
	// delivers nothing more. Default 20,000 for a durable that is made here, or what the
	// account allows; else what the durable has.
	MaxAckPending int `json:"max_ack_pending,omitempty"`
	// AckWait is how long the server waits for a sign of life of a message before it
	// redelivers it to another instance. A message that is being handled or waits here
	// gives three such signs in that time, for as long as it takes. So AckWait bounds
	// the time to recover from a crash, not the time to handle a message. Default 10s
	// for a durable that is made here, else what the durable has.
	AckWait time.Duration `json:"ack_wait,omitempty"`
	// MaxDeliver makes a failure final at this delivery or a later one: the message
	// goes to DeadLetter. 0 means that a message runs until it succeeds.
	//
	// So MaxDeliver and Backoff together decide how long an outage may last before
	// messages become dead letters. This is the time from the first delivery to the last,
	// with the default Backoff and a handler that fails at once. Random pauses add up to
	// a quarter:
	//
	//	MaxDeliver   2       3       5       8      10     15     18      20      30      70
	//	lasts        250ms   750ms   3.75s   32s    2min   7min   10min   12min   22min   1h
	//
	// The server counts deliveries, not failures: it also counts a message that an
	// instance returned when it stopped. So the count alone does not dead-letter a
	// message that has not failed. The exception is a message that may kill its process:
	// its handler did not return in more than 2·MaxDeliver + 5 deliveries in a row. natty
	// tries such a message once more, and first notes that on the server. If the process
	// dies again, the message is dead-lettered. During this attempt, other messages run
	// as usual. Only those that were delivered more than MaxDeliver times do not run
	// beside it, because they could be what kills the process.
	//
	// While the dead letter cannot be stored, the message runs again after each Backoff.
	MaxDeliver int `json:"max_deliver,omitempty"`
	// DeadLetter is the subject that gets a copy of a message that failed for good
	// (Permanent, or MaxDeliver), before the message is removed. The subject must be in
	// a stream that keeps it, and not among those that the consumer receives. An
	// Interest stream keeps it only while one of its consumers receives it. Required
	// when MaxDeliver is set. Without it, a Permanent failure is only reported.
	DeadLetter string `json:"dead_letter,omitempty"`
	// HandlerTimeout ends a handler's ctx after this time. Default: never.
	HandlerTimeout time.Duration `json:"handler_timeout,omitempty"`
	// Backoff is the pause before a failed message runs again. Default 250ms to one
	// minute. In a service file its two settings stand beside the others.
	Backoff Backoff `json:"-"`
	// DrainTimeout is how long running handlers get when the consumer stops, before
	// their ctx ends. Default 20s.
	DrainTimeout time.Duration `json:"drain_timeout,omitempty"`
	// DeliverPolicy is where a durable that is made here begins: all (default), new,
	// last, or last per subject.
	DeliverPolicy jetstream.DeliverPolicy `json:"deliver_policy,omitempty"`
	// OnError gets the errors that do not end the consumer: those of handlers as
	// *HandlerError, and what the consumer noticed and repaired. One goroutine calls
	// it. When it is slow, errors beyond 256 are only logged.
	OnError func(error) `json:"-"`
}

const (
	defaultHeartbeat    = 5 * time.Second
	defaultDrainTimeout = 20 * time.Second
	// pinnedTTL is how long the active instance of an exclusive consumer may be silent.
	pinnedTTL = 10 * time.Second
)

func (cfg ConsumerConfig) withDefaults(service string) ConsumerConfig {
	if cfg.Durable == "" && service != "" {
		switch {
		case len(cfg.Subjects) == 1:
			cfg.Durable = subject.DurableName(service, cfg.Subjects[0])
		case len(cfg.Subjects) == 0 && cfg.Stream != "":
			cfg.Durable = subject.DurableName(service, ">")
		}
	}
	cfg.Concurrency = cmp.Or(cfg.Concurrency, 1)
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, defaultHeartbeat)
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, defaultDrainTimeout)
	cfg.Backoff = Backoff(consumer.RetryBackoff(backoff.Exp(cfg.Backoff)))
	for _, d := range []*time.Duration{&cfg.Heartbeat, &cfg.AckWait, &cfg.HandlerTimeout, &cfg.DrainTimeout} {
		*d = min(*d, longest)
	}
	return cfg
}

// Consume calls cb for every message of subject, one at a time, until ctx ends or the
// Client is closed. It returns as Process does. When cb returns, the message is
// acknowledged, unless cb settled it. When cb panics, the message runs again later.
// Errors go to errorCh, which may be nil. A full errorCh never holds anything up:
// errors that find no room are logged.
//
// The durable is made of Config.Name and the subject, and is never deleted.
func (c *Client) Consume(ctx context.Context, subject string, errorCh chan error, cb func(msg *nats.Msg)) error {
	if cb == nil {
		return invalid("cb", "", "is nil; give a function that handles a message", nil)
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

// Process calls h for the messages of a durable consumer until ctx ends or the Client
// is closed. It makes the durable if that is missing, and never deletes it. Of an
// existing durable it changes what cfg sets and leaves the rest. A setting that cannot
// be changed is a *DriftError.
//
// Process survives lost connections, restarts of servers and changes of leaders, and
// reports each such event once. At the start and later, it waits out what can pass by
// itself, such as a stream without a leader. If the durable is deleted, Process
// recreates it at the group's last known ack floor, sampled every 10 to 20 s; messages
// handled since then are redelivered. If the stream is deleted, Process waits for a new
// one, and consumes that from its beginning. It ends with an error when a configuration
// cannot work, or when no stream holds a subject (ErrNoStream).
//
// When ctx ends, Process stops pulling and returns to the server at once what no
// handler has begun. Running handlers may finish within DrainTimeout; then Process
// returns nil. When some still run after that, their ctx ends, and the error wraps
// ErrDrainTimeout. When acknowledgements cannot be sent, because the connection is lost,
// the error says how many; the server redelivers their messages.
func (c *Client) Process(ctx context.Context, cfg ConsumerConfig, h Handler) error {
	if h == nil {
		return invalid("h", "", "is nil; give a function that handles a message", nil)
	}
	for i, wrap := range slices.Backward(c.middleware) {
		if h = wrap(h); h == nil {
			return invalid("WithMiddleware", strconv.Itoa(i), "returned a nil Handler; return one", nil)
		}
	}
	return c.consume(ctx, cfg, h, nil)
}

// consume runs a consumer for a handler of messages, or of batches.
func (c *Client) consume(ctx context.Context, cfg ConsumerConfig, h Handler, batch *consumer.Batching) error {
	cfg = cfg.withDefaults(c.cfg.Name)
	if err := cfg.validate(); err != nil {
		return err
	}
	run := consumer.New(c.consumers, c.configOf(cfg), consumer.Handler(h))
	run.Batch = batch
	if err := c.running.enter(run); err != nil {
		return err
	}
	c.ended.forget(cfg.Stream, cfg.Durable)
	defer c.running.leave(run)
	ctx, cancel := context.WithCancel(context.WithValue(ctx, handlerOf{}, c))
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	err := run.Run(ctx)
	if err != nil {
		c.ended.add(healthOf(run.Snapshot())) // before it leaves, so that it is always listed
	}
	return err
}

// configOf is cfg as internal/consumer takes it.
func (c *Client) configOf(cfg ConsumerConfig) consumer.Config {
	return consumer.Config{
		Spec: durable.Spec{
			Stream: cfg.Stream, Durable: cfg.Durable, Subjects: cfg.Subjects,
			ReplaceSubjects: cfg.ReplaceSubjects, Exclusive: cfg.Exclusive && !mutant.NotExclusive,
			AckWait: cfg.AckWait, MaxDeliver: cfg.MaxDeliver, MaxAckPending: cfg.MaxAckPending,
			DeadLetter:    cfg.DeadLetter,
			DeliverPolicy: cfg.DeliverPolicy, PinnedTTL: pinnedTTL,
		},
		Concurrency: cfg.Concurrency, OrderBy: cfg.OrderBy, MaxPollRecords: cfg.MaxPollRecords,
		Heartbeat: cfg.Heartbeat, HandlerTimeout: cfg.HandlerTimeout, Backoff: backoff.Exp(cfg.Backoff),
		DrainTimeout: cfg.DrainTimeout, OnError: cfg.OnError,
		Observe: func(stream, durable string, s consumer.State, err error) {
			c.events.Add(ConsumerEvent{Stream: stream, Durable: durable, State: ConsumerState(s), Err: err})
		},
	}
}

// validate reports all settings that cannot work. It expects the defaults.
func (cfg ConsumerConfig) validate() error {
	return joined(
		cfg.validateSubjects(), cfg.validateNames(), cfg.validateModes(),
		cfg.validateNumbers(), cfg.validateDeadLetter(), cfg.validateLimits(),
	)
}

func (cfg ConsumerConfig) validateSubjects() error {
	for i, s := range cfg.Subjects {
		if wrong := subject.InvalidFilter(s); wrong != "" {
			return invalid("subjects", s,
				wrong+"; expected tokens separated by single dots, with * and > as whole tokens", nil)
		}
		for _, other := range cfg.Subjects[:i] {
			if subject.Overlap(s, other) {
				return invalid("subjects", s,
					fmt.Sprintf("overlaps with %q; give subjects that have none in common", other), nil)
			}
		}
	}
	return nil
}

// validateNames checks what is consumed, and under which name.
func (cfg ConsumerConfig) validateNames() error {
	switch {
	case len(cfg.Subjects) == 0 && cfg.Stream == "":
		return invalid("subjects", "", "nothing to consume; set subjects, or stream_name for a whole stream", nil)
	case cfg.Durable == "" && len(cfg.Subjects) > 1:
		return invalid("consumer_group", "",
			"(Durable) is required with several subjects; give the durable a name", nil)
	case cfg.Durable == "":
		return invalid("consumer_group", "",
			"the durable has no name: set Config.Name, from which natty derives one, "+
				"or ConsumerConfig.Durable", nil)
	}
	for field, name := range map[string]string{"stream_name": cfg.Stream, "consumer_group": cfg.Durable} {
		if wrong := subject.InvalidName(name); wrong != "" {
			return invalid(field, name, wrong+"; use letters, digits, - and _", nil)
		}
	}
	return nil
}

// validateModes checks settings that exclude each other.
func (cfg ConsumerConfig) validateModes() error {
	switch p := cfg.DeliverPolicy; {
	case cfg.Exclusive && cfg.Concurrency > 1:
		return invalid("concurrency", strconv.Itoa(cfg.Concurrency),
			"set with exclusive, which handles one message at a time; leave one of them out", nil)
	case cfg.Exclusive && p == jetstream.DeliverLastPerSubjectPolicy:
		return invalid("deliver_policy", p.String(), "set with exclusive", durable.ErrLastPerSubject)
	case cfg.Exclusive && cfg.OrderBy != nil:
		return invalid("exclusive", "", "set with OrderBy; exclusive keeps all messages in order, "+
			"OrderBy those of one key: leave one of them out", nil)
	case p == jetstream.DeliverByStartSequencePolicy, p == jetstream.DeliverByStartTimePolicy:
		return invalid("deliver_policy", p.String(), "needs a value that has no place here; use all, new, "+
			"last or last_per_subject, or make the durable with JetStream() first", nil)
	case p < jetstream.DeliverAllPolicy, p > jetstream.DeliverLastPerSubjectPolicy:
		return invalid("deliver_policy", strconv.Itoa(int(p)),
			"is none; use all, new, last or last_per_subject", nil)
	}
	return nil
}

// validateNumbers checks that nothing is negative.
func (cfg ConsumerConfig) validateNumbers() error {
	var errs []error
	for field, n := range map[string]int{
		"concurrency": cfg.Concurrency, "max_poll_records": cfg.MaxPollRecords, "max_deliver": cfg.MaxDeliver,
		"max_ack_pending": cfg.MaxAckPending,
	} {
		if n < 0 {
			errs = append(errs, negative(field, n))
		}
	}
	for field, d := range map[string]time.Duration{
		"heartbeat_interval": cfg.Heartbeat, "ack_wait": cfg.AckWait, "drain_timeout": cfg.DrainTimeout,
		"handler_timeout": cfg.HandlerTimeout,
		"backoff_min":     cfg.Backoff.Min, "backoff_max": cfg.Backoff.Max,
	} {
		if d < 0 {
			errs = append(errs, negative(field, d))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return joined(errs...)
}

func (cfg ConsumerConfig) validateDeadLetter() error {
	if cfg.DeadLetter == "" {
		if cfg.MaxDeliver > 0 {
			return invalid("max_deliver", strconv.Itoa(cfg.MaxDeliver),
				"set without dead_letter: a message that fails that often would be lost; set both", nil)
		}
		return nil
	}
	if err := publishable(cfg.DeadLetter); err != nil {
		return invalid("dead_letter", cfg.DeadLetter, "cannot be published to", err)
	}
	return nil
}

// validateLimits checks values that are too small or too large.
func (cfg ConsumerConfig) validateLimits() error {
	switch {
	case cfg.Backoff.Max < cfg.Backoff.Min:
		return invalid("backoff_max", cfg.Backoff.Max.String(),
			"is below backoff_min "+cfg.Backoff.Min.String(), nil)
	case cfg.AckWait > 0 && cfg.AckWait < durable.MinAckWait:
		return invalid("ack_wait", cfg.AckWait.String(),
			"is below "+durable.MinAckWait.String()+", in which messages cannot be kept alive reliably", nil)
	case cfg.Concurrency > durable.MaxConcurrency:
		return invalid("concurrency", strconv.Itoa(cfg.Concurrency),
			"is above "+strconv.Itoa(durable.MaxConcurrency), nil)
	case cfg.Heartbeat >= 0 && cfg.Heartbeat < pull.MinHeartbeat: // below zero it was refused
		return invalid("heartbeat_interval", cfg.Heartbeat.String(),
			"is below "+pull.MinHeartbeat.String()+", the least the server sends", nil)
	}
	return nil
}
