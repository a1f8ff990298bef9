package natty_test

import (
	"context"
	"errors"
	"strings"
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

// logging connects to a server with a log that is recorded.
func logging(t *testing.T, server *nattytest.Node) (*natty.Client, *testkit.Log) {
	t.Helper()
	log, logger := testkit.NewLog()
	return testkit.Connect(t, natty.Config{Name: "test", Servers: []string{server.URL()}}, natty.WithLogger(logger)), log
}

// entries returns the first n entries with a text.
func entries(t *testing.T, log *testkit.Log, n int, text string) []testkit.Entry {
	t.Helper()
	testkit.Eventually(t, func() bool { return len(log.Of(text)) >= n }, "%d of %q in %q", n, text, log.Texts())
	return log.Of(text)[:n]
}

// keysOf returns some keys of an entry.
func keysOf(e testkit.Entry, keys ...string) map[string]string {
	some := map[string]string{}
	for _, k := range keys {
		some[k] = e[k]
	}
	return some
}

func TestFailedMessagesAreLoggedWithStableKeys(t *testing.T) {
	t.Parallel()
	const retried, given, kept = "natty: a handler failed, its message runs again", "natty: a message failed for good",
		"natty: a message cannot be dead-lettered yet"
	for name, exclusive := range map[string]bool{"shared": false, "exclusive": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, log := logging(t, nattytest.Server(t))
			testkit.Ensure(t, c, "S", "s.>")
			full, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
				Name: "DEAD", Subjects: []string{"dead"}, MaxMsgs: 1, Discard: jetstream.DiscardNew,
			})
			require.NoError(t, err)
			testkit.Fill(t, c, "dead", 1)
			testkit.Fill(t, c, "s.a", 1)
			testkit.Process(t, c, natty.ConsumerConfig{
				Subjects: []string{"s.>"}, Durable: "d", Backoff: natty.Backoff{Min: time.Millisecond, Max: time.Millisecond},
				DeadLetter: "dead", MaxDeliver: 3, Exclusive: exclusive,
			}, func(ctx context.Context, _ *nats.Msg) error {
				switch d, _ := natty.DeliveryFrom(ctx); d.Attempt {
				case 1:
					return testkit.ErrHandler
				case 2:
					panic("boom")
				}
				return natty.Permanent(testkit.ErrHandler)
			})
			e := entries(t, log, 2, retried)
			want := map[string]string{"stream": "S", "durable": "d", "subject": "s.a", "sequence": "1", "attempt": "1", "level": "INFO"}
			assert.Equal(t, want, keysOf(e[0], "stream", "durable", "subject", "sequence", "attempt", "level"))
			assert.Contains(t, e[0]["error"], testkit.ErrHandler.Error())
			assert.NotContains(t, e[0], "stack")
			want["attempt"] = "2"
			assert.Equal(t, want, keysOf(e[1], "stream", "durable", "subject", "sequence", "attempt", "level"))
			assert.Contains(t, e[1]["error"], "boom")
			assert.Contains(t, e[1]["stack"], "log_test.go", "where it panicked")
			e = entries(t, log, 1, kept)
			assert.Equal(t, "WARN", e[0]["level"])
			require.NoError(t, full.Purge(testkit.Ctx(t)))
			e = entries(t, log, 1, given)
			want = map[string]string{
				"stream": "S", "durable": "d", "subject": "s.a", "sequence": "1", "level": "ERROR", "dead_letter": "dead",
			}
			assert.Equal(t, want, keysOf(e[0], "stream", "durable", "subject", "sequence", "level", "dead_letter"))
			assert.NotContains(t, log.Of(retried)[0], "dead_letter", "it is not decided yet")
		})
	}
}

func TestTheLogSaysThatAMessageHasNoDeadLetter(t *testing.T) {
	t.Parallel()
	permanent := func(context.Context, *nats.Msg) error { return natty.Permanent(testkit.ErrHandler) }
	for name, test := range map[string]struct {
		cfg     natty.ConsumerConfig
		handler natty.Handler
	}{
		"no subject": {natty.ConsumerConfig{}, permanent},
		"exclusive":  {natty.ConsumerConfig{Exclusive: true}, permanent},
		"the handler's verdict": {natty.ConsumerConfig{DeadLetter: "dead"}, func(ctx context.Context, m *nats.Msg) error {
			return errors.Join(m.Term(), permanent(ctx, m))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, log := logging(t, nattytest.Server(t))
			testkit.Ensure(t, c, "S", "s")
			testkit.Ensure(t, c, "DEAD", "dead")
			testkit.Fill(t, c, "s", 1)
			test.cfg.Subjects = []string{"s"}
			testkit.Process(t, c, test.cfg, test.handler)
			assert.Equal(t, "none", entries(t, log, 1, "natty: a message failed for good")[0]["dead_letter"])
		})
	}
}

