package nattytest_test

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

func connect(t *testing.T, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append(opts, nats.MaxReconnects(-1), nats.ReconnectWait(5*time.Millisecond))
	nc, err := nats.Connect(url, opts...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

func newStream(ctx context.Context, t *testing.T, nc *nats.Conn, replicas int) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	var stream jetstream.Stream
	requireInTime(ctx, t, func(ctx context.Context) error {
		var err error
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: "ORDERS", Subjects: []string{"orders.>"}, Replicas: replicas,
		})
		return err
	})
	return stream
}

func stored(ctx context.Context, t *testing.T, stream jetstream.Stream) uint64 {
	t.Helper()
	info, err := stream.Info(ctx)
	require.NoError(t, err)
	return info.State.Msgs
}

func TestStartReportsWhyAServerCannotStart(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/file"
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := nattytest.Start(nattytest.Options(func(o *server.Options) { o.StoreDir = file }))
	require.ErrorContains(t, err, "storage directory is not a directory")
}

func TestStartReportsAPortThatIsTaken(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	taken := listener.Addr().(*net.TCPAddr).Port
	_, err = nattytest.Start(nattytest.Options(func(o *server.Options) { o.Port = taken }))
	require.ErrorContains(t, err, "address already in use")
}

func TestTokenTogetherWithUsersIsRefused(t *testing.T) {
	t.Parallel()
	_, err := nattytest.Start(nattytest.Token("t"), nattytest.User("a", "b"))
	require.ErrorContains(t, err, "cannot be combined")
	require.Contains(t, fatal(func(t testing.TB) {
		nattytest.Server(t, nattytest.Token("t"), nattytest.NKey("UA"))
	}), "cannot be combined")
	require.Contains(t, fatal(func(t testing.TB) {
		nattytest.Cluster(t, nattytest.Token("t"), nattytest.User("a", "b"))
	}), "cannot be combined")
}

func TestClosedNodeHasNoStoreAndCannotBeRestarted(t *testing.T) {
	t.Parallel()
	node, err := nattytest.Start(nattytest.TLS())
	require.NoError(t, err)
	require.NoError(t, node.Close())
	require.NoError(t, node.Close())
	require.ErrorContains(t, node.Restart(), "closed")
	require.NoDirExists(t, node.Server().StoreDir())
	require.NoFileExists(t, node.Files().CA)
}

func TestStoppedServerRefusesConnections(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	node.Stop()
	node.Stop()
	_, err := nats.Connect(node.URL())
	require.ErrorIs(t, err, nats.ErrNoServers)
	require.False(t, node.Server().Running())
}

func TestRestartKeepsPortMessagesAndClients(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	node := nattytest.Server(t)
	url, first := node.URL(), node.Server()
	reconnected := make(chan struct{}, 4)
	nc := connect(t, url, nats.ReconnectHandler(func(*nats.Conn) { reconnected <- struct{}{} }))
	stream := newStream(ctx, t, nc, 1)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	_, err = js.Publish(ctx, "orders.new", []byte("one"))
	require.NoError(t, err)

	for range 3 {
		require.NoError(t, node.Restart())
		select {
		case <-reconnected:
		case <-ctx.Done():
			t.Fatal("the client did not come back")
		}
	}
	require.Equal(t, url, node.URL())
	require.NotSame(t, first, node.Server())
	require.Equal(t, first.Name(), node.Server().Name())
	require.Equal(t, uint64(1), stored(ctx, t, stream))
}

func TestPortOfAStoppedServerIsGivenToNobodyElse(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	node.Stop()
	port := strings.TrimPrefix(node.URL(), "nats://127.0.0.1:")
	for range 200 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = listener.Close() })
		_, other, err := net.SplitHostPort(listener.Addr().String())
		require.NoError(t, err)
		require.NotEqual(t, port, other)
	}
	require.NoError(t, node.Restart())
}

func TestServersHaveNamesAndStoresOfTheirOwn(t *testing.T) {
	t.Parallel()
	a, b := nattytest.Server(t), nattytest.Server(t)
	require.NotEqual(t, a.URL(), b.URL())
	require.NotEqual(t, a.Server().Name(), b.Server().Name())
	require.NotEqual(t, a.Server().StoreDir(), b.Server().StoreDir())
	require.Equal(t, nattytest.Files{}, a.Files())
}

