package natty_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
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

// secret is what must never be seen. It is found in hexadecimal and as decimal bytes too.
const secret = "hunter2"

// half is the first half of a secret that could pass for a port.
const half = "10110110110"

func exposes(text string) bool {
	if strings.Contains(text, half) {
		return true
	}
	for _, format := range []string{"%s", "%x", "%X", "% x", "%d"} {
		if strings.Contains(text, strings.Trim(fmt.Sprintf(format, []byte(secret)), "[]")) {
			return true
		}
	}
	return false
}

// errorTexts are the texts of err and of everything that it wraps.
func errorTexts(err error) []string {
	if err == nil {
		return nil
	}
	texts := []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)}
	switch e := err.(type) { //nolint:errorlint // each error of the chain is looked at
	case interface{ Unwrap() error }:
		texts = append(texts, errorTexts(e.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			texts = append(texts, errorTexts(err)...)
		}
	}
	return texts
}

// logged is a log at debug level in both of slog's formats.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logged) logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}
	return slog.New(slog.NewMultiHandler(slog.NewTextHandler(l, opts), slog.NewJSONHandler(l, opts)))
}

var secretConfigs = map[string]natty.Config{
	"password":      {User: "ann", Password: secret},
	"token":         {Token: secret},
	"URL":           {Servers: []string{"nats://ann:" + secret + "@127.0.0.1:1"}},
	"URL token":     {Servers: []string{"nats://" + secret + "@127.0.0.1:1"}},
	"list":          {Servers: []string{"nats://127.0.0.1:1, nats://ann:" + secret + "@127.0.0.1:2"}},
	"bad escape":    {Servers: []string{"nats://ann:p%zz" + secret + "@127.0.0.1:1"}},
	"space":         {Servers: []string{"nats://ann:pa " + secret + "@127.0.0.1:1"}},
	"no at sign":    {Servers: []string{"nats://ann:" + secret}},
	"no host":       {Servers: []string{"nats://ann:" + secret + "@"}},
	"no scheme":     {Servers: []string{"ann:" + secret + "@127.0.0.1:1"}},
	"bad scheme":    {Servers: []string{"http://ann:" + secret + "@127.0.0.1:1"}},
	"only a scheme": {Servers: []string{"://" + secret}},
	"comma":         {Servers: []string{"nats://ann:" + half + "," + secret + "@127.0.0.1:1"}},
	"slash":         {Servers: []string{"nats://ann:" + half + "/" + secret + "@127.0.0.1:1"}},
	"question mark": {Servers: []string{"nats://ann:" + half + "?" + secret + "@127.0.0.1:1"}},
	"hash":          {Servers: []string{"nats://ann:" + half + "#" + secret + "@127.0.0.1:1"}},
	"query":         {Servers: []string{"nats://127.0.0.1:1?token=" + secret}},
	"opaque":        {Servers: []string{"nats:" + secret + "@127.0.0.1:1"}},
}

func TestPrintedConfigShowsNoSecret(t *testing.T) {
	t.Parallel()
	type exported struct{ Config natty.Config }
	type pointer struct{ Config *natty.Config }
	for name, cfg := range secretConfigs {
		for _, v := range []any{
			cfg, &cfg, exported{cfg}, &exported{cfg}, pointer{&cfg}, []natty.Config{cfg}, []*natty.Config{&cfg},
			map[string]natty.Config{"a": cfg}, map[string]natty.Secret{"a": cfg.Password, "b": cfg.Token},
			cfg.Password, cfg.Token, []natty.Secret{cfg.Password, cfg.Token}, &cfg.Password,
			struct{ A any }{cfg}, [1]natty.Config{cfg}, error(&natty.ConfigError{Field: fmt.Sprint(cfg)}),
		} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "% x", "%+q", "%T", "%t", "%e", "%c", "%U", "%o", "%99v", "%!"} {
				require.False(t, exposes(fmt.Sprintf(verb, v)), "%s of %T (%s)", verb, v, name)
			}
			require.False(t, exposes(fmt.Sprint(v)+fmt.Sprintln(v)), "%T (%s)", v, name)
			data, err := json.Marshal(v)
			require.NoError(t, err)
			require.False(t, exposes(string(data)), "JSON of %T (%s): %s", v, name, data)
			var log logged
			log.logger().Debug("a", "b", v, slog.Group("c", "d", v))
			require.False(t, exposes(log.String()), "log of %T (%s): %s", v, name, &log)
		}
	}
}

