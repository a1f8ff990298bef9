package securitytest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
)

func publish(subjects ...string) (needs []need) {
	for _, s := range subjects {
		needs = append(needs, need{subject: s})
	}
	return needs
}

// and adds what a call works without.
func and(needs []need, more ...need) []need { return append(needs, more...) }

const notSentAgain = "a message whose outcome is unknown is not sent again, and the error matches `ErrOutcomeUnknown`"

var (
	retries = []need{
		{subject: "$JS.API.STREAM.NAMES", lost: notSentAgain},
		{subject: "$JS.API.STREAM.INFO.<stream>", lost: notSentAgain},
	}
	readBack  = need{subject: "$JS.API.STREAM.MSG.GET.<stream>", lost: "the outcome of a conditional message whose answer was lost stays unknown"}
	keyResend = []need{
		{subject: "$JS.API.STREAM.NAMES", lost: notSentAgain},
		{subject: "$JS.API.STREAM.INFO.KV_<bucket>", lost: notSentAgain},
	}
	trial = need{subject: "$JS.API.CONSUMER.CREATE.<stream>.<durable>.<subject>", lost: "a message that seems to kill its process is judged by " +
		"its deliveries alone (`MaxDeliver`), and a deleted durable is not recreated"}
	consume = publish("$JS.API.STREAM.INFO.<stream>", "$JS.API.CONSUMER.INFO.<stream>.<durable>",
		"$JS.API.CONSUMER.MSG.NEXT.<stream>.<durable>", "$JS.ACK.<stream>.<durable>.>")
	find = publish("$JS.API.STREAM.NAMES")
	wait = need{subject: "$KV.<bucket>.<key>", subscribe: true, noted: true, lost: "a standby looks twice a second instead of hearing of a release at once"}
)

// table has a row for each call of the public API.
var table = join(
	publishing, consuming, keys, leading,
)

func join(parts ...[]row) (all []row) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func makeStream(e *env) { testkit.Ensure(e, e.root, "S", "s.>") }

func withFeatures(e *env) {
	_, err := e.root.EnsureStream(testkit.Ctx(e), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.>"}, AllowAtomicPublish: true, AllowMsgSchedules: true,
	})
	require.NoError(e, err)
}

const oneByOne = "they are read one by one"

var later = natty.Schedule{ID: "later", Every: time.Hour, Msg: &nats.Msg{Subject: "s.a"}}

