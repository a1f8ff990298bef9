package nattyotel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/natty-go/natty"
)

const (
	scope  = "github.com/natty-go/natty/nattyotel"
	system = messagingconv.SystemAttr("nats")

	send    = "send"
	process = "process"
)

// Tracer is a natty.Tracer. Make one with New, for any number of Clients.
type Tracer struct {
	tracer      trace.Tracer
	propagator  propagation.TextMapPropagator
	destination func(subject string) string
	meter       metric.Meter
	messages    messageMetrics
	states      stateMetrics

	mu      sync.Mutex // guards watched
	watched []*watched
}

var _ natty.Tracer = (*Tracer)(nil)

// Option is a setting of New.
type Option func(*config)

type config struct {
	tracers     trace.TracerProvider
	meters      metric.MeterProvider
	propagator  propagation.TextMapPropagator
	destination func(subject string) string
}

// WithTracerProvider makes spans with p. Default: the global one.
func WithTracerProvider(p trace.TracerProvider) Option { return func(c *config) { c.tracers = p } }

// WithMeterProvider makes metrics with p. Default: the global one.
func WithMeterProvider(p metric.MeterProvider) Option { return func(c *config) { c.meters = p } }

// WithPropagator writes contexts to headers, and reads them, with p. Default: traceparent
// and tracestate of the W3C, and its baggage; not the global one, which does nothing
// until it is set.
func WithPropagator(p propagation.TextMapPropagator) Option {
	return func(c *config) { c.propagator = p }
}

// WithDestination names what messages are published to, for names of spans and metrics,
// which must have few values: destination returns "orders.*.created" for the subject
// "orders.17.created", for example. Default: the first token of the subject and ">".
// It is called from many goroutines.
func WithDestination(destination func(subject string) string) Option {
	return func(c *config) { c.destination = destination }
}

// New returns a Tracer for natty.WithTracer.
func New(opts ...Option) (*Tracer, error) {
	c := config{
		tracers: otel.GetTracerProvider(), meters: otel.GetMeterProvider(),
		propagator: propagation.NewCompositeTextMapPropagator(
			propagation.TraceContext{}, propagation.Baggage{}),
		destination: firstToken,
	}
	for _, opt := range opts {
		if opt != nil {
			opt(&c)
		}
	}
	if c.destination == nil {
		c.destination = firstToken
	}
	t := &Tracer{
		tracer:      c.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		meter:       c.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL)),
		propagator:  c.propagator,
		destination: c.destination,
	}
	var err error
	if t.messages, err = newMessageMetrics(t.meter); err == nil {
		t.states, err = newStateMetrics(t.meter)
	}
	if err == nil {
		err = t.register()
	}
	if err != nil {
		return nil, fmt.Errorf("nattyotel: %w", err)
	}
	return t, nil
}

func firstToken(subject string) string {
	if first, _, more := strings.Cut(subject, "."); more {
		return first + ".>"
	}
	return subject
}

// call is a publish, or a call of a handler.
type call struct {
	span  trace.Span
	begun time.Time
	// attrs are those of its metrics.
	attrs []attribute.KeyValue
	// consumers are those of natty's own metrics, of each message.
	consumers [][]attribute.KeyValue
}

type callKey struct{}

// PublishStart implements natty.Tracer.
func (t *Tracer) PublishStart(ctx context.Context, msg *nats.Msg) context.Context {
	name := text(t.destination(msg.Subject))
	created := t.contextOf(msg.Header)
	kind, parent := trace.SpanKindProducer, ctx
	opts := []trace.SpanStartOption{trace.WithAttributes(
		semconv.MessagingSystemKey.String(string(system)),
		semconv.MessagingOperationName(send),
		semconv.MessagingOperationTypeSend,
		semconv.MessagingDestinationName(text(msg.Subject)),
		semconv.MessagingMessageBodySize(len(msg.Data)),
	)}
	if name != msg.Subject {
		opts = append(opts, trace.WithAttributes(semconv.MessagingDestinationTemplate(name)))
	}
	if created.IsValid() {
		// Its context was made before: of a dead letter, or by the caller.
		kind = trace.SpanKindClient
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: created}))
		if !trace.SpanContextFromContext(ctx).IsValid() {
			parent = trace.ContextWithRemoteSpanContext(ctx, created)
		}
	}
	c := &call{begun: time.Now(), attrs: []attribute.KeyValue{destinationOf(name)}}
	ctx, c.span = t.tracer.Start(parent, send+" "+name, append(opts, trace.WithSpanKind(kind))...)
	if !created.IsValid() {
		t.propagator.Inject(ctx, carrier(msg.Header))
	}
	return context.WithValue(ctx, callKey{}, c)
}

