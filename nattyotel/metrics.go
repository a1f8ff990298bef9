package nattyotel

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"

	"github.com/natty-go/natty"
)

// buckets are those that the conventions recommend for durations, in seconds.
var buckets = metric.WithExplicitBucketBoundaries(
	0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

// messageMetrics are metrics of messages.
type messageMetrics struct {
	sent       messagingconv.ClientSentMessages
	consumed   messagingconv.ClientConsumedMessages
	operations messagingconv.ClientOperationDuration
	processing messagingconv.ProcessDuration

	retries, letters, terminated metric.Int64Counter
}

func newMessageMetrics(m metric.Meter) (mm messageMetrics, err error) {
	if mm.sent, err = messagingconv.NewClientSentMessages(m); err != nil {
		return mm, err
	}
	if mm.consumed, err = messagingconv.NewClientConsumedMessages(m); err != nil {
		return mm, err
	}
	if mm.operations, err = messagingconv.NewClientOperationDuration(m, buckets); err != nil {
		return mm, err
	}
	if mm.processing, err = messagingconv.NewProcessDuration(m, buckets); err != nil {
		return mm, err
	}
	for _, c := range []struct {
		to          *metric.Int64Counter
		name, about string
	}{
		{&mm.retries, "natty.consumer.retries", "Deliveries that failed, and run again."},
		{&mm.letters, "natty.consumer.dead_letters", "Messages that failed for good, and went to the dead letters."},
		{&mm.terminated, "natty.consumer.terminated", "Messages that failed for good, without a dead letter."},
	} {
		*c.to, err = m.Int64Counter(c.name, metric.WithDescription(c.about), metric.WithUnit("{message}"))
		if err != nil {
			return mm, err
		}
	}
	return mm, nil
}

// count counts what became of a delivery of a consumer.
func (mm *messageMetrics) count(ctx context.Context, o natty.Outcome, consumer []attribute.KeyValue) {
	switch attrs := metric.WithAttributes(consumer...); o {
	case natty.OutcomeRetried, natty.OutcomeKept:
		mm.retries.Add(ctx, 1, attrs)
	case natty.OutcomeDeadLettered:
		mm.letters.Add(ctx, 1, attrs)
	case natty.OutcomeTerminated:
		mm.terminated.Add(ctx, 1, attrs)
	}
}

// stateMetrics are metrics of what Health says.
type stateMetrics struct {
	pending, ackPending, held, handling, working metric.Int64ObservableGauge
	leading, up, writing                         metric.Int64ObservableGauge
	reconnects                                   metric.Int64ObservableCounter
	oldest                                       metric.Float64ObservableGauge
}

func newStateMetrics(m metric.Meter) (s stateMetrics, err error) {
	for _, g := range []struct {
		to                *metric.Int64ObservableGauge
		name, unit, about string
	}{
		{
			&s.pending, "natty.consumer.pending", "{message}",
			"Messages that are not delivered yet. Of the whole group: take max, not sum, over instances.",
		},
		{
			&s.ackPending, "natty.consumer.ack_pending", "{message}",
			"Messages that are delivered and not settled. Of the whole group: take max, not sum, over instances.",
		},
		{&s.held, "natty.consumer.held", "{message}", "Messages that are buffered or in a handler, of this instance."},
		{&s.handling, "natty.consumer.handling", "{message}", "Messages that are in a handler, of this instance."},
		{&s.working, "natty.consumer.working", "1", "1 if the consumer runs or stands by, else 0."},
		{&s.leading, "natty.election.leading", "1", "1 if this instance leads, 0 if it stands by."},
		{&s.up, "natty.connection.up", "1", "1 if there is a connection to a server, else 0."},
		{&s.writing, "natty.writer.pending", "{message}", "Messages of Writers that have no outcome yet."},
	} {
		*g.to, err = m.Int64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.about))
		if err != nil {
			return s, err
		}
	}
	s.reconnects, err = m.Int64ObservableCounter("natty.connection.reconnects", metric.WithUnit("{reconnect}"),
		metric.WithDescription("How often the connection was restored."))
	if err != nil {
		return s, err
	}
	s.oldest, err = m.Float64ObservableGauge("natty.consumer.oldest_handling", metric.WithUnit("s"),
		metric.WithDescription("For how long the handler runs that was called first, of this instance."))
	return s, err
}

// Watch reports what a Client's or Service's Health says whenever metrics are collected,
// until stop is called. It works before the first connection.
func (t *Tracer) Watch(of interface{ Health() natty.Health }) (stop func() error, err error) {
	s := &t.states
	r, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s.observe(o, of.Health())
		return nil
	}, s.pending, s.ackPending, s.held, s.handling, s.working, s.leading, s.up, s.writing, s.reconnects, s.oldest)
	if err != nil {
		return nil, fmt.Errorf("nattyotel: %w", err)
	}
	return r.Unregister, nil
}

func (s *stateMetrics) observe(o metric.Observer, h natty.Health) {
	o.ObserveInt64(s.up, oneIf(h.Connected))
	o.ObserveInt64(s.reconnects, int64(h.Reconnects))
	for _, c := range merged(h.Consumers) {
		attrs := metric.WithAttributes(consumerOf(c.Stream, c.Durable)...)
		o.ObserveInt64(s.working, oneIf(c.State == natty.ConsumerRunning || c.State == natty.ConsumerStandby), attrs)
		o.ObserveInt64(s.pending, int64(c.Pending), attrs)
		o.ObserveInt64(s.ackPending, int64(c.AckPending), attrs)
		o.ObserveInt64(s.held, int64(c.Held), attrs)
		o.ObserveInt64(s.handling, int64(c.Handling), attrs)
		oldest := 0.0
		if !c.OldestHandling.IsZero() {
			oldest = time.Since(c.OldestHandling).Seconds()
		}
		o.ObserveFloat64(s.oldest, oldest, attrs)
	}
	for _, e := range h.Elections {
		o.ObserveInt64(s.leading, oneIf(e.Leading), metric.WithAttributes(
			attribute.String("natty.bucket", e.Bucket), attribute.String("natty.key", e.Key),
			attribute.String("natty.node", e.NodeName)))
	}
	pending := 0
	for _, w := range h.Writers {
		pending += w.Pending
	}
	o.ObserveInt64(s.writing, int64(pending))
}

// merged makes one of the consumers of a durable that one Client runs several times.
// The state is that of one that does not work, if there is one.
func merged(all []natty.ConsumerHealth) []natty.ConsumerHealth {
	var out []natty.ConsumerHealth
	at := map[[2]string]int{}
	for _, c := range all {
		name := [2]string{c.Stream, c.Durable}
		i, known := at[name]
		if !known {
			at[name] = len(out)
			out = append(out, c)
			continue
		}
		m := &out[i]
		m.Pending, m.AckPending = max(m.Pending, c.Pending), max(m.AckPending, c.AckPending)
		m.Held, m.Handling = m.Held+c.Held, m.Handling+c.Handling
		if m.OldestHandling.IsZero() || !c.OldestHandling.IsZero() && c.OldestHandling.Before(m.OldestHandling) {
			m.OldestHandling = c.OldestHandling
		}
		if m.State == natty.ConsumerRunning || m.State == natty.ConsumerStandby {
			m.State = c.State
		}
	}
	return out
}

func oneIf(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}
