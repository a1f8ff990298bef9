package faulttest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// pinnedTTL is short, so that a test does not wait ten seconds for the next active instance.
const pinnedTTL = 2 * time.Second

func exclusively(subject string) natty.ConsumerConfig {
	return natty.ConsumerConfig{
		Subjects: []string{subject}, Exclusive: true, AckWait: pinnedTTL, Backoff: natty.Backoff{Min: time.Millisecond},
	}
}

// process is testkit.Process with the short pinnedTTL.
func process(t testing.TB, c *natty.Client, cfg natty.ConsumerConfig, h natty.Handler) (stop func() error) {
	t.Helper()
	return processPinned(t, pinnedTTL, c, cfg, h)
}

func processPinned(
	t testing.TB, ttl time.Duration, c *natty.Client, cfg natty.ConsumerConfig, h natty.Handler,
) (stop func() error) {
	t.Helper()
	return testkit.RunConsumer(t, c, func(ctx context.Context) error {
		return c.Process(consumer.WithPinnedTTL(ctx, ttl), cfg, h)
	})
}

// turn is one handling of a message.
type turn struct {
	who      int
	sequence uint64
	attempt  int
	at       time.Time
}

// chronicle is what the instances of a test have handled, and checks that they do it in order, one at a time.
type chronicle struct {
	t     testing.TB
	floor func() uint64 // the durable's, asked when a message comes again; may be nil

	mu     sync.Mutex
	turns  []turn
	top    uint64 // the highest sequence handled without error
	active int
}

// handler returns a Handler of an instance: what, if not nil, does the work.
func (c *chronicle) handler(who int, what natty.Handler) natty.Handler {
	return func(ctx context.Context, msg *nats.Msg) error {
		d, ok := natty.DeliveryFrom(ctx)
		assert.True(c.t, ok)
		c.begin(who, d)
		err := testkit.ErrHandler // until what returns
		defer func() { c.end(d, err) }()
		if what == nil {
			err = nil
		} else {
			err = what(ctx, msg)
		}
		return err
	}
}

func (c *chronicle) begin(who int, d natty.Delivery) {
	c.mu.Lock()
	c.active++
	assert.Equal(c.t, 1, c.active, "one at a time")
	assert.LessOrEqual(c.t, d.Sequence, c.top+1, "nothing is skipped")
	// Where a run of repetitions begins. In the middle of one a late acknowledgement may overtake it.
	repeated := d.Sequence <= c.top && d.Sequence != c.turns[len(c.turns)-1].sequence+1
	c.turns = append(c.turns, turn{who, d.Sequence, d.Attempt, time.Now()})
	c.mu.Unlock()
	if repeated && c.floor != nil {
		assert.Less(c.t, c.floor(), d.Sequence, "nothing that was acknowledged comes again")
	}
}

func (c *chronicle) end(d natty.Delivery, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active--
	if err == nil {
		c.top = max(c.top, d.Sequence)
	}
}

// done returns up to which sequence everything was handled.
func (c *chronicle) done() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.top
}

func (c *chronicle) all() []turn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]turn(nil), c.turns...)
}

// by returns the turns of an instance.
func (c *chronicle) by(who int) (turns []turn) {
	for _, u := range c.all() {
		if u.who == who {
			turns = append(turns, u)
		}
	}
	return turns
}

// repeats returns how many turns were not the first of their message.
func (c *chronicle) repeats() int { return len(c.all()) - int(c.done()) }

// ackFloor returns a function that asks for a durable's acknowledgement floor.
func ackFloor(t testing.TB, c *natty.Client, stream, durable string) func() uint64 {
	return func() uint64 {
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
		defer cancel()
		cons, err := c.JetStream().Consumer(ctx, stream, durable)
		if err != nil {
			t.Error(err) // a handler may be asking
			return 0
		}
		return cons.CachedInfo().AckFloor.Stream
	}
}

