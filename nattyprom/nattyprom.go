package nattyprom

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/natty-go/natty"
)

// Collector is a prometheus.Collector and a natty.Tracer. Make one with New, for any
// number of Clients.
type Collector struct {
	destination func(subject string) string

	published       *prometheus.CounterVec
	publishDuration *prometheus.HistogramVec
	handled         *prometheus.CounterVec
	handleDuration  *prometheus.HistogramVec

	mu      sync.Mutex // guards what follows
	watched []*watched
}

// watched is a Client or Service, by its name.
type watched struct {
	name string
	of   interface{ Health() natty.Health }
}

var (
	_ natty.Tracer         = (*Collector)(nil)
	_ prometheus.Collector = (*Collector)(nil)
)

// Option is a setting of New.
type Option func(*config)

type config struct {
	destination func(subject string) string
	buckets     []float64
}

// WithDestination makes the label destination of a subject that is published to. It must
// have few values: "orders.*.created" for "orders.17.created", for example. Default: the
// first token and ">". It is called from many goroutines.
func WithDestination(destination func(subject string) string) Option {
	return func(c *config) { c.destination = destination }
}

// WithBuckets sets the buckets of both histograms, in seconds. Default: from 1 ms to 60 s.
func WithBuckets(buckets ...float64) Option {
	return func(c *config) { c.buckets = buckets }
}

// New returns a Collector to register, and to give to natty.WithTracer and Watch.
func New(opts ...Option) *Collector {
	c := config{
		destination: firstToken,
		buckets:     []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}
	for _, opt := range opts {
		if opt != nil {
			opt(&c)
		}
	}
	if c.destination == nil {
		c.destination = firstToken
	}
	return &Collector{
		destination: c.destination,
		published: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "natty_published_messages_total",
			Help: "Messages that were published, by what became of them: ok, or the kind of error. Of this instance.",
		}, []string{"destination", "result"}),
		publishDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "natty_publish_duration_seconds", Buckets: c.buckets,
			Help: "How long it took until the outcome of a publish was known. Of this instance.",
		}, []string{"destination"}),
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "natty_handled_messages_total",
			Help: "Deliveries to handlers, by what became of them. Of this instance.",
		}, []string{"stream", "durable", "outcome"}),
		handleDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "natty_handle_duration_seconds", Buckets: c.buckets,
			Help: "How long a handler took, the storing of a dead letter included. Of this instance.",
		}, []string{"stream", "durable"}),
	}
}

func firstToken(subject string) string {
	if first, _, more := strings.Cut(subject, "."); more {
		return first + ".>"
	}
	return subject
}

// Watch shows what a Client's or Service's Health says, under a name that becomes the
// label client, until stop is called. It works before the first connection. Another Watch
// of the same name replaces the one before.
func (c *Collector) Watch(name string, of interface{ Health() natty.Health }) (stop func()) {
	c.forget(func(w *watched) bool { return w.name == name })
	c.mu.Lock()
	defer c.mu.Unlock()
	mine := &watched{name, of}
	c.watched = append(c.watched, mine)
	return func() { c.forget(func(w *watched) bool { return w == mine }) }
}

// forget ends the Watches for which which returns true.
func (c *Collector) forget(which func(*watched) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watched = slices.DeleteFunc(slices.Clone(c.watched), which) // Collect may read the old one
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	c.published.Describe(ch)
	c.publishDuration.Describe(ch)
	c.handled.Describe(ch)
	c.handleDuration.Describe(ch)
	for _, d := range states {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	all := c.watched // Watch replaces it, and appends beyond its end only
	c.mu.Unlock()
	for _, w := range all {
		h := w.of.Health()
		for _, one := range h.Consumers {
			if one.Stream != "" {
				c.begin(one.Stream, one.Durable)
			}
		}
		sample{ch, w.name}.all(h)
	}
	c.published.Collect(ch)
	c.publishDuration.Collect(ch)
	c.handled.Collect(ch)
	c.handleDuration.Collect(ch)
}

// begin shows counters of a consumer that are still 0: an increase from nothing to 1 is
// none for Prometheus.
func (c *Collector) begin(stream, durable string) {
	for _, o := range outcomes {
		c.handled.WithLabelValues(stream, durable, string(o))
	}
	c.handleDuration.WithLabelValues(stream, durable)
}

var outcomes = []natty.Outcome{
	natty.OutcomeAcked, natty.OutcomeRetried, natty.OutcomeDeadLettered, natty.OutcomeTerminated,
	natty.OutcomeKept, natty.OutcomeSettled, natty.OutcomeAbandoned,
}

type (
	publishing struct {
		destination string
		begun       time.Time
	}
	handling struct {
		deliveries []natty.Delivery
		begun      time.Time
	}
	publishKey struct{}
	handleKey  struct{}
)

// PublishStart implements natty.Tracer.
func (c *Collector) PublishStart(ctx context.Context, msg *nats.Msg) context.Context {
	return context.WithValue(ctx, publishKey{}, publishing{
		strings.ToValidUTF8(c.destination(msg.Subject), "�"), time.Now(),
	})
}

// PublishEnd implements natty.Tracer.
func (c *Collector) PublishEnd(ctx context.Context, r natty.PublishResult) {
	p, ok := ctx.Value(publishKey{}).(publishing)
	if !ok {
		return
	}
	c.published.WithLabelValues(p.destination, resultOf(r.Err)).Inc()
	c.publishDuration.WithLabelValues(p.destination).Observe(time.Since(p.begun).Seconds())
}

// HandleStart implements natty.Tracer.
func (c *Collector) HandleStart(ctx context.Context, _ []*nats.Msg, deliveries []natty.Delivery) context.Context {
	return context.WithValue(ctx, handleKey{}, handling{deliveries, time.Now()})
}

// HandleEnd implements natty.Tracer.
func (c *Collector) HandleEnd(ctx context.Context, verdicts []natty.Verdict) {
	h, ok := ctx.Value(handleKey{}).(handling)
	if !ok || len(h.deliveries) != len(verdicts) {
		return
	}
	for i, v := range verdicts {
		d := h.deliveries[i]
		c.handled.WithLabelValues(d.Stream, d.Durable, string(v.Outcome)).Inc()
	}
	first := h.deliveries[0]
	c.handleDuration.WithLabelValues(first.Stream, first.Durable).Observe(time.Since(h.begun).Seconds())
}

// results are the values of the label result, by the error.
var results = []struct {
	err  error
	name string
}{
	{natty.ErrOutcomeUnknown, "outcome_unknown"},
	{natty.ErrNoStream, "no_stream"},
	{natty.ErrTooLarge, "too_large"},
	{natty.ErrStreamFull, "stream_full"},
	{natty.ErrClosed, "closed"},
	{natty.ErrUnsupported, "unsupported"},
	{nats.ErrPermissionViolation, "permission_denied"},
	{context.DeadlineExceeded, "timeout"},
	{context.Canceled, "canceled"},
}

func resultOf(err error) string {
	if err == nil {
		return "ok"
	}
	for _, r := range results {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return "other"
}
