package natty_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

var errHandler = errors.New("handler says no")

// onError collects what a consumer reports.
func onError() (func(error), chan error) {
	ch := make(chan error, 10_000)
	return func(err error) { ch <- err }, ch
}

// only returns the health of the one consumer that runs; a zero one while there is none.
func only(c *natty.Client) natty.ConsumerHealth {
	if h := c.Health().Consumers; len(h) == 1 {
		return h[0]
	}
	return natty.ConsumerHealth{}
}

// ackPending returns how many messages the server waits for an answer to, and how many it has not delivered.
func ackPending(t testing.TB, c *natty.Client, stream, durable string) (unacked, waiting int) {
	t.Helper()
	cons, err := c.JetStream().Consumer(testCtx(t), stream, durable)
	require.NoError(t, err)
	info, err := cons.Info(testCtx(t))
	require.NoError(t, err)
	return info.NumAckPending, int(info.NumPending)
}

// settled returns a condition: every message of a durable is. It is for messages that were seen: the server may count
// new ones a moment after it has acknowledged them.
func settled(c *natty.Client, stream, durable string) func() bool {
	return func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // a request may be lost
		defer cancel()
		cons, err := c.JetStream().Consumer(ctx, stream, durable)
		if err != nil {
			return false
		}
		info := cons.CachedInfo()
		return info.NumAckPending == 0 && info.NumPending == 0
	}
}

func TestHandlerErrorBringsTheMessageBackAfterTheBackoff(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s.>")
	report, errs := onError()
	type try struct {
		attempt int
		at      time.Time
	}
	tries := make(chan try, 10)
	stop := process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s.>"}, OnError: report, Backoff: natty.Backoff{Min: 100 * time.Millisecond, Max: 200 * time.Millisecond},
	}, func(ctx context.Context, _ *nats.Msg) error {
		d, ok := natty.DeliveryFrom(ctx)
		assert.True(t, ok)
		tries <- try{d.Attempt, time.Now()}
		if d.Attempt < 4 {
			return errHandler
		}
		return nil
	})
	fill(t, c, "s.a", 1)
	var last try
	for attempt, pause := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 200 * time.Millisecond} {
		now := receive(t, tries)
		assert.Equal(t, attempt+1, now.attempt)
		if attempt > 0 {
			assert.GreaterOrEqual(t, now.at.Sub(last.at), pause)
		}
		last = now
	}
	for range 3 {
		var failed *natty.HandlerError
		err := receive(t, errs)
		require.ErrorAs(t, err, &failed)
		require.ErrorIs(t, err, errHandler)
		assert.Equal(t, "S", failed.Delivery.Stream)
		assert.Equal(t, "test_s-all", failed.Delivery.Durable)
		assert.EqualValues(t, 1, failed.Delivery.Sequence)
	}
	require.NoError(t, stop())
	unacked, waiting := ackPending(t, c, "S", "test_s-all")
	assert.Zero(t, unacked+waiting)
}

func TestPanicIsReportedWithItsStackAndOthersGoOn(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	report, errs := onError()
	var ok tally
	process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, OnError: report, Backoff: natty.Backoff{Min: time.Millisecond},
	}, func(ctx context.Context, msg *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); string(msg.Data) == "3" && d.Attempt < 3 {
			panic(errHandler)
		}
		ok.add(msg)
		return nil
	})
	fill(t, c, "s", 10)
	eventually(t, func() bool { return ok.distinct() == 10 }, "all are handled in the end")
	err := receive(t, errs)
	var failed *natty.HandlerError
	require.ErrorAs(t, err, &failed)
	require.ErrorIs(t, err, errHandler)
	assert.Contains(t, string(failed.Stack), "consume_test.go")
	assert.Contains(t, err.Error(), "panicked")
}

func TestGoexitInAHandlerNeitherLosesTheMessageNorTheWorker(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	var ok tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Backoff: natty.Backoff{Min: time.Millisecond}},
		func(ctx context.Context, msg *nats.Msg) error {
			if d, _ := natty.DeliveryFrom(ctx); d.Attempt < 3 {
				runtime.Goexit()
			}
			ok.add(msg)
			return nil
		})
	fill(t, c, "s", 5)
	eventually(t, func() bool { return ok.distinct() == 5 }, "all are handled in the end")
}