func TestTLSIsRequired(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.TLS())
	_, err := nats.Connect(node.URL())
	require.ErrorContains(t, err, "certificate signed by unknown authority")
	conn, err := net.Dial("tcp", strings.TrimPrefix(node.URL(), "nats://"))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	send(t, conn, "CONNECT {\"verbose\":true}\r\nPING\r\n") // without TLS
	for {
		line := make([]byte, 4096)
		n, err := conn.Read(line)
		if err != nil {
			break
		}
		require.NotContains(t, string(line[:n]), "PONG")
	}

	for _, host := range []string{"127.0.0.1", "localhost"} {
		url := strings.Replace(node.URL(), "127.0.0.1", host, 1)
		require.NoError(t, connect(t, url, nats.RootCAs(node.Files().CA)).Flush())
	}
	require.NoError(t, node.Restart())
	nc := connect(t, node.URL(), nats.RootCAs(node.Files().CA))
	require.NoError(t, nc.Flush(), "a restart must keep the certificates")
}

func TestClientCertificateIsDemanded(t *testing.T) {
	t.Parallel()
	node, stranger := nattytest.Server(t, nattytest.ClientCerts()), nattytest.Server(t, nattytest.TLS())
	files := node.Files()
	_, err := nats.Connect(node.URL(), nats.RootCAs(files.CA))
	require.Error(t, err)
	pair, err := tls.LoadX509KeyPair(stranger.Files().Cert, stranger.Files().Key)
	require.NoError(t, err)
	_, err = nats.Connect(node.URL(), nats.RootCAs(files.CA), nats.Secure(&tls.Config{
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	}))
	require.Error(t, err)

	nc := connect(t, node.URL(), nats.RootCAs(files.CA), nats.ClientCert(files.Cert, files.Key))
	require.NoError(t, nc.Flush())
}

func TestLoginsAreChecked(t *testing.T) {
	t.Parallel()
	pair, err := nkeys.CreateUser()
	require.NoError(t, err)
	public, err := pair.PublicKey()
	require.NoError(t, err)
	seed, err := pair.Seed()
	require.NoError(t, err)
	seedFile := t.TempDir() + "/user.nk"
	require.NoError(t, os.WriteFile(seedFile, seed, 0o600))
	nkey, err := nats.NkeyOptionFromSeed(seedFile)
	require.NoError(t, err)

	users := nattytest.Server(t, nattytest.User("ann", "a"), nattytest.User("bob", "b"), nattytest.NKey(public))
	token := nattytest.Server(t, nattytest.Token("letmein"))
	for name, refused := range map[string]struct {
		node *nattytest.Node
		opt  nats.Option
	}{
		"nobody":         {users, nats.Name("nobody")},
		"wrong password": {users, nats.UserInfo("ann", "b")},
		"token of users": {users, nats.Token("letmein")},
		"no token":       {token, nats.Name("nobody")},
		"wrong token":    {token, nats.Token("a")},
	} {
		_, err := nats.Connect(refused.node.URL(), refused.opt)
		require.ErrorIs(t, err, nats.ErrAuthorization, name)
	}
	for range 2 {
		require.NoError(t, connect(t, users.URL(), nats.UserInfo("ann", "a")).Flush())
		require.NoError(t, connect(t, users.URL(), nats.UserInfo("bob", "b")).Flush())
		require.NoError(t, connect(t, users.URL(), nkey).Flush())
		require.NoError(t, connect(t, token.URL(), nats.Token("letmein")).Flush())
		require.NoError(t, users.Restart())
		require.NoError(t, token.Restart())
	}
}

func TestUsersShareTheDefaultAccountWithJetStream(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	node := nattytest.Server(t, nattytest.User("ann", "a"), nattytest.User("bob", "b"))
	newStream(ctx, t, connect(t, node.URL(), nats.UserInfo("ann", "a")), 1)
	js, err := jetstream.New(connect(t, node.URL(), nats.UserInfo("bob", "b")))
	require.NoError(t, err)
	_, err = js.Publish(ctx, "orders.new", nil)
	require.NoError(t, err)
}

func TestOptionsHaveTheLastWordInEveryStart(t *testing.T) {
	t.Parallel()
	starts := 0
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		starts++
		o.MaxPayload, o.Port = 512, server.RANDOM_PORT
	}), nattytest.User("ann", "a"))
	url := node.URL()
	require.NoError(t, node.Restart())
	require.Equal(t, 2, starts)
	require.Equal(t, url, node.URL())
	require.Equal(t, int64(512), connect(t, url, nats.UserInfo("ann", "a")).MaxPayload())
}
