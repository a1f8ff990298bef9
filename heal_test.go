package natty_test

import (
	"context"
	"errors"
	"fmt"
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

// sampled waits until a consumer knows that the server holds n unsettled messages and has no more.
func sampled(c *natty.Client, n int) func() bool {
	return func() bool {
		h := only(c)
		return h.State == natty.ConsumerRunning && h.MaxAckPending > 0 && h.AckPending == n && h.Pending == 0
	}
}

// nats.go reports "no heartbeat" for ever in this case, and goes on waiting (nats.go#1621).
func TestDeletedDurableIsMadeAgainWhereItWas(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]bool{"while pulling": false, "while disconnected": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			link := nattytest.Proxy(t, server.URL())
			c, direct := connectTo(t, link.URL()), connectTo(t, server.URL())
			ensure(t, direct, "S", "s")
			report, errs := onError()
			var seen tally
			stop := process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: 3 * time.Minute, OnError: report},
				func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
			fill(t, direct, "s", 10)
			eventually(t, func() bool { return seen.distinct() == 10 && sampled(c, 0)() }, "ten are handled")
			js := direct.JetStream()
			before, err := js.Consumer(testCtx(t), "S", "test_s")
			require.NoError(t, err)
			eventually(t, func() bool { return only(c).AckFloor == 10 }, "and that is known")
			if cut {
				link.Refuse(true)
				link.Cut()
			}
			require.NoError(t, js.DeleteConsumer(testCtx(t), "S", "test_s"))
			for i := 10; i < 20; i++ {
				require.NoError(t, direct.Publish(testCtx(t), "s", fmt.Append(nil, i)))
			}
			link.Refuse(false)
			eventually(t, func() bool { return seen.distinct() == 20 }, "what came meanwhile is handled")
			require.NoError(t, stop())
			assert.Zero(t, seen.repeats(), "and what was handled before does not come again")
			after, err := js.Consumer(testCtx(t), "S", "test_s")
			require.NoError(t, err)
			assert.Equal(t, before.CachedInfo().Config, after.CachedInfo().Config)
			deleted := 0
			for len(errs) > 0 {
				if errors.Is(<-errs, jetstream.ErrConsumerNotFound) {
					deleted++
				}
			}
			assert.Equal(t, 1, deleted, "reported once")
		})
	}
}

func TestDurableOfThreeInstancesWithMessagesInFlightIsMadeAgain(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := connectTo(t, server.URL())
	ensure(t, c, "S", "s")
	const n = 600
	fill(t, c, "s", n)
	var seen tally
	var begun atomic.Int32
	hold := make(chan struct{})
	for range 3 {
		instance := connectTo(t, server.URL())
		process(t, instance, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 4, MaxPollRecords: 50, AckWait: 2 * time.Second},
			func(_ context.Context, msg *nats.Msg) error {
				if begun.Add(1) > n/2 {
					<-hold
				}
				seen.add(msg)
				return nil
			})
	}
	eventually(t, func() bool { return begun.Load() > n/2+5 }, "half are handled, some are in flight")
	require.NoError(t, c.JetStream().DeleteConsumer(testCtx(t), "S", "test_s"))
	close(hold)
	eventually(t, func() bool { return seen.distinct() == n }, "all are handled")
	eventually(t, settled(c, "S", "test_s"), "and acknowledged")
}

func TestStreamThatIsDeletedAndMadeAgainIsBegunAnew(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, direct := connectTo(t, server.URL()), connectTo(t, server.URL())
	ensure(t, direct, "S", "s")
	report, errs := onError()
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report, DeliverPolicy: jetstream.DeliverNewPolicy},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	eventually(t, func() bool { return only(c).State == natty.ConsumerRunning }, "it runs")
	fill(t, direct, "s", 10)
	eventually(t, func() bool { return seen.distinct() == 10 }, "messages flow")
	require.NoError(t, direct.JetStream().DeleteStream(testCtx(t), "S"))
	require.Error(t, receive(t, errs))
	// Old blocks of a deleted stream can reappear in one made at once under its name (seen with nats-server 2.15.2).
	<-time.After(50 * time.Millisecond)
	ensure(t, direct, "S", "s")
	for i := 10; i < 20; i++ {
		require.NoError(t, direct.Publish(testCtx(t), "s", fmt.Append(nil, i)))
	}
	eventually(t, func() bool { return seen.distinct() == 20 }, "messages flow again, from the first")
	assert.Zero(t, seen.repeats())
}

func TestDeletedDurableOfAnInterestStreamIsReportedAsALoss(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, direct := connectTo(t, server.URL()), connectTo(t, server.URL())
	_, err := direct.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: jetstream.InterestPolicy})
	require.NoError(t, err)
	report, errs := onError()
	var seen tally
	process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report},
		func(_ context.Context, msg *nats.Msg) error { seen.add(msg); return nil })
	eventually(t, func() bool { return only(c).State == natty.ConsumerRunning }, "it runs")
	require.NoError(t, direct.JetStream().DeleteConsumer(testCtx(t), "S", "test_s"))
	for err := receive(t, errs); ; err = receive(t, errs) {
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			assert.ErrorContains(t, err, "Interest stream drops")
			break
		}
	}
	require.NoError(t, direct.Publish(testCtx(t), "s", []byte("after")))
	eventually(t, func() bool { return seen.distinct() == 1 }, "messages flow again")
}