func TestPermanentFailureIsReportedAndNotDeliveredAgain(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	report, errs := onError()
	var tries tally
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report},
		func(_ context.Context, msg *nats.Msg) error {
			tries.add(msg)
			return fmt.Errorf("order 7: %w", natty.Permanent(errHandler))
		})
	fill(t, c, "s", 1)
	var failed *natty.HandlerError
	require.ErrorAs(t, receive(t, errs), &failed)
	assert.True(t, failed.Final)
	require.ErrorIs(t, failed, errHandler)
	require.NoError(t, stop())
	unacked, waiting := ackPending(t, c, "S", "test_s")
	assert.Zero(t, unacked+waiting)
	assert.Zero(t, tries.repeats())
}

func TestRetryAfterComesBackWhenItSays(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	tries := make(chan time.Time, 10)
	// What is due at once must not wait for AckWait: that would show that it was taken for a repetition.
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: time.Hour, Backoff: natty.Backoff{Min: time.Hour, Max: time.Hour}},
		func(ctx context.Context, _ *nats.Msg) error {
			tries <- time.Now()
			switch d, _ := natty.DeliveryFrom(ctx); d.Attempt {
			case 1:
				return natty.RetryAfter(300*time.Millisecond, nil)
			case 2:
				return natty.RetryAfter(-1, errHandler) // at once
			}
			return nil
		})
	fill(t, c, "s", 1)
	first, second, third := receive(t, tries), receive(t, tries), receive(t, tries)
	assert.GreaterOrEqual(t, second.Sub(first), 300*time.Millisecond)
	assert.Less(t, third.Sub(second), atOnce)
}

func TestHandlerThatSettlesTheMessageItselfIsRespected(t *testing.T) {
	t.Parallel()
	for name, concurrency := range map[string]int{"alone": 1, "beside others": 16} { // whose acknowledgements wait for each other
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connectTo(t, nattytest.Server(t).URL())
			ensure(t, c, "S", "s")
			var tries tally
			stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: concurrency, AckWait: time.Hour, Backoff: natty.Backoff{Min: time.Millisecond}},
				func(_ context.Context, msg *nats.Msg) error {
					n := tries.add(msg)
					if string(msg.Data) == "0" {
						assert.NoError(t, msg.Ack())
						return errHandler // too late to bring it back
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
			fill(t, c, "s", 3)
			eventually(t, func() bool { return tries.repeats() == 4 }, "the naks bring messages 1 and 2 back, long before AckWait")
			require.NoError(t, stop())
			unacked, waiting := ackPending(t, c, "S", "test_s")
			assert.Zero(t, unacked+waiting)
			assert.Equal(t, map[string]int{"0": 1, "1": 3, "2": 3}, tries.n)
		})
	}
}

// asyncjobs#148: a long job ran twice.
func TestHandlerLongerThanAckWaitRunsOnce(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	var tries tally
	handled := make(chan struct{}, 10)
	// Three messages, one worker: the last one waits in the buffer for twice as long as it is worked on.
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: time.Second, MaxPollRecords: 10},
		func(_ context.Context, msg *nats.Msg) error {
			tries.add(msg)
			<-time.After(3 * time.Second) // the work
			handled <- struct{}{}
			return nil
		})
	fill(t, c, "s", 3)
	for range 3 {
		receive(t, handled)
	}
	require.NoError(t, stop())
	assert.Equal(t, 3, tries.distinct())
	assert.Zero(t, tries.repeats())
}

