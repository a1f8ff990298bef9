package natty_test

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// atOnce is what "at once" may take on a loaded machine; every wait that it is told from is much longer.
const atOnce = 2 * time.Second

// impatient makes a frozen server known as such sooner.
var impatient = natty.WithNATSOptions(nats.Timeout(200 * time.Millisecond))

// refused connects with a long ctx, expects a quick error, and returns it.
func refused(t testing.TB, cfg natty.Config, opts ...natty.Option) error {
	t.Helper()
	start := time.Now()
	_, err := natty.Connect(testCtx(t), cfg, append([]natty.Option{quiet}, opts...)...)
	require.Error(t, err)
	require.NotErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(start), atOnce)
	return err
}

// expire connects with a ctx that ends after d, and returns the error and how much later than that it came.
func expire(t testing.TB, d time.Duration, cfg natty.Config, opts ...natty.Option) (late time.Duration, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_, err = natty.Connect(ctx, cfg, append([]natty.Option{quiet}, opts...)...)
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
	_, err = natty.Connect(ctx, natty.Config{Servers: []string{nowhere(t)}}, quiet)
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
		"silent":           quiet,
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
	connect(t, cfg)
}

func TestConnectWaitsForAServerThatIsNotUpYet(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	node.Stop()
	connected := make(chan error, 1)
	go func() {
		c, err := natty.Connect(testCtx(t), natty.Config{Servers: []string{node.URL()}}, quiet)
		if err == nil {
			err = c.Close(testCtx(t))
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
	require.NoError(t, receive(t, connected))
}

func TestServerIsFoundByItsNameOverTCPAndWebSocket(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Websocket.Host, o.Websocket.Port, o.Websocket.NoTLS = "127.0.0.1", server.RANDOM_PORT, true
	}))
	port := node.URL()[strings.LastIndex(node.URL(), ":"):]
	for url, opt := range map[string]natty.Option{
		"nats://localhost" + port:          natty.WithNATSOptions(nats.DontRandomize()),
		"localhost" + port:                 natty.WithNATSOptions(nats.Dialer(&net.Dialer{Timeout: patience}), nats.MultipathTCP(false)),
		node.Server().WebsocketURL():       quiet,
		node.Server().WebsocketURL() + "/": quiet,
	} {
		c := connect(t, natty.Config{Servers: []string{url}}, opt)
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
		c := connect(t, cfg)
		ensure(t, c, "ORDERS", "orders.>")
		require.NoError(t, c.Publish(testCtx(t), "orders.new", nil), name)
		_, err := c.JetStream().Stream(testCtx(t), "ORDERS")
		require.NoError(t, err, name)
	}
	c := connect(t, natty.Config{Servers: []string{node.URL()}, Domain: "elsewhere"})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	require.Error(t, err)
}

