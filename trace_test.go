package natty_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// tracer is a small one: spans have names, and messages carry the name of the span that
// sent them first.
type tracer struct {
	mu    sync.Mutex
	n     int
	open  int
	ended []ended
}

type ended struct {
	kind, span, parent, of string // of: what the message came with
	subject                string
	result                 natty.PublishResult
	deliveries             []natty.Delivery
	verdicts               []natty.Verdict
}

type spanKey struct{}

func (tr *tracer) start(ctx context.Context, s ended) context.Context {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.n++
	tr.open++
	s.span = fmt.Sprint(tr.n)
	if up, ok := ctx.Value(spanKey{}).(ended); ok {
		s.parent = up.span
	}
	return context.WithValue(ctx, spanKey{}, s)
}

func (tr *tracer) end(ctx context.Context, add func(*ended)) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.open--
	s, _ := ctx.Value(spanKey{}).(ended)
	add(&s)
	tr.ended = append(tr.ended, s)
}

func (tr *tracer) PublishStart(ctx context.Context, msg *nats.Msg) context.Context {
	ctx = tr.start(ctx, ended{kind: "publish", subject: msg.Subject, of: msg.Header.Get("traceparent")})
	if s, _ := ctx.Value(spanKey{}).(ended); s.of == "" {
		msg.Header["traceparent"] = []string{s.span}
	}
	return ctx
}

func (tr *tracer) PublishEnd(ctx context.Context, r natty.PublishResult) {
	tr.end(ctx, func(s *ended) { s.result = r })
}

func (tr *tracer) HandleStart(ctx context.Context, msgs []*nats.Msg, ds []natty.Delivery) context.Context {
	s := ended{kind: "handle", subject: msgs[0].Subject, deliveries: ds}
	for _, m := range msgs {
		s.of += m.Header.Get("traceparent")
	}
	return tr.start(ctx, s)
}

func (tr *tracer) HandleEnd(ctx context.Context, vs []natty.Verdict) {
	tr.end(ctx, func(s *ended) { s.verdicts = vs })
}

// of returns what has ended of a kind.
func (tr *tracer) of(kind string) (all []ended) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, e := range tr.ended {
		if e.kind == kind {
			all = append(all, e)
		}
	}
	return all
}

// await waits until n of a kind have ended.
func (tr *tracer) await(t *testing.T, kind string, n int) []ended {
	t.Helper()
	testkit.Eventually(t, func() bool { return len(tr.of(kind)) >= n }, fmt.Sprintf("%d of %q have ended", n, kind))
	all := tr.of(kind)
	require.Len(t, all, n)
	return all
}

func tracedClient(t *testing.T, url string, opts ...natty.Option) (*natty.Client, *tracer) {
	t.Helper()
	tr := &tracer{}
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test", Servers: []string{url}},
		append([]natty.Option{testkit.Quiet, natty.WithTracer(tr)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = c.Close(context.Background())
		tr.mu.Lock()
		defer tr.mu.Unlock()
		assert.Zero(t, tr.open, "each start has its end")
	})
	return c, tr
}

func TestEveryWayOutIsTraced(t *testing.T) {
	t.Parallel()
	c, tr := tracedClient(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.>"}, AllowAtomicPublish: true, AllowMsgSchedules: true,
	})
	require.NoError(t, err)
	ctx := testkit.Ctx(t)
	require.NoError(t, c.Publish(ctx, "s.plain", nil))
	header := nats.Header{"Mine": {"1"}}
	msg := &nats.Msg{Subject: "s.msg", Header: header, Data: []byte("x")}
	ack, err := c.PublishMsg(ctx, msg, jetstream.WithMsgID("own"))
	require.NoError(t, err)
	require.NoError(t, c.PublishBatch(ctx, []*nats.Msg{{Subject: "s.b1"}, {Subject: "s.b2"}}))
	w, err := c.NewWriter(natty.WriterConfig{})
	require.NoError(t, err)
	written := &nats.Msg{Subject: "s.w"}
	require.NoError(t, w.Write(ctx, written))
	require.NoError(t, w.Write(ctx, &nats.Msg{Subject: "nowhere"}))
	require.Error(t, w.Write(ctx, &nats.Msg{Subject: "not.*"}))
	require.Error(t, w.Close(ctx))
	require.NoError(t, c.Schedule(ctx, natty.Schedule{
		ID: "x", At: time.Now().Add(time.Hour), Msg: &nats.Msg{Subject: "s.later"},
	}))
	require.Error(t, c.Publish(ctx, "nowhere", nil))
	require.Error(t, c.PublishBatch(ctx, []*nats.Msg{nil, {Subject: "s.b1"}}))

	assert.Equal(t, nats.Header{"Mine": {"1"}}, header, "the caller's headers are left alone")
	assert.Nil(t, written.Header)
	got := map[string][]natty.PublishResult{}
	for _, e := range tr.await(t, "publish", 10) {
		got[e.subject] = append(got[e.subject], e.result)
	}
	assert.Equal(t, natty.PublishResult{MsgID: "own", Stream: "S", Sequence: ack.Sequence}, got["s.msg"][0])
	assert.Equal(t, "S", got["s.plain"][0].Stream)
	assert.NotEmpty(t, got["s.plain"][0].MsgID)
	assert.Len(t, got["s.b1"], 2)
	require.NoError(t, got["s.b1"][0].Err)
	require.Error(t, got["s.b1"][1].Err)
	require.NoError(t, got["s.b2"][0].Err)
	assert.Equal(t, "S", got["s.w"][0].Stream)
	require.Error(t, got["not.*"][0].Err)
	require.NoError(t, got["s.later"][0].Err)
	for _, r := range got["nowhere"] {
		require.ErrorIs(t, r.Err, natty.ErrNoStream)
	}
	assert.Len(t, got["nowhere"], 2)

	require.NoError(t, c.Put(ctx, "bucket", "key", []byte("v")))
	assert.Len(t, tr.of("publish"), 10, "keys are no messages")
}