// nats.go#1929: what was prefetched waited for AckWait after its consumer had gone.
func TestShutdownHandsTheBufferToAnotherInstanceAtOnce(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 101)
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: time.Hour, MaxPollRecords: 200}
	release, full := make(chan struct{}), make(chan struct{})
	var begun atomic.Int32
	stop := process(t, c, cfg, func(ctx context.Context, _ *nats.Msg) error {
		// Quick until it is known how quick, so that the buffer fills, then stuck.
		if begun.Add(1) == 1 {
			return nil
		}
		close(full)
		<-release
		return nil
	})
	receive(t, full)
	eventually(t, func() bool { return only(c).Held == 100 }, "one is handled, 99 wait")
	other := connectTo(t, c.Conn().ConnectedUrl())
	var second tally
	at := make(chan time.Time, 200)
	process(t, other, cfg, func(_ context.Context, msg *nats.Msg) error {
		second.add(msg)
		at <- time.Now()
		return nil
	})
	eventually(t, func() bool {
		return only(other).State == natty.ConsumerRunning
	}, "the second instance waits")
	start := time.Now()
	go func() { _ = stop() }()
	for range 99 {
		assert.Less(t, receive(t, at).Sub(start), time.Second)
	}
	close(release)
	require.NoError(t, stop())
	eventually(t, settled(c, "S", "test_s"), "all are acknowledged")
	assert.Zero(t, second.repeats())
}

func TestStoppingAndStartingTenTimesUnderLoadLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	const n = 5000
	published := make(chan error, 1)
	go func() {
		for i := range n {
			if err := c.Publish(t.Context(), "s", fmt.Append(nil, i)); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	var seen tally
	run := func(until int) {
		stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 8, AckWait: time.Hour},
			func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
		eventually(t, func() bool { return seen.distinct() >= until }, "%d are handled", until)
		require.NoError(t, stop())
	}
	for i := range 10 {
		run((i + 1) * n / 11)
	}
	run(n)
	require.NoError(t, receive(t, published))
	assert.Zero(t, seen.repeats(), "with AckWait an hour, only a lost acknowledgement could repeat one")
	unacked, waiting := ackPending(t, c, "S", "test_s") // and the durable is still there
	assert.Zero(t, unacked+waiting)
}

func TestServerRestartsDoNotEndConsumingAndPublishing(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := connectTo(t, server.URL())
	ensure(t, c, "S", "s")
	var seen tally
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 4},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	ctx, cancel := context.WithCancel(testCtx(t))
	defer cancel()
	count := make(chan int, 1)
	go func() {
		i := 0
		for ; ctx.Err() == nil; i++ {
			if c.Publish(testCtx(t), "s", fmt.Append(nil, i)) != nil {
				break
			}
		}
		count <- i
	}()
	for range 3 {
		before := seen.distinct()
		eventually(t, func() bool { return seen.distinct() > before+20 }, "messages flow")
		require.NoError(t, server.Restart())
	}
	before := seen.distinct()
	eventually(t, func() bool { return seen.distinct() > before+20 }, "messages flow again")
	cancel()
	n := receive(t, count)
	eventually(t, func() bool { return seen.distinct() == n }, "every published message is handled")
	require.NoError(t, stop())
	assert.GreaterOrEqual(t, c.Health().Reconnects, 3)
}

func TestLosingTheConsumersLeaderDoesNotEndConsuming(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := connect(t, natty.Config{Servers: cluster.URLs()})
	_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
	require.NoError(t, err)
	var seen tally
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			require.NoError(t, c.Publish(testCtx(t), "s", fmt.Append(nil, i)))
		}
		eventually(t, func() bool { return seen.distinct() == to }, "%d are handled", to)
	}
	publish(0, 50)
	leader := cluster.ConsumerLeader("S", "test_s")
	leader.Stop()
	publish(50, 100)
	require.NoError(t, leader.Restart())
	publish(100, 150)
	require.NoError(t, stop())
}

func TestVerdictGivenWhileDisconnectedIsNotForgotten(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	c := connectTo(t, link.URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 1)
	begun, release := make(chan struct{}), make(chan struct{})
	var tries tally
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: 2 * time.Second},
		func(_ context.Context, msg *nats.Msg) error {
			if tries.add(msg) == 1 {
				close(begun)
			}
			<-release
			return nil
		})
	receive(t, begun)
	link.Refuse(true)
	link.Cut()
	eventually(t, func() bool { return !c.Health().Connected }, "the connection is lost")
	close(release)
	eventually(t, func() bool { return only(c).Held == 0 }, "the handler has returned")
	link.Refuse(false)
	direct := connectTo(t, server.URL())
	eventually(t, settled(direct, "S", "test_s"), "the verdict arrives")
	require.NoError(t, stop())
	assert.Zero(t, tries.repeats())
}

