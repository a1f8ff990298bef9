package securitytest_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testcerts"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// password is what no error may show.
const password = "hunter2-s3cret"

// failure is a connection that cannot be: who asks whom, and what natty says.
type failure struct {
	url  string
	cfg  natty.Config
	opts []natty.Option
	// waits says that it may pass by itself, so that Connect waits for the end of its ctx.
	waits bool
	says  []string // what is wrong, and what to do
	cause error    // unless nil
}

// TestEveryFailureToConnectSaysWhatIsWrongAndWhatToDo has those that the root's tests of
// logins and of TLS have not.
func TestEveryFailureToConnectSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	t.Parallel()
	for _, part := range []map[string]failure{certificates(t), versions(t), logins(t), limits(t), strangers(t)} {
		for name, f := range part {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f.check(t)
			})
		}
	}
}

func (f failure) check(t *testing.T) {
	if f.cfg.Servers == nil {
		f.cfg.Servers = []string{f.url}
	}
	patience := testkit.Patience
	if f.waits {
		patience = 7 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	log, logger := testkit.NewLog()
	_, err := natty.Connect(ctx, f.cfg, append(f.opts, natty.WithLogger(logger))...)
	require.Error(t, err)
	t.Log(err)
	assert.Equal(t, f.waits, ctx.Err() != nil, "it waits only for what may pass")
	for _, text := range f.says {
		require.ErrorContains(t, err, text)
	}
	if f.cause != nil {
		require.ErrorIs(t, err, f.cause)
	}
	assert.NotContains(t, err.Error()+strings.Join(log.Texts(), " "), password)
}

func newCA(t *testing.T) *testcerts.CA {
	t.Helper()
	ca, err := testcerts.NewCA("test CA", 48*time.Hour)
	require.NoError(t, err)
	return ca
}

// tlsNode starts a server with a certificate of ca's, and returns what trusts it.
func tlsNode(t *testing.T, leaf testcerts.Leaf, change func(*server.Options)) (*nattytest.Node, natty.TLSConfig) {
	t.Helper()
	ca := newCA(t)
	leaf.Hosts = []string{"127.0.0.1"}
	pair, err := ca.KeyPair(leaf)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, ca.WritePEM(file))
	return nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.TLS, o.TLSConfig = true, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		if change != nil {
			change(o)
		}
	})), natty.TLSConfig{CAFile: file}
}

func certificates(t *testing.T) map[string]failure {
	t.Helper()
	early, trustEarly := tlsNode(t, testcerts.Leaf{Server: true, NotBefore: time.Now().Add(time.Hour)}, nil)
	misused, trustMisused := tlsNode(t, testcerts.Leaf{Client: true}, nil)

	wants := nattytest.Server(t, nattytest.ClientCerts())
	ca := newCA(t)
	clients := func(leaf testcerts.Leaf) natty.Option {
		pair, err := ca.KeyPair(leaf)
		require.NoError(t, err)
		return natty.WithTLSConfig(&tls.Config{
			MinVersion:           tls.VersionTLS12,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
		})
	}
	trusting, trust := tlsNode(t, testcerts.Leaf{Server: true}, func(o *server.Options) {
		o.TLSVerify = true
		o.TLSConfig.ClientAuth, o.TLSConfig.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
	})
	const clientCert = "the server refused the client's certificate, or the lack of one; set tls.cert_file and tls.key_file"
	return map[string]failure{
		"server's certificate is not valid yet": {
			url: early.URL(), cfg: natty.Config{TLS: trustEarly}, says: []string{"not valid yet", "check this machine's clock"},
		},
		"server's certificate is for clients": {
			url: misused.URL(), cfg: natty.Config{TLS: trustMisused}, says: []string{"not valid for this use", "give the server one for server authentication"},
		},
		"no client certificate": {
			url: wants.URL(), cfg: natty.Config{TLS: natty.TLSConfig{CAFile: wants.Files().CA}}, says: []string{clientCert},
		},
		"client's certificate has expired": {
			url: trusting.URL(), cfg: natty.Config{TLS: trust}, says: []string{clientCert, "expired"},
			opts: []natty.Option{clients(testcerts.Leaf{Client: true, NotAfter: time.Now().Add(-time.Hour)})},
		},
		"client's certificate is for servers": {
			url: trusting.URL(), cfg: natty.Config{TLS: trust}, says: []string{clientCert},
			opts: []natty.Option{clients(testcerts.Leaf{Server: true})},
		},
	}
}