func TestRefusedLoginIsFatalAtOnce(t *testing.T) {
	t.Parallel()
	users := nattytest.Server(t, nattytest.User("ann", "a"))
	token := nattytest.Server(t, nattytest.Token("letmein"))
	right, rightFile := newNKey(t)
	_, wrongFile := newNKey(t)
	nkey := nattytest.Server(t, nattytest.NKey(right))
	creds := newOperator(t)
	for name, cfg := range map[string]natty.Config{
		"nobody":              {Servers: []string{users.URL()}},
		"wrong password":      {Servers: []string{users.URL()}, User: "ann", Password: "b"},
		"wrong URL":           {Servers: []string{strings.Replace(users.URL(), "//", "//ann:b@", 1)}},
		"wrong token":         {Servers: []string{token.URL()}, Token: "a"},
		"wrong nkey":          {Servers: []string{nkey.URL()}, NKeyFile: wrongFile},
		"nkey without server": {Servers: []string{users.URL()}, NKeyFile: rightFile},
		"wrong creds":         {Servers: []string{creds.node.URL()}, CredsFile: newOperator(t).credsFile(t)},
		"creds elsewhere":     {Servers: []string{users.URL()}, CredsFile: creds.credsFile(t)},
		"refused twice":       {Servers: []string{users.URL(), token.URL()}, Token: "a"},
	} {
		err := refused(t, cfg)
		if name == "nkey without server" {
			require.ErrorContains(t, err, "log", name)
			continue
		}
		require.ErrorIs(t, err, nats.ErrAuthorization, name)
		require.ErrorContains(t, err, "check user and password, token, creds_file or nkey_file", name)
		require.ErrorContains(t, err, "127.0.0.1:", name)
	}
	connect(t, natty.Config{Servers: []string{users.URL()}, User: "ann", Password: "a"})
	connect(t, natty.Config{Servers: []string{strings.Replace(users.URL(), "//", "//ann:a@", 1)}})
	connect(t, natty.Config{Servers: []string{token.URL()}, Token: "letmein"})
	connect(t, natty.Config{Servers: []string{nkey.URL()}, NKeyFile: rightFile})
	connect(t, natty.Config{Servers: []string{creds.node.URL()}, CredsFile: creds.credsFile(t)})
}

func TestOneRefusingServerOfSeveralIsNotFatal(t *testing.T) {
	t.Parallel()
	refusing := nattytest.Server(t, nattytest.User("ann", "a"))
	fine := nattytest.Server(t)
	down := nattytest.Server(t)
	down.Stop()

	_, err := expire(t, time.Second, natty.Config{Servers: []string{refusing.URL(), down.URL()}})
	require.ErrorIs(t, err, nats.ErrAuthorization)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)

	for _, servers := range [][]string{{refusing.URL(), fine.URL()}, {fine.URL(), refusing.URL()}} {
		c := connect(t, natty.Config{Servers: servers}, natty.WithNATSOptions(nats.DontRandomize()))
		assert.Equal(t, fine.URL(), c.Health().Server)
	}

	c := connect(t, natty.Config{Servers: []string{refusing.URL(), down.URL()}, LazyConnect: true})
	eventually(t, func() bool { return strings.Contains(c.Health().LastError, "refused the login") }, "the reason is known")
	require.NoError(t, down.Restart())
	eventually(t, func() bool { return c.Health().Connected }, "it connects to the one that comes up")
}

func TestCredentialFileThatCannotWorkIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, data string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(data), 0o600))
		return path
	}
	public, seedFile := newNKey(t)
	seed, err := os.ReadFile(seedFile)
	require.NoError(t, err)
	account, err := nkeys.CreateAccount()
	require.NoError(t, err)
	accountSeed, err := account.Seed()
	require.NoError(t, err)
	creds := newOperator(t).credsFile(t)
	for name, wrong := range map[string]struct{ path, creds, nkey string }{
		"missing":      {filepath.Join(dir, "missing"), "no such file", "no such file"},
		"directory":    {dir, "cannot be read", "cannot be read"},
		"empty":        {write("empty", " \n"), "is empty", "is empty"},
		"garbage":      {write("garbage", secret+"\x00\xff"), "is no credentials file", "no nkey seed"},
		"account seed": {write("account", string(accountSeed)), "is no credentials file", "no nkey seed"},
		"public key":   {write("public", public), "is no credentials file", "no nkey seed"},
		"only a seed":  {write("seed", string(seed)), "is no credentials file", ""},
		"JWT and seed": {creds, "", "set creds_file"},
	} {
		for field, reason := range map[string]string{"creds_file": wrong.creds, "nkey_file": wrong.nkey} {
			if reason == "" {
				continue
			}
			cfg := natty.Config{Servers: []string{nowhere(t)}, CredsFile: wrong.path}
			if field == "nkey_file" {
				cfg.CredsFile, cfg.NKeyFile = "", wrong.path
			}
			for _, lazy := range []bool{false, true} {
				cfg.LazyConnect = lazy
				err := refused(t, cfg)
				var config *natty.ConfigError
				require.ErrorAs(t, err, &config, name)
				assert.Equal(t, field, config.Field, name)
				assert.Equal(t, wrong.path, config.Value, name)
				assert.Contains(t, config.Reason, reason, name)
				for _, text := range errorTexts(err) {
					assert.NotContains(t, text, secret, name)
					assert.NotContains(t, text, string(seed), name)
				}
			}
		}
	}
}

