package natty_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// keyOf reads the key of a message with a body such as "k3-17".
func keyOf(msg *nats.Msg) string {
	key, _, _ := strings.Cut(string(msg.Data), "-")
	return key
}

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
			require.NoError(t, c.Publish(testCtx(t), "s", fmt.Appendf(nil, "k%d-%d", k, i)))
		}
	}
}

func TestMessagesOfOneKeyKeepTheirOrderThroughFailuresAndRestarts(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	const keys, each = 20, 50
	publishKeys(t, c, keys, each)
	var seen tally
	for seen.distinct() < keys*each {
		var order orderCheck // of this instance
		target := min(seen.distinct()+keys*each/4, keys*each)
		stop := process(t, c, natty.ConsumerConfig{
			Subjects: []string{"s"}, Concurrency: 16, OrderBy: keyOf, Backoff: natty.Backoff{Min: time.Millisecond, Max: 5 * time.Millisecond},
		}, func(ctx context.Context, msg *nats.Msg) error {
			d, _ := natty.DeliveryFrom(ctx)
			order.begin(keyOf(msg), d.Sequence)
			defer order.end(keyOf(msg))
			if rand.IntN(10) == 0 {
				return errHandler
			}
			seen.add(msg)
			return nil
		})
		eventually(t, func() bool { return seen.distinct() >= target }, "%d are handled", target)
		require.NoError(t, stop())
		order.check(t)
	}
	assert.Zero(t, seen.repeats())
}

func TestMessagesOfOneKeyKeepTheirOrderThroughCuts(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	direct, c := connectTo(t, server.URL()), connectTo(t, link.URL())
	ensure(t, direct, "S", "s")
	const keys, each = 10, 100
	publishKeys(t, direct, keys, each)
	var order orderCheck
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 16, OrderBy: keyOf, AckWait: time.Second},
		func(ctx context.Context, msg *nats.Msg) error {
			d, _ := natty.DeliveryFrom(ctx)
			order.begin(keyOf(msg), d.Sequence)
			defer order.end(keyOf(msg))
			<-time.After(time.Duration(rand.IntN(int(4 * time.Millisecond))))
			seen.add(msg)
			return nil
		})
	for i := range 4 {
		eventually(t, func() bool { return seen.distinct() > (i+1)*keys*each/6 }, "messages flow")
		link.Cut()
	}
	eventually(t, func() bool { return seen.distinct() == keys*each }, "all are handled")
	order.mu.Lock()
	defer order.mu.Unlock()
	// A message whose acknowledgement was lost in a cut comes again, behind those that follow it. Nothing that was not
	// handled before does.
	assert.LessOrEqual(t, len(order.wrong), seen.repeats(), "%v", order.wrong)
	for _, w := range order.wrong {
		assert.NotContains(t, w, "two at once")
	}
}

func TestFailingMessageHoldsBackItsKeyAlone(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	ensure(t, c, "DEAD", "dead")
	publishKeys(t, c, 5, 20)
	var seen tally
	tries := make(chan int, 1000)
	process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Concurrency: 4, OrderBy: keyOf, MaxPollRecords: 1000, MaxDeliver: 4, DeadLetter: "dead",
		Backoff: natty.Backoff{Min: time.Second, Max: time.Second},
	}, func(ctx context.Context, msg *nats.Msg) error {
		if string(msg.Data) == "k0-0" {
			d, _ := natty.DeliveryFrom(ctx)
			tries <- d.Attempt
			assert.Equal(t, d.Attempt == 4, d.Last)
			return errHandler
		}
		if keyOf(msg) == "k0" {
			assert.Len(t, letters(t, c, "dead"), 1, "not before the first is given up")
		}
		seen.add(msg)
		return nil
	})
	eventually(t, func() bool { return seen.distinct() >= 4*20 }, "other keys go on")
	eventually(t, func() bool { return only(c).BlockedBy == "k0" && only(c).Blocked > 0 }, "Health names the key")
	eventually(t, func() bool { return seen.distinct() == 5*20-1 }, "the key goes on after its first is given up")
	for attempt := 1; attempt <= 4; attempt++ {
		assert.Equal(t, attempt, receive(t, tries))
	}
	assert.Equal(t, 4, letters(t, c, "dead")[0].Deliveries)
}

func TestShutdownHandsBackWhatWaitsBehindAFailingMessage(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 2, OrderBy: keyOf, MaxPollRecords: 100, AckWait: time.Hour, Backoff: natty.Backoff{Min: time.Hour, Max: time.Hour}}
	failed := make(chan struct{}, 10)
	stop := process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error {
		if keyOf(msg) == "k0" {
			failed <- struct{}{}
			return errHandler
		}
		return nil
	})
	publishKeys(t, c, 1, 20)
	receive(t, failed)
	eventually(t, func() bool { return only(c).Held == 20 }, "the others wait")
	require.NoError(t, stop())
	var order orderCheck
	var seen tally
	process(t, c, cfg, func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		order.begin("k0", d.Sequence)
		defer order.end("k0")
		seen.add(msg)
		return nil
	})
	eventually(t, func() bool { return seen.distinct() == 20 }, "they come again at once")
	order.check(t)
}

func TestOrderByThatPanicsIsReportedAndStopsNothing(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	report, errs := onError()
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report, OrderBy: func(*nats.Msg) string { panic("no key") }},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	fill(t, c, "s", 5)
	eventually(t, func() bool { return seen.distinct() == 5 }, "all are handled")
	assert.ErrorContains(t, receive(t, errs), "OrderBy panicked")
}