func TestNeitherErrorNorLogNorHealthShowsASecret(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.User("ann", "right"))
	configs := map[string]natty.Config{}
	for name, cfg := range secretConfigs {
		configs[name+", nobody there"] = cfg
	}
	host := strings.TrimPrefix(server.URL(), "nats://")
	configs["refused password"] = natty.Config{Servers: []string{server.URL()}, User: "ann", Password: secret}
	configs["refused token"] = natty.Config{Servers: []string{server.URL()}, Token: secret}
	configs["refused URL"] = natty.Config{Servers: []string{"nats://ann:" + secret + "@" + host}}
	configs["refused URL token"] = natty.Config{Servers: []string{"nats://" + secret + "@" + host}}
	configs["TLS wanted"] = natty.Config{Servers: []string{"tls://ann:" + secret + "@" + host}}
	configs["one refuses, one is down"] = natty.Config{
		Servers: []string{"nats://ann:" + secret + "@" + host + ",nats://ann:" + secret + "@127.0.0.1:1"},
	}
	for name, cfg := range configs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log logged
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := natty.Connect(ctx, cfg, natty.WithLogger(log.logger()))
			require.Error(t, err)
			for _, text := range errorTexts(err) {
				assert.False(t, exposes(text), text)
			}
			assert.False(t, exposes(log.String()), &log)

			cfg.LazyConnect = true
			c, err := natty.Connect(t.Context(), cfg, natty.WithLogger(log.logger()))
			for _, text := range errorTexts(err) {
				assert.False(t, exposes(text), text)
			}
			if err != nil {
				return
			}
			testkit.Eventually(t, func() bool { return c.Health().LastError != "" }, "the reason is known")
			data, err := json.Marshal(c.Health())
			require.NoError(t, err)
			for _, text := range []string{fmt.Sprintf("%+v", c.Health()), string(data), fmt.Sprintf("%v %+v %#v %s", c, c, c, c)} {
				assert.False(t, exposes(text), text)
			}
			for _, text := range errorTexts(c.Publish(ctx, "a", nil)) {
				assert.False(t, exposes(text), text)
			}
			log.logger().Info("client", "client", c)
			require.NoError(t, c.Close(testkit.Ctx(t)))
			assert.False(t, exposes(log.String()), &log)
		})
	}
}

func TestClientWithASecretInItsURLShowsOnlyTheHost(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.User("ann", secret))
	host := strings.TrimPrefix(server.URL(), "nats://")
	var log logged
	c := testkit.Connect(t, natty.Config{Servers: []string{"nats://ann:" + secret + "@" + host}}, natty.WithLogger(log.logger()))
	testkit.Eventually(t, func() bool { return strings.Contains(log.String(), "connected") }, "it is logged")
	require.NoError(t, server.Restart())
	testkit.Eventually(t, func() bool { return c.Health().Reconnects == 1 && c.Health().Connected }, "it reconnects")
	assert.Contains(t, c.Health().Server, host)
	text := fmt.Sprintf("%v %+v %#v %s %+v", c, c, c, log.String(), c.Health())
	assert.False(t, exposes(text), text)
}

func TestConfigIsReadFromJSONWithItsSecrets(t *testing.T) {
	t.Parallel()
	var cfg natty.Config
	require.NoError(t, json.Unmarshal([]byte(`{
		"name": "orders", "servers": ["nats://ann:hunter2@h:1"], "user": "ann", "password": "hunter2", "token": "letmein",
		"creds_file": "a", "nkey_file": "b", "domain": "c", "api_prefix": "d", "replicas": 3, "disable_reconnect": true,
		"lazy_connect": true, "publish_timeout": 1000000000,
		"tls": {"ca_file": "e", "cert_file": "f", "key_file": "g", "server_name": "h", "handshake_first": true, "insecure_skip_verify": true}
	}`), &cfg))
	assert.True(t, cfg.Password == secret && cfg.Token == "letmein" && cfg.Servers[0] == "nats://ann:hunter2@h:1")
	cfg.Password, cfg.Token, cfg.Servers = "", "", nil
	data, err := json.Marshal(cfg)
	require.NoError(t, err)
	assert.JSONEq(t, `{
		"name": "orders", "user": "ann", "creds_file": "a", "nkey_file": "b", "domain": "c", "api_prefix": "d", "replicas": 3,
		"disable_reconnect": true, "lazy_connect": true, "publish_timeout": 1000000000,
		"tls": {"ca_file": "e", "cert_file": "f", "key_file": "g", "server_name": "h", "handshake_first": true, "insecure_skip_verify": true}
	}`, string(data))
}

func TestConfigThatCanNeverWorkIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]struct {
		cfg   natty.Config
		field string
	}{
		"unknown scheme":           {natty.Config{Servers: []string{"http://h:1"}}, "servers[0]"},
		"the second":               {natty.Config{Servers: []string{"nats://h:1", "nats://h:port"}}, "servers[1]"},
		"the second of a list":     {natty.Config{Servers: []string{"nats://h:1,nats://h:port"}}, "servers[1]"},
		"no host":                  {natty.Config{Servers: []string{"nats://"}}, "servers[0]"},
		"WebSocket beside TCP":     {natty.Config{Servers: []string{"ws://h:1", "nats://h:2"}}, "servers"},
		"user and token":           {natty.Config{User: "a", Token: "b"}, "user, token, creds_file, nkey_file"},
		"creds and nkey":           {natty.Config{CredsFile: "a", NKeyFile: "b"}, "user, token, creds_file, nkey_file"},
		"password and nkey":        {natty.Config{Password: "a", NKeyFile: "b"}, "user, token, creds_file, nkey_file"},
		"password without user":    {natty.Config{Password: "a"}, "password"},
		"domain with prefix":       {natty.Config{Domain: "a", APIPrefix: "b"}, "domain"},
		"domain of two tokens":     {natty.Config{Domain: "a.b"}, "domain"},
		"domain with a wildcard":   {natty.Config{Domain: "*"}, "domain"},
		"domain with a space":      {natty.Config{Domain: "a b"}, "domain"},
		"prefix with a wildcard":   {natty.Config{APIPrefix: "$JS.>"}, "api_prefix"},
		"prefix of a dot":          {natty.Config{APIPrefix: "."}, "api_prefix"},
		"prefix with empty tokens": {natty.Config{APIPrefix: "a..b"}, "api_prefix"},
		"negative replicas":        {natty.Config{Replicas: -1}, "replicas"},
		"negative timeout":         {natty.Config{PublishTimeout: -time.Second}, "publish_timeout"},
	} {
		for _, lazy := range []bool{false, true} {
			wrong.cfg.LazyConnect = lazy
			_, err := natty.Connect(testkit.Ctx(t), wrong.cfg, testkit.Quiet)
			var config *natty.ConfigError
			require.ErrorAs(t, err, &config, name)
			assert.Equal(t, wrong.field, config.Field, name)
			assert.NotEmpty(t, config.Reason, name)
		}
	}
}

func TestOptionThatCanNeverWorkIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	nc, err := nats.Connect(server.URL())
	require.NoError(t, err)
	nc.Close()
	broken := errors.New("broken")
	for name, wrong := range map[string]struct {
		opt   natty.Option
		field string
		cause error
	}{
		"closed connection":      {natty.WithConn(nc), "WithConn", nats.ErrConnectionClosed},
		"no connection":          {natty.WithConn(nil), "WithConn", nil},
		"failing option":         {natty.WithNATSOptions(func(*nats.Options) error { return broken }), "WithNATSOptions", broken},
		"contradicting options":  {natty.WithNATSOptions(nats.Nkey("U", func([]byte) ([]byte, error) { return nil, nil }), jwtOnly), "WithNATSOptions", nats.ErrNkeyAndUser},
		"nkey without signature": {natty.WithNATSOptions(func(o *nats.Options) error { o.Nkey = "U"; return nil }), "WithNATSOptions", nats.ErrNkeyButNoSigCB},
	} {
		_, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: []string{server.URL()}}, testkit.Quiet, wrong.opt)
		var config *natty.ConfigError
		require.ErrorAs(t, err, &config, name)
		assert.Equal(t, wrong.field, config.Field, name)
		if wrong.cause != nil {
			require.ErrorIs(t, err, wrong.cause, name)
		}
	}
}

func jwtOnly(o *nats.Options) error {
	o.UserJWT = func() (string, error) { return "", nil }
	return nil
}

func TestServersComeFromTheEnvironmentAndNeedNoScheme(t *testing.T) {
	server := nattytest.Server(t)
	host := strings.TrimPrefix(server.URL(), "nats://")
	t.Setenv("NATS_URL", " 127.0.0.1:1 ,, "+host)
	for name, servers := range map[string][]string{
		"not set": nil, "list": {"127.0.0.1:1," + host}, "one": {host}, "several": {"nats://127.0.0.1:1", server.URL()},
	} {
		c := testkit.Connect(t, natty.Config{Servers: servers})
		assert.Equal(t, server.URL(), c.Health().Server, name)
	}
}

func TestNilLoggerIsTheDefaultOne(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: []string{server.URL()}, LazyConnect: true}, testkit.Quiet, natty.WithLogger(nil))
	require.NoError(t, err)
	require.NoError(t, c.Close(testkit.Ctx(t)))
}

// countingDialer is a caller's own dialer.
type countingDialer struct{ n atomic.Int64 }

