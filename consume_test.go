package natty_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestHandlerErrorBringsTheMessageBackAfterTheBackoff(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	report, errs := testkit.OnError()
	type try struct {
		attempt int
		at      time.Time
	}
	tries := make(chan try, 10)
	stop := testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s.>"}, OnError: report, Backoff: natty.Backoff{Min: 100 * time.Millisecond, Max: 200 * time.Millisecond},
	}, func(ctx context.Context, _ *nats.Msg) error {
		d, ok := natty.DeliveryFrom(ctx)
		assert.True(t, ok)
		tries <- try{d.Attempt, time.Now()}
		if d.Attempt < 4 {
			return testkit.ErrHandler
		}
		return nil
	})
	testkit.Fill(t, c, "s.a", 1)
	var last try
	for attempt, pause := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 200 * time.Millisecond} {
		now := testkit.Receive(t, tries)
		assert.Equal(t, attempt+1, now.attempt)
		if attempt > 0 {
			assert.GreaterOrEqual(t, now.at.Sub(last.at), pause)
		}
		last = now
	}
	for range 3 {
		var failed *natty.HandlerError
		err := testkit.Receive(t, errs)
		require.ErrorAs(t, err, &failed)
		require.ErrorIs(t, err, testkit.ErrHandler)
		assert.Equal(t, "S", failed.Delivery.Stream)
		assert.Equal(t, "test_s-all", failed.Delivery.Durable)
		assert.EqualValues(t, 1, failed.Delivery.Sequence)
	}
	require.NoError(t, stop())
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s-all")
	assert.Zero(t, unacked+waiting)
}

func TestPanicIsReportedWithItsStackAndOthersGoOn(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	var ok testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, OnError: report, Backoff: natty.Backoff{Min: time.Millisecond},
	}, func(ctx context.Context, msg *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); string(msg.Data) == "3" && d.Attempt < 3 {
			panic(testkit.ErrHandler)
		}
		ok.Add(msg)
		return nil
	})
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return ok.Distinct() == 10 }, "all are handled in the end")
	err := testkit.Receive(t, errs)
	var failed *natty.HandlerError
	require.ErrorAs(t, err, &failed)
	require.ErrorIs(t, err, testkit.ErrHandler)
	assert.Contains(t, string(failed.Stack), "consume_test.go")
	assert.Contains(t, err.Error(), "panicked")
}

func TestGoexitInAHandlerNeitherLosesTheMessageNorTheWorker(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	var ok testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Backoff: natty.Backoff{Min: time.Millisecond}},
		func(ctx context.Context, msg *nats.Msg) error {
			if d, _ := natty.DeliveryFrom(ctx); d.Attempt < 3 {
				runtime.Goexit()
			}
			ok.Add(msg)
			return nil
		})
	testkit.Fill(t, c, "s", 5)
	testkit.Eventually(t, func() bool { return ok.Distinct() == 5 }, "all are handled in the end")
}

func TestPermanentFailureIsReportedAndNotDeliveredAgain(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	var tries testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report},
		func(_ context.Context, msg *nats.Msg) error {
			tries.Add(msg)
			return fmt.Errorf("order 7: %w", natty.Permanent(testkit.ErrHandler))
		})
	testkit.Fill(t, c, "s", 1)
	var failed *natty.HandlerError
	require.ErrorAs(t, testkit.Receive(t, errs), &failed)
	assert.True(t, failed.Final)
	require.ErrorIs(t, failed, testkit.ErrHandler)
	require.NoError(t, stop())
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
	assert.Zero(t, unacked+waiting)
	assert.Zero(t, tries.Repeats())
}

func TestRetryAfterComesBackWhenItSays(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	tries := make(chan time.Time, 10)
	// What is due at once must not wait for AckWait: that would show that it was taken for a repetition.
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: time.Hour, Backoff: natty.Backoff{Min: time.Hour, Max: time.Hour}},
		func(ctx context.Context, _ *nats.Msg) error {
			tries <- time.Now()
			switch d, _ := natty.DeliveryFrom(ctx); d.Attempt {
			case 1:
				return natty.RetryAfter(300*time.Millisecond, nil)
			case 2:
				return natty.RetryAfter(-1, testkit.ErrHandler) // at once
			}
			return nil
		})
	testkit.Fill(t, c, "s", 1)
	first, second, third := testkit.Receive(t, tries), testkit.Receive(t, tries), testkit.Receive(t, tries)
	assert.GreaterOrEqual(t, second.Sub(first), 300*time.Millisecond)
	assert.Less(t, third.Sub(second), testkit.AtOnce)
}

func TestHandlerThatSettlesTheMessageItselfIsRespected(t *testing.T) {
	t.Parallel()
	for name, concurrency := range map[string]int{"alone": 1, "beside others": 16} { // whose acknowledgements wait for each other
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.ConnectTo(t, nattytest.Server(t).URL())
			testkit.Ensure(t, c, "S", "s")
			var tries testkit.Tally
			stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: concurrency, AckWait: time.Hour, Backoff: natty.Backoff{Min: time.Millisecond}},
				func(_ context.Context, msg *nats.Msg) error {
					n := tries.Add(msg)
					if string(msg.Data) == "0" {
						assert.NoError(t, msg.Ack())
						return testkit.ErrHandler // too late to bring it back
					}
					if n < 3 {
						if err := msg.Nak(); err != nil {
							return err
						}
						if string(msg.Data) == "1" {
							<-time.After(50 * time.Millisecond) // long enough for it to come again meanwhile
						}
					}
					return nil // an ack here would lose the nak
				})
			testkit.Fill(t, c, "s", 3)
			testkit.Eventually(t, func() bool { return tries.Repeats() == 4 }, "the naks bring messages 1 and 2 back, long before AckWait")
			require.NoError(t, stop())
			unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
			assert.Zero(t, unacked+waiting)
			assert.Equal(t, map[string]int{"0": 1, "1": 3, "2": 3}, tries.Counts())
		})
	}
}

