package natty_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testcerts"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

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
	testkit.Connect(t, natty.Config{Servers: []string{users.URL()}, User: "ann", Password: "a"})
	testkit.Connect(t, natty.Config{Servers: []string{strings.Replace(users.URL(), "//", "//ann:a@", 1)}})
	testkit.Connect(t, natty.Config{Servers: []string{token.URL()}, Token: "letmein"})
	testkit.Connect(t, natty.Config{Servers: []string{nkey.URL()}, NKeyFile: rightFile})
	testkit.Connect(t, natty.Config{Servers: []string{creds.node.URL()}, CredsFile: creds.credsFile(t)})
}

func TestExpiredJWTIsCalledThat(t *testing.T) {
	t.Parallel()
	operator := newOperator(t)
	cfg := natty.Config{Servers: []string{operator.node.URL()}, CredsFile: operator.credsUntil(t, time.Now().Add(-time.Minute))}
	err := refused(t, cfg)
	require.ErrorIs(t, err, nats.ErrAuthorization)
	require.ErrorContains(t, err, "the login has expired: the JWT of creds_file was valid until ")
	require.NotContains(t, err.Error(), "check user and password")
	cfg.CredsFile = operator.credsUntil(t, time.Now().Add(time.Hour))
	testkit.Connect(t, cfg)
	cfg.CredsFile = newOperator(t).credsUntil(t, time.Now().Add(time.Hour))
	require.NotContains(t, refused(t, cfg).Error(), "expired", "refused for another reason")
}

func TestLoginThatExpiresIsWhyTheConnectionWasLost(t *testing.T) {
	t.Parallel()
	operator := newOperator(t)
	lost := make(chan error, 100)
	observer := natty.ObserverFunc(func(e natty.Event) {
		if e, ok := e.(natty.ConnectionEvent); ok && e.Err != nil {
			lost <- e.Err
		}
	})
	file := operator.credsUntil(t, time.Now().Add(4*time.Second))
	c := testkit.Connect(t, natty.Config{Servers: []string{operator.node.URL()}, CredsFile: file}, natty.WithObserver(observer))
	replace(t, file, operator.credsFile(t))
	testkit.Eventually(t, func() bool { return c.Health().Connected && c.Health().Reconnects > 0 }, "it reconnects with the new file")
	assert.Contains(t, c.Health().LastError, nats.ErrAuthExpired.Error())
	for range 2 { // what the server says, and the loss
		require.ErrorIs(t, testkit.Receive(t, lost), nats.ErrAuthExpired)
	}
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
		c := testkit.Connect(t, natty.Config{Servers: servers}, natty.WithNATSOptions(nats.DontRandomize()))
		assert.Equal(t, fine.URL(), c.Health().Server)
	}

	c := testkit.Connect(t, natty.Config{Servers: []string{refusing.URL(), down.URL()}, LazyConnect: true})
	testkit.Eventually(t, func() bool { return strings.Contains(c.Health().LastError, "refused the login") }, "the reason is known")
	require.NoError(t, down.Restart())
	testkit.Eventually(t, func() bool { return c.Health().Connected }, "it connects to the one that comes up")
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

// replace writes a file of one login over that of another.
func replace(t testing.TB, file, by string) {
	t.Helper()
	data, err := os.ReadFile(by)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, data, 0o600))
}

