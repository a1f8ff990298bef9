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
	"github.com/natty-go/natty/nattytest"
)

// busy starts a consumer with one handler running, which ends when release is closed, and returns its ctx and what
// Process returns.
func busy(t testing.TB, c *natty.Client, release <-chan struct{}, inHandler func(context.Context)) <-chan error {
	t.Helper()
	ensure(t, c, "ORDERS", "orders.>")
	fill(t, c, "orders.new", 1)
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
	receive(t, started)
	return processed
}

func TestCloseRefusesTheContextOfAHandlerThatItWouldWaitFor(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	release := make(chan struct{})
	close(release)
	refused := make(chan error, 2)
	processed := busy(t, c, release, func(ctx context.Context) {
		refused <- c.Close(ctx)
		derived, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		refused <- c.Close(derived)
	})
	require.ErrorContains(t, receive(t, refused), "call it from outside")
	require.ErrorContains(t, receive(t, refused), "call it from outside")
	require.NoError(t, c.Publish(testCtx(t), "orders.new", nil), "it is open still")
	require.NoError(t, c.Close(testCtx(t)))
	require.NoError(t, receive(t, processed))
}

func TestHandlerMayCloseAnotherClient(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, other := connectTo(t, server.URL()), connectTo(t, server.URL())
	release := make(chan struct{})
	close(release)
	closed := make(chan error, 10)
	busy(t, c, release, func(ctx context.Context) { closed <- other.Close(ctx) })
	require.NoError(t, receive(t, closed))
	require.NoError(t, c.Close(testCtx(t)))
}

func TestCloseWaitsForHandlersWhichMayPublish(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := connectTo(t, server.URL())
	release := make(chan struct{})
	published := make(chan error, 1)
	processed := busy(t, c, release, func(ctx context.Context) { published <- c.Publish(ctx, "orders.done", nil) })
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- c.Close(testCtx(t)) }()
	}
	eventually(t, func() bool { h := c.Health().Consumers; return len(h) == 1 && h[0].State == natty.ConsumerStopping }, "it stops")
	select {
	case <-closed:
		t.Fatal("Close did not wait for the handler")
	default:
	}
	close(release)
	require.NoError(t, receive(t, published))
	require.NoError(t, receive(t, processed))
	require.NoError(t, receive(t, closed))
	require.NoError(t, receive(t, closed))

	info, err := ensure(t, connectTo(t, server.URL()), "ORDERS", "orders.>").Info(testCtx(t))
	require.NoError(t, err)
	assert.Equal(t, uint64(2), info.State.Msgs)
}

func TestCloseReturnsWithItsContextThoughAHandlerGoesOn(t *testing.T) {
	t.Parallel()
	c, err := natty.Connect(testCtx(t), natty.Config{Name: "test", Servers: []string{nattytest.Server(t).URL()}}, quiet)
	require.NoError(t, err)
	release := make(chan struct{})
	processed := busy(t, c, release, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded)
	assert.Less(t, time.Since(start), atOnce)
	assert.True(t, c.Conn().IsClosed())
	require.ErrorIs(t, c.Publish(testCtx(t), "orders.new", nil), natty.ErrClosed)
	close(release)
	_ = receive(t, processed) // its verdict found no connection any more
	require.ErrorIs(t, c.Close(testCtx(t)), context.DeadlineExceeded, "the one shutdown was cut short")
}

func TestCloseMayBeCalledAgainAndFromManyGoroutines(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { assert.NoError(t, c.Close(testCtx(t))) })
	}
	wg.Wait()
	require.NoError(t, c.Close(testCtx(t)))
}

func TestEverythingAfterCloseIsErrClosed(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := connectTo(t, node.URL())
	ensure(t, c, "ORDERS", "orders.>")
	require.NoError(t, c.Close(testCtx(t)))
	_, ensureErr := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	_, publishErr := c.PublishMsg(testCtx(t), nats.NewMsg("orders.new"))
	for name, err := range map[string]error{
		"Publish":      c.Publish(testCtx(t), "orders.new", nil),
		"PublishMsg":   publishErr,
		"EnsureStream": ensureErr,
		"Process": c.Process(testCtx(t), natty.ConsumerConfig{Subjects: []string{"orders.>"}},
			func(context.Context, *nats.Msg) error { return nil }),
		"Consume": c.Consume(testCtx(t), "orders.>", nil, func(*nats.Msg) {}),
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
		c, err := natty.Connect(t.Context(), natty.Config{Name: "test", Servers: []string{url}, LazyConnect: true}, quiet, impatient)
		require.NoError(t, err)
		ended := make(chan error, 3)
		go func() { ended <- c.Publish(testCtx(t), "orders.new", nil) }()
		go func() {
			_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
			ended <- err
		}()
		processed := make(chan error, 1)
		go func() {
			processed <- c.Process(context.Background(), natty.ConsumerConfig{Subjects: []string{"orders.>"}},
				func(context.Context, *nats.Msg) error { return nil })
		}()
		eventually(t, func() bool { return len(c.Health().Consumers) == 1 && c.Health().LastError != "" }, "everything waits")
		start := time.Now()
		require.NoError(t, c.Close(testCtx(t)), name)
		assert.Less(t, time.Since(start), atOnce, name)
		require.NoError(t, receive(t, processed), name)
		require.ErrorIs(t, receive(t, ended), natty.ErrClosed, name)
		require.ErrorIs(t, receive(t, ended), natty.ErrClosed, name)
	}
}

func TestCloseReturnsInTimeOnAFrozenConnection(t *testing.T) {
	t.Parallel()
	proxy := nattytest.Proxy(t, nattytest.Server(t).URL())
	c, err := natty.Connect(testCtx(t), natty.Config{Name: "test", Servers: []string{proxy.URL()}}, quiet)
	require.NoError(t, err)
	proxy.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, c.Close(ctx), context.DeadlineExceeded, "the last acknowledgements may be lost")
	assert.Less(t, time.Since(start), atOnce)
}

func TestCloseOfTheConnectionBelowEndsTheClient(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "ORDERS", "orders.>")
	processed := make(chan error, 1)
	go func() {
		processed <- c.Process(testCtx(t), natty.ConsumerConfig{Subjects: []string{"orders.>"}},
			func(context.Context, *nats.Msg) error { return nil })
	}()
	eventually(t, func() bool { h := c.Health().Consumers; return len(h) == 1 && h[0].State == natty.ConsumerRunning }, "it runs")
	c.Conn().Close()
	require.ErrorIs(t, receive(t, processed), natty.ErrClosed)
	eventually(t, func() bool { return !c.Health().Connected }, "the end is seen")
	require.ErrorIs(t, c.Publish(testCtx(t), "orders.new", nil), natty.ErrClosed)
}

func TestCloseIsNoFaultInTheLog(t *testing.T) {
	t.Parallel()
	var log logged
	c := connect(t, natty.Config{Servers: []string{nattytest.Server(t).URL()}}, natty.WithLogger(log.logger()))
	require.NoError(t, c.Close(testCtx(t)))
	assert.NotContains(t, log.String(), "WARN")
	assert.Empty(t, c.Health().LastError)
}
