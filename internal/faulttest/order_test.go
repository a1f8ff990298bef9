package faulttest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
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

// orderCheck sees whether the messages of each key are handled one at a time and in order.
type orderCheck struct {
	mu      sync.Mutex
	running map[string]int
	last    map[string]uint64
	wrong   []string
}

func (o *orderCheck) begin(key string, seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running == nil {
		o.running, o.last = map[string]int{}, map[string]uint64{}
	}
	if o.running[key]++; o.running[key] > 1 {
		o.wrong = append(o.wrong, fmt.Sprintf("%s: two at once at %d", key, seq))
	}
	if seq < o.last[key] {
		o.wrong = append(o.wrong, fmt.Sprintf("%s: %d after %d", key, seq, o.last[key]))
	}
	o.last[key] = seq
}

func (o *orderCheck) end(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running[key]--
}

// handler returns one that checks the order, and counts.
func (o *orderCheck) handler(seen *testkit.Tally) natty.Handler {
	return func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		o.begin(testkit.KeyOf(msg), d.Sequence)
		defer o.end(testkit.KeyOf(msg))
		seen.Add(msg)
		return nil
	}
}

func (o *orderCheck) check(t *testing.T) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	assert.Empty(t, o.wrong)
}

func publishKeys(t *testing.T, c *natty.Client, keys, each int) {
	t.Helper()
	for i := range each {
		for k := range keys {
			require.NoError(t, c.Publish(testkit.Ctx(t), "s", fmt.Appendf(nil, "k%d-%d", k, i)))
		}
	}
}

func TestMessagesOfOneKeyKeepTheirOrderThroughFailuresAndRestarts(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	const keys, each = 20, 50
	publishKeys(t, c, keys, each)
	var seen testkit.Tally
	for seen.Distinct() < keys*each {
		var order orderCheck // of this instance
		target := min(seen.Distinct()+keys*each/4, keys*each)
		stop := testkit.Process(t, c, natty.ConsumerConfig{
			Subjects: []string{"s"}, Concurrency: 16, OrderBy: testkit.KeyOf, Backoff: natty.Backoff{Min: time.Millisecond, Max: 5 * time.Millisecond},
		}, func(ctx context.Context, msg *nats.Msg) error {
			d, _ := natty.DeliveryFrom(ctx)
			order.begin(testkit.KeyOf(msg), d.Sequence)
			defer order.end(testkit.KeyOf(msg))
			if rand.IntN(10) == 0 {
				return testkit.ErrHandler
			}
			seen.Add(msg)
			return nil
		})
		testkit.Eventually(t, func() bool { return seen.Distinct() >= target }, "%d are handled", target)
		require.NoError(t, stop())
		order.check(t)
	}
	assert.Zero(t, seen.Repeats())
}

func TestMessagesOfOneKeyKeepTheirOrderThroughCuts(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	direct, c := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, link.URL())
	testkit.Ensure(t, direct, "S", "s")
	const keys, each = 10, 100
	publishKeys(t, direct, keys, each)
	var order orderCheck
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 16, OrderBy: testkit.KeyOf, AckWait: time.Second},
		func(ctx context.Context, msg *nats.Msg) error {
			d, _ := natty.DeliveryFrom(ctx)
			order.begin(testkit.KeyOf(msg), d.Sequence)
			defer order.end(testkit.KeyOf(msg))
			<-time.After(time.Duration(rand.IntN(int(4 * time.Millisecond))))
			seen.Add(msg)
			return nil
		})
	for i := range 4 {
		testkit.Eventually(t, func() bool { return seen.Distinct() > (i+1)*keys*each/6 }, "messages flow")
		link.Cut()
	}
	testkit.Eventually(t, func() bool { return seen.Distinct() == keys*each }, "all are handled")
	order.mu.Lock()
	defer order.mu.Unlock()
	// A message whose acknowledgement was lost in a cut comes again, behind those that follow it. Nothing that was not
	// handled before does.
	assert.LessOrEqual(t, len(order.wrong), seen.Repeats(), "%v", order.wrong)
	for _, w := range order.wrong {
		assert.NotContains(t, w, "two at once")
	}
}

// The server learns of the end of a connection later than the client. Until then it answers the request of that connection,
// and the client never sees the message.
func TestMessagesOfOneKeyKeepTheirOrderWhenALostConnectionStillGetsOne(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	former, next := nattytest.Proxy(t, server.URL()), nattytest.Proxy(t, server.URL())
	direct := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, direct, "S", "s")
	next.Refuse(true)
	c := testkit.Connect(t, natty.Config{Servers: []string{former.URL(), next.URL()}})
	var order orderCheck
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OrderBy: testkit.KeyOf, AckWait: time.Second},
		order.handler(&seen))
	publishKeys(t, direct, 1, 1)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 1 }, "messages flow")
	cons, err := s.Consumer(testkit.Ctx(t), "test_s")
	require.NoError(t, err)
	requests := func() int {
		info, err := cons.Info(testkit.Ctx(t))
		require.NoError(t, err)
		return info.NumWaiting
	}
	testkit.Eventually(t, func() bool { return requests() == 1 }, "it waits for more")

	former.Freeze() // the server hears nothing of the end
	former.Refuse(true)
	next.Refuse(false)
	require.NoError(t, c.Conn().ForceReconnect())
	testkit.Eventually(t, func() bool { return c.Conn().IsConnected() && c.Health().Reconnects == 1 }, "it is connected again")
	testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).Warning, "it pulls nothing until") }, "it says that it waits")
	for n := 1; n <= 20; n++ {
		require.NoError(t, direct.Publish(testkit.Ctx(t), "s", fmt.Appendf(nil, "k0-%d", n)))
	}
	testkit.Eventually(t, func() bool { return seen.Distinct() == 21 }, "all are handled")
	order.check(t)
}