func TestReplacedLoginIsUsedForTheNextConnectionAndABadFileIsNot(t *testing.T) {
	t.Parallel()
	oldKey, nkeyFile := newNKey(t)
	newKey, newNKeyFile := newNKey(t)
	operator := newOperator(t)
	creds, newCreds := operator.credsFile(t), operator.credsFile(t)
	ca, dir := newCA(t), t.TempDir()
	authority := caFile(t, ca)
	cert, key, err := ca.WriteLeaf(dir, "old", testcerts.Leaf{CommonName: "old", Client: true})
	require.NoError(t, err)
	newCert, newCertKey, err := ca.WriteLeaf(dir, "new", testcerts.Leaf{CommonName: "new", Client: true})
	require.NoError(t, err)
	pair, err := ca.KeyPair(testcerts.Leaf{Hosts: []string{"127.0.0.1"}, Server: true})
	require.NoError(t, err)
	certs := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Users = []*server.User{{Username: "CN=old"}, {Username: "CN=new"}}
		o.TLS, o.TLSVerify, o.TLSMap = true, true, true
		o.TLSConfig = &tls.Config{
			Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(), MinVersion: tls.VersionTLS12,
		}
	}))
	for name, login := range map[string]struct {
		node     *nattytest.Node
		cfg      natty.Config
		file     string
		renew    func()
		old, new string // empty: whoever it is
	}{
		"nkey_file": {
			nattytest.Server(t, nattytest.NKey(oldKey), nattytest.NKey(newKey)), natty.Config{NKeyFile: nkeyFile},
			nkeyFile, func() { replace(t, nkeyFile, newNKeyFile) }, oldKey, newKey,
		},
		"creds_file": {
			operator.node, natty.Config{CredsFile: creds}, creds, func() { replace(t, creds, newCreds) }, "", "",
		},
		"tls.cert_file": {
			certs, natty.Config{TLS: natty.TLSConfig{CAFile: authority, CertFile: cert, KeyFile: key}},
			cert, func() { replace(t, cert, newCert); replace(t, key, newCertKey) }, "CN=old", "CN=new",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log, logger := testkit.NewLog()
			login.cfg.Servers = []string{login.node.URL()}
			c := testkit.Connect(t, login.cfg, natty.WithLogger(logger))
			user := func() string {
				conns, err := login.node.Server().Connz(&server.ConnzOptions{Username: true})
				require.NoError(t, err)
				require.Len(t, conns.Conns, 1)
				return conns.Conns[0].AuthorizedUser
			}
			restart := func() {
				n := c.Health().Reconnects
				require.NoError(t, login.node.Restart())
				testkit.Eventually(t, func() bool { return c.Health().Connected && c.Health().Reconnects > n }, "it reconnects")
			}
			first := user()
			assert.Contains(t, []string{login.old, first}, first)

			require.NoError(t, os.WriteFile(login.file, []byte(secret), 0o600))
			restart()
			restart()
			assert.Equal(t, first, user(), "the last good one")
			assert.Contains(t, c.Health().LastError, name)
			testkit.Eventually(t, func() bool { return len(log.Of("natty: a file cannot be used")) == 1 }, "it is told once")
			assert.NotContains(t, c.Health().LastError+strings.Join(log.Texts(), ""), secret)

			login.renew()
			restart()
			assert.NotEqual(t, first, user())
			if login.new != "" {
				assert.Equal(t, login.new, user())
			}
			assert.NotContains(t, c.Health().LastError, name, "it is over")
		})
	}
}