func TestMessageDeliveredAgainWhileItIsHandledIsNotHandledTwice(t *testing.T) {
	t.Parallel()
	link := nattytest.Proxy(t, nattytest.Server(t).URL())
	c := connectTo(t, link.URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 1)
	begun, release := make(chan struct{}), make(chan struct{})
	var tries tally
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 4, MaxPollRecords: 100, AckWait: 500 * time.Millisecond},
		func(_ context.Context, msg *nats.Msg) error {
			if tries.add(msg) == 1 && string(msg.Data) == "0" {
				close(begun)
			}
			<-release
			return nil
		})
	receive(t, begun)
	// Our progress reports do not get through for longer than AckWait, and the server delivers again.
	link.Freeze()
	<-time.After(1200 * time.Millisecond)
	link.Thaw()
	require.NoError(t, c.Publish(testCtx(t), "s", []byte("after"))) // arrives behind the second delivery
	eventually(t, func() bool { return tries.distinct() == 2 }, "the next one arrives")
	close(release)
	require.NoError(t, stop())
	assert.Zero(t, tries.repeats())
	unacked, waiting := ackPending(t, c, "S", "test_s")
	assert.Zero(t, unacked+waiting)
}

func TestHandlersThatOutliveDrainTimeoutAreCounted(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 3)
	begun := make(chan struct{}, 3)
	causes := make(chan error, 3)
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 3, DrainTimeout: 50 * time.Millisecond},
		func(ctx context.Context, _ *nats.Msg) error {
			begun <- struct{}{}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return ctx.Err()
		})
	for range 3 {
		receive(t, begun)
	}
	err := stop()
	require.ErrorIs(t, err, natty.ErrDrainTimeout)
	assert.Contains(t, err.Error(), "3 handlers")
	for range 3 {
		require.ErrorIs(t, receive(t, causes), natty.ErrDrainTimeout)
	}
}

func TestHandlersFinishWithinDrainTimeout(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 1)
	begun, release := make(chan struct{}), make(chan struct{})
	ctxErr := make(chan error, 1)
	stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}}, func(ctx context.Context, _ *nats.Msg) error {
		close(begun)
		<-release
		ctxErr <- ctx.Err()
		return nil
	})
	receive(t, begun)
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	eventually(t, func() bool { return only(c).State == natty.ConsumerStopping }, "it is stopping")
	close(release)
	require.NoError(t, receive(t, stopped))
	require.NoError(t, receive(t, ctxErr), "a handler's ctx outlives the consumer's")
	unacked, waiting := ackPending(t, c, "S", "test_s")
	assert.Zero(t, unacked+waiting)
}

func TestOnErrorThatBlocksHoldsNothingUp(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	release := make(chan struct{})
	var seen tally
	stop := process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Backoff: natty.Backoff{Min: time.Millisecond}, OnError: func(error) { <-release },
	}, func(ctx context.Context, msg *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); d.Attempt == 1 {
			return errHandler
		}
		seen.add(msg)
		return nil
	})
	fill(t, c, "s", 400)
	eventually(t, func() bool { return seen.distinct() == 400 }, "all are handled")
	close(release)
	require.NoError(t, stop())
}

func TestOnErrorThatPanicsIsSurvived(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	var seen tally
	stop := process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Backoff: natty.Backoff{Min: time.Millisecond}, OnError: func(err error) { panic(err) },
	}, func(ctx context.Context, msg *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); d.Attempt == 1 {
			return errHandler
		}
		seen.add(msg)
		return nil
	})
	fill(t, c, "s", 5)
	eventually(t, func() bool { return seen.distinct() == 5 }, "all are handled")
	require.NoError(t, stop())
}

func TestConcurrencyIsKeptAndUsed(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 50)
	var now, most atomic.Int32
	all := make(chan struct{}, 50)
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 5}, func(context.Context, *nats.Msg) error {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		<-time.After(10 * time.Millisecond) // the work
		now.Add(-1)
		all <- struct{}{}
		return nil
	})
	for range 50 {
		receive(t, all)
	}
	assert.EqualValues(t, 5, most.Load())
}