// asyncjobs#148: a long job ran twice.
func TestHandlerLongerThanAckWaitRunsOnce(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	var tries testkit.Tally
	handled := make(chan struct{}, 10)
	// Three messages, one worker: the last one waits in the buffer for twice as long as it is worked on.
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: time.Second, MaxPollRecords: 10},
		func(_ context.Context, msg *nats.Msg) error {
			tries.Add(msg)
			<-time.After(3 * time.Second) // the work
			handled <- struct{}{}
			return nil
		})
	testkit.Fill(t, c, "s", 3)
	for range 3 {
		testkit.Receive(t, handled)
	}
	require.NoError(t, stop())
	assert.Equal(t, 3, tries.Distinct())
	assert.Zero(t, tries.Repeats())
}

// nats.go#1929: what was prefetched waited for AckWait after its consumer had gone.
func TestShutdownHandsTheBufferToAnotherInstanceAtOnce(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 101)
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: time.Hour, MaxPollRecords: 200}
	release, full := make(chan struct{}), make(chan struct{})
	var begun atomic.Int32
	stop := testkit.Process(t, c, cfg, func(ctx context.Context, _ *nats.Msg) error {
		// Quick until it is known how quick, so that the buffer fills, then stuck.
		if begun.Add(1) == 1 {
			return nil
		}
		close(full)
		<-release
		return nil
	})
	testkit.Receive(t, full)
	testkit.Eventually(t, func() bool { return testkit.Only(c).Held == 100 }, "one is handled, 99 wait")
	other := testkit.ConnectTo(t, c.Conn().ConnectedUrl())
	var second testkit.Tally
	at := make(chan time.Time, 200)
	testkit.Process(t, other, cfg, func(_ context.Context, msg *nats.Msg) error {
		second.Add(msg)
		at <- time.Now()
		return nil
	})
	testkit.Eventually(t, func() bool {
		return testkit.Only(other).State == natty.ConsumerRunning
	}, "the second instance waits")
	start := time.Now()
	go func() { _ = stop() }()
	for range 99 {
		assert.Less(t, testkit.Receive(t, at).Sub(start), time.Second)
	}
	close(release)
	require.NoError(t, stop())
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	assert.Zero(t, second.Repeats())
}

func TestMessageDeliveredAgainWhileItIsHandledIsNotHandledTwice(t *testing.T) {
	t.Parallel()
	link := nattytest.Proxy(t, nattytest.Server(t).URL())
	c := testkit.ConnectTo(t, link.URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 1)
	begun, release := make(chan struct{}), make(chan struct{})
	var tries testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 4, MaxPollRecords: 100, AckWait: 500 * time.Millisecond},
		func(_ context.Context, msg *nats.Msg) error {
			if tries.Add(msg) == 1 && string(msg.Data) == "0" {
				close(begun)
			}
			<-release
			return nil
		})
	testkit.Receive(t, begun)
	// Our progress reports do not get through for longer than AckWait, and the server delivers again.
	link.Freeze()
	<-time.After(1200 * time.Millisecond)
	link.Thaw()
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("after"))) // arrives behind the second delivery
	testkit.Eventually(t, func() bool { return tries.Distinct() == 2 }, "the next one arrives")
	close(release)
	require.NoError(t, stop())
	assert.Zero(t, tries.Repeats())
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
	assert.Zero(t, unacked+waiting)
}

func TestHandlersThatOutliveDrainTimeoutAreCounted(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 3)
	begun := make(chan struct{}, 3)
	causes := make(chan error, 3)
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 3, DrainTimeout: 50 * time.Millisecond},
		func(ctx context.Context, _ *nats.Msg) error {
			begun <- struct{}{}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return ctx.Err()
		})
	for range 3 {
		testkit.Receive(t, begun)
	}
	err := stop()
	require.ErrorIs(t, err, natty.ErrDrainTimeout)
	assert.Contains(t, err.Error(), "3 handlers")
	for range 3 {
		require.ErrorIs(t, testkit.Receive(t, causes), natty.ErrDrainTimeout)
	}
}

func TestHandlersFinishWithinDrainTimeout(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 1)
	begun, release := make(chan struct{}), make(chan struct{})
	ctxErr := make(chan error, 1)
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}}, func(ctx context.Context, _ *nats.Msg) error {
		close(begun)
		<-release
		ctxErr <- ctx.Err()
		return nil
	})
	testkit.Receive(t, begun)
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerStopping }, "it is stopping")
	close(release)
	require.NoError(t, testkit.Receive(t, stopped))
	require.NoError(t, testkit.Receive(t, ctxErr), "a handler's ctx outlives the consumer's")
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
	assert.Zero(t, unacked+waiting)
}

func TestOnErrorThatBlocksHoldsNothingUp(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	release := make(chan struct{})
	var seen testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Backoff: natty.Backoff{Min: time.Millisecond}, OnError: func(error) { <-release },
	}, func(ctx context.Context, msg *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); d.Attempt == 1 {
			return testkit.ErrHandler
		}
		seen.Add(msg)
		return nil
	})
	testkit.Fill(t, c, "s", 400)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 400 }, "all are handled")
	close(release)
	require.NoError(t, stop())
}

func TestOnErrorThatPanicsIsSurvived(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	var seen testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Backoff: natty.Backoff{Min: time.Millisecond}, OnError: func(err error) { panic(err) },
	}, func(ctx context.Context, msg *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); d.Attempt == 1 {
			return testkit.ErrHandler
		}
		seen.Add(msg)
		return nil
	})
	testkit.Fill(t, c, "s", 5)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 5 }, "all are handled")
	require.NoError(t, stop())
}