func TestReplacedAuthoritiesAreTrustedAtTheNextConnection(t *testing.T) {
	t.Parallel()
	var served atomic.Pointer[tls.Certificate]
	serve := func(ca *testcerts.CA) {
		pair, err := ca.KeyPair(testcerts.Leaf{Hosts: []string{"127.0.0.1"}, Server: true})
		require.NoError(t, err)
		served.Store(&pair)
	}
	older, newer := newCA(t), newCA(t)
	serve(older)
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.TLS, o.TLSConfig = true, &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return served.Load(), nil },
		}
	}))
	// One of two authorities, and then half of the other, would replace the good ones.
	file := caFile(t, older)
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	half := append(newCA(t).PEM(), whole[:len(whole)/2]...)
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: file}})
	require.NoError(t, os.WriteFile(file, half, 0o600))
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool { return c.Health().Reconnects == 1 }, "it trusts the last good file")
	require.Contains(t, c.Health().LastError, "tls.ca_file "+strconv.Quote(file))
	serve(newer)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool {
		why := c.Health().LastError
		return strings.Contains(why, "unknown authority") && strings.Contains(why, "tls.ca_file "+strconv.Quote(file))
	}, "both are known")
	require.NoError(t, newer.WritePEM(file))
	testkit.Eventually(t, func() bool { return c.Health().Connected }, "it reconnects with the new file")
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
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, User: "ann", Password: "right"},
		natty.WithNATSOptions(nats.CustomReconnectDelay(func(int) time.Duration { return time.Millisecond })))
	password.Store("another")
	require.NoError(t, node.Restart())
	logins.Store(0)
	// nats.go gives up after two (nats.go#1622).
	testkit.Eventually(t, func() bool { return logins.Load() > 10 }, "it goes on trying")
	testkit.Eventually(t, func() bool { return strings.Contains(c.Health().LastError, "uthorization") }, "the reason is known")
	password.Store("right")
	testkit.Eventually(t, func() bool { return c.Health().Connected }, "it reconnects")
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool { return !strings.Contains(c.Health().LastError, "uthorization") }, "this loss has another reason")
}

type authFunc func(server.ClientAuthentication) bool

func (f authFunc) Check(c server.ClientAuthentication) bool { return f(c) }

func TestLostClientLearnsFromTheServersWhatIsWrong(t *testing.T) {
	t.Parallel()
	var users []*server.User
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.Users = users }))
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}})
	users = []*server.User{{Username: "ann", Password: "a"}}
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool { return strings.Contains(c.Health().LastError, "check user and password") }, "with the remedy")
	users = nil
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool { return c.Health().Connected }, "it reconnects")
}

func newCA(t testing.TB) *testcerts.CA {
	t.Helper()
	ca, err := testcerts.NewCA("test CA", time.Hour)
	require.NoError(t, err)
	return ca
}

func caFile(t testing.TB, ca *testcerts.CA) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, ca.WritePEM(file))
	return file
}

// tlsServer starts a server with a certificate of its own.
func tlsServer(t testing.TB, ca *testcerts.CA, leaf testcerts.Leaf) *nattytest.Node {
	t.Helper()
	leaf.Server = true
	pair, err := ca.KeyPair(leaf)
	require.NoError(t, err)
	return nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.TLS, o.TLSConfig = true, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}))
}

