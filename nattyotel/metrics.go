package nattyotel

import (
	"context"
	"reflect"
	"slices"
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

// watched is a Client or Service.
type watched struct {
	of interface{ Health() natty.Health }
}

// Watch reports what a Client's or Service's Health says whenever metrics are collected,
// until stop is called. It works before the first connection. Several that are watched
// are reported together: natty.connection.up is 1 if all of them have a connection.
func (t *Tracer) Watch(of interface{ Health() natty.Health }) (stop func() error, err error) {
	if of == nil {
		return nil, &natty.ConfigError{Field: "of", Reason: "is nil; give a Client or a Service"}
	}
	mine := &watched{of}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watched = append(t.watched, mine)
	return func() error { t.forget(mine); return nil }, nil
}

func (t *Tracer) forget(w *watched) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watched = slices.DeleteFunc(t.watched, func(one *watched) bool { return one == w })
}

// register lets one callback report all that is watched. Each number may be observed
// once only: a callback for each would leave that of the last one.
func (t *Tracer) register() error {
	s := &t.states
	_, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		if h, some := t.together(); some {
			s.observe(o, h)
		}
		return nil
	}, s.pending, s.ackPending, s.held, s.handling, s.working, s.leading, s.up, s.writing, s.reconnects, s.oldest)
	return err
}

// together makes one Health of all that is watched.
func (t *Tracer) together() (h natty.Health, some bool) {
	t.mu.Lock()
	all := slices.Clone(t.watched)
	t.mu.Unlock()
	h.Connected = true
	for i, w := range all {
		if slices.ContainsFunc(all[:i], w.same) {
			continue
		}
		one := w.of.Health()
		h.Connected = h.Connected && one.Connected
		h.Reconnects += one.Reconnects
		h.Consumers = append(h.Consumers, one.Consumers...)
		h.Elections = append(h.Elections, one.Elections...)
		h.Writers = append(h.Writers, one.Writers...)
	}
	return h, len(all) > 0
}

// same reports whether two watch the same Client.
func (w *watched) same(other *watched) bool {
	return reflect.ValueOf(w.of).Comparable() && w.of == other.of
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
	elections := map[[3]string]bool{} // several may have one name, of which one leads
	for _, e := range h.Elections {
		name := [3]string{e.Bucket, e.Key, text(e.NodeName)}
		elections[name] = elections[name] || e.Leading
	}
	for name, leads := range elections {
		o.ObserveInt64(s.leading, oneIf(leads), metric.WithAttributes(
			attribute.String("natty.bucket", name[0]), attribute.String("natty.key", name[1]),
			attribute.String("natty.node", name[2])))
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