var publishing = []row{
	{
		calls: "`Publish`, `PublishMsg`, `PublishJSON`", needs: and(and(publish("<subject>"), retries...), readBack), prepare: makeStream,
		call: func(e *env) error { return e.app.Publish(testkit.Ctx(e), "s.a", nil) },
	},
	{
		calls: "`Writer.Write`", needs: and(publish("<subject>"), retries...), prepare: makeStream,
		call: func(e *env) error {
			w := testkit.NewWriter(e, e.app, natty.WriterConfig{OnError: func(_ *nats.Msg, err error) { e.OnError(err) }})
			err := w.Write(testkit.Ctx(e), &nats.Msg{Subject: "s.a"})
			return errors.Join(err, w.Close(testkit.Ctx(e)))
		},
	},
	{
		calls: "`PublishBatch`", prepare: withFeatures,
		needs: and(publish("<subject>", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.<stream>"), need{
			subject: "$JS.API.STREAM.MSG.GET.<stream>", lost: "the outcome of a batch with ids of yours whose answer was lost stays unknown",
		}),
		call: func(e *env) error {
			return e.app.PublishBatch(testkit.Ctx(e), []*nats.Msg{{Subject: "s.a"}, {Subject: "s.a"}})
		},
	},
	{
		calls: "`Schedule`", prepare: withFeatures,
		needs: and(publish("$NATTY.schedule.<stream>.<schedule>", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.<stream>"), need{
			subject: "$JS.API.STREAM.MSG.GET.<stream>", lost: "a schedule that replaces one which is due just then may be lost",
		}),
		call: func(e *env) error { return e.app.Schedule(testkit.Ctx(e), later) },
	},
	{
		calls: "`Schedules`", needs: publish("$JS.API.STREAM.INFO.<stream>", "$JS.API.STREAM.MSG.GET.<stream>"),
		prepare: func(e *env) { withFeatures(e); require.NoError(e, e.root.Schedule(testkit.Ctx(e), later)) },
		call:    listSchedules,
	},
	{
		calls: "`Schedules`", when: "64 or more",
		needs: and(publish("$JS.API.STREAM.INFO.<stream>"),
			need{subject: "$JS.API.STREAM.MSG.GET.<stream>", lost: "the call fails where a schedule is replaced meanwhile"},
			need{subject: "$JS.API.CONSUMER.CREATE.<stream>.*.$NATTY.schedule.<stream>.>", lost: oneByOne, noted: true},
			need{subject: "$JS.API.CONSUMER.MSG.NEXT.<stream>.*", lost: oneByOne, noted: true},
			need{subject: "$JS.API.CONSUMER.DELETE.<stream>.*", lost: "the server removes the consumer that reads them by itself, some time after it was used"}),
		prepare: func(e *env) {
			withFeatures(e)
			for i := range 65 {
				s := later
				s.ID += fmt.Sprint("-", i)
				require.NoError(e, e.root.Schedule(testkit.Ctx(e), s))
			}
		},
		call: listSchedules,
	},
	{
		calls: "`Unschedule`", needs: publish("$JS.API.STREAM.PURGE.<stream>"), prepare: withFeatures,
		call: func(e *env) error { return e.app.Unschedule(testkit.Ctx(e), "S", "later") },
	},
	{
		calls: "`EnsureStream`", when: "makes the stream", needs: publish("$JS.API.STREAM.INFO.<stream>", "$JS.API.STREAM.CREATE.<stream>"),
		call: ensureStream,
	},
	{
		calls: "`EnsureStream`", when: "changes the stream", needs: publish("$JS.API.STREAM.INFO.<stream>", "$JS.API.STREAM.UPDATE.<stream>"),
		prepare: makeStream, call: ensureStream,
	},
	{
		calls: "`EnsureStream`", when: "changes nothing", needs: publish("$JS.API.STREAM.INFO.<stream>"),
		prepare: func(e *env) {
			_, err := e.root.EnsureStream(testkit.Ctx(e), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, MaxMsgs: 100})
			require.NoError(e, err)
		},
		call: ensureStream,
	},
}

func listSchedules(e *env) error {
	for s, err := range e.app.Schedules(testkit.Ctx(e), "S") {
		if err != nil || !strings.HasPrefix(s.ID, "later") {
			return fmt.Errorf("%s: %w", s.ID, err)
		}
		return nil
	}
	return errors.New("no schedule")
}

func ensureStream(e *env) error {
	_, err := e.app.EnsureStream(testkit.Ctx(e), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, MaxMsgs: 100})
	return err
}

// consumes makes the call of a row: a consumer that handles one message.
func consumes(cfg natty.ConsumerConfig, h natty.Handler) func(e *env) error {
	return func(e *env) error {
		cfg := cfg
		cfg.OnError = e.OnError
		return e.run(func(ctx context.Context) error { return e.app.Process(ctx, cfg, h) }, settled(e))
	}
}

// settled reports whether all messages of the stream are acknowledged or dead.
func settled(e *env) func() bool {
	return func() bool {
		c, err := e.root.JetStream().Consumer(testkit.Ctx(e), "S", "d")
		if err != nil {
			return false
		}
		info := c.CachedInfo()
		return info.NumPending == 0 && info.NumAckPending == 0 && info.Delivered.Stream > 0
	}
}

func accept(context.Context, *nats.Msg) error { return nil }

func refuse(context.Context, *nats.Msg) error { return natty.Permanent(errors.New("no")) }

