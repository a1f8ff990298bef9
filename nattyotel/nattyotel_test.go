package nattyotel_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattyotel"
	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a Client with a Tracer, and what it tells.
type bench struct {
	*testing.T
	c      *natty.Client
	tel    *nattyotel.Tracer
	spans  *tracetest.InMemoryExporter
	reader *metric.ManualReader
	tracer trace.Tracer
}

func newBench(t *testing.T, opts ...nattyotel.Option) *bench {
	t.Helper()
	b := &bench{T: t, spans: tracetest.NewInMemoryExporter(), reader: metric.NewManualReader()}
	traces := sdk.NewTracerProvider(sdk.WithSyncer(b.spans))
	b.tracer = traces.Tracer("test")
	var err error
	b.tel, err = nattyotel.New(append([]nattyotel.Option{
		nattyotel.WithTracerProvider(traces),
		nattyotel.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(b.reader))),
	}, opts...)...)
	require.NoError(t, err)
	cfg := natty.Config{Name: "test", Servers: []string{nattytest.Server(t).URL()}}
	b.c, err = natty.Connect(b.ctx(), cfg, natty.WithTracer(b.tel), natty.WithLogger(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.c.Close(context.Background())) })
	for name, subject := range map[string]string{"S": "s.>", "DEAD": "dead.>"} {
		_, err = b.c.EnsureStream(b.ctx(), jetstream.StreamConfig{Name: name, Subjects: []string{subject}})
		require.NoError(t, err)
	}
	return b
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	b.Cleanup(cancel)
	return ctx
}

// run runs a consumer until the end of the test.
func (b *bench) run(consume func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- consume(ctx) }()
	b.Cleanup(func() { cancel(); assert.NoError(b, <-done) })
}

// await waits until so many spans of a name have ended, and returns them.
func (b *bench) await(name string, n int) []tracetest.SpanStub {
	b.Helper()
	var found []tracetest.SpanStub
	require.Eventually(b, func() bool {
		found = slices.DeleteFunc(b.spans.GetSpans(), func(s tracetest.SpanStub) bool { return s.Name != name })
		return len(found) >= n
	}, 20*time.Second, 5*time.Millisecond, "%d spans %q", n, name)
	require.Len(b, found, n)
	return found
}

func attrs(s tracetest.SpanStub) map[string]any {
	all := map[string]any{}
	for _, a := range s.Attributes {
		all[string(a.Key)] = a.Value.AsInterface()
	}
	return all
}

// metrics returns the data of each metric by its name.
func (b *bench) metrics() map[string]metricdata.Metrics {
	b.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(b, b.reader.Collect(b.ctx(), &all))
	found := map[string]metricdata.Metrics{}
	for _, scope := range all.ScopeMetrics {
		assert.Equal(b, semconv.SchemaURL, scope.Scope.SchemaURL)
		for _, m := range scope.Metrics {
			found[m.Name] = m
		}
	}
	return found
}

// points describes the points of a metric: their attributes in order, and their value.
func points(m metricdata.Metrics) (all []string) {
	add := func(set attribute.Set, value any) {
		all = append(all, strings.TrimSpace(set.Encoded(attribute.DefaultEncoder())+" ")+fmt.Sprintf(" %v", value))
	}
	switch data := m.Data.(type) {
	case metricdata.Sum[int64]:
		for _, p := range data.DataPoints {
			add(p.Attributes, p.Value)
		}
	case metricdata.Gauge[int64]:
		for _, p := range data.DataPoints {
			add(p.Attributes, p.Value)
		}
	case metricdata.Gauge[float64]:
		for _, p := range data.DataPoints {
			add(p.Attributes, p.Value)
		}
	case metricdata.Histogram[float64]:
		for _, p := range data.DataPoints {
			add(p.Attributes, p.Count)
		}
	}
	slices.Sort(all)
	return all
}

var errHandler = errors.New("handler says no")

