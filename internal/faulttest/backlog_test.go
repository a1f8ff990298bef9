package faulttest_test

import (
	"context"
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

// nats-server#6093: a thousand messages that waited for their next attempt stalled a consumer.
func TestThousandsOfFailingMessagesDoNotHoldBackTheNextOne(t *testing.T) {
	t.Parallel()
	for name, retention := range map[string]jetstream.RetentionPolicy{
		"limits": jetstream.LimitsPolicy, "work queue": jetstream.WorkQueuePolicy,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const failing = 5000
			c := testkit.ConnectTo(t, nattytest.Server(t).URL())
			_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: retention})
			require.NoError(t, err)
			fillAsync(t, c, "s", failing)
			require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("good")))
			var bad testkit.Tally
			good := make(chan int, 1)
			testkit.Process(t, c, natty.ConsumerConfig{
				Subjects: []string{"s"}, Concurrency: 4, Backoff: natty.Backoff{Min: time.Minute, Max: time.Minute},
			}, func(_ context.Context, msg *nats.Msg) error {
				if string(msg.Data) == "good" {
					good <- bad.Distinct()
					return nil
				}
				bad.Add(msg)
				return testkit.ErrHandler
			})
			assert.GreaterOrEqual(t, testkit.Receive(t, good), failing-4, "the others failed before it")
			testkit.Eventually(t, func() bool { return bad.Distinct() == failing }, "all are tried")
			assert.Zero(t, bad.Repeats(), "and wait for their next attempt")
			testkit.Eventually(t, func() bool {
				unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
				return unacked == failing && waiting == 0
			}, "the server keeps them")
			require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("good")))
			testkit.Receive(t, good)
		})
	}
}

func TestInstanceThatJoinsLaterGetsItsShareOfTheBacklog(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	const n = 100
	testkit.Fill(t, c, "s", n)
	var seen [2]testkit.Tally
	join := func(i int) {
		testkit.Process(t, testkit.ConnectTo(t, server.URL()), natty.ConsumerConfig{Subjects: []string{"s"}}, func(_ context.Context, msg *nats.Msg) error {
			<-time.After(100 * time.Millisecond) // the work
			seen[i].Add(msg)
			return nil
		})
	}
	join(0)
	testkit.Eventually(t, func() bool { return seen[0].Distinct() == 10 }, "the first one works for a second")
	join(1)
	testkit.Eventually(t, func() bool { return seen[0].Distinct()+seen[1].Distinct() == n }, "all are handled")
	assert.Zero(t, seen[0].Repeats()+seen[1].Repeats())
	// Half of the 90 that were left, but for what the first one had already fetched.
	assert.GreaterOrEqual(t, seen[1].Distinct(), n/3, "the first one: %d", seen[0].Distinct())
}