func TestConcurrencyIsKeptAndUsed(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 50)
	var now, most atomic.Int32
	all := make(chan struct{}, 50)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 5}, func(context.Context, *nats.Msg) error {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		<-time.After(10 * time.Millisecond) // the work
		now.Add(-1)
		all <- struct{}{}
		return nil
	})
	for range 50 {
		testkit.Receive(t, all)
	}
	assert.EqualValues(t, 5, most.Load())
}

func TestLargeMessagesKeepNoHandlerIdle(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	const n = 30
	for range n {
		require.NoError(t, c.Publish(testkit.Ctx(t), "s", make([]byte, 1000<<10)))
	}
	begun, release := make(chan struct{}, n), make(chan struct{})
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: n}, func(context.Context, *nats.Msg) error {
		begun <- struct{}{}
		<-release
		return nil
	})
	defer close(release)
	for range n {
		testkit.Receive(t, begun)
	}
}

func TestSuspectedMessageIsTriedBesideALongHandler(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Ensure(t, c, "DEAD", "dead")
	begun, release, tried := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var handled testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s.>"}, Durable: "d", Concurrency: 3, MaxDeliver: 1, DeadLetter: "dead",
	}, func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		switch {
		case msg.Subject == "s.long":
			close(begun)
			<-release
		case msg.Subject == "s.again" && d.Attempt <= 2*1+5:
			return msg.Nak()
		case msg.Subject == "s.again":
			close(tried)
			<-release
		default:
			handled.Add(msg)
		}
		return nil
	})
	defer close(release)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.long", nil))
	testkit.Receive(t, begun)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s.again", nil))
	testkit.Receive(t, tried)
	testkit.Fill(t, c, "s.other", 10)
	testkit.Eventually(t, func() bool { return handled.Distinct() == 10 }, "the free handler goes on")
}

func TestServersRequestLimitsAreRespected(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{
		Durable: "d", AckPolicy: jetstream.AckExplicitPolicy,
		MaxRequestBatch: 2, MaxRequestExpires: time.Second, MaxRequestMaxBytes: 4096,
	})
	require.NoError(t, err)
	testkit.Fill(t, c, "s", 20)
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", Concurrency: 10},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Eventually(t, func() bool { return seen.Distinct() == 20 }, "all are handled")
	// Smaller still, while it runs: the server refuses what we ask for, without saying to whom else it would be enough.
	_, err = s.UpdateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{
		Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "s",
		MaxRequestBatch: 1, MaxRequestExpires: time.Second, MaxRequestMaxBytes: 4096,
	})
	require.NoError(t, err)
	for i := 20; i < 40; i++ {
		require.NoError(t, c.Publish(testkit.Ctx(t), "s", fmt.Append(nil, i)))
	}
	testkit.Eventually(t, func() bool { return seen.Distinct() == 40 }, "all are handled with the smaller limit")
}

func TestExistingDurableIsTakenOverAsItIs(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s.>")
	testkit.Fill(t, c, "s.a", 3)
	made := jetstream.ConsumerConfig{
		Durable: "d", Description: "made by hand", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 3 * time.Minute,
		MaxDeliver: 7, MaxAckPending: 77, FilterSubject: "s.a", Metadata: map[string]string{"team": "blue"},
		DeliverPolicy: jetstream.DeliverLastPolicy,
	}
	_, err := s.CreateConsumer(testkit.Ctx(t), made)
	require.NoError(t, err)
	config := func() jetstream.ConsumerConfig {
		cons, err := s.Consumer(testkit.Ctx(t), "d")
		require.NoError(t, err)
		return cons.CachedInfo().Config
	}
	before := config()
	got := make(chan string, 10)
	run := func(cfg natty.ConsumerConfig) {
		cfg.Durable = "d"
		stop := testkit.Process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { got <- string(msg.Data); return nil })
		testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
		require.NoError(t, stop())
	}
	run(natty.ConsumerConfig{Subjects: []string{"s.a"}})
	assert.Equal(t, before, config(), "nothing was asked for, nothing changes")
	run(natty.ConsumerConfig{Subjects: []string{"s.b", "s.c"}, AckWait: time.Minute, ReplaceSubjects: true})
	want := before
	want.AckWait, want.FilterSubject, want.FilterSubjects = time.Minute, "", []string{"s.b", "s.c"}
	assert.Equal(t, want, config(), "only what was asked for changes")
}

func TestDurableThatCannotBeTakenOverIsADriftError(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "none", AckPolicy: jetstream.AckNonePolicy})
	require.NoError(t, err)
	_, err = s.CreatePushConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "push", DeliverSubject: "x", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	for durable, field := range map[string]string{"none": "ack_policy", "push": "deliver_subject"} {
		err := c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"s"}, Durable: durable},
			func(context.Context, *nats.Msg) error { return nil })
		var drift *natty.DriftError
		require.ErrorAs(t, err, &drift, durable)
		assert.Equal(t, durable, drift.Name)
		fields := []string{}
		for _, d := range drift.Differences {
			fields = append(fields, d.Field)
		}
		assert.Contains(t, fields, field)
	}
}

// The advice of a DriftError is to take another name, or to ask for what is there.
func TestDurableThatTheServerCannotWriteIsNoDriftError(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, c, "S", "s")
	_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Join(server.Server().StoreDir(), "$G", "streams", "S", "obs", "d")))
	err = c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", AckWait: time.Minute},
		func(context.Context, *nats.Msg) error { return nil })
	require.ErrorContains(t, err, `natty: consumer "d": `)
	require.ErrorContains(t, err, "no such file")
	var drift *natty.DriftError
	assert.NotErrorAs(t, err, &drift)
}

