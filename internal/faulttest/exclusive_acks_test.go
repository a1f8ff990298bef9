package faulttest_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// What a crash can make run again is what was handled and not acknowledged yet.
func TestExclusiveAcknowledgesEveryHundredMessagesAndAfterFiftyMilliseconds(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	testkit.Ensure(t, c, "S", "s")
	type ack struct {
		sequence uint64
		at       time.Time
	}
	acks := make(chan ack, 1000)
	_, err := c.Conn().Subscribe("$JS.ACK.S.test_s.>", func(m *nats.Msg) {
		parts := strings.Split(m.Subject, ".") // $JS.ACK.stream.durable.delivered.sequence.…
		sequence, _ := strconv.ParseUint(parts[5], 10, 64)
		acks <- ack{sequence, time.Now()}
	})
	require.NoError(t, err)
	const n = 1000
	fillAsync(t, c, "s", n)
	last := make(chan time.Time, 1)
	processPinned(t, time.Hour, testkit.ConnectTo(t, c.Conn().ConnectedUrl()), exclusively("s"),
		func(ctx context.Context, _ *nats.Msg) error {
			if d, _ := natty.DeliveryFrom(ctx); d.Sequence == n {
				last <- time.Now()
			}
			return nil
		})
	handled := <-last
	var a ack
	for before := uint64(0); before < n; before = a.sequence {
		a = <-acks
		require.LessOrEqual(t, a.sequence-before, uint64(100))
	}
	assert.Less(t, a.at.Sub(handled), testkit.AtOnce, "the last ones do not wait for others")
}

// The server delivers nothing more until what it may have in flight is acknowledged.
func TestExclusiveDoesNotWaitToAcknowledgeWhatTheServerWaitsFor(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 10} {
		t.Run(strconv.Itoa(limit), func(t *testing.T) {
			t.Parallel()
			c := testkit.OnServer(t)
			testkit.Ensure(t, c, "S", "s")
			const n = 600
			fillAsync(t, c, "s", n)
			cfg := exclusively("s")
			cfg.MaxAckPending = limit
			begun, ended := make(chan time.Time, 1), make(chan time.Time, 1)
			testkit.Process(t, c, cfg, func(ctx context.Context, _ *nats.Msg) error {
				switch d, _ := natty.DeliveryFrom(ctx); d.Sequence {
				case 1:
					begun <- time.Now()
				case n:
					ended <- time.Now()
				}
				return nil
			})
			took := -testkit.Receive(t, begun).Sub(testkit.Receive(t, ended))
			assert.Less(t, took, n/time.Duration(limit)*40*time.Millisecond, "it would be 50 ms for each run")
		})
	}
}

// The server may still have the request of an instance that has stopped.
func TestExclusiveStandbyThatStopsDelaysNobody(t *testing.T) {
	t.Parallel()
	for name, active := range map[string]bool{"nobody is active": false, "another one is active": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			c := testkit.ConnectTo(t, server.URL())
			testkit.Ensure(t, c, "S", "s")
			log := &chronicle{t: t}
			start := func(who int, want natty.ConsumerState) (stop func() error) {
				own := testkit.ConnectTo(t, server.URL())
				stop = processPinned(t, time.Hour, own, exclusively("s"), log.handler(who, nil))
				testkit.Eventually(t, func() bool { return testkit.Only(own).State == want }, "it has started")
				return stop
			}
			first := natty.ConsumerStandby
			if active {
				first = natty.ConsumerRunning
				testkit.Fill(t, c, "s", 1)
			}
			stopFirst := start(1, first)
			stopSecond := start(2, natty.ConsumerStandby)
			start(3, natty.ConsumerStandby)
			require.NoError(t, stopSecond())
			require.NoError(t, stopFirst())
			begun := time.Now()
			testkit.Fill(t, c, "s", 1)
			testkit.Eventually(t, func() bool { return len(log.by(3)) == 1 }, "the third one follows")
			assert.Less(t, time.Since(begun), testkit.AtOnce)
			assert.Zero(t, log.repeats())
		})
	}
}