// Other publishers are at work meanwhile: a batch has its sequences for itself.
func TestTheResultsOfABatchSayWhereEachMessageIsStored(t *testing.T) {
	t.Parallel()
	for name, replicas := range map[string]int{"a server": 1, "a cluster": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var url string
			if replicas > 1 {
				url = nattytest.Cluster(t).URLs()[0]
			} else {
				url = nattytest.Server(t).URL()
			}
			c, tr := tracedClient(t, url)
			s := testkit.BatchStream(t, c, jetstream.StreamConfig{
				Replicas: replicas, SubjectTransform: &jetstream.SubjectTransformConfig{Source: "s.>", Destination: "t.>"},
			})
			other := testkit.ConnectTo(t, url)
			ctx, stop := context.WithCancel(testkit.Ctx(t))
			var others sync.WaitGroup
			defer others.Wait()
			defer stop()
			others.Go(func() {
				for ctx.Err() == nil {
					_ = other.Publish(ctx, "s.other", nil)
				}
			})
			others.Go(func() {
				for ctx.Err() == nil {
					_ = other.PublishBatch(ctx, testkit.Messages(2, "other"))
				}
			})
			sizes, all := []int{1, 2, 20, 3}, 0
			for _, n := range sizes {
				require.NoError(t, c.PublishBatch(testkit.Ctx(t), testkit.Messages(n, "b")))
				all += n
			}
			stop()
			for _, e := range tr.await(t, "publish", all) {
				assert.Equal(t, "S", e.result.Stream)
				m, err := s.GetMsg(testkit.Ctx(t), e.result.Sequence)
				require.NoError(t, err)
				assert.Equal(t, e.result.MsgID, m.Header.Get(jetstream.MsgIDHeader))
			}
		})
	}
}

func TestScheduleThatATracerMarksIsStillTheSame(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, tr := tracedClient(t, server.URL())
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowMsgSchedules: true})
	require.NoError(t, err)
	s := natty.Schedule{ID: "x", Every: time.Hour, Msg: &nats.Msg{Subject: "s.later", Header: nats.Header{"Mine": {"1"}}}}
	last := func() uint64 {
		info, err := c.JetStream().Stream(testkit.Ctx(t), "S")
		require.NoError(t, err)
		return info.CachedInfo().State.LastSeq
	}
	require.NoError(t, c.Schedule(testkit.Ctx(t), s))
	first := last()
	require.NoError(t, c.Schedule(testkit.Ctx(t), s))
	untraced := testkit.ConnectTo(t, server.URL())
	require.NoError(t, untraced.Schedule(testkit.Ctx(t), s))
	assert.Equal(t, first, last(), "it is not stored again")
	assert.Len(t, tr.of("publish"), 2)
	for stored, err := range c.Schedules(testkit.Ctx(t), "S") {
		require.NoError(t, err)
		assert.Equal(t, nats.Header{"Mine": {"1"}, "traceparent": {"1"}}, stored.Msg.Header)
	}
	s.Msg.Header = nats.Header{"Mine": {"2"}}
	require.NoError(t, c.Schedule(testkit.Ctx(t), s))
	assert.Greater(t, last(), first)
}