func TestServersRequestLimitsAreRespected(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	_, err := s.CreateConsumer(testCtx(t), jetstream.ConsumerConfig{
		Durable: "d", AckPolicy: jetstream.AckExplicitPolicy,
		MaxRequestBatch: 2, MaxRequestExpires: time.Second, MaxRequestMaxBytes: 4096,
	})
	require.NoError(t, err)
	fill(t, c, "s", 20)
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", Concurrency: 10},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	eventually(t, func() bool { return seen.distinct() == 20 }, "all are handled")
	// Smaller still, while it runs: the server refuses what we ask for, without saying to whom else it would be enough.
	_, err = s.UpdateConsumer(testCtx(t), jetstream.ConsumerConfig{
		Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "s",
		MaxRequestBatch: 1, MaxRequestExpires: time.Second, MaxRequestMaxBytes: 4096,
	})
	require.NoError(t, err)
	for i := 20; i < 40; i++ {
		require.NoError(t, c.Publish(testCtx(t), "s", fmt.Append(nil, i)))
	}
	eventually(t, func() bool { return seen.distinct() == 40 }, "all are handled with the smaller limit")
}

func TestFrozenConnectionIsNoticedAndConsumingGoesOnAfterIt(t *testing.T) {
	t.Parallel()
	link := nattytest.Proxy(t, nattytest.Server(t).URL())
	c := connectTo(t, link.URL())
	ensure(t, c, "S", "s")
	report, errs := onError()
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Heartbeat: 100 * time.Millisecond, OnError: report},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	fill(t, c, "s", 1)
	eventually(t, func() bool { return seen.distinct() == 1 }, "messages flow")
	link.Freeze()
	require.ErrorIs(t, receive(t, errs), jetstream.ErrNoHeartbeat)
	link.Thaw()
	require.NoError(t, c.Publish(testCtx(t), "s", []byte("after")))
	eventually(t, func() bool { return seen.distinct() == 2 }, "messages flow again")
}

func TestExistingDurableIsTakenOverAsItIs(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s.>")
	fill(t, c, "s.a", 3)
	made := jetstream.ConsumerConfig{
		Durable: "d", Description: "made by hand", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 3 * time.Minute,
		MaxDeliver: 7, MaxAckPending: 77, FilterSubject: "s.a", Metadata: map[string]string{"team": "blue"},
		DeliverPolicy: jetstream.DeliverLastPolicy,
	}
	_, err := s.CreateConsumer(testCtx(t), made)
	require.NoError(t, err)
	config := func() jetstream.ConsumerConfig {
		cons, err := s.Consumer(testCtx(t), "d")
		require.NoError(t, err)
		return cons.CachedInfo().Config
	}
	before := config()
	got := make(chan string, 10)
	run := func(cfg natty.ConsumerConfig) {
		cfg.Durable = "d"
		stop := process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { got <- string(msg.Data); return nil })
		eventually(t, func() bool { return only(c).State == natty.ConsumerRunning }, "it runs")
		require.NoError(t, stop())
	}
	run(natty.ConsumerConfig{Subjects: []string{"s.a"}})
	assert.Equal(t, before, config(), "nothing was asked for, nothing changes")
	run(natty.ConsumerConfig{Subjects: []string{"s.b", "s.c"}, AckWait: time.Minute})
	want := before
	want.AckWait, want.FilterSubject, want.FilterSubjects = time.Minute, "", []string{"s.b", "s.c"}
	assert.Equal(t, want, config(), "only what was asked for changes")
}