func versions(t *testing.T) map[string]failure {
	t.Helper()
	old, trustOld := tlsNode(t, testcerts.Leaf{Server: true}, func(o *server.Options) {
		o.TLSConfig.MinVersion, o.TLSConfig.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	})
	first, trustFirst := tlsNode(t, testcerts.Leaf{Server: true}, func(o *server.Options) { o.TLSHandshakeFirst = true })
	refused := func(cfg *tls.Config) failure {
		return failure{
			url: old.URL(), cfg: natty.Config{TLS: trustOld}, opts: []natty.Option{natty.WithTLSConfig(cfg)},
			says: []string{"WithTLSConfig", "too old to be safe", "tls.VersionTLS12"},
		}
	}
	return map[string]failure{
		"server has no TLS 1.2": {
			url: old.URL(), cfg: natty.Config{TLS: trustOld}, says: []string{"refused the TLS handshake", "which TLS versions it allows"},
		},
		"server has no TLS 1.2, and the caller's settings have no minimum": {
			url: old.URL(), cfg: natty.Config{TLS: trustOld}, opts: []natty.Option{natty.WithTLSConfig(&tls.Config{})},
			says: []string{"which TLS versions it allows"},
		},
		"caller allows TLS 1.0": refused(&tls.Config{MinVersion: tls.VersionTLS10}),
		"caller wants TLS 1.1":  refused(&tls.Config{MaxVersion: tls.VersionTLS11}),
		"caller of nats.Secure": {
			url: old.URL(), says: []string{"too old to be safe"},
			opts: []natty.Option{natty.WithNATSOptions(nats.Secure(&tls.Config{MinVersion: tls.VersionTLS11}))},
		},
		"server begins with TLS, and the client does not": {
			url: first.URL(), cfg: natty.Config{TLS: trustFirst}, waits: true, says: []string{"says nothing", "set tls.handshake_first"},
		},
	}
}

func logins(t *testing.T) map[string]failure {
	t.Helper()
	o := newOperator(t)
	revoked, garbled, unknown, late := o.user(t, o.account, 0), o.user(t, o.account, 0), o.user(t, newKey(t, nkeys.CreateAccount), 0), o.user(t, o.expired, 0)
	data, err := os.ReadFile(garbled)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(garbled, []byte(strings.Replace(string(data), ".", ".e", 1)), 0o600))
	node := o.start(t, revoked)
	const check = "check user and password, token, creds_file or nkey_file"
	creds := func(file string, says ...string) failure {
		return failure{url: node.URL(), cfg: natty.Config{CredsFile: file}, says: says}
	}
	return map[string]failure{
		"revoked user":          creds(revoked, "the server refused the login", check),
		"garbled JWT":           creds(garbled, "creds_file"),
		"account is not known":  creds(unknown, "the server refused the login", check),
		"account's JWT expired": creds(late, "the server refused the login", check),
		"password for JWTs": {
			url: node.URL(), cfg: natty.Config{User: "ann", Password: password}, says: []string{"the server refused the login", check},
			cause: nats.ErrAuthorization,
		},
		"token for JWTs": {url: node.URL(), cfg: natty.Config{Token: password}, says: []string{"the server refused the login", check}},
		"password in the URL": {
			url: strings.Replace(node.URL(), "//", "//ann:"+password+"@", 1), says: []string{"the server refused the login", "[redacted]@127.0.0.1"},
		},
	}
}