// One trace goes from the first publish through a retry, the dead letter and its redrive.
func TestMessageIsTracedToItsDeadLetterAndBack(t *testing.T) {
	t.Parallel()
	for _, exclusive := range []bool{false, true} {
		t.Run(fmt.Sprintf("exclusive=%t", exclusive), func(t *testing.T) {
			t.Parallel()
			c, tr := tracedClient(t, nattytest.Server(t).URL())
			testkit.Ensure(t, c, "S", "s.>")
			testkit.Ensure(t, c, "DEAD", "dead.>")
			cfg := natty.ConsumerConfig{
				Durable: "d", Subjects: []string{"s.*"}, MaxDeliver: 2, DeadLetter: "dead.s", Exclusive: exclusive,
				Backoff: natty.Backoff{Min: time.Millisecond, Max: time.Millisecond},
			}
			testkit.Process(t, c, cfg, func(ctx context.Context, _ *nats.Msg) error {
				if d, _ := natty.DeliveryFrom(ctx); d.Redrives > 0 {
					return nil
				}
				return testkit.ErrHandler
			})
			require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", []byte("x")))
			failures := tr.await(t, "handle", 2)
			assert.Equal(t, natty.OutcomeRetried, failures[0].verdicts[0].Outcome)
			assert.Positive(t, failures[0].verdicts[0].Delay)
			require.ErrorIs(t, failures[0].verdicts[0].Err, testkit.ErrHandler)
			assert.Equal(t, natty.OutcomeDeadLettered, failures[1].verdicts[0].Outcome)
			assert.Equal(t, 2, failures[1].deliveries[0].Attempt)
			assert.Equal(t, "s.*", failures[1].deliveries[0].Filter)

			n, err := c.Redrive(testkit.Ctx(t), "dead.s", nil)
			require.NoError(t, err)
			require.Equal(t, 1, n)
			all := tr.await(t, "handle", 3)
			assert.Equal(t, natty.OutcomeAcked, all[2].verdicts[0].Outcome)
			assert.Equal(t, 1, all[2].deliveries[0].Redrives)

			sent := tr.await(t, "publish", 3)
			assert.Equal(t, []string{"s.a", "dead.s", "s.a"}, []string{sent[0].subject, sent[1].subject, sent[2].subject})
			for _, e := range slices.Concat(all, sent[1:]) {
				assert.Equal(t, sent[0].span, e.of, "%+v", e)
			}
			assert.Equal(t, failures[1].span, sent[1].parent, "the handler's failure is why there is a letter")
		})
	}
}

func TestVerdictsAreTraced(t *testing.T) {
	t.Parallel()
	c, tr := tracedClient(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}}, func(_ context.Context, msg *nats.Msg) error {
		switch string(msg.Data) {
		case "settled":
			return msg.Ack()
		case "terminated":
			return natty.Permanent(testkit.ErrHandler)
		case "panic":
			_ = msg.Term()
			panic("oh")
		}
		return nil
	})
	for _, data := range []string{"settled", "terminated", "panic", "acked"} {
		require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", []byte(data)))
	}
	var got []natty.Outcome
	for _, e := range tr.await(t, "handle", 4) {
		got = append(got, e.verdicts[0].Outcome)
	}
	assert.Equal(t, []natty.Outcome{natty.OutcomeSettled, natty.OutcomeTerminated, natty.OutcomeSettled, natty.OutcomeAcked}, got)
}