// works takes a while, unless ctx ends.
func works(d time.Duration) natty.Handler {
	return func(ctx context.Context, _ *nats.Msg) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// cutOff reports whether the server has taken an instance for dead, which then forgets what was not acknowledged. A machine can be
// so busy.
func cutOff(errs <-chan error) bool {
	for len(errs) > 0 {
		if strings.Contains((<-errs).Error(), "no longer the active instance") {
			return true
		}
	}
	return false
}

// fillAsync is fill for many messages.
func fillAsync(t testing.TB, c *natty.Client, subject string, n int) {
	t.Helper()
	js := c.JetStream()
	acks := make([]jetstream.PubAckFuture, n)
	for i := range n {
		var err error
		acks[i], err = js.PublishAsync(subject, fmt.Append(nil, i), jetstream.WithStallWait(testkit.Patience))
		require.NoError(t, err)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			require.NoError(t, err)
		case <-testkit.Ctx(t).Done():
			require.FailNow(t, "not published")
		}
	}
}

func TestExclusiveInstancesHandleInOrderAndSkipNothing(t *testing.T) {
	t.Parallel()
	for name, retention := range map[string]jetstream.RetentionPolicy{
		"limits": jetstream.LimitsPolicy, "work queue": jetstream.WorkQueuePolicy, "interest": jetstream.InterestPolicy,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const n = 3000
			server := nattytest.Server(t)
			c := testkit.ConnectTo(t, server.URL())
			s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: retention})
			require.NoError(t, err)
			log := &chronicle{t: t, floor: ackFloor(t, c, "S", "test_s")}
			var stops [3]func() error
			report, errs := testkit.OnError()
			start := func(i int) {
				cfg := exclusively("s")
				cfg.OnError = report
				stops[i] = process(t, testkit.ConnectTo(t, server.URL()), cfg, log.handler(i, nil))
			}
			for i := range stops {
				start(i)
			}
			testkit.Eventually(t, func() bool { _, err := s.Consumer(testkit.Ctx(t), "test_s"); return err == nil }, "the durable is there")
			for range n {
				_, err := c.JetStream().PublishAsync("s", nil)
				require.NoError(t, err)
			}
			for i := range 9 { // whoever is the active one
				testkit.Eventually(t, func() bool { return log.done() >= uint64((i+1)*n/10) }, "%d tenths are handled", i+1)
				all := log.all()
				who := all[len(all)-1].who
				require.NoError(t, stops[who]())
				start(who)
			}
			testkit.Eventually(t, func() bool { return log.done() == n }, "all are handled")
			for _, stop := range stops {
				require.NoError(t, stop())
			}
			if !cutOff(errs) {
				assert.Zero(t, log.repeats())
			}
			unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
			assert.Zero(t, unacked+waiting)
			info, err := s.Info(testkit.Ctx(t))
			require.NoError(t, err)
			if retention != jetstream.LimitsPolicy {
				assert.Zero(t, info.State.Msgs)
			}
		})
	}
}

func TestExclusiveInstanceThatStopsHandsOverWithinASecond(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	cfg := exclusively("s")
	cfg.AckWait = time.Hour
	log := &chronicle{t: t}
	first := testkit.ConnectTo(t, server.URL())
	stop := processPinned(t, time.Hour, first, cfg, log.handler(1, works(time.Millisecond)))
	// The first instance holds them all, so that nothing is left that could wake the other one.
	fillAsync(t, c, "s", 200)
	testkit.Eventually(t, func() bool { return testkit.Only(first).State == natty.ConsumerRunning && log.done() > 50 }, "it runs")
	second := testkit.ConnectTo(t, server.URL())
	processPinned(t, time.Hour, second, cfg, log.handler(2, nil))
	testkit.Eventually(t, func() bool { return testkit.Only(second).State == natty.ConsumerStandby }, "the other one stands by")
	begun := time.Now()
	require.NoError(t, stop())
	testkit.Eventually(t, func() bool { return len(log.by(2)) > 0 }, "the other one follows")
	assert.Less(t, log.by(2)[0].at.Sub(begun), time.Second)
	assert.Equal(t, natty.ConsumerRunning, testkit.Only(second).State)
	testkit.Eventually(t, func() bool { return log.done() == 200 }, "all are handled")
	assert.Zero(t, log.repeats())
}

