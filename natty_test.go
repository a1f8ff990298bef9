package natty_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestServiceConnectsPublishesAndConsumesOverTLS(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.ClientCerts(), nattytest.User("natty", "secret"))
	files := server.Files()
	c := testkit.Connect(t, natty.Config{
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
	c := testkit.Connect(t, natty.Config{
		Name: "integration", Servers: []string{url},
		TLS: natty.TLSConfig{
			CAFile: os.Getenv("NATTY_TEST_CA"), CertFile: os.Getenv("NATTY_TEST_CERT"), KeyFile: os.Getenv("NATTY_TEST_KEY"),
		},
	})
	name := "INTEGRATION-" + nats.NewInbox()[7:]
	defer func() { assert.NoError(t, c.JetStream().DeleteStream(testkit.Ctx(t), name)) }()
	endToEnd(t, c, name, name)
}

// endToEnd publishes a hundred messages, fails every tenth once, restarts the consumer half-way, and expects each to
// be handled.
func endToEnd(t *testing.T, c *natty.Client, stream, prefix string) {
	testkit.Ensure(t, c, stream, prefix+".>")
	const n = 100
	testkit.Fill(t, c, prefix+".new", n)
	var ok, tries testkit.Tally
	cfg := natty.ConsumerConfig{Subjects: []string{prefix + ".>"}, Concurrency: 4, Backoff: natty.Backoff{Min: time.Millisecond}}
	half := make(chan struct{})
	var once sync.Once
	handler := func(_ context.Context, msg *nats.Msg) error {
		if tries.Add(msg) == 1 && len(msg.Data) > 0 && msg.Data[len(msg.Data)-1] == '0' {
			return fmt.Errorf("failing once")
		}
		ok.Add(msg)
		if ok.Distinct() >= n/2 {
			once.Do(func() { close(half) })
		}
		return nil
	}
	stop := testkit.Process(t, c, cfg, handler)
	testkit.Receive(t, half)
	require.NoError(t, stop())
	stop = testkit.Process(t, c, cfg, handler)
	testkit.Eventually(t, func() bool { return ok.Distinct() == n }, "every message is handled")
	require.NoError(t, stop())
	assert.Zero(t, ok.Repeats(), "nothing is handled twice")
	assert.Equal(t, 10, tries.Repeats(), "each failure is tried again once")
}

// impatient makes a frozen server known as such sooner.
var impatient = natty.WithNATSOptions(nats.Timeout(200 * time.Millisecond))

// refused connects with a long ctx, expects a quick error, and returns it.
func refused(t testing.TB, cfg natty.Config, opts ...natty.Option) error {
	t.Helper()
	return refusedWithin(t, testkit.AtOnce, cfg, opts...)
}

func refusedWithin(t testing.TB, limit time.Duration, cfg natty.Config, opts ...natty.Option) error {
	t.Helper()
	start := time.Now()
	_, err := natty.Connect(testkit.Ctx(t), cfg, append([]natty.Option{testkit.Quiet}, opts...)...)
	require.Error(t, err)
	require.NotErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(start), limit)
	return err
}

// expire connects with a ctx that ends after d, and returns the error and how much later than that it came.
func expire(t testing.TB, d time.Duration, cfg natty.Config, opts ...natty.Option) (late time.Duration, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_, err = natty.Connect(ctx, cfg, append([]natty.Option{testkit.Quiet}, opts...)...)
	deadline, _ := ctx.Deadline()
	late = time.Since(deadline)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	return late, err
}

// nowhere returns the URL of a port where nobody listens, for the length of the test.
func nowhere(t testing.TB) string {
	t.Helper()
	p := nattytest.Proxy(t, "127.0.0.1:1")
	p.Refuse(true)
	return p.URL()
}

func TestConnectSaysWhyThereIsNoServer(t *testing.T) {
	t.Parallel()
	late, err := expire(t, 300*time.Millisecond, natty.Config{Servers: []string{nowhere(t)}})
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	assert.Contains(t, err.Error(), "connection refused")
	assert.Less(t, late, time.Second) // one attempt alone takes two

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = natty.Connect(ctx, natty.Config{Servers: []string{nowhere(t)}}, testkit.Quiet)
	require.ErrorIs(t, err, context.Canceled)
}