func (d *countingDialer) Dial(network, address string) (net.Conn, error) {
	d.n.Add(1)
	return net.DialTimeout(network, address, testkit.Patience)
}

func TestHandlersOfNATSOptionsAreCalledBesideNattys(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.User("ann", "a"))
	dialer := &countingDialer{}
	type event struct {
		name string
		err  error
	}
	events := make(chan event, 100)
	on := func(name string) nats.ConnHandler { return func(*nats.Conn) { events <- event{name, nil} } }
	wait := func(name string) event {
		t.Helper()
		for {
			if e := testkit.Receive(t, events); e.name == name {
				return e
			}
		}
	}
	c := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}, User: "ann", Password: "a"}, natty.WithNATSOptions(
		nats.SetCustomDialer(dialer),
		nats.ConnectHandler(on("connected")),
		nats.ReconnectHandler(on("reconnected")),
		nats.ClosedHandler(on("closed")),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { events <- event{"disconnected", err} }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { events <- event{"error", err} }),
	))
	wait("connected")
	sub, err := c.Conn().SubscribeSync("slow")
	require.NoError(t, err)
	require.NoError(t, sub.SetPendingLimits(1, -1))
	for range 3 {
		require.NoError(t, c.Conn().Publish("slow", nil))
	}
	require.ErrorIs(t, wait("error").err, nats.ErrSlowConsumer)
	assert.Contains(t, c.Health().LastError, "slow consumer")
	server.Stop()
	require.EqualError(t, wait("disconnected").err, c.Health().LastError)
	require.NoError(t, server.Restart())
	wait("reconnected")
	testkit.Eventually(t, func() bool { return c.Health().Reconnects == 1 && c.Health().Connected }, "natty is told too")
	assert.GreaterOrEqual(t, dialer.n.Load(), int64(2))
	require.NoError(t, c.Close(testkit.Ctx(t)))
	assert.NoError(t, wait("disconnected").err, "a Close is no fault")
	wait("closed")
}

func TestDeprecatedDisconnectHandlerIsCalledBesideNattys(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	lost := make(chan struct{}, 10)
	c := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}}, natty.WithNATSOptions(
		nats.DisconnectHandler(func(*nats.Conn) { lost <- struct{}{} }),
	))
	require.NoError(t, server.Restart())
	testkit.Receive(t, lost)
	testkit.Eventually(t, func() bool { return c.Health().Reconnects == 1 }, "natty is told too")
}

func TestNATSOptionsCannotTurnOffReconnectingNorOnTheReconnectBuffer(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}}, natty.WithNATSOptions(
		nats.NoReconnect(), nats.MaxReconnects(0), nats.ReconnectBufSize(1<<20), nats.RetryOnFailedConnect(false),
		func(o *nats.Options) error { o.IgnoreAuthErrorAbort = false; return nil },
	))
	server.Stop()
	testkit.Eventually(t, func() bool { return !c.Health().Connected }, "the loss is seen")
	require.ErrorIs(t, c.Conn().Publish("a", nil), nats.ErrReconnectBufExceeded)
	require.NoError(t, server.Restart())
	testkit.Eventually(t, func() bool { return c.Health().Connected }, "it reconnects")
}

func TestTunablesOfNATSOptionsAreKept(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	pauses := make(chan int, 1000)
	c := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}, Name: "orders"}, natty.WithNATSOptions(
		nats.Name("overruled"), nats.MaxPingsOutstanding(7), nats.CustomInboxPrefix("_MINE"),
		nats.CustomReconnectDelay(func(n int) time.Duration { pauses <- n; return time.Millisecond }),
	))
	assert.Equal(t, "orders", c.Conn().Opts.Name)
	assert.Equal(t, 7, c.Conn().Opts.MaxPingsOut)
	assert.Contains(t, c.Conn().NewInbox(), "_MINE.")
	require.NoError(t, server.Restart())
	assert.Equal(t, 1, testkit.Receive(t, pauses))
}

