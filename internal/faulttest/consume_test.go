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
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestStoppingAndStartingTenTimesUnderLoadLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
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
	var seen testkit.Tally
	run := func(until int) {
		stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 8, AckWait: time.Hour},
			func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
		testkit.Eventually(t, func() bool { return seen.Distinct() >= until }, "%d are handled", until)
		require.NoError(t, stop())
	}
	for i := range 10 {
		run((i + 1) * n / 11)
	}
	run(n)
	require.NoError(t, testkit.Receive(t, published))
	assert.Zero(t, seen.Repeats(), "with AckWait an hour, only a lost acknowledgement could repeat one")
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s") // and the durable is still there
	assert.Zero(t, unacked+waiting)
}

func TestServerRestartsDoNotEndConsumingAndPublishing(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	var seen testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 4},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	ctx, cancel := context.WithCancel(testkit.Ctx(t))
	defer cancel()
	count := make(chan int, 1)
	go func() {
		i := 0
		for ; ctx.Err() == nil; i++ {
			if c.Publish(testkit.Ctx(t), "s", fmt.Append(nil, i)) != nil {
				break
			}
		}
		count <- i
	}()
	for range 3 {
		before := seen.Distinct()
		testkit.Eventually(t, func() bool { return seen.Distinct() > before+20 }, "messages flow")
		require.NoError(t, server.Restart())
	}
	before := seen.Distinct()
	testkit.Eventually(t, func() bool { return seen.Distinct() > before+20 }, "messages flow again")
	cancel()
	n := testkit.Receive(t, count)
	testkit.Eventually(t, func() bool { return seen.Distinct() == n }, "every published message is handled")
	require.NoError(t, stop())
	assert.GreaterOrEqual(t, c.Health().Reconnects, 3)
}

func TestLosingTheConsumersLeaderDoesNotEndConsuming(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
	require.NoError(t, err)
	var seen testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	publish := func(from, to int) {
		for i := from; i < to; i++ {
			require.NoError(t, c.Publish(testkit.Ctx(t), "s", fmt.Append(nil, i)))
		}
		testkit.Eventually(t, func() bool { return seen.Distinct() == to }, "%d are handled", to)
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
	c := testkit.ConnectTo(t, link.URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 1)
	begun, release := make(chan struct{}), make(chan struct{})
	var tries testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: 2 * time.Second},
		func(_ context.Context, msg *nats.Msg) error {
			if tries.Add(msg) == 1 {
				close(begun)
			}
			<-release
			return nil
		})
	testkit.Receive(t, begun)
	link.Refuse(true)
	link.Cut()
	testkit.Eventually(t, func() bool { return !c.Health().Connected }, "the connection is lost")
	close(release)
	testkit.Eventually(t, func() bool { return testkit.Only(c).Held == 0 }, "the handler has returned")
	link.Refuse(false)
	direct := testkit.ConnectTo(t, server.URL())
	testkit.Eventually(t, testkit.Settled(direct, "S", "test_s"), "the verdict arrives")
	require.NoError(t, stop())
	assert.Zero(t, tries.Repeats())
}

func TestFrozenConnectionIsNoticedAndConsumingGoesOnAfterIt(t *testing.T) {
	t.Parallel()
	link := nattytest.Proxy(t, nattytest.Server(t).URL())
	c := testkit.ConnectTo(t, link.URL())
	testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Heartbeat: 100 * time.Millisecond, OnError: report},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Fill(t, c, "s", 1)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 1 }, "messages flow")
	link.Freeze()
	require.ErrorIs(t, testkit.Receive(t, errs), jetstream.ErrNoHeartbeat)
	link.Thaw()
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("after")))
	testkit.Eventually(t, func() bool { return seen.Distinct() == 2 }, "messages flow again")
}
