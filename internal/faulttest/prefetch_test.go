package faulttest

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// The requests of the lost connections still stand at the server, which answers them on
// the new one.
func TestMaxPollRecordsHoldsThroughReconnects(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	c, direct := testkit.ConnectTo(t, link.URL()), testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, direct, "S", "s")
	pulls, err := direct.Conn().SubscribeSync("$JS.API.CONSUMER.MSG.NEXT.S.d")
	require.NoError(t, err)
	receive := func() {
		_, err := pulls.NextMsgWithContext(testkit.Ctx(t))
		require.NoError(t, err)
	}
	begun, release := make(chan struct{}, 10), make(chan struct{})
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", MaxPollRecords: 1},
		func(context.Context, *nats.Msg) error {
			begun <- struct{}{}
			<-release
			return nil
		})
	defer close(release)
	for range 3 {
		receive() // a request
		link.Cut()
	}
	receive()
	testkit.Fill(t, direct, "s", 10)
	testkit.Receive(t, begun)
	testkit.Eventually(t, func() bool {
		d, err := s.Consumer(testkit.Ctx(t), "d")
		require.NoError(t, err)
		return d.CachedInfo().NumWaiting == 0
	}, "all requests are answered")
	assert.Equal(t, 1, testkit.Only(c).Held)
}

func TestHandlersThatTurnSlowShareTheirBufferWithAnIdleInstance(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	a, b := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, a, "S", "s")
	const n = 1500
	w := testkit.NewWriter(t, a, natty.WriterConfig{})
	testkit.Write(t, w, 0, n)
	require.NoError(t, w.Flush(testkit.Ctx(t)))
	slow, release := make(chan struct{}), make(chan struct{})
	var atA, atB atomic.Int64
	cfg := natty.ConsumerConfig{Subjects: []string{"s"}, Durable: "d", Heartbeat: 100 * time.Millisecond}
	testkit.Process(t, a, cfg, func(context.Context, *nats.Msg) error {
		if atA.Add(1) == n/2 {
			close(slow)
			<-release
		}
		return nil
	})
	testkit.Receive(t, slow)
	testkit.Process(t, b, cfg, func(context.Context, *nats.Msg) error {
		atB.Add(1)
		return nil
	})
	defer close(release)
	testkit.Eventually(t, func() bool { return atA.Load()+atB.Load() >= n-10 }, "the idle instance handles the rest")
	assert.EqualValues(t, n/2, atA.Load())
}