// PublishEnd implements natty.Tracer.
func (t *Tracer) PublishEnd(ctx context.Context, r natty.PublishResult) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return
	}
	if r.MsgID != "" {
		c.span.SetAttributes(semconv.MessagingMessageID(text(r.MsgID)))
	}
	if r.Stream != "" {
		c.span.SetAttributes(attribute.String("natty.stream", r.Stream), sequence(r.Sequence),
			attribute.Bool("natty.duplicate", r.Duplicate))
	}
	attrs := c.fail(c.attrs, r.Err)
	t.messages.sent.Add(ctx, 1, send, system, attrs...)
	t.messages.operations.Record(ctx, time.Since(c.begun).Seconds(), send, system,
		append(attrs, t.messages.operations.AttrOperationType(messagingconv.OperationTypeSend))...)
	c.span.End()
}

// fail notes an error in the span, and returns attrs with its kind.
func (c *call) fail(attrs []attribute.KeyValue, err error) []attribute.KeyValue {
	if err == nil {
		return attrs
	}
	kind := errorType(err)
	c.span.SetStatus(codes.Error, text(err.Error()))
	c.span.SetAttributes(kind)
	return append(slices.Clip(attrs), kind)
}

// HandleStart implements natty.Tracer.
func (t *Tracer) HandleStart(
	ctx context.Context, msgs []*nats.Msg, deliveries []natty.Delivery,
) context.Context {
	first := deliveries[0]
	name := t.filterOf(first)
	opts := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			semconv.MessagingSystemKey.String(string(system)),
			semconv.MessagingOperationName(process),
			semconv.MessagingOperationTypeProcess,
			semconv.MessagingConsumerGroupName(first.Durable),
			attribute.String("natty.stream", first.Stream),
		),
	}
	parent := ctx
	if len(msgs) == 1 {
		var more []trace.SpanStartOption
		parent, more = t.handleOne(ctx, msgs[0], first, name)
		opts = append(opts, more...)
	} else {
		opts = append(opts, trace.WithNewRoot(), trace.WithLinks(t.linksOf(msgs)...),
			trace.WithAttributes(destinationOf(name), semconv.MessagingBatchMessageCount(len(msgs))))
	}
	c := &call{begun: time.Now(), attrs: []attribute.KeyValue{
		destinationOf(name), semconv.MessagingConsumerGroupName(first.Durable),
	}}
	for _, d := range deliveries {
		c.consumers = append(c.consumers, consumerOf(d.Stream, d.Durable))
	}
	ctx, c.span = t.tracer.Start(parent, process+" "+name, opts...)
	t.messages.consumed.Add(ctx, int64(len(msgs)), process, system, c.attrs...)
	return context.WithValue(ctx, callKey{}, c)
}

// handleOne returns the ctx and the options of the span for one message.
func (t *Tracer) handleOne(
	ctx context.Context, msg *nats.Msg, d natty.Delivery, name string,
) (context.Context, []trace.SpanStartOption) {
	attrs := []attribute.KeyValue{
		semconv.MessagingDestinationName(text(d.Subject)), semconv.MessagingMessageBodySize(len(msg.Data)),
		sequence(d.Sequence), attribute.Int("natty.attempt", d.Attempt),
	}
	if name != d.Subject {
		attrs = append(attrs, semconv.MessagingDestinationTemplate(name))
	}
	if d.MsgID != "" {
		attrs = append(attrs, semconv.MessagingMessageID(text(d.MsgID)))
	}
	if d.Redrives > 0 {
		attrs = append(attrs, attribute.Int("natty.redrives", d.Redrives))
	}
	opts := []trace.SpanStartOption{trace.WithAttributes(attrs...), trace.WithLinks(t.linksOf([]*nats.Msg{msg})...)}
	if t.contextOf(msg.Header).IsValid() && !repeats(msg.Header) {
		return t.propagator.Extract(ctx, carrier(msg.Header)), opts
	}
	// What runs the consumer is no parent: it lives as long as the process.
	return ctx, append(opts, trace.WithNewRoot())
}

