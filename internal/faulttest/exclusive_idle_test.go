package faulttest_test

import (
	"context"
	"fmt"
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

// The times of an exclusive consumer follow from its PinnedTTL. Of one second, it makes
// three seconds until an idle owner gives the pin back, and twelve for a standby's
// request.
func TestExclusiveInstancesThatAreIdleAskForNothing(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, c, "S", "s")
	log := &chronicle{t: t}
	var instances [2]*natty.Client
	report, errs := testkit.OnError()
	cfg := exclusively("s")
	cfg.OnError = report
	for i := range instances {
		instances[i] = testkit.ConnectTo(t, server.URL())
		processPinned(t, time.Second, instances[i], cfg, log.handler(i, nil))
		// The next one would find a durable that is still being made.
		testkit.Eventually(t, func() bool { return testkit.Only(instances[i]).State == natty.ConsumerStandby }, "it has started")
	}
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return log.done() == 10 }, "one of them is active")
	idle := func() bool {
		for _, i := range instances {
			if testkit.Only(i).State != natty.ConsumerStandby {
				return false
			}
		}
		cons, err := s.Consumer(testkit.Ctx(t), "test_s")
		return assert.NoError(t, err) && cons.CachedInfo().PriorityGroups[0].PinnedClientID == ""
	}
	testkit.Eventually(t, idle, "it gives the pin back")
	requests := make(chan *nats.Msg, 100)
	for _, subject := range []string{"$JS.API.CONSUMER.MSG.NEXT.>", "$JS.API.CONSUMER.RESET.>", "$JS.API.CONSUMER.UNPIN.>"} {
		_, err := c.Conn().ChanSubscribe(subject, requests)
		require.NoError(t, err)
	}
	<-time.After(time.Second) // an owner asks four times meanwhile
	assert.LessOrEqual(t, len(requests), len(instances), "each has at most one request to renew")
	assert.True(t, idle())
	for len(errs) > 0 { // a busy machine can leave an owner without an answer for its whole second
		require.ErrorContains(t, <-errs, "no longer the active instance", "nothing else of that is an error")
	}

	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return log.done() == 20 }, "a message makes one of them active again")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are acknowledged")
	if !cutOff(errs) {
		assert.Zero(t, log.repeats())
	}
}

// Each owner resets the durable, whose count of deliveries then begins anew. What was
// handled between two looks was told as removed.
func TestExclusiveHandOversOfAWorkQueueAreNotTakenForRemovals(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: jetstream.WorkQueuePolicy})
	require.NoError(t, err)
	report, errs := testkit.OnError()
	var seen testkit.Tally
	cfg := exclusively("s")
	cfg.OnError = report
	start := func() func() error {
		return testkit.RunConsumer(t, c, func(ctx context.Context) error {
			ctx = consumer.WithPace(consumer.WithPinnedTTL(ctx, 3*time.Second), 60)
			return c.Process(ctx, cfg, func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
		})
	}
	stop := start()
	start()
	for n := 5; n < 60; n += 5 {
		for i := range n {
			require.NoError(t, c.Publish(testkit.Ctx(t), "s", fmt.Append(nil, n*100+i)))
		}
		testkit.Eventually(t, func() bool {
			for _, h := range c.Health().Consumers {
				if h.AckFloor == 0 || h.Pending > 0 || h.AckPending > 0 {
					return false
				}
			}
			return testkit.Settled(c, "S", "test_s")()
		}, "all is handled, and known")
		require.NoError(t, stop())
		stop = start()
	}
	assert.Zero(t, seen.Repeats())
	for len(errs) > 0 {
		assert.NoError(t, <-errs)
	}
}
