package faulttest_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
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
