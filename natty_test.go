package natty_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) {
	// The tests wait more than they compute: more of them at once than there are CPUs.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set(f.Name, strconv.Itoa(3*runtime.GOMAXPROCS(0)))
	}
	// A node that is stopped while it creates a replica leaves the goroutines of that replica's store behind: the
	// server's own leak (createRaftGroup returns without stopping the store), seen with 2.15.2. And one that is stopped
	// while a mirror or a stream with sources looks for those waits for their answer for up to 30s more.
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*stream).setupMirrorConsumer.func3"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*stream).trySetupSourceConsumer.func3"),
	)
}

// patience bounds every wait in the tests. It is long because only a failing test waits for it.
const patience = 30 * time.Second

func testCtx(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// quiet keeps the log of faults that a test makes on purpose out of its output.
var quiet = natty.WithLogger(slog.New(slog.DiscardHandler))

// connect returns a Client that is closed at the end of the test.
func connect(t testing.TB, cfg natty.Config, opts ...natty.Option) *natty.Client {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "test"
	}
	c, err := natty.Connect(testCtx(t), cfg, append([]natty.Option{quiet}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		assert.NoError(t, c.Close(ctx))
	})
	return c
}

// connectTo connects to a server of nattytest.
func connectTo(t testing.TB, url string) *natty.Client {
	t.Helper()
	return connect(t, natty.Config{Servers: []string{url}})
}

// ensure makes a stream that holds subjects.
func ensure(t testing.TB, c *natty.Client, name string, subjects ...string) jetstream.Stream {
	t.Helper()
	s, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: name, Subjects: subjects})
	require.NoError(t, err)
	return s
}

// fill publishes n messages with the bodies 0 to n-1.
func fill(t testing.TB, c *natty.Client, subject string, n int) {
	t.Helper()
	for i := range n {
		require.NoError(t, c.Publish(testCtx(t), subject, fmt.Append(nil, i)))
	}
}

// process runs a consumer in the background until stop is called, which returns what Process returned.
func process(t testing.TB, c *natty.Client, cfg natty.ConsumerConfig, h natty.Handler) (stop func() error) {
	t.Helper()
	stop = background(t, "Process", func(ctx context.Context) error { return c.Process(ctx, cfg, h) })
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("when it failed: %+v", c.Health())
		}
	})
	return stop
}

// background runs what until stop is called, which returns what that returned.
func background(t testing.TB, what string, run func(ctx context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := run(ctx)
		if err != nil && ctx.Err() == nil {
			t.Logf("%s ended by itself: %v", what, err)
		}
		done <- err
	}()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			return fmt.Errorf("%s did not return within %v", what, patience)
		}
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

// eventually waits until cond holds.
func eventually(t testing.TB, cond func() bool, msg string, args ...any) {
	t.Helper()
	require.Eventually(t, cond, patience, 5*time.Millisecond, append([]any{msg}, args...)...)
}

// receive waits for a value from ch.
func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

// tally counts messages by body.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (y *tally) add(msg *nats.Msg) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.n == nil {
		y.n = map[string]int{}
	}
	y.n[string(msg.Data)]++
	return y.n[string(msg.Data)]
}

func (y *tally) distinct() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return len(y.n)
}

// repeats counts the messages beyond the first of each body.
func (y *tally) repeats() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	r := 0
	for _, n := range y.n {
		r += n - 1
	}
	return r
}

func TestServiceConnectsPublishesAndConsumesOverTLS(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.ClientCerts(), nattytest.User("natty", "secret"))
	files := server.Files()
	c := connect(t, natty.Config{
		Name: "orders", Servers: []string{server.URL()}, User: "natty", Password: "secret",
		TLS: natty.TLSConfig{CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key},
	})
	endToEnd(t, c, "ORDERS", "orders")
}

// TestIntegration runs against the server that NATTY_TEST_URL names, as scripts/compose-test starts it.
func TestIntegration(t *testing.T) {
	url := os.Getenv("NATTY_TEST_URL")
	if url == "" {
		t.Skip("NATTY_TEST_URL is not set; scripts/compose-test sets it")
	}
	c := connect(t, natty.Config{
		Name: "integration", Servers: []string{url},
		TLS: natty.TLSConfig{
			CAFile: os.Getenv("NATTY_TEST_CA"), CertFile: os.Getenv("NATTY_TEST_CERT"), KeyFile: os.Getenv("NATTY_TEST_KEY"),
		},
	})
	name := "INTEGRATION-" + nats.NewInbox()[7:]
	defer func() { assert.NoError(t, c.JetStream().DeleteStream(testCtx(t), name)) }()
	endToEnd(t, c, name, name)
}

// endToEnd publishes a hundred messages, fails every tenth once, restarts the consumer half-way, and expects each to
// be handled.
func endToEnd(t *testing.T, c *natty.Client, stream, prefix string) {
	ensure(t, c, stream, prefix+".>")
	const n = 100
	fill(t, c, prefix+".new", n)
	var ok, tries tally
	cfg := natty.ConsumerConfig{Subjects: []string{prefix + ".>"}, Concurrency: 4, Backoff: natty.Backoff{Min: time.Millisecond}}
	half := make(chan struct{})
	var once sync.Once
	handler := func(_ context.Context, msg *nats.Msg) error {
		if tries.add(msg) == 1 && len(msg.Data) > 0 && msg.Data[len(msg.Data)-1] == '0' {
			return fmt.Errorf("failing once")
		}
		ok.add(msg)
		if ok.distinct() >= n/2 {
			once.Do(func() { close(half) })
		}
		return nil
	}
	stop := process(t, c, cfg, handler)
	receive(t, half)
	require.NoError(t, stop())
	stop = process(t, c, cfg, handler)
	eventually(t, func() bool { return ok.distinct() == n }, "every message is handled")
	require.NoError(t, stop())
	assert.Zero(t, ok.repeats(), "nothing is handled twice")
	assert.Equal(t, 10, tries.repeats(), "each failure is tried again once")
}
