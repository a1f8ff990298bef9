package natty_test

import (
	"context"
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

// busy starts a consumer with one handler running, which ends when release is closed, and returns its ctx and what
// Process returns.
func busy(t testing.TB, c *natty.Client, release <-chan struct{}, inHandler func(context.Context)) <-chan error {
	t.Helper()
	testkit.Ensure(t, c, "ORDERS", "orders.>")
	testkit.Fill(t, c, "orders.new", 1)
	started := make(chan struct{})
	var once sync.Once
	processed := make(chan error, 1)
	go func() {
		processed <- c.Process(context.Background(), natty.ConsumerConfig{Subjects: []string{"orders.>"}},
			func(ctx context.Context, _ *nats.Msg) error {
				once.Do(func() { close(started) })
				<-release
				if inHandler != nil {
					inHandler(ctx)
				}
				return nil
			})
	}()
	testkit.Receive(t, started)
	return processed
}

func TestCloseRefusesTheContextOfAHandlerThatItWouldWaitFor(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	release := make(chan struct{})
	close(release)
	refused := make(chan error, 2)
	processed := busy(t, c, release, func(ctx context.Context) {
		refused <- c.Close(ctx)
		derived, cancel := context.WithTimeout(ctx, testkit.Patience)
		defer cancel()
		refused <- c.Close(derived)
	})
	require.ErrorContains(t, testkit.Receive(t, refused), "call it from outside")
	require.ErrorContains(t, testkit.Receive(t, refused), "call it from outside")
	require.NoError(t, c.Publish(testkit.Ctx(t), "orders.new", nil), "it is open still")
	require.NoError(t, c.Close(testkit.Ctx(t)))
	require.NoError(t, testkit.Receive(t, processed))
}

func TestHandlerMayCloseAnotherClient(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, other := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL())
	release := make(chan struct{})
	close(release)
	closed := make(chan error, 10)
	busy(t, c, release, func(ctx context.Context) { closed <- other.Close(ctx) })
	require.NoError(t, testkit.Receive(t, closed))
	require.NoError(t, c.Close(testkit.Ctx(t)))
}

func TestCloseWaitsForHandlersWhichMayPublish(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	release := make(chan struct{})
	published := make(chan error, 1)
	processed := busy(t, c, release, func(ctx context.Context) { published <- c.Publish(ctx, "orders.done", nil) })
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- c.Close(testkit.Ctx(t)) }()
	}
	testkit.Eventually(t, func() bool { h := c.Health().Consumers; return len(h) == 1 && h[0].State == natty.ConsumerStopping }, "it stops")
	select {
	case <-closed:
		t.Fatal("Close did not wait for the handler")
	default:
	}
	close(release)
	require.NoError(t, testkit.Receive(t, published))
	require.NoError(t, testkit.Receive(t, processed))
	require.NoError(t, testkit.Receive(t, closed))
	require.NoError(t, testkit.Receive(t, closed))

	info, err := testkit.Ensure(t, testkit.ConnectTo(t, server.URL()), "ORDERS", "orders.>").Info(testkit.Ctx(t))
	require.NoError(t, err)
	assert.Equal(t, uint64(2), info.State.Msgs)
}

func TestCloseReturnsWithItsContextThoughAHandlerGoesOn(t *testing.T) {
	t.Parallel()
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test", Servers: []string{nattytest.Server(t).URL()}}, testkit.Quiet)
	require.NoError(t, err)
	release := make(chan struct{})
	processed := busy(t, c, release, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded)
	assert.Less(t, time.Since(start), testkit.AtOnce)
	assert.True(t, c.Conn().IsClosed())
	require.ErrorIs(t, c.Publish(testkit.Ctx(t), "orders.new", nil), natty.ErrClosed)
	close(release)
	_ = testkit.Receive(t, processed) // its verdict found no connection any more
	require.ErrorIs(t, c.Close(testkit.Ctx(t)), context.DeadlineExceeded, "the one shutdown was cut short")
}

func TestCloseMayBeCalledAgainAndFromManyGoroutines(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { assert.NoError(t, c.Close(testkit.Ctx(t))) })
	}
	wg.Wait()
	require.NoError(t, c.Close(testkit.Ctx(t)))
}