func TestConnectReturnsWithItsContextBehindAFrozenServer(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.TLS())
	proxy := nattytest.Proxy(t, node.URL())
	proxy.Freeze()
	blackhole := hangingDialer{make(chan struct{})}
	t.Cleanup(func() { close(blackhole.release) })
	for name, opt := range map[string]natty.Option{
		"silent":           testkit.Quiet,
		"handshake first":  natty.WithNATSOptions(nats.TLSHandshakeFirst()),
		"dialer of caller": natty.WithNATSOptions(nats.SetCustomDialer(blackhole)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, d := range []time.Duration{10 * time.Millisecond, 300 * time.Millisecond} {
				late, err := expire(t, d, natty.Config{Servers: []string{proxy.URL(), proxy.URL()}}, opt)
				assert.Less(t, late, time.Second) // one attempt alone takes two
				require.ErrorContains(t, err, "no answer")
			}
		})
	}
}

// hangingDialer dials nobody until release is closed.
type hangingDialer struct{ release chan struct{} }

func (d hangingDialer) Dial(string, string) (net.Conn, error) {
	<-d.release
	return nil, errors.New("released")
}

func TestSilentServerIsNamedSo(t *testing.T) {
	t.Parallel()
	first := func(o *server.Options) { o.TLSHandshakeFirst = true }
	node := nattytest.Server(t, nattytest.TLS(), nattytest.Options(first))
	cfg := natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: node.Files().CA}}
	_, err := expire(t, time.Second, cfg, natty.WithNATSOptions(nats.Timeout(50*time.Millisecond)))
	require.ErrorContains(t, err, "set tls.handshake_first")
	cfg.TLS.HandshakeFirst = true
	testkit.Connect(t, cfg)
}

func TestConnectWaitsForAServerThatIsNotUpYet(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	node.Stop()
	connected := make(chan error, 1)
	go func() {
		c, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: []string{node.URL()}}, testkit.Quiet)
		if err == nil {
			err = c.Close(testkit.Ctx(t))
		}
		connected <- err
	}()
	select {
	case err := <-connected:
		require.NoError(t, err)
		t.Error("connected to nobody")
	case <-time.After(200 * time.Millisecond):
	}
	require.NoError(t, node.Restart())
	require.NoError(t, testkit.Receive(t, connected))
}

func TestServerIsFoundByItsNameOverTCPAndWebSocket(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Websocket.Host, o.Websocket.Port, o.Websocket.NoTLS = "127.0.0.1", server.RANDOM_PORT, true
	}))
	port := node.URL()[strings.LastIndex(node.URL(), ":"):]
	for url, opt := range map[string]natty.Option{
		"nats://localhost" + port:          natty.WithNATSOptions(nats.DontRandomize()),
		"localhost" + port:                 natty.WithNATSOptions(nats.Dialer(&net.Dialer{Timeout: testkit.Patience}), nats.MultipathTCP(false)),
		node.Server().WebsocketURL():       testkit.Quiet,
		node.Server().WebsocketURL() + "/": testkit.Quiet,
	} {
		c := testkit.Connect(t, natty.Config{Servers: []string{url}}, opt)
		assert.Contains(t, c.Health().Server, strings.TrimSuffix(url, "/"))
		require.NoError(t, c.Conn().Flush())
	}
}

func TestJetStreamIsFoundInADomainAndUnderAPrefix(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.JetStreamDomain = "hub" }))
	for name, cfg := range map[string]natty.Config{
		"domain": {Domain: "hub"}, "prefix": {APIPrefix: "$JS.hub.API"}, "prefix with dot": {APIPrefix: "$JS.hub.API."}, "neither": {},
	} {
		cfg.Servers = []string{node.URL()}
		c := testkit.Connect(t, cfg)
		testkit.Ensure(t, c, "ORDERS", "orders.>")
		require.NoError(t, c.Publish(testkit.Ctx(t), "orders.new", nil), name)
		_, err := c.JetStream().Stream(testkit.Ctx(t), "ORDERS")
		require.NoError(t, err, name)
	}
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, Domain: "elsewhere"})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	require.Error(t, err)
}