func TestExclusiveInstanceThatDiesIsFollowedAfterThePinnedTTL(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	link := nattytest.Proxy(t, server.URL())
	first := testkit.ConnectTo(t, link.URL())
	log := &chronicle{t: t, floor: ackFloor(t, c, "S", "test_s")}
	report, errs := testkit.OnError()
	cfg := exclusively("s")
	cfg.OnError = report
	ended := make(chan time.Time, 1)
	process(t, first, cfg, log.handler(1, func(ctx context.Context, msg *nats.Msg) error {
		if string(msg.Data) == "50" {
			link.Refuse(true)
			link.Cut()
			<-ctx.Done()
			ended <- time.Now()
			return context.Cause(ctx)
		}
		return works(time.Millisecond)(ctx, msg)
	}))
	fillAsync(t, c, "s", 100)
	testkit.Eventually(t, func() bool { return log.done() > 0 }, "the first one is active")
	process(t, testkit.ConnectTo(t, server.URL()), exclusively("s"), log.handler(2, nil))
	at := testkit.Receive(t, ended)
	assert.Contains(t, testkit.Receive(t, errs).Error(), "another instance may become the active one")
	testkit.Eventually(t, func() bool { return log.done() == 100 }, "the other one follows")
	follows := log.by(2)[0]
	assert.Greater(t, follows.at, at, "when the handler's ctx has ended")
	assert.LessOrEqual(t, follows.at.Sub(at), pinnedTTL)
	assert.LessOrEqual(t, follows.sequence, uint64(51))
}

