package natty_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testcerts"
	"github.com/natty-go/natty/nattytest"
)

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
			err := refused(t, natty.Config{Servers: []string{wrong.url}, TLS: wrong.tls})
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
	connect(t, natty.Config{Servers: []string{good.URL()}, TLS: natty.TLSConfig{CAFile: own}})
	connect(t, natty.Config{Servers: []string{elsewhere.URL()}, TLS: natty.TLSConfig{CAFile: own, ServerName: "elsewhere.example"}})
	connect(t, natty.Config{Servers: []string{expired.URL()}, TLS: natty.TLSConfig{InsecureSkipVerify: true}})
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
		for _, opt := range []natty.Option{quiet, send} {
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
	c := connect(t, natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{
		CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key, HandshakeFirst: true,
	}})
	require.NoError(t, node.Restart())
	eventually(t, func() bool { return c.Health().Reconnects == 1 && c.Health().Connected }, "it reconnects")
}

func TestConfiguredTLSGoesOnTopOfTheCallersAndLeavesItAlone(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.ClientCerts())
	files := node.Files()
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	require.NoError(t, err)
	theirs := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	for name, opt := range map[string]natty.Option{
		"WithTLSConfig": natty.WithTLSConfig(theirs), "nats.Secure": natty.WithNATSOptions(nats.Secure(theirs)),
	} {
		cfg := natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: files.CA, ServerName: "localhost"}}
		c := connect(t, cfg, opt)
		state, err := c.Conn().TLSConnectionState()
		require.NoError(t, err)
		assert.Equal(t, uint16(tls.VersionTLS13), state.Version, name)
		assert.Equal(t, "localhost", state.ServerName, name)
		assert.Nil(t, theirs.RootCAs, name)
		assert.Empty(t, theirs.ServerName, name)
	}
	connect(t, natty.Config{Servers: []string{node.URL()}, TLS: natty.TLSConfig{CAFile: files.CA}}, natty.WithTLSConfig(theirs))
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, err = natty.Connect(ctx, natty.Config{Servers: []string{node.URL()}}, quiet, natty.WithTLSConfig(nil))
	require.Error(t, err)
}