func TestDurableThatCannotBeTakenOverIsADriftError(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := ensure(t, c, "S", "s")
	_, err := s.CreateConsumer(testCtx(t), jetstream.ConsumerConfig{Durable: "none", AckPolicy: jetstream.AckNonePolicy})
	require.NoError(t, err)
	_, err = s.CreatePushConsumer(testCtx(t), jetstream.ConsumerConfig{Durable: "push", DeliverSubject: "x", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	for durable, field := range map[string]string{"none": "ack_policy", "push": "deliver_subject"} {
		err := c.Process(testCtx(t), natty.ConsumerConfig{Subjects: []string{"s"}, Durable: durable},
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

func TestNewDurableBeginsWhereItIsToldTo(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 3)
	got := make(chan string, 10)
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DeliverPolicy: jetstream.DeliverLastPolicy},
		func(_ context.Context, msg *nats.Msg) error { got <- string(msg.Data); return nil })
	assert.Equal(t, "2", receive(t, got))
}

func TestAccountsLimitOfUnacknowledgedMessagesIsRespected(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s"}, ConsumerLimits: jetstream.StreamConsumerLimits{MaxAckPending: 100},
	})
	require.NoError(t, err)
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}}, func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	fill(t, c, "s", 10)
	eventually(t, func() bool { return seen.distinct() == 10 }, "all are handled")
}

func TestConsumeAcknowledgesAfterTheCallbackUnlessItSettled(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 3)
	errs := make(chan error) // nobody reads it
	ctx, cancel := context.WithCancel(testCtx(t))
	done := make(chan error, 1)
	var tries tally
	go func() {
		done <- c.Consume(ctx, "s", errs, func(msg *nats.Msg) {
			n := tries.add(msg)
			switch {
			case string(msg.Data) == "1" && n == 1:
				assert.NoError(t, msg.Nak()) //nolint:testifylint // require ends only the test's own goroutine
			case string(msg.Data) == "2" && n == 1:
				panic("once")
			}
		})
	}()
	eventually(t, func() bool { return tries.distinct() == 3 && tries.repeats() == 2 }, "the nak and the panic bring theirs back")
	cancel()
	require.NoError(t, receive(t, done))
	unacked, waiting := ackPending(t, c, "S", "test_s")
	assert.Zero(t, unacked+waiting)
}

func TestConsumePassesErrorsOnAndEndsWithADeadline(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 1)
	errs := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.NoError(t, c.Consume(ctx, "s", errs, func(*nats.Msg) { panic(errHandler) }))
	require.ErrorIs(t, receive(t, errs), errHandler)
	require.NoError(t, c.Consume(ctx, "s", nil, func(*nats.Msg) {}), "a ctx that has ended is no error")
}

func TestConsumerThatCannotWorkSaysWhyAtOnce(t *testing.T) {
	t.Parallel()
	url := nattytest.Server(t).URL()
	c := connectTo(t, url)
	ensure(t, c, "S", "s.>")
	ensure(t, c, "T", "t.>")
	nameless, err := natty.Connect(testCtx(t), natty.Config{Servers: []string{url}}, quiet)
	require.NoError(t, err)
	defer func() { assert.NoError(t, nameless.Close(testCtx(t))) }()
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
			err := c.Process(testCtx(t), tc.cfg, handler)
			require.Error(t, err)
			for _, want := range tc.want {
				assert.Contains(t, err.Error(), want)
			}
		})
	}
	var bad *natty.ConfigError
	require.ErrorAs(t, nameless.Process(testCtx(t), subjects("s.a"), handler), &bad)
	assert.Contains(t, bad.Error(), "Config.Name")
	require.ErrorAs(t, c.Process(testCtx(t), subjects("s.a"), nil), &bad)
	require.ErrorAs(t, c.Consume(testCtx(t), "s.a", nil, nil), &bad)
	require.ErrorIs(t, c.Process(testCtx(t), subjects("nobody.has"), handler), natty.ErrNoStream)
}

func TestConsumerWhoseConnectionWasClosedEndsAtOnce(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	done := make(chan error, 1)
	go func() {
		done <- c.Process(context.Background(), natty.ConsumerConfig{Subjects: []string{"s"}}, func(context.Context, *nats.Msg) error { return nil })
	}()
	eventually(t, func() bool { return only(c).State == natty.ConsumerRunning }, "it runs")
	start := time.Now()
	c.Conn().Close()
	require.ErrorIs(t, receive(t, done), natty.ErrClosed)
	assert.Less(t, time.Since(start), atOnce)
}