func TestServerWhoseCertificateCannotBeTrustedIsFatalAtOnce(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	own, others := caFile(t, ca), caFile(t, newCA(t))
	good := tlsServer(t, ca, testcerts.Leaf{Hosts: []string{"127.0.0.1"}})
	expired := tlsServer(t, ca, testcerts.Leaf{Hosts: []string{"127.0.0.1"}, NotAfter: time.Now().Add(-time.Hour)})
	elsewhere := tlsServer(t, ca, testcerts.Leaf{Hosts: []string{"elsewhere.example"}})
	plain := nattytest.Server(t)
	first := nattytest.Server(t, nattytest.TLS())

	for name, wrong := range map[string]struct {
		url    string
		tls    natty.TLSConfig
		cause  error // or one of its type
		remedy string
	}{
		"no CA":                      {good.URL(), natty.TLSConfig{}, x509.UnknownAuthorityError{}, "set tls.ca_file"},
		"another CA":                 {good.URL(), natty.TLSConfig{CAFile: others}, x509.UnknownAuthorityError{}, "set tls.ca_file"},
		"expired":                    {expired.URL(), natty.TLSConfig{CAFile: own}, x509.CertificateInvalidError{}, "has expired"},
		"another host":               {elsewhere.URL(), natty.TLSConfig{CAFile: own}, x509.HostnameError{}, "set tls.server_name"},
		"another name":               {good.URL(), natty.TLSConfig{CAFile: own, ServerName: "a.example"}, x509.HostnameError{}, "set tls.server_name"},
		"tls URL and plain server":   {strings.Replace(plain.URL(), "nats", "tls", 1), natty.TLSConfig{}, nats.ErrSecureConnWanted, "use a nats:// URL"},
		"CA file and plain server":   {plain.URL(), natty.TLSConfig{CAFile: own}, nats.ErrSecureConnWanted, "use a nats:// URL"},
		"TLS first and plain server": {plain.URL(), natty.TLSConfig{CAFile: own, HandshakeFirst: true}, tls.RecordHeaderError{}, "unset tls.handshake_first"},
		"TLS first and TLS server":   {first.URL(), natty.TLSConfig{CAFile: first.Files().CA, HandshakeFirst: true}, tls.RecordHeaderError{}, "unset tls.handshake_first"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limit := testkit.AtOnce
			if wrong.tls.HandshakeFirst {
				// Such a server closes with what was sent to it unread. That resets the connection,
				// and can discard what it said itself: then only another attempt tells what it is.
				limit *= 5
			}
			err := refusedWithin(t, limit, natty.Config{Servers: []string{wrong.url}, TLS: wrong.tls})
			require.ErrorContains(t, err, wrong.remedy)
			switch cause := wrong.cause.(type) { //nolint:errorlint // the type of what is expected
			case x509.UnknownAuthorityError:
				require.ErrorAs(t, err, &cause)
			case x509.CertificateInvalidError:
				require.ErrorAs(t, err, &cause)
				assert.Equal(t, x509.Expired, cause.Reason)
			case x509.HostnameError:
				require.ErrorAs(t, err, &cause)
			case tls.RecordHeaderError:
				require.ErrorAs(t, err, &cause)
			default:
				require.ErrorIs(t, err, cause)
			}
		})
	}
	testkit.Connect(t, natty.Config{Servers: []string{good.URL()}, TLS: natty.TLSConfig{CAFile: own}})
	testkit.Connect(t, natty.Config{Servers: []string{elsewhere.URL()}, TLS: natty.TLSConfig{CAFile: own, ServerName: "elsewhere.example"}})
	testkit.Connect(t, natty.Config{Servers: []string{expired.URL()}, TLS: natty.TLSConfig{InsecureSkipVerify: true}})
}

// What a server announces are addresses; their certificates have the name that the client
// has used.
func TestAnnouncedServerNeedsTheNameOfTheOneThatAnnouncedIt(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	pair, err := ca.KeyPair(testcerts.Leaf{Hosts: []string{"localhost"}, Server: true})
	require.NoError(t, err)
	nodes := nattytest.Cluster(t, nattytest.Options(func(o *server.Options) {
		o.Cluster.NoAdvertise = false
		o.TLS, o.TLSConfig = true, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	})).Nodes()
	named := strings.Replace(nodes[0].URL(), "127.0.0.1", "localhost", 1)
	// The second is none of the cluster, though it has the same address.
	c := testkit.Connect(t, natty.Config{Servers: []string{named, nowhere(t)}, TLS: natty.TLSConfig{CAFile: caFile(t, ca)}})
	testkit.Eventually(t, func() bool { return len(c.Conn().DiscoveredServers()) > 0 }, "others are announced")
	nodes[0].Stop()
	testkit.Eventually(t, func() bool { return c.Health().Connected && c.Health().Reconnects > 0 }, "it goes to another one")
}