func TestCallsThatEndWithoutAConnectionSayWhyThereIsNone(t *testing.T) {
	t.Parallel()
	c := testkit.Connect(t, natty.Config{Servers: []string{"nats://127.0.0.1:1"}, LazyConnect: true})
	bucket, err := natty.NewBucket[int](c, natty.BucketConfig{Bucket: "b"})
	require.NoError(t, err)
	for name, call := range map[string]func(context.Context) error{
		"Cached":     func(ctx context.Context) error { _, err := bucket.Cached(ctx); return err },
		"Keys":       func(ctx context.Context) error { _, err := bucket.Keys(ctx); return err },
		"Get":        func(ctx context.Context) error { _, err := bucket.Get(ctx, "k"); return err },
		"Delete":     func(ctx context.Context) error { return bucket.Delete(ctx, "k") },
		"Put":        func(ctx context.Context) error { return bucket.Put(ctx, "k", 1) },
		"Unschedule": func(ctx context.Context) error { return c.Unschedule(ctx, "S", "id") },
		"Redrive":    func(ctx context.Context) error { _, err := c.Redrive(ctx, "dead", nil); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), testkit.AtOnce)
			defer cancel()
			err := call(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "not connected: ")
			assert.Contains(t, err.Error(), "127.0.0.1:1")
		})
	}
}

func TestLazyConnectReturnsAtOnce(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.User("ann", "a"))
	proxy := nattytest.Proxy(t, node.URL())
	proxy.Freeze()
	for name, lazy := range map[string]struct{ url, reason string }{
		"nobody there":       {nowhere(t), "connection refused"},
		"frozen":             {proxy.URL(), "says nothing"},
		"unknown host":       {"nats://nowhere.invalid", "nowhere.invalid"},
		"refused login":      {node.URL(), "refused the login"},
		"TLS without server": {strings.Replace(node.URL(), "nats", "tls", 1), "does not offer it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			start := time.Now()
			c, err := natty.Connect(ended, natty.Config{Name: "test", Servers: []string{lazy.url}, LazyConnect: true}, testkit.Quiet, natty.WithNATSOptions(nats.Timeout(2*testkit.AtOnce)))
			require.NoError(t, err)
			defer func() { require.NoError(t, c.Close(testkit.Ctx(t))) }()
			assert.Less(t, time.Since(start), testkit.AtOnce)
			testkit.Eventually(t, func() bool { return strings.Contains(c.Health().LastError, lazy.reason) }, "Health knows the reason")
			assert.False(t, c.Health().Connected)

			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			for _, err := range []error{
				c.Publish(ctx, "orders.new", nil),
				func() error {
					_, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
					return err
				}(),
			} {
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, lazy.reason)
			}
			assert.Less(t, time.Since(start), testkit.Patience)
		})
	}
}

func TestEverythingStartedBeforeTheServerWorksOnceItIsUp(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	testkit.Ensure(t, testkit.ConnectTo(t, node.URL()), "ORDERS", "orders.>")
	node.Stop()

	c := testkit.Connect(t, natty.Config{Name: "test", Servers: []string{node.URL()}, LazyConnect: true})
	got := make(chan string, 10)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"orders.>"}}, func(_ context.Context, msg *nats.Msg) error {
		got <- msg.Subject
		return nil
	})
	published := make(chan error, 1)
	go func() { published <- c.Publish(testkit.Ctx(t), "orders.early", nil) }()
	testkit.Eventually(t, func() bool { return c.Health().LastError != "" }, "it has tried")
	require.NoError(t, node.Restart())
	require.NoError(t, testkit.Receive(t, published))
	assert.Equal(t, "orders.early", testkit.Receive(t, got))
	require.NoError(t, c.Publish(testkit.Ctx(t), "orders.late", nil))
	assert.Equal(t, "orders.late", testkit.Receive(t, got))
}

func TestClientReconnectsThroughRestarts(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	testkit.Ensure(t, c, "ORDERS", "orders.>")
	for i := range 3 {
		require.NoError(t, node.Restart())
		require.NoError(t, c.Publish(testkit.Ctx(t), "orders.new", nil))
		assert.Equal(t, i+1, c.Health().Reconnects)
	}
}

func TestFrozenConnectionIsFoundDead(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	proxy := nattytest.Proxy(t, node.URL())
	c := testkit.Connect(t, natty.Config{Servers: []string{proxy.URL(), node.URL()}},
		natty.WithNATSOptions(nats.PingInterval(50*time.Millisecond), nats.DontRandomize(), nats.Timeout(time.Second)))
	require.Equal(t, proxy.URL(), c.Health().Server)
	proxy.Freeze()
	testkit.Eventually(t, func() bool { return c.Health().Connected && c.Health().Server == node.URL() }, "it moves on")
}