func TestEverythingAfterCloseIsErrClosed(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	testkit.Ensure(t, c, "ORDERS", "orders.>")
	_, err := c.Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err) // Close releases it
	require.NoError(t, c.Close(testkit.Ctx(t)))
	_, lockErr := c.Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL)) // a moment after that
	_, ensureErr := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	_, publishErr := c.PublishMsg(testkit.Ctx(t), nats.NewMsg("orders.new"))
	for name, err := range map[string]error{
		"Publish":      c.Publish(testkit.Ctx(t), "orders.new", nil),
		"PublishMsg":   publishErr,
		"Lock":         lockErr,
		"EnsureStream": ensureErr,
		"Process": c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"orders.>"}},
			func(context.Context, *nats.Msg) error { return nil }),
		"Consume": c.Consume(testkit.Ctx(t), "orders.>", nil, func(*nats.Msg) {}),
	} {
		require.ErrorIs(t, err, natty.ErrClosed, name)
	}
	assert.False(t, c.Health().Connected)
	assert.True(t, c.Conn().IsClosed())
}

func TestCloseEndsAClientThatNeverConnected(t *testing.T) {
	t.Parallel()
	proxy := nattytest.Proxy(t, "127.0.0.1:1")
	proxy.Freeze()
	for name, url := range map[string]string{"nobody there": nowhere(t), "frozen": proxy.URL()} {
		c, err := natty.Connect(t.Context(), natty.Config{Name: "test", Servers: []string{url}, LazyConnect: true}, testkit.Quiet, impatient)
		require.NoError(t, err)
		ended := make(chan error, 3)
		go func() { ended <- c.Publish(testkit.Ctx(t), "orders.new", nil) }()
		go func() {
			_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
			ended <- err
		}()
		processed := make(chan error, 1)
		go func() {
			processed <- c.Process(context.Background(), natty.ConsumerConfig{Subjects: []string{"orders.>"}},
				func(context.Context, *nats.Msg) error { return nil })
		}()
		testkit.Eventually(t, func() bool { return len(c.Health().Consumers) == 1 && c.Health().LastError != "" }, "everything waits")
		start := time.Now()
		require.NoError(t, c.Close(testkit.Ctx(t)), name)
		assert.Less(t, time.Since(start), testkit.AtOnce, name)
		require.NoError(t, testkit.Receive(t, processed), name)
		require.ErrorIs(t, testkit.Receive(t, ended), natty.ErrClosed, name)
		require.ErrorIs(t, testkit.Receive(t, ended), natty.ErrClosed, name)
	}
}

func TestCloseReturnsInTimeOnAFrozenConnection(t *testing.T) {
	t.Parallel()
	proxy := nattytest.Proxy(t, nattytest.Server(t).URL())
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test", Servers: []string{proxy.URL()}}, testkit.Quiet)
	require.NoError(t, err)
	proxy.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded, "the last acknowledgements may be lost")
	assert.Less(t, time.Since(start), testkit.AtOnce)
}

func TestCloseOfTheConnectionBelowEndsTheClient(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "ORDERS", "orders.>")
	processed := make(chan error, 1)
	go func() {
		processed <- c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"orders.>"}},
			func(context.Context, *nats.Msg) error { return nil })
	}()
	testkit.Eventually(t, func() bool { h := c.Health().Consumers; return len(h) == 1 && h[0].State == natty.ConsumerRunning }, "it runs")
	c.Conn().Close()
	require.ErrorIs(t, testkit.Receive(t, processed), natty.ErrClosed)
	testkit.Eventually(t, func() bool { return !c.Health().Connected }, "the end is seen")
	require.ErrorIs(t, c.Publish(testkit.Ctx(t), "orders.new", nil), natty.ErrClosed)
}

func TestCloseIsNoFaultInTheLog(t *testing.T) {
	t.Parallel()
	var log logged
	c := testkit.Connect(t, natty.Config{Servers: []string{nattytest.Server(t).URL()}}, natty.WithLogger(log.logger()))
	require.NoError(t, c.Close(testkit.Ctx(t)))
	assert.NotContains(t, log.String(), "WARN")
	assert.Empty(t, c.Health().LastError)
}