func TestNewDurableBeginsWhereItIsToldTo(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 3)
	got := make(chan string, 10)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DeliverPolicy: jetstream.DeliverLastPolicy},
		func(_ context.Context, msg *nats.Msg) error { got <- string(msg.Data); return nil })
	assert.Equal(t, "2", testkit.Receive(t, got))
}

func TestAccountsLimitOfUnacknowledgedMessagesIsRespected(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s"}, ConsumerLimits: jetstream.StreamConsumerLimits{MaxAckPending: 100},
	})
	require.NoError(t, err)
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}}, func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 10 }, "all are handled")
}

func TestConsumeAcknowledgesAfterTheCallbackUnlessItSettled(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 3)
	errs := make(chan error) // nobody reads it
	ctx, cancel := context.WithCancel(testkit.Ctx(t))
	done := make(chan error, 1)
	var tries testkit.Tally
	go func() {
		done <- c.Consume(ctx, "s", errs, func(msg *nats.Msg) {
			n := tries.Add(msg)
			switch {
			case string(msg.Data) == "1" && n == 1:
				assert.NoError(t, msg.Nak()) //nolint:testifylint // require ends only the test's own goroutine
			case string(msg.Data) == "2" && n == 1:
				panic("once")
			}
		})
	}()
	testkit.Eventually(t, func() bool { return tries.Distinct() == 3 && tries.Repeats() == 2 }, "the nak and the panic bring theirs back")
	cancel()
	require.NoError(t, testkit.Receive(t, done))
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
	assert.Zero(t, unacked+waiting)
}

func TestConsumePassesErrorsOnAndEndsWithADeadline(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 1)
	errs := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.NoError(t, c.Consume(ctx, "s", errs, func(*nats.Msg) { panic(testkit.ErrHandler) }))
	require.ErrorIs(t, testkit.Receive(t, errs), testkit.ErrHandler)
	require.NoError(t, c.Consume(ctx, "s", nil, func(*nats.Msg) {}), "a ctx that has ended is no error")
}

func TestConsumerThatCannotWorkSaysWhyAtOnce(t *testing.T) {
	t.Parallel()
	url := nattytest.Server(t).URL()
	c := testkit.ConnectTo(t, url)
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Ensure(t, c, "T", "t.>")
	nameless, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: []string{url}}, testkit.Quiet)
	require.NoError(t, err)
	defer func() { assert.NoError(t, nameless.Close(testkit.Ctx(t))) }()
	handler := func(context.Context, *nats.Msg) error { return nil }
	subjects := func(s ...string) natty.ConsumerConfig { return natty.ConsumerConfig{Subjects: s} }
	with := func(f func(*natty.ConsumerConfig)) natty.ConsumerConfig {
		cfg := subjects("s.a")
		f(&cfg)
		return cfg
	}
	for name, tc := range map[string]struct {
		cfg  natty.ConsumerConfig
		want []string
	}{
		"nothing to consume":       {natty.ConsumerConfig{}, []string{"subjects", "nothing to consume", "stream_name"}},
		"a space":                  {subjects("s. a"), []string{`"s. a"`, "space", "dots"}},
		"an empty token":           {subjects("s..a"), []string{`"s..a"`, "empty token"}},
		"> in the middle":          {subjects("s.>.a"), []string{`"s.>.a"`, "before its end"}},
		"no stream":                {subjects("nobody.has"), []string{`"nobody.has"`, "no stream holds", "EnsureStream"}},
		"no such stream":           {natty.ConsumerConfig{Stream: "NONE", Durable: "d"}, []string{`"NONE"`, "EnsureStream"}},
		"two streams":              {natty.ConsumerConfig{Subjects: []string{">"}, Durable: "d"}, []string{`">"`, "S", "T", "stream_name"}},
		"subjects of two streams":  {natty.ConsumerConfig{Subjects: []string{"s.a", "t.a"}, Durable: "d"}, []string{`"t.a"`, "one consumer for each"}},
		"several without durable":  {subjects("s.a", "s.b"), []string{"Durable", "several subjects"}},
		"overlapping filters":      {natty.ConsumerConfig{Subjects: []string{"s.a", "s.*"}, Durable: "d"}, []string{`"s.*"`, `overlaps with "s.a"`}},
		"durable with a dot":       {with(func(c *natty.ConsumerConfig) { c.Durable = "a.b" }), []string{`"a.b"`, "consumer_group", "letters"}},
		"durable too long":         {with(func(c *natty.ConsumerConfig) { c.Durable = strings.Repeat("x", 300) }), []string{"255"}},
		"negative concurrency":     {with(func(c *natty.ConsumerConfig) { c.Concurrency = -1 }), []string{"concurrency", "-1", "negative"}},
		"negative ack wait":        {with(func(c *natty.ConsumerConfig) { c.AckWait = -time.Second }), []string{"ack_wait", "-1s", "negative"}},
		"negative poll":            {with(func(c *natty.ConsumerConfig) { c.MaxPollRecords = -5 }), []string{"max_poll_records", "-5"}},
		"max below min":            {with(func(c *natty.ConsumerConfig) { c.Backoff = natty.Backoff{Min: 2, Max: 1} }), []string{"backoff_max"}},
		"heartbeat below server's": {with(func(c *natty.ConsumerConfig) { c.Heartbeat = 1 }), []string{"heartbeat_interval", "100ms"}},
		"policy with a value":      {with(func(c *natty.ConsumerConfig) { c.DeliverPolicy = jetstream.DeliverByStartTimePolicy }), []string{"deliver_policy", "by_start_time"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.Process(testkit.Ctx(t), tc.cfg, handler)
			require.Error(t, err)
			for _, want := range tc.want {
				assert.Contains(t, err.Error(), want)
			}
		})
	}
	var bad *natty.ConfigError
	require.ErrorAs(t, nameless.Process(testkit.Ctx(t), subjects("s.a"), handler), &bad)
	assert.Contains(t, bad.Error(), "Config.Name")
	require.ErrorAs(t, c.Process(testkit.Ctx(t), subjects("s.a"), nil), &bad)
	require.ErrorAs(t, c.Consume(testkit.Ctx(t), "s.a", nil, nil), &bad)
	require.ErrorIs(t, c.Process(testkit.Ctx(t), subjects("nobody.has"), handler), natty.ErrNoStream)
}