// toConsume makes a stream with one message, another one for dead letters, and the
// durable of a consumer that has run before if there is one.
func toConsume(before ...natty.ConsumerConfig) func(e *env) {
	return func(e *env) {
		makeStream(e)
		testkit.Ensure(e, e.root, "DEAD", "dead")
		for _, cfg := range before {
			stop := testkit.Process(e, e.root, cfg, accept)
			testkit.Eventually(e, func() bool {
				return len(e.root.Health().Consumers) > 0 && e.root.Health().Consumers[0].State == running(cfg)
			}, "it runs")
			require.NoError(e, stop())
		}
		testkit.Fill(e, e.root, "s.a", 1)
	}
}

func running(cfg natty.ConsumerConfig) natty.ConsumerState {
	if cfg.Exclusive {
		return natty.ConsumerStandby // until there is a message
	}
	return natty.ConsumerRunning
}

var (
	plain     = natty.ConsumerConfig{Durable: "d", Subjects: []string{"s.a"}, AckWait: time.Second}
	inStream  = with(plain, func(cfg *natty.ConsumerConfig) { cfg.Stream = "S" })
	ordered   = with(plain, func(cfg *natty.ConsumerConfig) { cfg.OrderBy = func(*nats.Msg) string { return "" } })
	exclusive = with(plain, func(cfg *natty.ConsumerConfig) { cfg.Exclusive = true })
	lettering = with(plain, func(cfg *natty.ConsumerConfig) { cfg.DeadLetter, cfg.MaxDeliver = "dead", 3 })
	whole     = natty.ConsumerConfig{Durable: "d", Stream: "S", AckWait: time.Second}
)

func with(cfg natty.ConsumerConfig, change func(*natty.ConsumerConfig)) natty.ConsumerConfig {
	change(&cfg)
	return cfg
}