func TestRotatedCredentialsFileIsReadAgain(t *testing.T) {
	t.Parallel()
	operator := newOperator(t)
	file := operator.credsFile(t)
	c := connect(t, natty.Config{Servers: []string{operator.node.URL()}, CredsFile: file})
	good, err := os.ReadFile(file)
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(file, []byte(secret), 0o600))
	require.NoError(t, operator.node.Restart())
	eventually(t, func() bool { return strings.Contains(c.Health().LastError, "is no credentials file") }, "the reason is known")
	assert.NotContains(t, c.Health().LastError, secret)

	require.NoError(t, os.WriteFile(file, good, 0o600))
	eventually(t, func() bool { return c.Health().Connected }, "it reconnects with the new file")
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
			c, err := natty.Connect(ended, natty.Config{Name: "test", Servers: []string{lazy.url}, LazyConnect: true}, quiet, natty.WithNATSOptions(nats.Timeout(2*atOnce)))
			require.NoError(t, err)
			defer func() { require.NoError(t, c.Close(testCtx(t))) }()
			assert.Less(t, time.Since(start), atOnce)
			eventually(t, func() bool { return strings.Contains(c.Health().LastError, lazy.reason) }, "Health knows the reason")
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
			assert.Less(t, time.Since(start), patience)
		})
	}
}

func TestEverythingStartedBeforeTheServerWorksOnceItIsUp(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	ensure(t, connectTo(t, node.URL()), "ORDERS", "orders.>")
	node.Stop()

	c := connect(t, natty.Config{Name: "test", Servers: []string{node.URL()}, LazyConnect: true})
	got := make(chan string, 10)
	process(t, c, natty.ConsumerConfig{Subjects: []string{"orders.>"}}, func(_ context.Context, msg *nats.Msg) error {
		got <- msg.Subject
		return nil
	})
	published := make(chan error, 1)
	go func() { published <- c.Publish(testCtx(t), "orders.early", nil) }()
	eventually(t, func() bool { return c.Health().LastError != "" }, "it has tried")
	require.NoError(t, node.Restart())
	require.NoError(t, receive(t, published))
	assert.Equal(t, "orders.early", receive(t, got))
	require.NoError(t, c.Publish(testCtx(t), "orders.late", nil))
	assert.Equal(t, "orders.late", receive(t, got))
}

func TestClientReconnectsThroughRepeatedlyRefusedLogins(t *testing.T) {
	t.Parallel()
	var password atomic.Value
	password.Store("right")
	var logins atomic.Int64
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.CustomClientAuthentication = authFunc(func(c server.ClientAuthentication) bool {
			logins.Add(1)
			return c.GetOpts().Password == password.Load()
		})
	}))
	c := connect(t, natty.Config{Servers: []string{node.URL()}, User: "ann", Password: "right"},
		natty.WithNATSOptions(nats.CustomReconnectDelay(func(int) time.Duration { return time.Millisecond })))
	password.Store("another")
	require.NoError(t, node.Restart())
	logins.Store(0)
	// nats.go gives up after two (nats.go#1622).
	eventually(t, func() bool { return logins.Load() > 10 }, "it goes on trying")
	eventually(t, func() bool { return strings.Contains(c.Health().LastError, "uthorization") }, "the reason is known")
	password.Store("right")
	eventually(t, func() bool { return c.Health().Connected }, "it reconnects")
}