func limits(t *testing.T) map[string]failure {
	t.Helper()
	full := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.MaxConn = 1 }))
	testkit.ConnectTo(t, full.URL())
	account := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		plain := server.NewAccount("PLAIN")
		o.Accounts, o.Users = []*server.Account{plain}, []*server.User{{Username: "ann", Password: password, Account: plain}}
	}))
	c := testkit.Connect(t, natty.Config{Servers: []string{account.URL()}, User: "ann", Password: password})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "S"})
	require.ErrorContains(t, err, "JetStream not enabled for account")
	o := newOperator(t)
	fullAccount := o.start(t, o.user(t, o.account, 0))
	busy := natty.Config{Servers: []string{fullAccount.URL()}, CredsFile: o.user(t, o.small, 0)}
	testkit.Connect(t, busy)
	return map[string]failure{
		"server is full": {
			url: full.URL(), waits: true, cause: nats.ErrMaxConnectionsExceeded, says: []string{"the server is full", "raise max_connections"},
		},
		"account is full": {
			cfg: busy, waits: true, cause: nats.ErrMaxAccountConnectionsExceeded, says: []string{"all the connections that it may have", "raise its limit"},
		},
	}
}

// strangers are no NATS servers.
func strangers(t *testing.T) map[string]failure {
	t.Helper()
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	node := nattytest.Server(t)
	host := func(url string) string { _, rest, _ := strings.Cut(url, "://"); return rest }
	return map[string]failure{
		"web server":                {url: "nats://" + host(web.URL), waits: true, says: []string{"127.0.0.1:"}},
		"web server for WebSocket":  {url: "ws://" + host(web.URL), waits: true, says: []string{"127.0.0.1:"}},
		"NATS server for WebSocket": {url: "ws://" + host(node.URL()), waits: true, says: []string{"127.0.0.1:"}},
	}
}

// operator issues the JWTs of accounts and users.
type operator struct {
	key nkeys.KeyPair
	// accounts: without limits, with a JWT that has expired, for one connection
	account, expired, small nkeys.KeyPair
}

func newKey(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	key, err := create()
	require.NoError(t, err)
	return key
}

func public(t *testing.T, key nkeys.KeyPair) string {
	t.Helper()
	p, err := key.PublicKey()
	require.NoError(t, err)
	return p
}

func newOperator(t *testing.T) operator {
	t.Helper()
	account := func() nkeys.KeyPair { return newKey(t, nkeys.CreateAccount) }
	return operator{newKey(t, nkeys.CreateOperator), account(), account(), account()}
}

// start starts a server that knows the operator's accounts. One user is revoked.
func (o operator) start(t *testing.T, revoked string) *nattytest.Node {
	t.Helper()
	resolver := &server.MemAccResolver{}
	store := func(key nkeys.KeyPair, change func(*jwt.AccountClaims)) {
		claims := jwt.NewAccountClaims(public(t, key))
		change(claims)
		token, err := claims.Encode(o.key)
		require.NoError(t, err)
		require.NoError(t, resolver.Store(public(t, key), token))
	}
	data, err := os.ReadFile(revoked)
	require.NoError(t, err)
	user, err := jwt.ParseDecoratedUserNKey(data)
	require.NoError(t, err)
	store(o.account, func(c *jwt.AccountClaims) { c.Revoke(public(t, user)) })
	store(o.expired, func(c *jwt.AccountClaims) { c.Expires = time.Now().Add(-time.Minute).Unix() })
	store(o.small, func(c *jwt.AccountClaims) { c.Limits.Conn = 1 })
	return nattytest.Server(t, nattytest.Options(func(opts *server.Options) {
		opts.TrustedKeys, opts.AccountResolver, opts.JetStream = []string{public(t, o.key)}, resolver, false
	}))
}

// user writes the credentials of a new user of an account.
func (o operator) user(t *testing.T, account nkeys.KeyPair, lasts time.Duration) string {
	t.Helper()
	key := newKey(t, nkeys.CreateUser)
	claims := jwt.NewUserClaims(public(t, key))
	if lasts != 0 {
		claims.Expires = time.Now().Add(lasts).Unix()
	}
	token, err := claims.Encode(account)
	require.NoError(t, err)
	seed, err := key.Seed()
	require.NoError(t, err)
	data, err := jwt.FormatUserConfig(token, seed)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "user.creds")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	return file
}