func TestTLSURLNeverConnectsInTheClear(t *testing.T) {
	t.Parallel()
	// Whoever is on the way can make any server look like this one.
	optional := nattytest.Server(t, nattytest.TLS(), nattytest.User("ann", "a"), nattytest.Options(func(o *server.Options) { o.AllowNonTLS = true }))
	tlsURL := func(node *nattytest.Node) string { return strings.Replace(node.URL(), "nats://", "tls://", 1) }
	require.ErrorContains(t, refused(t, natty.Config{Servers: []string{tlsURL(optional)}, User: "ann", Password: "a"}), "set tls.ca_file")

	c := testkit.Connect(t, natty.Config{
		Name: "secure", Servers: []string{tlsURL(optional)}, User: "ann", Password: "a", TLS: natty.TLSConfig{CAFile: optional.Files().CA},
	})
	require.NoError(t, c.Conn().Flush())
	conns, err := optional.Server().Connz(&server.ConnzOptions{})
	require.NoError(t, err)
	versions := map[string]string{}
	for _, one := range conns.Conns { // the refused one may still be there
		versions[one.Name] = one.TLSVersion
	}
	assert.NotEmpty(t, versions["secure"])

	// nats.go finds TLS in this greeting, and natty does not.
	said := make(chan string, 100)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close() // it ends the goroutine
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("\tINFO {\"tls_required\":true,\"headers\":true,\"max_payload\":1000}\r\n"))
			buf := make([]byte, 1000)
			n, _ := conn.Read(buf)
			said <- string(buf[:n])
			conn.Close()
		}
	}()
	err = refused(t, natty.Config{Servers: []string{"tls://" + listener.Addr().String()}, User: "ann", Password: "a"})
	require.ErrorIs(t, err, nats.ErrSecureConnWanted)
	require.Empty(t, testkit.Receive(t, said))

	// One such URL is enough: a server without TLS may be announced by another one.
	plain, other := nattytest.Server(t), nattytest.Server(t)
	err = refused(t, natty.Config{Servers: []string{plain.URL(), tlsURL(other)}})
	require.ErrorIs(t, err, nats.ErrSecureConnWanted)
	require.ErrorContains(t, err, plain.URL())
}

func TestMissingOrUntrustedClientCertificateIsFatalEveryTime(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.ClientCerts())
	dir := t.TempDir()
	cert, key, err := newCA(t).WriteLeaf(dir, "stranger", testcerts.Leaf{CommonName: "stranger", Client: true})
	require.NoError(t, err)
	stranger, err := tls.LoadX509KeyPair(cert, key)
	require.NoError(t, err)
	// Unlike Certificates, this is sent even if no authority that the server names has signed it.
	send := natty.WithTLSConfig(&tls.Config{
		MinVersion:           tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil },
	})
	// The server closes the connection right after its TLS 1.3 alert, which then may be lost: so often.
	for range 10 {
		for _, opt := range []natty.Option{testkit.Quiet, send} {
			err := refused(t, natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: node.Files().CA}}, opt)
			require.ErrorContains(t, err, "tls.cert_file and tls.key_file")
		}
	}
	old := natty.WithTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12})
	err = refused(t, natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: node.Files().CA}}, old)
	require.ErrorContains(t, err, "tls.cert_file and tls.key_file")
}

func TestServerThatTakesNoTLSVersionOfOursIsFatalAtOnce(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	pair, err := ca.KeyPair(testcerts.Leaf{Hosts: []string{"127.0.0.1"}, Server: true})
	require.NoError(t, err)
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.TLS, o.TLSConfig = true, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	}))
	err = refused(t, natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: caFile(t, ca)}},
		natty.WithTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}))
	require.ErrorContains(t, err, "TLS versions")
}

func TestTLSFileThatCannotWorkIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return path
	}
	ca := newCA(t)
	authority := caFile(t, ca)
	client := testcerts.Leaf{CommonName: "client", Client: true}
	cert, key, err := ca.WriteLeaf(dir, "client", client)
	require.NoError(t, err)
	_, otherKey, err := ca.WriteLeaf(dir, "other", client)
	require.NoError(t, err)
	oldCert, oldKey, err := ca.WriteLeaf(dir, "old", testcerts.Leaf{CommonName: "old", Client: true, NotAfter: time.Now().Add(-time.Hour)})
	require.NoError(t, err)
	missing := filepath.Join(dir, "missing")
	empty := write("empty", []byte("\n"))
	garbage := write("garbage", []byte("\x00\xff garbage"))
	damaged := write("damaged", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	cut := func(name string, before ...byte) string {
		half := ca.PEM()
		return write(name, append(before, half[:len(half)/2]...))
	}
	certPEM, keyPEM, err := ca.Issue(client)
	require.NoError(t, err)
	cutKey := write("cut.key", keyPEM[:len(keyPEM)-5]) // within the last line
	cutBundle, cutChain := cut("cut.bundle", newCA(t).PEM()...), cut("cut.chain", certPEM...)
	wholeKey := write("whole.key", keyPEM)
	encrypted := write("encrypted", []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"))

	for name, wrong := range map[string]struct {
		tls                 natty.TLSConfig
		field, path, reason string
	}{
		"CA missing":          {natty.TLSConfig{CAFile: missing}, "tls.ca_file", missing, "no such file; check the path"},
		"CA a directory":      {natty.TLSConfig{CAFile: dir}, "tls.ca_file", dir, "cannot be read; check"},
		"CA empty":            {natty.TLSConfig{CAFile: empty}, "tls.ca_file", empty, "is empty; check"},
		"CA garbage":          {natty.TLSConfig{CAFile: garbage}, "tls.ca_file", garbage, "holds no PEM data; expected"},
		"CA damaged":          {natty.TLSConfig{CAFile: damaged}, "tls.ca_file", damaged, "holds a damaged CERTIFICATE block; expected"},
		"CA bundle cut short": {natty.TLSConfig{CAFile: cutBundle}, "tls.ca_file", cutBundle, "ends within a PEM block; check"},
		"chain cut short":     {natty.TLSConfig{CertFile: cutChain, KeyFile: wholeKey}, "tls.cert_file", cutChain, "ends within a PEM block; check"},
		"key cut short":       {natty.TLSConfig{CertFile: cert, KeyFile: cutKey}, "tls.key_file", cutKey, "ends within a PEM block; check"},
		"CA a key":            {natty.TLSConfig{CAFile: key}, "tls.ca_file", key, "holds a private key; expected"},
		"cert missing":        {natty.TLSConfig{CertFile: missing, KeyFile: key}, "tls.cert_file", missing, "no such file; check the path"},
		"cert a directory":    {natty.TLSConfig{CertFile: dir, KeyFile: key}, "tls.cert_file", dir, "cannot be read; check"},
		"cert empty":          {natty.TLSConfig{CertFile: empty, KeyFile: key}, "tls.cert_file", empty, "is empty; check"},
		"cert garbage":        {natty.TLSConfig{CertFile: garbage, KeyFile: key}, "tls.cert_file", garbage, "holds no PEM data; expected"},
		"cert damaged":        {natty.TLSConfig{CertFile: damaged, KeyFile: key}, "tls.cert_file", damaged, "holds a damaged CERTIFICATE block; expected"},
		"cert a key":          {natty.TLSConfig{CertFile: key, KeyFile: key}, "tls.cert_file", key, "holds a private key; expected"},
		"key missing":         {natty.TLSConfig{CertFile: cert, KeyFile: missing}, "tls.key_file", missing, "no such file; check the path"},
		"key a directory":     {natty.TLSConfig{CertFile: cert, KeyFile: dir}, "tls.key_file", dir, "cannot be read; check"},
		"key empty":           {natty.TLSConfig{CertFile: cert, KeyFile: empty}, "tls.key_file", empty, "is empty; check"},
		"key garbage":         {natty.TLSConfig{CertFile: cert, KeyFile: garbage}, "tls.key_file", garbage, "holds no PEM data; expected"},
		"key a certificate":   {natty.TLSConfig{CertFile: cert, KeyFile: cert}, "tls.key_file", cert, "holds a certificate; expected"},
		"key encrypted":       {natty.TLSConfig{CertFile: cert, KeyFile: encrypted}, "tls.key_file", encrypted, "not encrypted"},
		"key of another":      {natty.TLSConfig{CertFile: cert, KeyFile: otherKey}, "tls.key_file", otherKey, "does not go with tls.cert_file " + cert},
		"swapped":             {natty.TLSConfig{CertFile: key, KeyFile: cert}, "tls.cert_file", key, "the two are swapped"},
		"cert without key":    {natty.TLSConfig{CertFile: cert}, "tls.cert_file", cert, "without tls.key_file; set both"},
		"key without cert":    {natty.TLSConfig{KeyFile: key}, "tls.key_file", key, "without tls.cert_file; set both"},
		"expired":             {natty.TLSConfig{CertFile: oldCert, KeyFile: oldKey}, "tls.cert_file", oldCert, "get a new certificate"},
		"CA and cert swapped": {natty.TLSConfig{CAFile: key, CertFile: authority, KeyFile: key}, "tls.ca_file", key, "holds a private key"},
	} {
		for _, lazy := range []bool{false, true} {
			err := refused(t, natty.Config{Servers: []string{"127.0.0.1:1"}, TLS: wrong.tls, LazyConnect: lazy})
			var config *natty.ConfigError
			require.ErrorAs(t, err, &config, name)
			assert.Equal(t, wrong.field, config.Field, name)
			assert.Equal(t, wrong.path, config.Value, name)
			assert.Contains(t, config.Reason, wrong.reason, name)
			assert.Contains(t, err.Error(), wrong.path, name)
		}
	}
	err = refused(t, natty.Config{TLS: natty.TLSConfig{CAFile: missing}})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestHandshakeFirstConnectsToAServerThatExpectsIt(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.ClientCerts(), nattytest.Options(func(o *server.Options) { o.TLSHandshakeFirst = true }))
	files := node.Files()
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{
		CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key, HandshakeFirst: true,
	}})
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool { return c.Health().Reconnects == 1 && c.Health().Connected }, "it reconnects")
}