func TestExclusiveLosesNoVerdictWhenTheConnectionIsCut(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	link := nattytest.Proxy(t, server.URL())
	log := &chronicle{t: t}
	cuts := map[string]bool{"300": true, "301": true, "900": true, "1999": true}
	const ttl = 20 * time.Second // it stays the active one, on a busy machine too
	cfg := exclusively("s")
	cfg.AckWait = ttl
	stop := processPinned(t, ttl, testkit.ConnectTo(t, link.URL()), cfg, log.handler(1, func(_ context.Context, msg *nats.Msg) error {
		if cuts[string(msg.Data)] {
			link.Cut()
		}
		return nil
	}))
	fillAsync(t, c, "s", 2000)
	testkit.Eventually(t, func() bool { return log.done() == 2000 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	require.NoError(t, stop())
	assert.Zero(t, log.repeats(), "the same instance knows what it has handled")
}

func TestExclusiveInstanceThatWasFrozenHandlesNothingBesideTheNextOne(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	first := testkit.ConnectTo(t, link.URL())
	log := &chronicle{t: t, floor: ackFloor(t, c, "S", "test_s")}
	cfg := exclusively("s")
	process(t, first, cfg, log.handler(1, works(10*time.Millisecond)))
	fillAsync(t, c, "s", 400)
	testkit.Eventually(t, func() bool { return log.done() >= 100 }, "the first one is active")
	process(t, testkit.ConnectTo(t, server.URL()), cfg, log.handler(2, works(10*time.Millisecond)))
	frozen := time.Now()
	link.Freeze()
	testkit.Eventually(t, func() bool { return len(log.by(2)) > 10 }, "the other one follows")
	by := log.by(1)
	assert.Less(t, by[len(by)-1].at.Sub(frozen), pinnedTTL)
	link.Thaw() // what was acknowledged last arrives now, and requests of the former owner
	testkit.Eventually(t, func() bool { return log.done() == 400 }, "all are handled")
	assert.Len(t, log.by(1), len(by), "the first one stands by")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged, although late acknowledgements came in between")
	assert.Equal(t, natty.ConsumerStandby, testkit.Only(first).State)
}

// The server takes the count of an acknowledgement from whoever sends it, and ignores lower ones from then on.
func TestExclusiveRecoversFromAnAcknowledgementOfAFormerOwner(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	log := &chronicle{t: t}
	report, errs := testkit.OnError()
	cfg := exclusively("s")
	cfg.OnError = report
	believed := make(chan struct{})
	process(t, c, cfg, log.handler(1, func(ctx context.Context, _ *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); d.Sequence == 20 {
			<-believed
		}
		return nil
	}))
	fillAsync(t, c, "s", 100)
	testkit.Eventually(t, func() bool { return log.done() == 19 }, "it runs")
	testkit.Eventually(t, func() bool {
		_, waiting := testkit.AckPending(t, c, "S", "test_s")
		return waiting == 0
	}, "all are delivered: the server believes no other acknowledgement")
	require.NoError(t, c.Conn().Publish("$JS.ACK.S.test_s.1.90.1000000.1.1", nil))
	testkit.Eventually(t, func() bool { return ackFloor(t, c, "S", "test_s")() == 90 }, "the server believes it")
	close(believed)
	fillAsync(t, c, "s", 1000)
	testkit.Eventually(t, func() bool { return log.done() == 1100 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and acknowledged")
	if !cutOff(errs) {
		assert.Zero(t, log.repeats())
	}
}

func TestExclusiveRetriesAFailingMessageInItsPlace(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	cfg := exclusively("s")
	cfg.OnError = report
	cfg.Backoff = natty.Backoff{Min: 50 * time.Millisecond, Max: 100 * time.Millisecond}
	log := &chronicle{t: t}
	testkit.Fill(t, c, "s", 10)
	process(t, c, cfg, log.handler(1, func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		if string(msg.Data) != "4" {
			return nil
		}
		msg.Data = nil // the next attempt gets it as it came
		switch d.Attempt {
		case 1:
			return testkit.ErrHandler
		case 2:
			panic(testkit.ErrHandler)
		case 3:
			runtime.Goexit()
		case 4:
			return natty.RetryAfter(time.Millisecond, testkit.ErrHandler)
		}
		return nil
	}))
	testkit.Eventually(t, func() bool { return log.done() == 10 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and acknowledged")
	for attempt := range 4 {
		var failed *natty.HandlerError
		require.ErrorAs(t, testkit.Receive(t, errs), &failed)
		assert.Equal(t, attempt+1, failed.Delivery.Attempt)
		assert.EqualValues(t, 5, failed.Delivery.Sequence)
		assert.False(t, failed.Final)
	}
	var tries []turn
	for i, u := range log.all() {
		if u.sequence == 5 {
			tries = append(tries, u)
			assert.Less(t, i, 9, "in a row, and nothing in between")
		}
	}
	require.Len(t, tries, 5)
	assert.GreaterOrEqual(t, tries[1].at.Sub(tries[0].at), 50*time.Millisecond)
	assert.GreaterOrEqual(t, tries[2].at.Sub(tries[1].at), 100*time.Millisecond)
}

func TestExclusiveDeadLettersWhatIsGivenUpAndGoesOn(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	cfg := exclusively("s")
	cfg.MaxDeliver, cfg.DeadLetter = 3, "dead"
	testkit.Fill(t, c, "s", 10)
	var tries testkit.Tally
	process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error {
		tries.Add(msg)
		switch string(msg.Data) {
		case "3":
			return testkit.ErrHandler
		case "6":
			return natty.Permanent(testkit.ErrHandler)
		}
		return nil
	})
	testkit.Eventually(t, func() bool { return tries.Distinct() == 10 }, "all were tried")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	assert.Equal(t, 3, tries.Counts()["3"])
	assert.Equal(t, 1, tries.Counts()["6"])
	assert.Equal(t, 10, tries.Distinct())
	var letters []natty.DeadLetter
	for l, err := range c.DeadLetters(testkit.Ctx(t), "dead") {
		require.NoError(t, err)
		letters = append(letters, l)
	}
	require.Len(t, letters, 2)
	assert.EqualValues(t, 4, letters[0].Sequence)
	assert.Equal(t, 3, letters[0].Deliveries)
	assert.NotContains(t, letters[0].Header, "Nats-Pin-Id")
	assert.EqualValues(t, 7, letters[1].Sequence)
	assert.Equal(t, 1, letters[1].Deliveries)
}

func TestExclusiveMessageThatKillsItsOwnersGoesToTheDeadLettersUnseen(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	cfg := exclusively("s")
	cfg.AckWait, cfg.MaxDeliver, cfg.DeadLetter = 500*time.Millisecond, 1, "dead"
	testkit.Fill(t, c, "s", 40)
	log := &chronicle{t: t}
	deaths := 0
	for i := 0; log.done() < 40; i++ {
		require.Less(t, i, 20, "it is found in the end")
		link := nattytest.Proxy(t, server.URL())
		died := make(chan struct{}, 1)
		processPinned(t, time.Second, testkit.ConnectTo(t, link.URL()), cfg, func(ctx context.Context, msg *nats.Msg) error {
			if string(msg.Data) == "30" { // behind others that may not be acknowledged yet
				link.Refuse(true)
				link.Cut()
				died <- struct{}{}
				<-ctx.Done()
				return context.Cause(ctx)
			}
			log.mu.Lock()
			defer log.mu.Unlock()
			d, _ := natty.DeliveryFrom(ctx)
			log.top = max(log.top, d.Sequence)
			return nil
		})
		select {
		case <-died:
			deaths++
		case <-time.After(testkit.Patience):
			require.FailNow(t, "nothing happens")
		case <-func() chan struct{} {
			all := make(chan struct{})
			go func() {
				for log.done() < 40 && t.Context().Err() == nil {
					<-time.After(5 * time.Millisecond)
				}
				close(all)
			}()
			return all
		}():
		}
	}
	assert.GreaterOrEqual(t, deaths, 2*cfg.MaxDeliver+5)
	var letters []natty.DeadLetter
	for l, err := range c.DeadLetters(testkit.Ctx(t), "dead") {
		require.NoError(t, err)
		letters = append(letters, l)
	}
	require.Len(t, letters, 1, "the innocent ones before it are not given up")
	assert.EqualValues(t, 31, letters[0].Sequence)
	assert.Contains(t, letters[0].Reason, "it may kill the process")
}

// A deployment that stops one instance after the other must not make a message suspect.
func TestExclusiveHandOversInOrderDoNotCountAsTakeovers(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	cfg := exclusively("s")
	cfg.MaxDeliver, cfg.DeadLetter, cfg.Backoff = 100, "dead", natty.Backoff{Min: time.Hour, Max: time.Hour}
	begun, outcomes := make(chan int, 10), make(chan error)
	next := func() (stop func() error) {
		return process(t, c, cfg, func(ctx context.Context, _ *nats.Msg) error {
			d, _ := natty.DeliveryFrom(ctx)
			begun <- d.Attempt
			return <-outcomes
		})
	}
	testkit.Fill(t, c, "s", 1)
	stop := next()
	for range 4 {
		require.Equal(t, 1, testkit.Receive(t, begun))
		follower := next()
		outcomes <- testkit.ErrHandler
		require.NoError(t, stop())
		stop = follower
	}
	require.Equal(t, 1, testkit.Receive(t, begun))
	outcomes <- nil
	d, err := c.JetStream().Consumer(testkit.Ctx(t), "S", "test_s")
	require.NoError(t, err)
	assert.NotContains(t, d.CachedInfo().Config.Metadata, "natty-takeovers")
}

func TestExclusiveLongHandlerKeepsThePin(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	cfg := exclusively("s")
	cfg.MaxPollRecords = 2 // so that there is no room to ask for more
	log := &chronicle{t: t}
	handled := make(chan struct{}, 10)
	process(t, c, cfg, log.handler(1, func(ctx context.Context, msg *nats.Msg) error {
		if string(msg.Data) == "1" {
			<-time.After(2 * pinnedTTL) // the work
		}
		handled <- struct{}{}
		return ctx.Err()
	}))
	testkit.Fill(t, c, "s", 8)
	testkit.Receive(t, handled)
	process(t, testkit.ConnectTo(t, server.URL()), cfg, log.handler(2, nil))
	for range 7 {
		testkit.Receive(t, handled)
	}
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	assert.Len(t, log.by(1), 8)
}

func TestExclusiveHandlerThatOutlivesTheDrainTimeoutIsReportedAndNotOvertaken(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	cfg := exclusively("s")
	cfg.DrainTimeout = 100 * time.Millisecond
	release, begun := make(chan struct{}), make(chan struct{})
	stop := process(t, c, cfg, func(context.Context, *nats.Msg) error {
		close(begun)
		<-release
		return nil
	})
	testkit.Fill(t, c, "s", 2)
	testkit.Receive(t, begun)
	next := make(chan time.Time, 2)
	process(t, testkit.ConnectTo(t, server.URL()), cfg, func(context.Context, *nats.Msg) error { next <- time.Now(); return nil })
	at := time.Now()
	require.ErrorIs(t, stop(), natty.ErrDrainTimeout)
	assert.Greater(t, testkit.Receive(t, next).Sub(at), pinnedTTL/2, "the pin is left to lapse")
	close(release)
}

func TestExclusiveGoesOnAfterTheServerRestarted(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	log := &chronicle{t: t}
	for i := range 3 {
		process(t, testkit.ConnectTo(t, server.URL()), exclusively("s"), log.handler(i, nil))
	}
	for i := range 3 {
		fillAsync(t, c, "s", 500)
		if i < 2 {
			testkit.Eventually(t, func() bool { return log.done() > uint64(i*500+100) }, "it runs")
			require.NoError(t, server.Restart())
			testkit.Eventually(t, func() bool { h := c.Health(); return h.Connected && h.Reconnects == i+1 }, "it is back")
		}
	}
	testkit.Eventually(t, func() bool { return log.done() == 1500 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
}

func TestExclusiveGoesOnWhenTheConsumersLeaderChanges(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
	require.NoError(t, err)
	log := &chronicle{t: t}
	for i := range 2 {
		process(t, testkit.Connect(t, natty.Config{Servers: cluster.URLs()}), exclusively("s"), log.handler(i, nil))
	}
	n := 0
	publish := func() {
		testkit.Fill(t, c, "s", 100)
		n += 100
		testkit.Eventually(t, func() bool { return log.done() == uint64(n) }, "%d are handled", n)
	}
	publish()
	for range 3 {
		testkit.Fill(t, c, "s", 100)
		n += 100
		_, err := c.Conn().Request("$JS.API.CONSUMER.LEADER.STEPDOWN.S.test_s", nil, testkit.Patience)
		require.NoError(t, err)
		publish()
	}
	leader := cluster.ConsumerLeader("S", "test_s")
	leader.Stop()
	publish()
	require.NoError(t, leader.Restart())
	publish()
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
}

func TestExclusiveOwnerThatIsUnpinnedStandsBy(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, c, "S", "s")
	log := &chronicle{t: t}
	a := testkit.ConnectTo(t, server.URL())
	process(t, a, exclusively("s"), log.handler(1, nil))
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return log.done() == 10 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "the first one is active")
	b := testkit.ConnectTo(t, server.URL())
	process(t, b, exclusively("s"), log.handler(2, nil))
	testkit.Eventually(t, func() bool { return testkit.Only(b).State == natty.ConsumerStandby }, "the other one stands by")
	require.NoError(t, s.UnpinConsumer(testkit.Ctx(t), "test_s", "natty"))
	testkit.Eventually(t, func() bool { return testkit.Only(a).State == natty.ConsumerStandby }, "the first one learns of it without a message")
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return log.done() == 20 }, "one of them goes on")
	assert.Zero(t, log.repeats())
}

// The server unpins whoever has the pin, whoever asks for it.
func TestExclusiveInstanceThatStopsUnpinsNobodyElse(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, c, "S", "s")
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	log := &chronicle{t: t}
	report, errs := testkit.OnError()
	cfg := exclusively("s")
	cfg.OnError = report
	stop := processPinned(t, time.Minute, testkit.ConnectTo(t, link.URL()), cfg, log.handler(1, nil))
	testkit.Fill(t, c, "s", 1)
	testkit.Eventually(t, func() bool { return log.done() == 1 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "the first one is active")
	second := testkit.ConnectTo(t, server.URL())
	processPinned(t, time.Minute, second, cfg, log.handler(2, nil))
	testkit.Eventually(t, func() bool { return testkit.Only(second).State == natty.ConsumerStandby }, "the other one stands by")
	link.FreezeReplies() // so that the first one does not learn of it
	require.NoError(t, s.UnpinConsumer(testkit.Ctx(t), "test_s", "natty"))
	testkit.Fill(t, c, "s", 1)
	testkit.Eventually(t, func() bool { return log.done() == 2 }, "the other one follows")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	pin := func() string {
		consumer, err := s.Consumer(testkit.Ctx(t), "test_s")
		require.NoError(t, err)
		return consumer.CachedInfo().PriorityGroups[0].PinnedClientID
	}
	before := pin()
	acks := make(chan *nats.Msg, 10)
	_, err := second.Conn().ChanSubscribe("$JS.ACK.S.test_s.*.1.>", acks)
	require.NoError(t, err)
	require.NoError(t, second.Conn().Flush())
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	testkit.Receive(t, acks) // the last acknowledgement again, to be answered
	link.Thaw()
	require.NoError(t, testkit.Receive(t, stopped))
	require.ErrorContains(t, testkit.Receive(t, errs), "the server gave the pin to another instance")
	assert.Equal(t, before, pin())
	assert.Equal(t, natty.ConsumerRunning, testkit.Only(second).State)
}

func TestExclusiveDurableThatIsSetBackIsHandledAgain(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	var seen testkit.Tally
	process(t, c, exclusively("s"), func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 10 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	_, err := s.ResetConsumerToSequence(testkit.Ctx(t), "test_s", 1)
	require.NoError(t, err)
	testkit.Eventually(t, func() bool { return seen.Repeats() == 10 }, "all come again")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and are acknowledged")
}

func TestExclusiveDurableThatIsDeletedIsMadeAgain(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, c, "S", "s")
	log := &chronicle{t: t}
	for i := range 2 {
		process(t, testkit.ConnectTo(t, server.URL()), exclusively("s"), log.handler(i, nil))
	}
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return log.done() == 10 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	require.NoError(t, s.DeleteConsumer(testkit.Ctx(t), "test_s"))
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return log.done() == 20 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and acknowledged")
}

func TestExclusiveRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	none := func(context.Context, *nats.Msg) error { return nil }
	var bad *natty.ConfigError
	cfg := exclusively("s")
	cfg.Concurrency = 2
	require.ErrorAs(t, c.Process(testkit.Ctx(t), cfg, none), &bad)
	assert.Equal(t, "concurrency", bad.Field)
	cfg = exclusively("s")
	cfg.DeliverPolicy = jetstream.DeliverLastPerSubjectPolicy
	require.ErrorAs(t, c.Process(testkit.Ctx(t), cfg, none), &bad)
	assert.Equal(t, "deliver_policy", bad.Field)
	cfg = exclusively("s")
	cfg.OrderBy = func(*nats.Msg) string { return "" }
	require.ErrorAs(t, c.Process(testkit.Ctx(t), cfg, none), &bad)
	assert.Equal(t, "exclusive", bad.Field)

	require.ErrorAs(t, c.ProcessBatch(testkit.Ctx(t), natty.BatchConfig{ConsumerConfig: exclusively("s")},
		func(context.Context, []*nats.Msg) error { return nil }), &bad)
	assert.Equal(t, "Exclusive", bad.Field)

	_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "shared", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	cfg = exclusively("s")
	cfg.Durable = "shared"
	var drift *natty.DriftError
	require.ErrorAs(t, c.Process(testkit.Ctx(t), cfg, none), &drift)
	assert.Equal(t, "ack_policy", drift.Differences[0].Field)

	stop := process(t, c, exclusively("s"), none)
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerStandby }, "it runs")
	require.NoError(t, stop())
	require.ErrorAs(t, c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"s"}}, none), &drift)
	assert.Equal(t, "priority_policy", drift.Differences[0].Field)
}