func TestOneTraceGoesThroughRetriesTheDeadLetterAndItsRedrive(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := natty.ConsumerConfig{
		Durable: "d", Subjects: []string{"s.*"}, MaxDeliver: 2, DeadLetter: "dead.s",
		Backoff: natty.Backoff{Min: time.Millisecond, Max: time.Millisecond},
	}
	b.run(func(ctx context.Context) error {
		return b.c.Process(ctx, cfg, func(ctx context.Context, _ *nats.Msg) error {
			if d, _ := natty.DeliveryFrom(ctx); d.Redrives > 0 {
				return nil
			}
			return errHandler
		})
	})
	ctx, request := b.tracer.Start(b.ctx(), "request")
	require.NoError(t, b.c.Publish(ctx, "s.17", []byte("body"), jetstream.WithMsgID("id-1")))
	request.End()
	first := b.await("send s.>", 1)[0]
	failed := b.await("process s.*", 2)
	letter := b.await("send dead.>", 1)[0]
	_, err := b.c.Redrive(b.ctx(), "dead.s", nil)
	require.NoError(t, err)
	handled := b.await("process s.*", 3)[2]
	redrive := b.await("send s.>", 2)[1]

	for _, s := range b.spans.GetSpans() {
		assert.Equal(t, request.SpanContext().TraceID(), s.SpanContext.TraceID(), "%s: one trace", s.Name)
	}
	parent := func(s tracetest.SpanStub) trace.SpanID { return s.Parent.SpanID() }
	assert.Equal(t, request.SpanContext().SpanID(), parent(first))
	for _, s := range []tracetest.SpanStub{failed[0], failed[1], handled, redrive} {
		assert.Equal(t, first.SpanContext.SpanID(), parent(s), s.Name)
	}
	assert.Equal(t, failed[1].SpanContext.SpanID(), parent(letter), "the last failure is why there is a letter")

	assert.Equal(t, trace.SpanKindProducer, first.SpanKind)
	assert.Equal(t, map[string]any{
		"messaging.system": "nats", "messaging.operation.name": "send", "messaging.operation.type": "send",
		"messaging.destination.name": "s.17", "messaging.destination.template": "s.>",
		"messaging.message.body.size": int64(4), "messaging.message.id": "id-1",
		"natty.stream": "S", "natty.sequence": int64(1), "natty.duplicate": false,
	}, attrs(first))
	assert.Equal(t, trace.SpanKindClient, letter.SpanKind, "its context was made before")
	require.Len(t, letter.Links, 1)
	assert.Equal(t, first.SpanContext.SpanID(), letter.Links[0].SpanContext.SpanID())

	assert.Equal(t, trace.SpanKindConsumer, failed[1].SpanKind)
	got := attrs(failed[1])
	assert.Equal(t, map[string]any{
		"messaging.system": "nats", "messaging.operation.name": "process", "messaging.operation.type": "process",
		"messaging.destination.name": "s.17", "messaging.destination.template": "s.*",
		"messaging.consumer.group.name": "d", "messaging.message.body.size": int64(4), "messaging.message.id": "id-1",
		"natty.stream": "S", "natty.sequence": int64(1), "natty.attempt": int64(2),
		"natty.outcome": "dead_lettered", "error.type": "*errors.errorString",
	}, got)
	assert.Equal(t, sdk.Status{Code: codes.Error, Description: errHandler.Error()}, failed[1].Status)
	assert.Equal(t, "retried", attrs(failed[0])["natty.outcome"])
	assert.Equal(t, int64(1), attrs(handled)["natty.redrives"])
	assert.Equal(t, "acked", attrs(handled)["natty.outcome"])
	assert.Equal(t, codes.Unset, handled.Status.Code)

	m := b.metrics()
	assert.Equal(t, []string{
		"messaging.destination.template=dead.>,messaging.operation.name=send,messaging.system=nats 1",
		"messaging.destination.template=s.>,messaging.operation.name=send,messaging.system=nats 2",
	}, points(m["messaging.client.sent.messages"]))
	assert.Equal(t, []string{
		"messaging.consumer.group.name=d,messaging.destination.template=s.*,messaging.operation.name=process,messaging.system=nats 3",
	}, points(m["messaging.client.consumed.messages"]))
	assert.Len(t, points(m["messaging.client.operation.duration"]), 2)
	assert.Len(t, points(m["messaging.process.duration"]), 2, "with and without an error")
	assert.Equal(t, []string{"messaging.consumer.group.name=d,natty.stream=S 1"}, points(m["natty.consumer.retries"]))
	assert.Equal(t, []string{"messaging.consumer.group.name=d,natty.stream=S 1"}, points(m["natty.consumer.dead_letters"]))
	assert.Equal(t, "s", m["messaging.process.duration"].Unit)
}

func TestContextGoesAlongInLowerCase(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	state, err := trace.ParseTraceState("vendor=x")
	require.NoError(t, err)
	parent := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, TraceState: state,
	})
	require.NoError(t, b.c.Publish(trace.ContextWithSpanContext(b.ctx(), parent), "s.a", nil))
	s, err := b.c.JetStream().Stream(b.ctx(), "S")
	require.NoError(t, err)
	m, err := s.GetMsg(b.ctx(), 1)
	require.NoError(t, err)
	sent := b.await("send s.>", 1)[0].SpanContext
	assert.Equal(t, []string{fmt.Sprintf("00-%s-%s-01", parent.TraceID(), sent.SpanID())}, m.Header["traceparent"])
	assert.Equal(t, []string{"vendor=x"}, m.Header["tracestate"])
}

