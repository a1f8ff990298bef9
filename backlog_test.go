package natty_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
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
			c := connectTo(t, nattytest.Server(t).URL())
			_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: retention})
			require.NoError(t, err)
			fillAsync(t, c, "s", failing)
			require.NoError(t, c.Publish(testCtx(t), "s", []byte("good")))
			var bad tally
			good := make(chan int, 1)
			process(t, c, natty.ConsumerConfig{
				Subjects: []string{"s"}, Concurrency: 4, Backoff: natty.Backoff{Min: time.Minute, Max: time.Minute},
			}, func(_ context.Context, msg *nats.Msg) error {
				if string(msg.Data) == "good" {
					good <- bad.distinct()
					return nil
				}
				bad.add(msg)
				return errHandler
			})
			assert.GreaterOrEqual(t, receive(t, good), failing-4, "the others failed before it")
			eventually(t, func() bool { return bad.distinct() == failing }, "all are tried")
			assert.Zero(t, bad.repeats(), "and wait for their next attempt")
			eventually(t, func() bool {
				unacked, waiting := ackPending(t, c, "S", "test_s")
				return unacked == failing && waiting == 0
			}, "the server keeps them")
			require.NoError(t, c.Publish(testCtx(t), "s", []byte("good")))
			receive(t, good)
		})
	}
}

func TestInstanceThatJoinsLaterGetsItsShareOfTheBacklog(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := connectTo(t, server.URL())
	ensure(t, c, "S", "s")
	const n = 100
	fill(t, c, "s", n)
	var seen [2]tally
	join := func(i int) {
		process(t, connectTo(t, server.URL()), natty.ConsumerConfig{Subjects: []string{"s"}}, func(_ context.Context, msg *nats.Msg) error {
			<-time.After(100 * time.Millisecond) // the work
			seen[i].add(msg)
			return nil
		})
	}
	join(0)
	eventually(t, func() bool { return seen[0].distinct() == 10 }, "the first one works for a second")
	join(1)
	eventually(t, func() bool { return seen[0].distinct()+seen[1].distinct() == n }, "all are handled")
	assert.Zero(t, seen[0].repeats()+seen[1].repeats())
	// Half of the 90 that were left, but for what the first one had already fetched.
	assert.GreaterOrEqual(t, seen[1].distinct(), n/3, "the first one: %d", seen[0].distinct())
}