func TestExclusiveTakesOverADurableOfAWorkQueue(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: jetstream.WorkQueuePolicy})
	require.NoError(t, err)
	_, err = s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "test_s", FilterSubject: "s", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	log := &chronicle{t: t}
	process(t, c, exclusively("s"), log.handler(1, nil))
	testkit.Fill(t, c, "s", 5)
	testkit.Eventually(t, func() bool { return log.done() == 5 }, "it runs")
	cons, err := s.Consumer(testkit.Ctx(t), "test_s")
	require.NoError(t, err)
	assert.Equal(t, pinnedTTL, cons.CachedInfo().Config.PinnedTTL)
}

// TestExclusiveSurvivesChaos stops, cuts and freezes three instances at random. NATTY_SEEDS says how many times, with
// other seeds each.
func TestExclusiveSurvivesChaos(t *testing.T) {
	t.Parallel()
	for seed := range number(t, "NATTY_SEEDS", 3) {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			t.Parallel()
			chaos(t, rand.New(rand.NewPCG(uint64(seed), 0)))
		})
	}
}

func chaos(t *testing.T, random *rand.Rand) {
	const steps = 20
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	retention := []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy, jetstream.InterestPolicy}[random.IntN(3)]
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: retention})
	require.NoError(t, err)
	log := &chronicle{t: t, floor: ackFloor(t, c, "S", "test_s")}
	cfg := exclusively("s")
	cfg.AckWait = time.Second
	var links [3]*nattytest.Link
	var clients [3]*natty.Client
	var stops [3]func() error
	start := func(i int) {
		stops[i] = process(t, clients[i], cfg, log.handler(i, works(time.Millisecond)))
	}
	for i := range links {
		links[i] = nattytest.Proxy(t, server.URL())
		clients[i] = testkit.ConnectTo(t, links[i].URL())
		start(i)
	}
	t.Cleanup(func() {
		for _, l := range links {
			l.Thaw()
		}
	})
	testkit.Eventually(t, func() bool { _, err := s.Consumer(testkit.Ctx(t), "test_s"); return err == nil }, "the durable is there")

	endPublishing := publishSteadily(t, c)
	for range steps {
		i := random.IntN(3)
		all := log.all()
		if len(all) > 0 && random.IntN(2) == 0 {
			i = all[len(all)-1].who // the active one
		}
		switch random.IntN(3) {
		case 0:
			_ = stops[i]() // may be cut off
			start(i)
		case 1:
			links[i].Cut()
		case 2:
			links[i].Freeze()
			time.AfterFunc(time.Duration(random.Int64N(int64(2*pinnedTTL))), links[i].Thaw)
		}
		<-time.After(time.Duration(random.Int64N(int64(500 * time.Millisecond))))
	}
	n := endPublishing()
	for _, l := range links {
		l.Thaw()
	}
	testkit.Eventually(t, func() bool { return log.done() == uint64(n) }, "all %d are handled", n)
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	t.Logf("%d messages, %d repeated, %v retention", n, log.repeats(), retention)
}

// publishSteadily publishes, not more than one instance can handle, until the returned function is called, which returns
// how many messages that came to.
func publishSteadily(t *testing.T, c *natty.Client) (end func() int) {
	ctx, cancel := context.WithCancel(testkit.Ctx(t))
	published := make(chan int, 1)
	go func() {
		n := 0
		for ; ctx.Err() == nil; <-time.After(2 * time.Millisecond) {
			if assert.NoError(t, c.Publish(context.WithoutCancel(ctx), "s", fmt.Append(nil, n))) {
				n++
			}
		}
		published <- n
	}()
	return func() int {
		cancel()
		return <-published
	}
}

// number reads how much a test is to do from the environment.
func number(t testing.TB, variable string, normally int) int {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return normally
	}
	n, err := strconv.Atoi(s)
	require.NoError(t, err)
	return n
}