func TestPublishWithinAHandlerIsPartOfIt(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil, nattyotel.WithDestination(nil)) // the default
	b.run(func(ctx context.Context) error {
		cfg := natty.ConsumerConfig{Subjects: []string{"s.in"}, HandlerTimeout: time.Minute}
		return b.c.Process(ctx, cfg, func(ctx context.Context, _ *nats.Msg) error {
			return b.c.Publish(ctx, "s.out", nil)
		})
	})
	_, err := b.c.JetStream().PublishMsg(b.ctx(), &nats.Msg{Subject: "s.in"}) // without a context
	require.NoError(t, err)
	handler := b.await("process s.in", 1)[0]
	assert.False(t, handler.Parent.IsValid())
	assert.Equal(t, handler.SpanContext.SpanID(), b.await("send s.>", 1)[0].Parent.SpanID())
}

func TestScheduleThatRepeatsMakesATraceForEachMessage(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.c.EnsureStream(b.ctx(), jetstream.StreamConfig{Name: "T", Subjects: []string{"t.>"}, AllowMsgSchedules: true})
	require.NoError(t, err)
	require.NoError(t, b.c.Schedule(b.ctx(), natty.Schedule{ID: "e", Every: time.Second, Msg: &nats.Msg{Subject: "t.often"}}))
	require.NoError(t, b.c.Schedule(b.ctx(), natty.Schedule{ID: "o", At: time.Now(), Msg: &nats.Msg{Subject: "t.once"}}))
	b.run(func(ctx context.Context) error {
		return b.c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"t.*"}}, func(context.Context, *nats.Msg) error { return nil })
	})
	sent := b.await("send t.>", 2)
	links := func(of tracetest.SpanStub) (all []tracetest.SpanStub) {
		for _, s := range b.spans.GetSpans() {
			if s.Name == "process t.*" && s.Links[0].SpanContext.SpanID() == of.SpanContext.SpanID() {
				all = append(all, s)
			}
		}
		return all
	}
	require.Eventually(t, func() bool { return len(links(sent[0])) > 0 && len(links(sent[1])) > 0 }, 20*time.Second, 10*time.Millisecond)
	assert.False(t, links(sent[0])[0].Parent.IsValid(), "one trace for each")
	assert.Equal(t, sent[1].SpanContext.SpanID(), links(sent[1])[0].Parent.SpanID(), "it comes once")
}

func TestCallersContextIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const own = "00-01000000000000000000000000000000-0200000000000000-01"
	header := nats.Header{"Traceparent": {own}} // as clients spell it that write names as HTTP does
	_, err := b.c.PublishMsg(b.ctx(), &nats.Msg{Subject: "s.a", Header: header})
	require.NoError(t, err)
	b.run(func(ctx context.Context) error {
		return b.c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"s.>"}}, func(_ context.Context, msg *nats.Msg) error {
			assert.Empty(t, msg.Header["traceparent"])
			return nil
		})
	})
	s := b.await("process s.>", 1)[0]
	assert.Equal(t, trace.TraceID{1}, s.SpanContext.TraceID())
	assert.Equal(t, trace.SpanID{2}, s.Parent.SpanID())
	assert.Equal(t, trace.SpanKindClient, b.await("send s.>", 1)[0].SpanKind)
}

func TestBatchIsLinkedToItsMessages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	w, err := b.c.NewWriter(natty.WriterConfig{})
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, w.Write(b.ctx(), &nats.Msg{Subject: "s.a"}))
	}
	require.NoError(t, w.Close(b.ctx()))
	sent := b.await("send s.>", 3)
	b.run(func(ctx context.Context) error {
		cfg := natty.BatchConfig{Size: 3, ConsumerConfig: natty.ConsumerConfig{Subjects: []string{"s.>"}}}
		return b.c.ProcessBatch(ctx, cfg, func(context.Context, []*nats.Msg) error {
			return &natty.PartialError{Errs: map[int]error{2: natty.Permanent(context.DeadlineExceeded)}}
		})
	})
	s := b.await("process s.>", 1)[0]
	assert.False(t, s.Parent.IsValid())
	require.Len(t, s.Links, 3)
	for i, l := range s.Links {
		assert.Equal(t, sent[i].SpanContext.SpanID(), l.SpanContext.SpanID())
	}
	got := attrs(s)
	assert.Equal(t, int64(3), got["messaging.batch.message_count"])
	assert.Equal(t, []string{"acked", "acked", "terminated"}, got["natty.outcomes"])
	assert.Equal(t, "timeout", got["error.type"])
	m := b.metrics()
	assert.Equal(t, []string{
		"messaging.consumer.group.name=test_s-all,messaging.destination.template=s.>,messaging.operation.name=process,messaging.system=nats 3",
	}, points(m["messaging.client.consumed.messages"]))
	assert.Len(t, points(m["natty.consumer.terminated"]), 1)
}