func TestHandlerTimeoutIsNamedAsNattys(t *testing.T) {
	t.Parallel()
	c, log := logging(t, nattytest.Server(t))
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 1)
	waits := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	named := func(durable string, err error) {
		t.Helper()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "natty's handler timeout (HandlerTimeout) is over after 20ms: ")
		testkit.Eventually(t, func() bool {
			for _, e := range log.Of("natty: a handler failed, its message runs again") {
				if e["durable"] == durable {
					return strings.Contains(e["error"], "natty's handler timeout")
				}
			}
			return false
		}, "it is in the log")
	}
	report, errs := testkit.OnError()
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "one", HandlerTimeout: 20 * time.Millisecond, OnError: report}
	testkit.Process(t, c, cfg, func(ctx context.Context, _ *nats.Msg) error { return waits(ctx) })
	named("one", testkit.Receive(t, errs))

	report, errs = testkit.OnError()
	cfg.Durable, cfg.OnError = "batch", report
	testkit.Background(t, "ProcessBatch", func(ctx context.Context) error {
		return c.ProcessBatch(ctx, natty.BatchConfig{ConsumerConfig: cfg, Size: 1}, func(ctx context.Context, _ []*nats.Msg) error { return waits(ctx) })
	})
	named("batch", testkit.Receive(t, errs))
}

func TestWhatNattyMakesAndChangesOnTheServerIsLogged(t *testing.T) {
	t.Parallel()
	c, log := logging(t, nattytest.Server(t))
	testkit.Ensure(t, c, "S", "s.>")
	e := entries(t, log, 1, "natty: made the stream")
	assert.Equal(t, testkit.Entry{"level": "INFO", "msg": "natty: made the stream", "stream": "S", "subjects": "[s.>]"}, e[0])
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", MaxAge: time.Hour, MaxMsgs: 5})
	require.NoError(t, err)
	e = entries(t, log, 1, "natty: changed the stream")
	assert.Equal(t, map[string]string{"stream": "S", "changed.max_age": "0s -> 1h0m0s", "changed.max_msgs": "-1 -> 5"},
		keysOf(e[0], "stream", "changed.max_age", "changed.max_msgs"))
	_, err = c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", MaxAge: time.Hour})
	require.NoError(t, err)
	assert.Len(t, log.Of("natty: changed the stream"), 1, "what is there already is not changed")

	run := func(cfg natty.ConsumerConfig) {
		t.Helper()
		running := len(log.Of("natty: consumer started"))
		stop := testkit.Process(t, c, cfg, accept)
		entries(t, log, running+1, "natty: consumer started")
		require.NoError(t, stop())
	}
	run(natty.ConsumerConfig{Subjects: []string{"s.a"}, Durable: "d"})
	e = entries(t, log, 1, "natty: made the consumer")
	assert.Equal(t, map[string]string{"stream": "S", "durable": "d"}, keysOf(e[0], "stream", "durable"))
	run(natty.ConsumerConfig{Subjects: []string{"s.a"}, Durable: "d", AckWait: 20 * time.Second})
	e = entries(t, log, 1, "natty: changed the consumer")
	assert.Equal(t, map[string]string{"stream": "S", "durable": "d", "changed.ack_wait": "10s -> 20s"},
		keysOf(e[0], "stream", "durable", "changed.ack_wait"))

	require.NoError(t, c.Put(testkit.Ctx(t), "cups", "k", []byte("v")))
	e = entries(t, log, 1, "natty: made the bucket")
	assert.Equal(t, "cups", e[0]["bucket"])
}