func TestConsumerWhoseConnectionWasClosedEndsAtOnce(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	done := make(chan error, 1)
	go func() {
		done <- c.Process(context.Background(), natty.ConsumerConfig{Subjects: []string{"s"}}, func(context.Context, *nats.Msg) error { return nil })
	}()
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
	start := time.Now()
	c.Conn().Close()
	require.ErrorIs(t, testkit.Receive(t, done), natty.ErrClosed)
	assert.Less(t, time.Since(start), testkit.AtOnce)
}

// The server says "filtered consumer not unique", and not what is in the way (nats-server#4957, nats.go#712).
func TestOverlapOnAWorkQueueNamesTheOtherConsumer(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "W", Subjects: []string{"w.>"}, Retention: jetstream.WorkQueuePolicy})
	require.NoError(t, err)
	for durable, filter := range map[string]string{"billing": "w.bill.>", "mail": "w.mail.*.de"} {
		_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: durable, FilterSubject: filter, AckPolicy: jetstream.AckExplicitPolicy})
		require.NoError(t, err)
	}
	for _, test := range []struct {
		subjects []string
		others   []string
	}{
		{[]string{"w.>"}, []string{`"billing" (w.bill.>)`, `"mail" (w.mail.*.de)`}},
		{[]string{"w.*.new.*"}, []string{`"billing"`, `"mail"`}},
		{[]string{"w.other", "w.mail.a.de"}, []string{`"mail"`}},
		{nil, []string{`"billing"`, `"mail"`}},
	} {
		t.Run(fmt.Sprint(test.subjects), func(t *testing.T) {
			err := c.Process(testkit.Ctx(t), natty.ConsumerConfig{Stream: "W", Subjects: test.subjects, Durable: "late"},
				func(context.Context, *nats.Msg) error { return nil })
			var config *natty.ConfigError
			require.ErrorAs(t, err, &config)
			for _, other := range test.others {
				assert.Contains(t, config.Reason, other)
			}
			assert.Equal(t, len(test.others), strings.Count(config.Reason, `consumer "`))
		})
	}
	// And when an existing durable is to receive more.
	_, err = s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "grows", FilterSubject: "w.grows", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	err = c.Process(testkit.Ctx(t), natty.ConsumerConfig{Stream: "W", Subjects: []string{"w.grows", "w.bill.x"}, Durable: "grows"},
		func(context.Context, *nats.Msg) error { return nil })
	require.ErrorContains(t, err, `"billing"`)
}

func TestVerdictOnAMessageOfADeletedStreamDoesNotSettleANewOne(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, direct := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, direct, "S", "s")
	report, errs := testkit.OnError()
	begun, release := make(chan struct{}), make(chan struct{})
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report, Concurrency: 2, Heartbeat: 200 * time.Millisecond},
		func(_ context.Context, msg *nats.Msg) error {
			seen.Add(msg)
			if string(msg.Data) == "old" {
				close(begun)
				<-release
			}
			return nil
		})
	require.NoError(t, direct.Publish(testkit.Ctx(t), "s", []byte("old")))
	testkit.Receive(t, begun)
	require.NoError(t, direct.JetStream().DeleteStream(testkit.Ctx(t), "S"))
	<-time.After(50 * time.Millisecond) // see TestStreamThatIsDeletedAndMadeAgainIsBegunAnew
	testkit.Ensure(t, direct, "S", "s")
	require.NoError(t, direct.Publish(testkit.Ctx(t), "s", []byte("new 1")))
	require.NoError(t, direct.Publish(testkit.Ctx(t), "s", []byte("new 2")))
	for err := testkit.Receive(t, errs); !errors.Is(err, jetstream.ErrStreamNotFound) && !errors.Is(err, jetstream.ErrConsumerNotFound); {
		err = testkit.Receive(t, errs)
	}
	testkit.Eventually(t, func() bool { return seen.Distinct() == 3 }, "the new ones are handled beside the old one")
	close(release)
	testkit.Eventually(t, testkit.Settled(direct, "S", "test_s"), "and acknowledged")
}

func TestServersOwnDeliveryLimitIsReportedOrTakenOver(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: 2})
	require.NoError(t, err)
	report, errs := testkit.OnError()
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", OnError: report}, func(context.Context, *nats.Msg) error { return nil })
	require.ErrorContains(t, testkit.Receive(t, errs), "max_deliver of 2")
	require.NoError(t, stop())
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", MaxDeliver: 3, DeadLetter: "dead", Backoff: natty.Backoff{Min: time.Millisecond}},
		func(context.Context, *nats.Msg) error { return testkit.ErrHandler })
	testkit.Fill(t, c, "s", 1)
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "the third failure is final")
}

