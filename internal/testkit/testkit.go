// Package testkit is what the tests of natty share: a client that closes itself,
// waiting with a bound, streams, buckets and elections to test on, and counters of what
// happened. It is imported by tests only, and uses natty through its public API.
package testkit

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// Main runs the tests of a package: TestMain calls it. It fails when goroutines are
// left behind.
func Main(m *testing.M) {
	// The tests wait more than they compute: run more of them at once than there are
	// CPUs.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set(f.Name, strconv.Itoa(3*runtime.GOMAXPROCS(0)))
	}
	// The server itself leaks these goroutines, seen with 2.15.2. A node that is
	// stopped while it creates a replica leaves those of the replica's store behind
	// (createRaftGroup returns without stopping the store). A node that is stopped
	// while a mirror or a stream with sources is set up waits for an answer for up to
	// 30 s more.
	const natsServer = "github.com/nats-io/nats-server/v2/server"
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction(natsServer+".(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction(natsServer+"/ats.Register.func1"),
		goleak.IgnoreAnyFunction(natsServer+".(*stream).setupMirrorConsumer.func3"),
		goleak.IgnoreAnyFunction(natsServer+".(*stream).trySetupSourceConsumer.func3"),
	)
}

// Patience bounds every wait in the tests. It is long: only a failing test waits for
// it.
const Patience = 60 * time.Second

// AtOnce is how long something immediate may take on a loaded machine. The waits that
// it must not be confused with are much longer.
const AtOnce = 2 * time.Second

// Ctx returns a ctx that ends with the test, and after Patience at the latest.
func Ctx(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Quiet discards the Client's log, so that faults made on purpose do not fill the
// output.
var Quiet = natty.WithLogger(slog.New(slog.DiscardHandler))

// Connect returns a Client that is closed at the end of the test.
func Connect(t testing.TB, cfg natty.Config, opts ...natty.Option) *natty.Client {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "test"
	}
	c, err := natty.Connect(Ctx(t), cfg, append([]natty.Option{Quiet}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		assert.NoError(t, c.Close(ctx))
	})
	return c
}

// ConnectTo connects to a server of nattytest.
func ConnectTo(t testing.TB, url string) *natty.Client {
	t.Helper()
	return Connect(t, natty.Config{Servers: []string{url}})
}

// OnServer connects to a new server.
func OnServer(t testing.TB, opts ...nattytest.Option) *natty.Client {
	t.Helper()
	return ConnectTo(t, nattytest.Server(t, opts...).URL())
}

// Restrict starts a server with the users "app", who may publish to allowed only, and
// "root". See Login.
func Restrict(t testing.TB, allowed ...string) *nattytest.Node {
	t.Helper()
	return nattytest.Server(t, nattytest.User("root", "secret"), nattytest.Options(func(o *server.Options) {
		o.Users = append(o.Users, &server.User{
			Username: "app", Password: "secret",
			Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: allowed},
				Subscribe: &server.SubjectPermission{Allow: []string{">"}},
			},
		})
	}))
}

// Login connects as a user of Restrict's server.
func Login(t testing.TB, url, user string) *natty.Client {
	t.Helper()
	return Connect(t, natty.Config{Servers: []string{url}, User: user, Password: "secret"})
}

// Background calls run with a ctx that ends when stop is called. stop returns run's
// error. what names it in messages.
func Background(t testing.TB, what string, run func(ctx context.Context) error) (stop func() error) {
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
		case <-time.After(Patience):
			return fmt.Errorf("%s did not return within %v", what, Patience)
		}
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

// Eventually waits until cond holds.
func Eventually(t testing.TB, cond func() bool, msg string, args ...any) {
	t.Helper()
	require.Eventually(t, cond, Patience, 5*time.Millisecond, append([]any{msg}, args...)...)
}

// Receive returns the next value from ch; it fails the test when none comes.
func Receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(Patience):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

// Race calls f(0) to f(n-1) at the same time and waits for all of them.
func Race(n int, f func(i int)) {
	var runners sync.WaitGroup
	for i := range n {
		runners.Go(func() { f(i) })
	}
	runners.Wait()
}

// IsClosed reports whether ch is closed.
func IsClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