var consuming = []row{
	{
		calls: "`Process`", when: "the durable exists", needs: and(join2(find, consume), trial),
		prepare: toConsume(plain), call: consumes(plain, accept),
	},
	{
		calls: "`Process`", when: "with `Stream`, the durable exists", needs: consume,
		prepare: toConsume(plain), call: consumes(inStream, accept),
	},
	{
		calls: "`Process`", when: "makes or changes the durable, one subject",
		needs:   join2(find, consume, publish("$JS.API.CONSUMER.CREATE.<stream>.<durable>.<subject>")),
		prepare: toConsume(), call: consumes(plain, accept),
	},
	{
		calls: "`Process`", when: "with `Stream`, makes or changes the durable, no subject or several",
		needs:   join2(consume, publish("$JS.API.CONSUMER.CREATE.<stream>.<durable>")),
		prepare: toConsume(), call: consumes(whole, accept),
	},
	{
		calls: "`Process`", when: "recreates a deleted durable, one subject",
		needs: and(join2(find, consume, publish("$JS.API.CONSUMER.CREATE.<stream>.<durable>.<subject>",
			"$JS.API.CONSUMER.RESET.<stream>.<durable>", "$JS.API.CONSUMER.PAUSE.<stream>.<durable>")), need{
			subject: "$JS.API.CONSUMER.NAMES.<stream>", noted: true,
			lost: "natty waits for five seconds, for as long as the server may remove the files of the deleted one",
		}),
		prepare: toRecreate, call: recreates,
	},
	{
		calls: "`Process`", when: "with `OrderBy`, the durable exists", needs: join2(find, consume),
		prepare: toConsume(ordered), call: consumes(ordered, accept),
	},
	{
		calls: "`Process`", when: "with `Exclusive`, the durable exists",
		needs: and(join2(find, consume, publish("$JS.API.CONSUMER.RESET.<stream>.<durable>")), need{
			subject: "$JS.API.CONSUMER.UNPIN.<stream>.<durable>", lost: "when the active instance stops, the next one waits for up to ten seconds",
		}),
		prepare: toConsume(exclusive), call: consumes(exclusive, accept),
	},
	{
		calls: "`Process`", when: "with `DeadLetter`, the durable exists",
		needs: and(join2(find, consume, publish("<dead-letter subject>")), trial, need{
			subject: "$JS.API.STREAM.INFO.<dead-letter stream>", noted: true,
			lost: "a dead-letter stream that would not keep its letters (Interest without a receiver, `NoAck`) is not found out",
		}),
		prepare: toConsume(lettering), call: consumes(lettering, refuse),
	},
	{
		calls: "`ProcessBatch`", when: "the durable exists", needs: join2(find, consume), prepare: toConsume(plain),
		call: func(e *env) error {
			cfg := natty.BatchConfig{ConsumerConfig: plain, MaxWait: time.Millisecond}
			cfg.OnError = e.OnError
			return e.run(func(ctx context.Context) error {
				return e.app.ProcessBatch(ctx, cfg, func(context.Context, []*nats.Msg) error { return nil })
			}, settled(e))
		},
	},
	{
		calls: "`Consume`", when: "the durable exists", needs: publish("$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.<stream>",
			"$JS.API.CONSUMER.INFO.<stream>.<derived durable>", "$JS.API.CONSUMER.MSG.NEXT.<stream>.<derived durable>", "$JS.ACK.<stream>.<derived durable>.>"),
		prepare: toConsume(with(plain, func(cfg *natty.ConsumerConfig) { cfg.Durable = "test_s-a" })),
		call: func(e *env) error {
			var handled atomic.Bool
			errs := make(chan error, 100)
			err := e.run(func(ctx context.Context) error {
				return e.app.Consume(ctx, "s.a", errs, func(*nats.Msg) { handled.Store(true) })
			}, handled.Load)
			return err
		},
	},
	{
		calls: "`DeadLetters`", needs: publish("$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.<dead-letter stream>",
			"$JS.API.STREAM.MSG.GET.<dead-letter stream>"),
		prepare: letter,
		call: func(e *env) error {
			for l, err := range e.app.DeadLetters(testkit.Ctx(e), "dead") {
				if err != nil || l.Durable != "d" {
					return fmt.Errorf("%s: %w", l.Durable, err)
				}
				return nil
			}
			return errors.New("no letter")
		},
	},
	{
		calls: "`Redrive`", needs: and(publish("$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.<dead-letter stream>",
			"$JS.API.STREAM.MSG.GET.<dead-letter stream>", "$JS.API.CONSUMER.INFO.<stream>.<durable>", "$JS.API.STREAM.INFO.<stream>",
			"<subject>", "$JS.API.STREAM.MSG.DELETE.<dead-letter stream>")),
		prepare: letter,
		call: func(e *env) error {
			n, err := e.app.Redrive(testkit.Ctx(e), "dead", nil)
			if err == nil && n != 1 {
				err = errors.New("nothing was redriven")
			}
			return err
		},
	},
}

// toRecreate makes a durable with one message that is acknowledged, and one that is not.
func toRecreate(e *env) {
	toConsume()(e)
	stop := testkit.Process(e, e.root, plain, accept)
	testkit.Eventually(e, settled(e), "it is handled")
	require.NoError(e, stop())
	testkit.Fill(e, e.root, "s.a", 1)
}

// recreates runs a consumer whose durable is deleted under the message that it handles.
func recreates(e *env) error {
	var deleted atomic.Bool
	return consumes(plain, func(ctx context.Context, _ *nats.Msg) error {
		if deleted.Swap(true) {
			return nil
		}
		return e.root.JetStream().DeleteConsumer(ctx, "S", "d")
	})(e)
}

func join2(parts ...[]need) (all []need) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// letter makes a dead letter.
func letter(e *env) {
	toConsume()(e)
	stop := testkit.Process(e, e.root, lettering, refuse)
	testkit.Eventually(e, settled(e), "it is given up")
	require.NoError(e, stop())
}