func TestBackoffOfADurableThatOverridesAckWaitIsTold(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{
		Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, BackOff: []time.Duration{time.Second, time.Minute},
	})
	require.NoError(t, err)
	report, errs := testkit.OnError()
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", OnError: report}
	for wait, told := range map[time.Duration]bool{0: false, time.Second: false, 30 * time.Second: true} {
		cfg.AckWait = wait
		stop := testkit.Process(t, c, cfg, func(context.Context, *nats.Msg) error { return nil })
		testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
		if told {
			require.ErrorContains(t, testkit.Receive(t, errs), "[1s 1m0s] overrides AckWait (30s)")
		}
		require.NoError(t, stop())
		assert.Empty(t, errs, wait)
	}
}

func TestHandlerMayChangeTheMessagesFields(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "T", "t", "dead")
	var tries testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, OrderBy: testkit.KeyOf, MaxDeliver: 2, DeadLetter: "dead", Backoff: natty.Backoff{Min: time.Millisecond},
	}, func(ctx context.Context, msg *nats.Msg) error {
		tries.Add(msg)
		if string(msg.Data) == "forward" {
			msg.Subject, msg.Reply = "t", ""
			_, err := c.PublishMsg(ctx, msg)
			return err
		}
		*msg = nats.Msg{}
		return testkit.ErrHandler
	})
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("forward")))
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("hello")))
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "the second is given up")
	l := testkit.Letters(t, c, "dead")[0]
	assert.Equal(t, "s", l.Subject)
	assert.Equal(t, "hello", string(l.Data))
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are settled")
	assert.Equal(t, 1, tries.Counts()["forward"])
}

// The race detector is what fails here.
func TestHandlersGoroutineMayKeepTheMessageAndItsCtx(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]natty.ConsumerConfig{
		"shared":    {},
		"order":     {OrderBy: testkit.KeyOf},
		"acks wait": {Concurrency: 64},
		"exclusive": {Exclusive: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.ConnectTo(t, nattytest.Server(t).URL())
			testkit.Ensure(t, c, "S", "s")
			testkit.Ensure(t, c, "D", "dead")
			cfg.Subjects, cfg.Backoff = []string{"s"}, natty.Backoff{Min: time.Millisecond}
			cfg.MaxDeliver, cfg.DeadLetter = 2, "dead"
			attempts := make(chan int, 100)
			testkit.Process(t, c, cfg, func(ctx context.Context, msg *nats.Msg) error {
				go func() {
					<-time.After(5 * time.Millisecond) // natty settles the message meanwhile
					kept := *msg
					if d, _ := natty.DeliveryFrom(ctx); kept.Subject == "s" && len(kept.Reply) > 0 {
						attempts <- d.Attempt
					}
				}()
				if string(msg.Data) == "0" {
					return testkit.ErrHandler
				}
				return nil
			})
			testkit.Fill(t, c, "s", 5)
			sum := 0
			for range 6 {
				sum += testkit.Receive(t, attempts)
			}
			assert.Equal(t, 5+2, sum, "each goroutine sees its own attempt")
		})
	}
}

func TestOrderByMayPanicOrEndItsGoroutine(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	var seen testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, OnError: report, OrderBy: func(msg *nats.Msg) string {
			switch string(msg.Data) {
			case "1":
				panic("no key")
			case "3", "4":
				runtime.Goexit()
			}
			return "key"
		},
	}, func(_ context.Context, msg *nats.Msg) error {
		seen.Add(msg)
		return nil
	})
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 10 }, "all are handled at once")
	require.ErrorContains(t, testkit.Receive(t, errs), "OrderBy panicked on \"s\": no key")
	require.ErrorContains(t, testkit.Receive(t, errs), "runtime.Goexit")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and settled")
	require.NoError(t, stop())
	assert.Zero(t, seen.Repeats())
}

func TestClosedErrorChannelDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 1)
	errs := make(chan error)
	close(errs)
	ctx, cancel := context.WithCancel(testkit.Ctx(t))
	defer cancel()
	done := make(chan error, 1)
	var tries testkit.Tally
	go func() {
		done <- c.Consume(ctx, "s", errs, func(msg *nats.Msg) {
			if tries.Add(msg) == 1 {
				panic("once")
			}
		})
	}()
	testkit.Eventually(t, func() bool { return tries.Repeats() == 1 }, "it comes again")
	cancel()
	require.NoError(t, testkit.Receive(t, done))
}

// extremes sets each number and duration of a struct, one after the other, to one,
// negative and its greatest value, and calls try with the field's name and the value.
func extremes(settings any, try func(field string, value int64)) {
	v := reflect.ValueOf(settings).Elem()
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		switch f.Kind() {
		case reflect.Struct:
			extremes(f.Addr().Interface(), func(field string, value int64) { try(name+"."+field, value) })
		case reflect.Int, reflect.Int64:
			was := f.Int()
			for _, value := range []int64{1, -1, math.MinInt64, math.MaxInt64 - 1, math.MaxInt64} {
				f.SetInt(value)
				try(name, value)
			}
			f.SetInt(was)
		default:
		}
	}
}