// The server redelivers by the durable's own backoff: here the first step is the longest.
func TestMessagesOfOneKeyKeepTheirOrderWithTheDurablesOwnBackoff(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	former, next := nattytest.Proxy(t, server.URL()), nattytest.Proxy(t, server.URL())
	direct := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, direct, "S", "s")
	cons, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{
		Durable: "test_s", AckPolicy: jetstream.AckExplicitPolicy, BackOff: []time.Duration{3 * time.Second, 500 * time.Millisecond},
	})
	require.NoError(t, err)
	next.Refuse(true)
	c := testkit.Connect(t, natty.Config{Servers: []string{former.URL(), next.URL()}})
	var order orderCheck
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OrderBy: testkit.KeyOf},
		order.handler(&seen))
	unacked := func(n int) func() bool {
		return func() bool {
			info, err := cons.Info(testkit.Ctx(t))
			require.NoError(t, err)
			return info.NumWaiting == 1-n && info.NumAckPending == n
		}
	}
	testkit.Eventually(t, unacked(0), "it waits for messages")
	former.FreezeReplies()
	require.NoError(t, direct.Publish(testkit.Ctx(t), "s", []byte("k0-0")))
	testkit.Eventually(t, unacked(1), "one is on its way, and never comes")
	former.Refuse(true)
	next.Refuse(false)
	require.NoError(t, c.Conn().ForceReconnect())
	for n := 1; n <= 5; n++ {
		require.NoError(t, direct.Publish(testkit.Ctx(t), "s", fmt.Appendf(nil, "k0-%d", n)))
	}
	testkit.Eventually(t, func() bool { return seen.Distinct() == 6 }, "all are handled")
	order.check(t)
}

func TestFailingMessageHoldsBackItsKeyAlone(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	publishKeys(t, c, 5, 20)
	var seen testkit.Tally
	tries := make(chan int, 1000)
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Concurrency: 4, OrderBy: testkit.KeyOf, MaxPollRecords: 1000, MaxDeliver: 4, DeadLetter: "dead",
		Backoff: natty.Backoff{Min: time.Second, Max: time.Second},
	}, func(ctx context.Context, msg *nats.Msg) error {
		if string(msg.Data) == "k0-0" {
			d, _ := natty.DeliveryFrom(ctx)
			tries <- d.Attempt
			assert.Equal(t, d.Attempt == 4, d.Last)
			return testkit.ErrHandler
		}
		if testkit.KeyOf(msg) == "k0" {
			assert.Len(t, testkit.Letters(t, c, "dead"), 1, "not before the first is given up")
		}
		seen.Add(msg)
		return nil
	})
	testkit.Eventually(t, func() bool { return seen.Distinct() >= 4*20 }, "other keys go on")
	testkit.Eventually(t, func() bool { return testkit.Only(c).BlockedBy == "k0" && testkit.Only(c).Blocked > 0 }, "Health names the key")
	testkit.Eventually(t, func() bool { return seen.Distinct() == 5*20-1 }, "the key goes on after its first is given up")
	for attempt := 1; attempt <= 4; attempt++ {
		assert.Equal(t, attempt, testkit.Receive(t, tries))
	}
	assert.Equal(t, 4, testkit.Letters(t, c, "dead")[0].Deliveries)
}

func TestShutdownHandsBackWhatWaitsBehindAFailingMessage(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 2, OrderBy: testkit.KeyOf, MaxPollRecords: 100, AckWait: time.Hour, Backoff: natty.Backoff{Min: time.Hour, Max: time.Hour}}
	failed := make(chan struct{}, 10)
	stop := testkit.Process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error {
		if testkit.KeyOf(msg) == "k0" {
			failed <- struct{}{}
			return testkit.ErrHandler
		}
		return nil
	})
	publishKeys(t, c, 1, 20)
	testkit.Receive(t, failed)
	testkit.Eventually(t, func() bool { return testkit.Only(c).Held == 20 }, "the others wait")
	require.NoError(t, stop())
	var order orderCheck
	var seen testkit.Tally
	testkit.Process(t, c, cfg, func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		order.begin("k0", d.Sequence)
		defer order.end("k0")
		seen.Add(msg)
		return nil
	})
	testkit.Eventually(t, func() bool { return seen.Distinct() == 20 }, "they come again at once")
	order.check(t)
}

func TestMessagesThatWaitForASlowOrderByAreKeptAlive(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	testkit.Ensure(t, c, "S", "s")
	const n = 200 // four times AckWait
	testkit.Fill(t, c, "s", n)
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Concurrency: n, AckWait: 500 * time.Millisecond,
		OrderBy: func(m *nats.Msg) string { <-time.After(10 * time.Millisecond); return string(m.Data) },
	}, func(_ context.Context, m *nats.Msg) error { seen.Add(m); return nil })
	testkit.Eventually(t, func() bool { return seen.Distinct() == n }, "all are handled")
	require.Never(t, func() bool { return seen.Repeats() > 0 }, 2*time.Second, 50*time.Millisecond, "none came again while it waited")
}

func TestOrderByThatPanicsIsReportedAndStopsNothing(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report, OrderBy: func(*nats.Msg) string { panic("no key") }},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Fill(t, c, "s", 5)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 5 }, "all are handled")
	assert.ErrorContains(t, testkit.Receive(t, errs), "OrderBy panicked")
}