func TestPublishThatFailsSaysWhy(t *testing.T) {
	t.Parallel()
	b := newBench(t, nattyotel.WithDestination(func(string) string { return "some.*" }))
	require.Error(t, b.c.Publish(b.ctx(), "nowhere.a", nil))
	s := b.await("send some.*", 1)[0]
	assert.Equal(t, codes.Error, s.Status.Code)
	assert.Equal(t, "no_stream", attrs(s)["error.type"])
	assert.Equal(t, []string{
		"error.type=no_stream,messaging.destination.template=some.*,messaging.operation.name=send,messaging.system=nats 1",
	}, points(b.metrics()["messaging.client.sent.messages"]))
}

func TestHealthIsWatchedUntilItIsStopped(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stop, err := b.tel.Watch(b.c)
	require.NoError(t, err)
	release := make(chan struct{})
	running := make(chan struct{})
	b.run(func(ctx context.Context) error {
		return b.c.Process(ctx, natty.ConsumerConfig{Durable: "d", Subjects: []string{"s.>"}}, func(context.Context, *nats.Msg) error {
			close(running)
			<-release
			return nil
		})
	})
	leads := make(chan struct{})
	b.run(func(ctx context.Context) error {
		cfg := natty.AsLeaderConfig{Bucket: "b", Key: "k", NodeName: "n"}
		return ignore(ctx, b.c.Lead(ctx, cfg, func(ctx context.Context, _ *natty.Term) error {
			close(leads)
			<-ctx.Done()
			return nil
		}))
	})
	require.NoError(t, b.c.Publish(b.ctx(), "s.a", nil))
	<-running
	<-leads
	m := b.metrics()
	const consumer = "messaging.consumer.group.name=d,natty.stream=S"
	for name, want := range map[string][]string{
		"natty.connection.up":         {" 1"},
		"natty.connection.reconnects": {" 0"},
		"natty.writer.pending":        {" 0"},
		"natty.consumer.held":         {consumer + " 1"},
		"natty.consumer.handling":     {consumer + " 1"},
		"natty.consumer.working":      {consumer + " 1"},
		"natty.election.leading":      {"natty.bucket=b,natty.key=k,natty.node=n 1"},
	} {
		assert.Equal(t, want, points(m[name]), name)
	}
	for _, name := range []string{"natty.consumer.pending", "natty.consumer.ack_pending", "natty.consumer.oldest_handling"} {
		assert.Len(t, points(m[name]), 1, name)
	}
	assert.Contains(t, m["natty.consumer.pending"].Description, "take max, not sum")
	close(release)
	require.NoError(t, stop())
	assert.NotContains(t, b.metrics(), "natty.connection.up")
}

func TestSeveralThatAreWatchedAreReportedTogether(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	down := natty.Health{
		Reconnects: 2, Writers: []natty.WriterHealth{{Pending: 3}},
		Consumers: []natty.ConsumerHealth{{Stream: "S", Durable: "d", Held: 1}},
		Elections: []natty.ElectionHealth{{Bucket: "b", Key: "k", NodeName: "n"}},
	}
	up := down
	up.Connected = true
	up.Elections = []natty.ElectionHealth{
		{Bucket: "b", Key: "k", NodeName: "n"}, {Bucket: "b", Key: "k", NodeName: "n", Leading: true},
		{Bucket: "b", Key: "k", NodeName: "n"},
	}
	for _, h := range []natty.Health{down, up} {
		one := fixed(h)
		for range 2 { // once more changes nothing
			stop, err := b.tel.Watch(&one)
			require.NoError(t, err)
			t.Cleanup(func() { _ = stop() })
		}
	}
	for name, want := range map[string]string{
		"natty.connection.up": " 0", "natty.connection.reconnects": " 4", "natty.writer.pending": " 6",
		"natty.consumer.held":    "messaging.consumer.group.name=d,natty.stream=S 2",
		"natty.election.leading": "natty.bucket=b,natty.key=k,natty.node=n 1",
	} {
		assert.Equal(t, []string{want}, points(b.metrics()[name]), name)
	}
	_, err := b.tel.Watch(nil)
	var config *natty.ConfigError
	require.ErrorAs(t, err, &config)
}

// fixed is what a Client's Health says.
type fixed natty.Health

func (f *fixed) Health() natty.Health { return natty.Health(*f) }

// ignore is for what returns an error when its ctx ends.
func ignore(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it was asked to end
	}
	return err
}