func TestConsumersNumbersAreRefusedOrWorkWhateverTheyAre(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "D", "dead")
	testkit.Fill(t, c, "s", 2)
	h := func(ctx context.Context, tries *testkit.Tally, msg *nats.Msg) error {
		if tries.Add(msg); string(msg.Data) == "0" {
			if d, _ := natty.DeliveryFrom(ctx); !d.Last && d.Attempt == 1 {
				return natty.RetryAfter(time.Millisecond, testkit.ErrHandler)
			}
		}
		return nil
	}
	check := func(name string, value int64, process func(context.Context, *testkit.Tally) error) {
		t.Run(fmt.Sprint(name, value), func(t *testing.T) {
			t.Parallel()
			var tries testkit.Tally
			ctx, cancel := context.WithCancel(testkit.Ctx(t))
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- process(ctx, &tries) }()
			testkit.Eventually(t, func() bool {
				return len(done) > 0 || tries.Distinct() == 2 && tries.Repeats() > 0 || value == 1 && tries.Distinct() == 2
			}, "refused, or handled")
			cancel()
			if err := testkit.Receive(t, done); err != nil {
				var bad *natty.ConfigError
				require.ErrorAs(t, err, &bad)
				assert.NotEmpty(t, bad.Field)
			} else {
				assert.Positive(t, value, "a negative one is refused")
			}
			assert.LessOrEqual(t, tries.Repeats(), 2, "nothing runs in a loop")
		})
	}
	n := 0
	next := func() string { n++; return fmt.Sprint("d", n) }
	base := natty.ConsumerConfig{Subjects: []string{"s"}, DeadLetter: "dead"}
	cfg := base
	extremes(&cfg, func(field string, value int64) {
		cfg := cfg
		cfg.Durable = next()
		if field == "DeliverPolicy" && value == int64(jetstream.DeliverLastPolicy) {
			return // begins with the last message
		}
		check(field, value, func(ctx context.Context, tries *testkit.Tally) error {
			return c.Process(ctx, cfg, func(ctx context.Context, msg *nats.Msg) error { return h(ctx, tries, msg) })
		})
	})
	batch := natty.BatchConfig{}
	extremes(&batch, func(field string, value int64) {
		if strings.Contains(field, ".") {
			return
		}
		cfg := batch
		cfg.ConsumerConfig, cfg.Durable = base, next()
		if field == "Size" {
			cfg.MaxWait = 10 * time.Millisecond
		} else {
			cfg.Size = 1
		}
		check(field, value, func(ctx context.Context, tries *testkit.Tally) error {
			return c.ProcessBatch(ctx, cfg, func(_ context.Context, msgs []*nats.Msg) error {
				for _, m := range msgs {
					tries.Add(m)
				}
				if tries.Repeats() == 0 && string(msgs[0].Data) == "0" {
					return natty.RetryAfter(time.Millisecond, testkit.ErrHandler)
				}
				return nil
			})
		})
	})
}

func TestPauseBeyondAllTimeIsNoLoop(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 3)
	var tries testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Backoff: natty.Backoff{Min: math.MaxInt64},
	}, func(_ context.Context, msg *nats.Msg) error {
		switch tries.Add(msg); string(msg.Data) {
		case "0":
			return testkit.ErrHandler
		case "1":
			return natty.RetryAfter(math.MaxInt64, testkit.ErrHandler)
		}
		return nil
	})
	testkit.Eventually(t, func() bool { return tries.Distinct() == 3 }, "all have run")
	unacked, _ := testkit.AckPending(t, c, "S", "test_s") // the verdicts are at the server
	assert.Equal(t, 2, unacked)
	testkit.Fill(t, c, "s", 1)
	testkit.Eventually(t, func() bool { return tries.Repeats() >= 1 }, "so that a loop would be seen")
	assert.Equal(t, 1, tries.Counts()["1"])
}

func TestSettingsOutOfReasonAreRefused(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	for i, cfg := range []natty.ConsumerConfig{
		{Subjects: []string{"s"}, AckWait: 5 * time.Millisecond},
		{Subjects: []string{"s"}, Concurrency: 1_000_000},
	} {
		var bad *natty.ConfigError
		require.ErrorAs(t, c.Process(testkit.Ctx(t), cfg, func(context.Context, *nats.Msg) error { return nil }), &bad, fmt.Sprint(i))
	}
}

// denied starts a server whose user "app" is denied what deny has, and has a stream of one message.
func denied(t *testing.T, deny server.Permissions) (c, root *natty.Client, permit func()) {
	t.Helper()
	users := func(p *server.Permissions) []*server.User {
		return []*server.User{{Username: "root", Password: "secret"}, {Username: "app", Password: "secret", Permissions: p}}
	}
	var later server.Options
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Users = users(&deny)
		later = *o
	}))
	root = testkit.Login(t, node.URL(), "root")
	testkit.Ensure(t, root, "S", "s.>")
	testkit.Fill(t, root, "s.a", 1)
	return testkit.Login(t, node.URL(), "app"), root, func() {
		later.Users = users(nil)
		require.NoError(t, node.Server().ReloadOptions(&later))
	}
}

func TestConsumerNamesWhatTheServerRefusesUntilItIsPermitted(t *testing.T) {
	t.Parallel()
	deny := func(s string) *server.SubjectPermission { return &server.SubjectPermission{Deny: []string{s}} }
	for _, tt := range []struct {
		name      string
		deny      server.Permissions
		advice    string
		exclusive bool
	}{
		{"inbox", server.Permissions{Subscribe: deny("_INBOX.>")}, `"_INBOX.>"`, false},
		{"pull", server.Permissions{Publish: deny("$JS.API.CONSUMER.MSG.NEXT.>")}, `"$JS.API.CONSUMER.MSG.NEXT.S.d"`, false},
		{"exclusive pull", server.Permissions{Publish: deny("$JS.API.CONSUMER.MSG.NEXT.>")}, `"$JS.API.CONSUMER.MSG.NEXT.S.d"`, true},
		{"ack", server.Permissions{Publish: deny("$JS.ACK.>")}, `"$JS.ACK.S.d.>"`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, root, permit := denied(t, tt.deny)
			report, errs := testkit.OnError()
			var handled atomic.Int64
			testkit.Process(t, c, natty.ConsumerConfig{
				Subjects: []string{"s.>"}, Stream: "S", Durable: "d", Exclusive: tt.exclusive,
				AckWait: 500 * time.Millisecond, OnError: report,
			}, func(context.Context, *nats.Msg) error {
				handled.Add(1)
				return nil
			})
			err := testkit.Receive(t, errs)
			require.ErrorIs(t, err, nats.ErrPermissionViolation)
			require.ErrorContains(t, err, tt.advice)
			require.ErrorContains(t, err, "allow this user to")
			assert.Contains(t, testkit.Only(c).LastError, tt.advice)
			assert.Contains(t, c.Health().LastError, "Permissions Violation")
			if tt.name != "inbox" { // there it still starts
				testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).Warning, tt.advice) }, "a warning")
			}
			if tt.name == "ack" {
				testkit.Eventually(t, func() bool { return handled.Load() > 3 }, "it comes again and again")
			}
			permit()
			testkit.Eventually(t, testkit.Settled(root, "S", "d"), "settled")
			testkit.Eventually(t, func() bool { return testkit.Only(c).Warning == "" }, "the trouble is over")
			assert.Empty(t, errs, "one trouble, one report")
		})
	}
}