type authFunc func(server.ClientAuthentication) bool

func (f authFunc) Check(c server.ClientAuthentication) bool { return f(c) }

func TestLostClientLearnsFromTheServersWhatIsWrong(t *testing.T) {
	t.Parallel()
	var users []*server.User
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.Users = users }))
	c := connect(t, natty.Config{Servers: []string{node.URL()}})
	users = []*server.User{{Username: "ann", Password: "a"}}
	require.NoError(t, node.Restart())
	eventually(t, func() bool { return strings.Contains(c.Health().LastError, "check user and password") }, "with the remedy")
	users = nil
	require.NoError(t, node.Restart())
	eventually(t, func() bool { return c.Health().Connected }, "it reconnects")
}

func TestClientReconnectsThroughRestarts(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := connectTo(t, node.URL())
	ensure(t, c, "ORDERS", "orders.>")
	for i := range 3 {
		require.NoError(t, node.Restart())
		require.NoError(t, c.Publish(testCtx(t), "orders.new", nil))
		assert.Equal(t, i+1, c.Health().Reconnects)
	}
}

func TestFrozenConnectionIsFoundDead(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	proxy := nattytest.Proxy(t, node.URL())
	c := connect(t, natty.Config{Servers: []string{proxy.URL(), node.URL()}},
		natty.WithNATSOptions(nats.PingInterval(50*time.Millisecond), nats.DontRandomize(), nats.Timeout(time.Second)))
	require.Equal(t, proxy.URL(), c.Health().Server)
	proxy.Freeze()
	eventually(t, func() bool { return c.Health().Connected && c.Health().Server == node.URL() }, "it moves on")
}

func TestNothingHangsWhileAFrozenServerHoldsTheConnectionsLock(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	proxy := nattytest.Proxy(t, node.URL())
	frozen := func(c *natty.Client) {
		t.Helper()
		// For nearly all the time: the pauses between the attempts are short.
		eventually(t, func() bool {
			start := time.Now()
			c.Conn().IsConnected()
			return time.Since(start) > 100*time.Millisecond
		}, "the lock is held")
		for range 2 {
			start := time.Now()
			assert.False(t, c.Health().Connected)
			assert.Less(t, time.Since(start), atOnce)

			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			start = time.Now()
			require.ErrorIs(t, c.Publish(ctx, "orders.new", nil), context.DeadlineExceeded)
			cancel()
			assert.Less(t, time.Since(start), atOnce)
		}
		start := time.Now()
		require.NoError(t, c.Close(testCtx(t)))
		assert.Less(t, time.Since(start), atOnce)
	}
	long := natty.WithNATSOptions(nats.Timeout(2*atOnce), nats.CustomReconnectDelay(func(int) time.Duration { return time.Millisecond }))
	c := connect(t, natty.Config{Servers: []string{proxy.URL()}}, long)
	proxy.Freeze()
	proxy.Cut()
	eventually(t, func() bool { return !c.Health().Connected }, "the loss is seen")
	frozen(c)
	frozen(connect(t, natty.Config{Servers: []string{proxy.URL()}, LazyConnect: true}, long))
}

func TestLostConnectionEndsAClientThatMustNotReconnect(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := connect(t, natty.Config{Name: "test", Servers: []string{node.URL()}, DisableReconnect: true})
	ensure(t, c, "ORDERS", "orders.>")
	processed := make(chan error, 1)
	go func() {
		processed <- c.Process(testCtx(t), natty.ConsumerConfig{Subjects: []string{"orders.>"}}, func(context.Context, *nats.Msg) error { return nil })
	}()
	eventually(t, func() bool { h := c.Health().Consumers; return len(h) == 1 && h[0].State == natty.ConsumerRunning }, "it runs")
	node.Stop()
	require.ErrorIs(t, receive(t, processed), natty.ErrClosed)
	require.ErrorIs(t, c.Publish(testCtx(t), "orders.new", nil), natty.ErrClosed)
	assert.NotEmpty(t, c.Health().LastError)
	require.NoError(t, node.Restart())
	require.ErrorIs(t, c.Publish(testCtx(t), "orders.new", nil), natty.ErrClosed)
}