func TestBatchIsTracedAsOneCallWithAVerdictForEachMessage(t *testing.T) {
	t.Parallel()
	c, tr := tracedClient(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Ensure(t, c, "DEAD", "dead.>")
	for _, data := range []string{"good", "bad"} {
		require.NoError(t, c.Publish(testkit.Ctx(t), "s."+data, []byte(data)))
	}
	cfg := natty.BatchConfig{Size: 2, ConsumerConfig: natty.ConsumerConfig{Subjects: []string{"s.>"}, DeadLetter: "dead.s"}}
	testkit.RunConsumer(t, c, func(ctx context.Context) error {
		return c.ProcessBatch(ctx, cfg, func(_ context.Context, msgs []*nats.Msg) error {
			slices.Reverse(msgs)
			return &natty.PartialError{Errs: map[int]error{0: natty.Permanent(testkit.ErrHandler)}}
		})
	})
	e := tr.await(t, "handle", 1)[0]
	assert.Equal(t, "12", e.of)
	require.Len(t, e.verdicts, 2)
	assert.Equal(t, natty.Verdict{Outcome: natty.OutcomeAcked}, e.verdicts[0])
	assert.Equal(t, natty.OutcomeDeadLettered, e.verdicts[1].Outcome)
	letter := tr.await(t, "publish", 3)[2]
	assert.Equal(t, e.span, letter.parent)
	assert.Equal(t, "2", letter.of)
}

// rudeTracer panics, or returns nothing.
type rudeTracer struct{ panics bool }

func (r rudeTracer) PublishStart(_ context.Context, msg *nats.Msg) context.Context {
	*msg = nats.Msg{Subject: "elsewhere"}
	return r.do()
}

func (r rudeTracer) PublishEnd(context.Context, natty.PublishResult) { r.do() }
func (r rudeTracer) HandleEnd(context.Context, []natty.Verdict)      { r.do() }

func (r rudeTracer) HandleStart(context.Context, []*nats.Msg, []natty.Delivery) context.Context {
	return r.do()
}

func (r rudeTracer) do() context.Context {
	if r.panics {
		panic("rude")
	}
	return nil
}

func TestTracerThatPanicsHarmsNothing(t *testing.T) {
	t.Parallel()
	log, logger := testkit.NewLog()
	c, tr := tracedClient(t, nattytest.Server(t).URL(),
		natty.WithTracer(rudeTracer{panics: true}), natty.WithTracer(rudeTracer{}), natty.WithTracer(nil), natty.WithLogger(logger))
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}}, func(ctx context.Context, _ *nats.Msg) error {
		_, ok := natty.DeliveryFrom(ctx)
		assert.True(t, ok)
		return nil
	})
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", nil))
	assert.Equal(t, natty.OutcomeAcked, tr.await(t, "handle", 1)[0].verdicts[0].Outcome)
	assert.Len(t, tr.of("publish"), 1)
	require.NoError(t, c.Close(testkit.Ctx(t)))
	panics := log.Of("natty: a Tracer panicked")
	require.Len(t, panics, 4, "one for each call")
	assert.Equal(t, "rude", panics[0]["panic"])
	assert.Contains(t, panics[0]["stack"], "trace_test.go")
}

func TestWritersMessagesAreTracedThroughALostConnectionToTheirEnd(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	c, tr := tracedClient(t, link.URL())
	testkit.Ensure(t, c, "S", "s.>")
	w, err := c.NewWriter(natty.WriterConfig{})
	require.NoError(t, err)
	link.Freeze()
	require.NoError(t, w.Write(testkit.Ctx(t), &nats.Msg{Subject: "s.retried"}))
	link.Cut()
	link.Thaw()
	require.NoError(t, w.Flush(testkit.Ctx(t)))
	e := tr.await(t, "publish", 1)[0]
	require.NoError(t, e.result.Err)
	assert.NotEmpty(t, e.result.MsgID)

	link.Freeze()
	require.NoError(t, w.Write(testkit.Ctx(t), &nats.Msg{Subject: "s.abandoned"}))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.Error(t, w.Close(ctx))
	e = tr.await(t, "publish", 2)[1]
	require.ErrorIs(t, e.result.Err, natty.ErrOutcomeUnknown)
	link.Thaw()
}

func TestMiddlewareWrapsHandlersFromOutsideIn(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var calls []string
	wrap := func(name string) func(natty.Handler) natty.Handler {
		return func(next natty.Handler) natty.Handler {
			return func(ctx context.Context, msg *nats.Msg) error {
				err := next(ctx, msg)
				d, _ := natty.DeliveryFrom(ctx)
				mu.Lock()
				defer mu.Unlock()
				calls = append(calls, fmt.Sprintf("%s %d %v", name, d.Attempt, natty.IsPermanent(err)))
				if name == "outer" {
					return nil
				}
				return natty.Permanent(err)
			}
		}
	}
	server := nattytest.Server(t)
	c, tr := tracedClient(t, server.URL(), natty.WithMiddleware(wrap("outer"), nil), natty.WithMiddleware(wrap("inner")))
	testkit.Ensure(t, c, "S", "s.>")
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", nil))
	testkit.RunConsumer(t, c, func(ctx context.Context) error {
		return c.Consume(ctx, "s.a", nil, func(*nats.Msg) {})
	})
	assert.Equal(t, natty.OutcomeAcked, tr.await(t, "handle", 1)[0].verdicts[0].Outcome)
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, []string{"inner 1 false", "outer 1 true"}, calls)

	none, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "none", Servers: []string{server.URL()}}, testkit.Quiet,
		natty.WithMiddleware(func(natty.Handler) natty.Handler { return nil }))
	require.NoError(t, err)
	t.Cleanup(func() { _ = none.Close(context.Background()) })
	err = none.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"s.a"}},
		func(context.Context, *nats.Msg) error { return errors.New("never runs") })
	var wrong *natty.ConfigError
	require.ErrorAs(t, err, &wrong)
	assert.Equal(t, "WithMiddleware", wrong.Field)
}