func TestConfiguredTLSGoesOnTopOfTheCallersAndLeavesItAlone(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.ClientCerts())
	files := node.Files()
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	require.NoError(t, err)
	states := make(chan tls.ConnectionState, 16)
	theirs := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	theirs.VerifyConnection = func(s tls.ConnectionState) error { states <- s; return nil }
	for name, opt := range map[string]natty.Option{
		"WithTLSConfig": natty.WithTLSConfig(theirs), "nats.Secure": natty.WithNATSOptions(nats.Secure(theirs)),
	} {
		cfg := natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: files.CA, ServerName: "localhost"}}
		testkit.Connect(t, cfg, opt)
		state := <-states
		assert.Equal(t, uint16(tls.VersionTLS13), state.Version, name)
		assert.Equal(t, "localhost", state.ServerName, name)
		assert.Nil(t, theirs.RootCAs, name)
		assert.Empty(t, theirs.ServerName, name)
	}
	testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: files.CA}}, natty.WithTLSConfig(theirs))
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, err = natty.Connect(ctx, natty.Config{Servers: []string{node.URL()}}, testkit.Quiet, natty.WithTLSConfig(nil))
	require.Error(t, err)
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
	return o.credsUntil(t, time.Time{})
}

// credsUntil writes credentials that expire at a time, or never at the zero time.
func (o operator) credsUntil(t testing.TB, end time.Time) string {
	t.Helper()
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	jwt := signJWT(t, o.account, public(t, user), `{"subs":-1,"data":-1,"payload":-1,"version":2,"type":"user"}`, end)
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
func signJWT(t testing.TB, issuer nkeys.KeyPair, subject, claims string, end ...time.Time) string {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	expires := ""
	if len(end) > 0 && !end[0].IsZero() {
		expires = `"exp":` + strconv.FormatInt(end[0].Unix(), 10) + ","
	}
	text := encode([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`)) + "." +
		encode([]byte(`{"iss":"`+public(t, issuer)+`","sub":"`+subject+`","iat":1,`+expires+`"name":"test","nats":`+claims+`}`))
	signature, err := issuer.Sign([]byte(text))
	require.NoError(t, err)
	return text + "." + encode(signature)
}