func TestDeletedDurableThatMayNotBeMadeAgainEndsItsConsumer(t *testing.T) {
	t.Parallel()
	c, root, _ := denied(t, server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.CREATE.>"}}})
	s, err := root.JetStream().Stream(testkit.Ctx(t), "S")
	require.NoError(t, err)
	_, err = s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		ended <- c.Process(testkit.Ctx(t), natty.ConsumerConfig{Stream: "S", Durable: "d"},
			func(context.Context, *nats.Msg) error { return nil })
	}()
	testkit.Eventually(t, testkit.Settled(root, "S", "d"), "it works")
	require.NoError(t, s.DeleteConsumer(testkit.Ctx(t), "d"))
	err = testkit.Receive(t, ended)
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorContains(t, err, `"$JS.API.CONSUMER.CREATE.S.d"`)
}

func TestConsumerThatMayNotMakeItsDurableEndsWithTheNameOfTheRequest(t *testing.T) {
	t.Parallel()
	deny := &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.CREATE.>"}}
	c, _, _ := denied(t, server.Permissions{Publish: deny})
	err := c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"s.>"}, Stream: "S", Durable: "d"},
		func(context.Context, *nats.Msg) error { return nil })
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorContains(t, err, `"$JS.API.CONSUMER.CREATE.S.d`)
}

func TestExclusiveConsumerNamesTheResetThatTheServerRefuses(t *testing.T) {
	t.Parallel()
	deny := &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.RESET.>"}}
	c, root, permit := denied(t, server.Permissions{Publish: deny})
	report, errs := testkit.OnError()
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Stream: "S", Durable: "d", Exclusive: true, OnError: report},
		func(context.Context, *nats.Msg) error { return nil })
	err := testkit.Receive(t, errs)
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorContains(t, err, `"$JS.API.CONSUMER.RESET.S.d"`)
	permit()
	testkit.Eventually(t, testkit.Settled(root, "S", "d"), "settled")
	assert.Empty(t, errs, "one trouble, one report")
}

func TestAcknowledgementsThatGoNowhereAreReportedOnce(t *testing.T) {
	t.Parallel()
	for name, exclusive := range map[string]bool{"shared": false, "exclusive": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
				owner, guest := server.NewAccount("OWNER"), server.NewAccount("GUEST")
				assert.NoError(t, owner.AddServiceExportWithResponse("$JS.API.>", server.Streamed, nil))
				assert.NoError(t, guest.AddServiceImport(owner, "JS.owner.API.>", "$JS.API.>"))
				o.Accounts = []*server.Account{owner, guest}
				o.Users = []*server.User{
					{Username: "root", Password: "secret", Account: owner}, {Username: "app", Password: "secret", Account: guest},
				}
			}))
			owner, err := node.Server().LookupAccount("OWNER")
			require.NoError(t, err)
			require.NoError(t, owner.EnableJetStream(nil, nil))
			root := testkit.Login(t, node.URL(), "root")
			testkit.Ensure(t, root, "S", "s.>")
			testkit.Fill(t, root, "s.a", 3)
			c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, User: "app", Password: "secret", APIPrefix: "JS.owner.API"})
			report, errs := testkit.OnError()
			begin := time.Now()
			const wait = 500 * time.Millisecond
			testkit.Process(t, c, natty.ConsumerConfig{
				Stream: "S", Durable: "d", Exclusive: exclusive, AckWait: wait, OnError: report,
			}, func(context.Context, *nats.Msg) error { return nil })
			err = testkit.Receive(t, errs)
			assert.Less(t, time.Since(begin), 2*wait+testkit.AtOnce)
			require.ErrorContains(t, err, "acknowledgements have no effect")
			require.ErrorContains(t, err, `"$JS.ACK.S.d.>"`)
			testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).Warning, "no effect") }, "Health says so, too")
			require.Never(t, func() bool { return len(errs) > 0 }, 3*wait, wait/5, "one trouble, one report")
		})
	}
}

func TestAStopKeepsThePauseOfAFailedMessage(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	cfg := natty.ConsumerConfig{
		Subjects: []string{"s"}, AckWait: 2 * testkit.Patience, Backoff: natty.Backoff{Min: time.Second, Max: time.Second},
	}
	failed, again := make(chan struct{}, 1), make(chan struct{}, 1)
	stop := testkit.Process(t, c, cfg, func(context.Context, *nats.Msg) error { failed <- struct{}{}; return errors.New("not now") })
	testkit.Fill(t, c, "s", 1)
	testkit.Receive(t, failed)
	require.NoError(t, stop())
	testkit.Process(t, c, cfg, func(context.Context, *nats.Msg) error { again <- struct{}{}; return nil })
	testkit.Receive(t, again) // after a second, and not after AckWait
}