func TestConnectionThatIsLostForGoodDuringACallSaysSo(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	c := connect(t, natty.Config{Servers: []string{link.URL()}, DisableReconnect: true})
	_, err := c.EnsureBucket(testCtx(t), jetstream.KeyValueConfig{Bucket: "b"})
	require.NoError(t, err)
	spy := connectTo(t, server.URL()).Conn()
	asked, err := spy.SubscribeSync("$JS.API.STREAM.INFO.KV_b")
	require.NoError(t, err)
	require.NoError(t, spy.Flush())
	link.FreezeReplies()
	done := make(chan error, 1)
	go func() {
		_, err := c.Status(testCtx(t), "b")
		done <- err
	}()
	_, err = asked.NextMsgWithContext(testCtx(t))
	require.NoError(t, err)
	link.Cut()
	require.ErrorIs(t, receive(t, done), natty.ErrClosed)
}

func TestClientThatMustNotReconnectStillWaitsForItsFirstConnection(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	node.Stop()
	c := connect(t, natty.Config{Servers: []string{node.URL()}, DisableReconnect: true, LazyConnect: true})
	eventually(t, func() bool { return c.Health().LastError != "" }, "it has tried")
	require.NoError(t, node.Restart())
	eventually(t, func() bool { return c.Health().Connected }, "it connects")
}

// newNKey returns a user's public key and a file with the seed.
func newNKey(t testing.TB) (public, file string) {
	t.Helper()
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	public, err = user.PublicKey()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	file = filepath.Join(t.TempDir(), "user.nk")
	require.NoError(t, os.WriteFile(file, seed, 0o600))
	return public, file
}

// operator is a server that takes users by their JWT, and the account that signs those.
type operator struct {
	node    *nattytest.Node
	account nkeys.KeyPair
}

func newOperator(t testing.TB) operator {
	t.Helper()
	op, err := nkeys.CreateOperator()
	require.NoError(t, err)
	account, err := nkeys.CreateAccount()
	require.NoError(t, err)
	unlimited := `{"limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1},"version":2,"type":"account"}`
	claim := signJWT(t, op, public(t, account), unlimited)
	resolver := &server.MemAccResolver{}
	require.NoError(t, resolver.Store(public(t, account), claim))
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.TrustedKeys, o.AccountResolver, o.JetStream = []string{public(t, op)}, resolver, false
	}))
	return operator{node, account}
}

func (o operator) credsFile(t testing.TB) string {
	t.Helper()
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	jwt := signJWT(t, o.account, public(t, user), `{"subs":-1,"data":-1,"payload":-1,"version":2,"type":"user"}`)
	file := filepath.Join(t.TempDir(), "user.creds")
	require.NoError(t, os.WriteFile(file, []byte("-----BEGIN NATS USER JWT-----\n"+jwt+"\n------END NATS USER JWT------\n\n"+
		"-----BEGIN USER NKEY SEED-----\n"+string(seed)+"\n------END USER NKEY SEED------\n"), 0o600))
	return file
}

func public(t testing.TB, key nkeys.KeyPair) string {
	t.Helper()
	p, err := key.PublicKey()
	require.NoError(t, err)
	return p
}

// signJWT makes a JWT of the second version for subject.
func signJWT(t testing.TB, issuer nkeys.KeyPair, subject, claims string) string {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`)) + "." +
		encode([]byte(`{"iss":"`+public(t, issuer)+`","sub":"`+subject+`","iat":1,"name":"test","nats":`+claims+`}`))
	signature, err := issuer.Sign([]byte(text))
	require.NoError(t, err)
	return text + "." + encode(signature)
}