func TestWithConnUsesTheCallersConnectionAndLeavesItOpen(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	errs := make(chan error, 10)
	theirs := func(_ *nats.Conn, _ *nats.Subscription, err error) { errs <- err }
	nc, err := nats.Connect(server.URL(), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1), nats.ErrorHandler(theirs))
	require.NoError(t, err)
	defer nc.Close()
	slow := func() {
		sub, err := nc.SubscribeSync(nats.NewInbox())
		require.NoError(t, err)
		require.NoError(t, sub.SetPendingLimits(1, -1))
		for range 3 {
			require.NoError(t, nc.Publish(sub.Subject, nil))
		}
		require.ErrorIs(t, testkit.Receive(t, errs), nats.ErrSlowConsumer)
		require.NoError(t, sub.Unsubscribe())
	}
	before := nc.NumSubscriptions()
	for range 2 {
		c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test"}, testkit.Quiet, natty.WithConn(nc))
		require.NoError(t, err)
		assert.Same(t, nc, c.Conn())
		testkit.Ensure(t, c, "ORDERS", "orders.>")
		testkit.Fill(t, c, "orders.new", 1)
		slow()
		assert.Contains(t, c.Health().LastError, "slow consumer")
		require.NoError(t, c.Close(testkit.Ctx(t)))
		require.ErrorIs(t, c.Publish(testkit.Ctx(t), "orders.new", nil), natty.ErrClosed)
		assert.True(t, nc.IsConnected())
		last := c.Health().LastError
		slow() // reaches their handler
		assert.Equal(t, last, c.Health().LastError, "natty listens no more")
	}
	// jetstream's own subscription for answers is the connection's, and stays.
	assert.LessOrEqual(t, nc.NumSubscriptions(), before+1)
}

func TestWithConnFollowsReconnectsOfTheCallersConnection(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	nc, err := nats.Connect(server.URL(), nats.ReconnectBufSize(-1), nats.ReconnectWait(time.Millisecond), nats.ReconnectJitter(0, 0))
	require.NoError(t, err)
	defer nc.Close()
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test"}, testkit.Quiet, natty.WithConn(nc))
	require.NoError(t, err)
	testkit.Ensure(t, c, "ORDERS", "orders.>")
	server.Stop()
	testkit.Eventually(t, func() bool { return !c.Health().Connected }, "the loss is seen")
	require.NoError(t, server.Restart())
	require.NoError(t, c.Publish(testkit.Ctx(t), "orders.new", nil))
	nc.Close()
	require.ErrorIs(t, c.Publish(testkit.Ctx(t), "orders.new", nil), natty.ErrClosed)
	testkit.Eventually(t, func() bool { return !c.Health().Connected }, "the end is seen")
	require.NoError(t, c.Close(testkit.Ctx(t)))
}

func TestConnectionThatTheCallerHasJustClosedIsNoErrorOfClose(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	for range 10 { // natty is told a moment later
		nc, err := nats.Connect(server.URL())
		require.NoError(t, err)
		c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test"}, testkit.Quiet, natty.WithConn(nc))
		require.NoError(t, err)
		nc.Close()
		require.NoError(t, c.Close(testkit.Ctx(t)))
	}
}

func TestNilOptionsAreSkippedOrNamed(t *testing.T) {
	t.Parallel()
	url := nattytest.Server(t).URL()
	c := testkit.Connect(t, natty.Config{Servers: []string{url}}, nil, natty.WithNATSOptions(nil))
	testkit.Ensure(t, c, "S", "s")
	var bad *natty.ConfigError
	require.ErrorAs(t, c.Publish(testkit.Ctx(t), "s", nil, nil), &bad)
	assert.Equal(t, "opts", bad.Field)
}

func TestConfigsNumbersAreRefusedOrWorkWhateverTheyAre(t *testing.T) {
	t.Parallel()
	url := nattytest.Server(t).URL()
	cfg := natty.Config{Name: "test"}
	extremes(&cfg, func(field string, value int64) {
		cfg := cfg
		cfg.Servers = []string{url}
		c, err := natty.Connect(testkit.Ctx(t), cfg)
		if value < 0 {
			var bad *natty.ConfigError
			require.ErrorAs(t, err, &bad, "%s %d", field, value)
			return
		}
		require.NoError(t, err, "%s %d", field, value)
		_, err = c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
		require.NoError(t, err)
		if field != "PublishTimeout" || value > 1 {
			require.NoError(t, c.Publish(t.Context(), "s", nil), "%s %d", field, value)
		}
		require.NoError(t, c.Close(testkit.Ctx(t)))
	})
}

func TestServersThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	for _, servers := range [][]string{
		{""}, {" ", ","}, {"nats://127.0.0.1:65536"}, {"127.0.0.1:0"}, {"nats://h", "tls://h:99999999999999999999"},
	} {
		_, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: servers})
		var bad *natty.ConfigError
		require.ErrorAs(t, err, &bad, "%q", servers)
		assert.Contains(t, bad.Field, "servers[")
	}
	_, err := natty.ParseService([]byte(`{"name": "a", "servers": [""], "consumers": [
		{"name": "c", "type": "nats", "nats": {"subjects": ["s"]}}
	]}`))
	require.Error(t, err, "a variable may be empty")
}