func TestStreamWhoseSubjectsOverlapIsToldWithWhich(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "ORDERS", "orders.>")
	testkit.Ensure(t, c, "OTHER", "other")
	const want = `orders.new is held by stream "ORDERS"`
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "NEW", Subjects: []string{"orders.new"}})
	require.ErrorContains(t, err, want)
	var refused *jetstream.APIError
	require.ErrorAs(t, err, &refused)
	_, err = c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other", "orders.new"}})
	require.ErrorContains(t, err, want)
	err = parse(t, consumers(server, consumerOf("a", `"stream_name":"NEW","subjects":["orders.new"],"create_stream_if_not_exist":true`))).
		Run(testkit.Ctx(t), map[string]natty.Handler{"a": accept}, testkit.Quiet)
	require.ErrorContains(t, err, want)
}

func TestConsumersThatStartDrainAndStopAreLogged(t *testing.T) {
	t.Parallel()
	c, log := logging(t, nattytest.Server(t))
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 3)
	begun, release := make(chan struct{}, 1), make(chan struct{})
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", MaxPollRecords: 3},
		func(_ context.Context, m *nats.Msg) error {
			if string(m.Data) == "0" {
				return nil // with it the consumer learns how many messages to hold
			}
			begun <- struct{}{}
			<-release
			return nil
		})
	testkit.Receive(t, begun)
	testkit.Eventually(t, func() bool { return c.Health().Consumers[0].Held == 2 }, "one waits behind the one that runs")
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	e := entries(t, log, 1, "natty: consumer drains")
	assert.Equal(t, testkit.Entry{
		"level": "INFO", "msg": "natty: consumer drains", "stream": "S", "durable": "d", "running": "1", "returned": "1",
	}, e[0])
	close(release)
	require.NoError(t, testkit.Receive(t, stopped))
	assert.Len(t, log.Of("natty: consumer started"), 1)
	e = log.Of("natty: consumer stopped")
	require.Len(t, e, 1)
	assert.Equal(t, map[string]string{"stream": "S", "durable": "d"}, keysOf(e[0], "stream", "durable"))

	require.ErrorIs(t, c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"none"}, Durable: "e"}, accept), natty.ErrNoStream)
	e = log.Of("natty: consumer ended")
	require.Len(t, e, 1)
	assert.Equal(t, map[string]string{"level": "ERROR", "durable": "e"}, keysOf(e[0], "level", "durable"))
}

func TestLeadershipGainedLostAndGivenBackIsLogged(t *testing.T) {
	t.Parallel()
	c, log := logging(t, nattytest.Server(t))
	cfg := natty.AsLeaderConfig{Bucket: "b", Key: "k", NodeName: "n", BucketTTL: time.Second}
	who := map[string]string{"bucket": "b", "key": "k", "node": "n", "level": "INFO"}
	require.NoError(t, c.Lead(testkit.Ctx(t), cfg, func(context.Context, *natty.Term) error { return nil }))
	gained, back := log.Of("natty: leadership gained"), log.Of("natty: leadership released")
	require.Len(t, gained, 1)
	require.Len(t, back, 1)
	assert.Equal(t, who, keysOf(gained[0], "bucket", "key", "node", "level"))
	assert.Equal(t, who, keysOf(back[0], "bucket", "key", "node", "level"))
	assert.Equal(t, gained[0]["token"], back[0]["token"])

	err := c.Lead(testkit.Ctx(t), cfg, func(ctx context.Context, term *natty.Term) error {
		if len(log.Of("natty: leadership gained")) > 2 {
			return errors.New("done")
		}
		require.NoError(t, c.DeleteBucket(ctx, "b"))
		<-ctx.Done()
		return nil
	})
	require.ErrorContains(t, err, "done")
	lost := log.Of("natty: leadership lost")
	require.Len(t, lost, 1)
	who["level"] = "WARN"
	assert.Equal(t, who, keysOf(lost[0], "bucket", "key", "node", "level"))
	assert.NotEmpty(t, lost[0]["error"])

	ctx, cancel := context.WithCancel(testkit.Ctx(t))
	require.NoError(t, c.AsLeader(ctx, cfg, func() error { cancel(); panic("boom") }))
	failed := log.Of("natty: the leader's function failed")
	if assert.Len(t, failed, 1) {
		assert.Equal(t, "panic: boom", failed[0]["error"])
		assert.Contains(t, failed[0]["stack"], "log_test.go")
	}
}