func TestSilentConnectionIsLostAfterTwoPingsOfTenSeconds(t *testing.T) {
	t.Parallel()
	opts := testkit.ConnectTo(t, nattytest.Server(t).URL()).Conn().Opts
	assert.Equal(t, 10*time.Second, opts.PingInterval)
	assert.Equal(t, 2, opts.MaxPingsOut)
	assert.Equal(t, 5*time.Second, opts.FlusherTimeout, "what a write to it may take")
}

func TestNothingHangsWhileAFrozenServerHoldsTheConnectionsLock(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	proxy := nattytest.Proxy(t, node.URL())
	frozen := func(c *natty.Client) {
		t.Helper()
		// For nearly all the time: the pauses between the attempts are short.
		testkit.Eventually(t, func() bool {
			start := time.Now()
			c.Conn().IsConnected()
			return time.Since(start) > 100*time.Millisecond
		}, "the lock is held")
		for range 2 {
			start := time.Now()
			assert.False(t, c.Health().Connected)
			assert.Less(t, time.Since(start), testkit.AtOnce)

			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			start = time.Now()
			require.ErrorIs(t, c.Publish(ctx, "orders.new", nil), context.DeadlineExceeded)
			cancel()
			assert.Less(t, time.Since(start), testkit.AtOnce)
		}
		start := time.Now()
		require.NoError(t, c.Close(testkit.Ctx(t)))
		assert.Less(t, time.Since(start), testkit.AtOnce)
	}
	long := natty.WithNATSOptions(nats.Timeout(2*testkit.AtOnce), nats.CustomReconnectDelay(func(int) time.Duration { return time.Millisecond }))
	c := testkit.Connect(t, natty.Config{Servers: []string{proxy.URL()}}, long)
	proxy.Freeze()
	proxy.Cut()
	testkit.Eventually(t, func() bool { return !c.Health().Connected }, "the loss is seen")
	frozen(c)
	frozen(testkit.Connect(t, natty.Config{Servers: []string{proxy.URL()}, LazyConnect: true}, long))
}

func TestLostConnectionEndsAClientThatMustNotReconnect(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.Connect(t, natty.Config{Name: "test", Servers: []string{node.URL()}, DisableReconnect: true})
	testkit.Ensure(t, c, "ORDERS", "orders.>")
	processed := make(chan error, 1)
	go func() {
		processed <- c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"orders.>"}}, func(context.Context, *nats.Msg) error { return nil })
	}()
	testkit.Eventually(t, func() bool { h := c.Health().Consumers; return len(h) == 1 && h[0].State == natty.ConsumerRunning }, "it runs")
	node.Stop()
	require.ErrorIs(t, testkit.Receive(t, processed), natty.ErrClosed)
	require.ErrorIs(t, c.Publish(testkit.Ctx(t), "orders.new", nil), natty.ErrClosed)
	assert.NotEmpty(t, c.Health().LastError)
	require.NoError(t, node.Restart())
	require.ErrorIs(t, c.Publish(testkit.Ctx(t), "orders.new", nil), natty.ErrClosed)
}

func TestConnectionThatIsLostForGoodDuringACallSaysSo(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	c := testkit.Connect(t, natty.Config{Servers: []string{link.URL()}, DisableReconnect: true})
	_, err := c.EnsureBucket(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "b"})
	require.NoError(t, err)
	spy := testkit.ConnectTo(t, server.URL()).Conn()
	asked, err := spy.SubscribeSync("$JS.API.STREAM.INFO.KV_b")
	require.NoError(t, err)
	require.NoError(t, spy.Flush())
	link.FreezeReplies()
	done := make(chan error, 1)
	go func() {
		_, err := c.Status(testkit.Ctx(t), "b")
		done <- err
	}()
	_, err = asked.NextMsgWithContext(testkit.Ctx(t))
	require.NoError(t, err)
	link.Cut()
	require.ErrorIs(t, testkit.Receive(t, done), natty.ErrClosed)
}

func TestClientThatMustNotReconnectStillWaitsForItsFirstConnection(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	node.Stop()
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, DisableReconnect: true, LazyConnect: true})
	testkit.Eventually(t, func() bool { return c.Health().LastError != "" }, "it has tried")
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool { return c.Health().Connected }, "it connects")
}