// filterOf is the name of where a delivery comes from.
func (t *Tracer) filterOf(d natty.Delivery) string {
	if d.Filter != "" {
		return d.Filter
	}
	return text(t.destination(d.Subject))
}

// linksOf returns a link to the context of each message that has one.
func (t *Tracer) linksOf(msgs []*nats.Msg) (links []trace.Link) {
	for _, m := range msgs {
		if created := t.contextOf(m.Header); created.IsValid() {
			links = append(links, trace.Link{SpanContext: created})
		}
	}
	return links
}

// repeats reports whether a message comes from a schedule that goes on.
func repeats(h nats.Header) bool {
	next := h.Get(jetstream.ScheduleNextHeader)
	return next != "" && next != "purge"
}

// HandleEnd implements natty.Tracer.
func (t *Tracer) HandleEnd(ctx context.Context, verdicts []natty.Verdict) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return
	}
	outcomes := make([]string, len(verdicts))
	var worst error
	for i, v := range verdicts {
		outcomes[i] = string(v.Outcome)
		if v.Err != nil && worst == nil {
			worst = v.Err
		}
		if i < len(c.consumers) {
			t.messages.count(ctx, v.Outcome, c.consumers[i])
		}
	}
	if len(verdicts) == 1 {
		c.span.SetAttributes(attribute.String("natty.outcome", outcomes[0]))
		if v := verdicts[0]; v.Outcome == natty.OutcomeRetried || v.Outcome == natty.OutcomeKept {
			c.span.SetAttributes(attribute.Float64("natty.retry_delay_seconds", v.Delay.Seconds()))
		}
	} else {
		c.span.SetAttributes(attribute.StringSlice("natty.outcomes", outcomes))
	}
	t.messages.processing.Record(ctx, time.Since(c.begun).Seconds(), process, system, c.fail(c.attrs, worst)...)
	c.span.End()
}

// contextOf returns the context that a message carries. It may be invalid.
func (t *Tracer) contextOf(h nats.Header) trace.SpanContext {
	if len(h) == 0 {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(t.propagator.Extract(context.Background(), carrier(h)))
}

// text makes s valid: an exporter drops all spans of a request with one that is not.
func text(s string) string { return strings.ToValidUTF8(s, "�") }

// destinationOf is the attribute for a name that may have wildcards.
func destinationOf(name string) attribute.KeyValue {
	if strings.ContainsAny(name, "*>") {
		return semconv.MessagingDestinationTemplate(name)
	}
	return semconv.MessagingDestinationName(name)
}

func sequence(n uint64) attribute.KeyValue {
	return attribute.Int64("natty.sequence", int64(n))
}

func consumerOf(stream, durable string) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("natty.stream", stream), semconv.MessagingConsumerGroupName(durable),
	}
}

// errorTypes are the values of error.type for errors that have a name.
var errorTypes = []struct {
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

// errorType is the attribute error.type, which has few values.
func errorType(err error) attribute.KeyValue {
	for _, known := range errorTypes {
		if errors.Is(err, known.err) {
			return semconv.ErrorTypeKey.String(known.name)
		}
	}
	// Below what natty wraps around: PublishError, Permanent, RetryAfter.
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return semconv.ErrorType(err)
		}
		err = inner
	}
}

// carrier is a message's headers. Names are written exactly as given: those of the W3C
// are in lower case. They are read in any spelling.
type carrier nats.Header

func (c carrier) Get(key string) string {
	if values := c[key]; len(values) > 0 {
		return values[0]
	}
	for name, values := range c {
		if strings.EqualFold(name, key) && len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

func (c carrier) Set(key, value string) { c[key] = []string{value} }

func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for name := range c {
		keys = append(keys, name)
	}
	return keys
}
