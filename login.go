package natty

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/conn"
)

// credentials applies cfg's way to log in. It returns the identity that a file holds, or
// nil.
func credentials(cfg Config, opts *nats.Options) (*conn.Rotated[conn.Identity], error) {
	switch {
	case cfg.User != "":
		return nil, nats.UserInfo(cfg.User, string(cfg.Password))(opts)
	case cfg.Token != "":
		return nil, nats.Token(string(cfg.Token))(opts)
	case cfg.CredsFile != "":
		return conn.NewRotated(func() (conn.Identity, error) { return readCreds(cfg.CredsFile) })
	case cfg.NKeyFile != "":
		return conn.NewRotated(func() (conn.Identity, error) { return readNKey(cfg.NKeyFile) })
	}
	return nil, nil
}

// readCreds does not use nats.UserCredentials, which expands ~ and $ in the path, as no
// other path here, and takes any text for a JWT: it would send a file with only a seed
// to the server as it is.
func readCreds(file string) (id conn.Identity, err error) {
	data, err := readFile("creds_file", file)
	if err != nil {
		return id, err
	}
	// The errors below have no cause: it may quote the file.
	wrong := invalid("creds_file", file,
		"is no credentials file; expected a user's JWT and seed, as nsc writes them", nil)
	var user nats.Options
	if nats.UserCredentialBytes(data)(&user) != nil {
		return id, wrong
	}
	jwt, err := user.UserJWT()
	if err != nil || strings.Count(jwt, ".") != 2 {
		return id, wrong
	}
	if _, err := user.SignatureCB([]byte("nonce")); err != nil {
		return id, wrong
	}
	return conn.Identity{JWT: jwt, Expires: jwtExpiry(jwt), Sign: user.SignatureCB}, nil
}

// jwtExpiry returns when a JWT expires. It is zero if the JWT never does, or cannot be
// read: the server judges it, and this serves to explain a refusal.
func jwtExpiry(jwt string) time.Time {
	var claims struct {
		Expires int64 `json:"exp"`
	}
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(jwt, ".")[1])
	if err != nil || json.Unmarshal(data, &claims) != nil || claims.Expires == 0 {
		return time.Time{}
	}
	return time.Unix(claims.Expires, 0)
}

// readNKey signs with what it has read. The function of nats.NkeyOptionFromSeed reads the
// file again to sign, and a file that is replaced meanwhile would not go with the public
// key.
func readNKey(file string) (id conn.Identity, err error) {
	data, err := readFile("nkey_file", file)
	if err != nil {
		return id, err
	}
	if bytes.Contains(data, []byte("BEGIN NATS USER JWT")) {
		return id, invalid("nkey_file", file, "holds a user's JWT and seed; set creds_file to it instead", nil)
	}
	// The errors below have no cause: it may quote the file.
	wrong := invalid("nkey_file", file,
		"holds no nkey seed of a user; expected a line that starts with SU", nil)
	var public, signer nats.Options
	opt, err := nats.NkeyOptionFromSeed(file) // reads the file a second time
	if err != nil || opt(&public) != nil || nats.UserCredentialBytes(data)(&signer) != nil {
		return id, wrong
	}
	again, err := readFile("nkey_file", file)
	switch {
	case err != nil:
		return id, err
	case !bytes.Equal(data, again):
		return id, invalid("nkey_file", file, "is being replaced; it is read again for the next attempt", nil)
	}
	return conn.Identity{NKey: public.Nkey, Sign: signer.SignatureCB}, nil
}

const (
	// A connection counts as dead when it is silent for twice this long. nats.go's
	// default of two minutes would keep a frozen connection for five.
	pingInterval = 10 * time.Second
	// A write to a frozen connection ends after this long. It holds the connection's
	// lock: everybody else waits for it, whatever their ctx says. nats.go's default is
	// one minute.
	writeTimeout = 5 * time.Second

	reconnectMin = 50 * time.Millisecond
	reconnectMax = 2 * time.Second
)

// natsOptions turns cfg into nats.go's options. WithNATSOptions can change the settings
// at the beginning, but not those that follow, on which natty's guarantees rest.
func natsOptions(cfg Config, o options) (*nats.Options, conn.Login, error) {
	var login conn.Login
	opts := nats.GetDefaultOptions()
	opts.PingInterval = pingInterval
	opts.FlusherTimeout = writeTimeout
	opts.ReconnectOnFlusherError = true
	opts.CustomReconnectDelayCB = reconnectDelay
	for _, opt := range o.nats {
		if opt == nil { // as nats.Connect does
			continue
		}
		if err := opt(&opts); err != nil {
			return nil, login, invalid("WithNATSOptions", "", "refused by nats.go", err)
		}
	}
	opts.Servers, opts.Url = cfg.Servers, ""
	if cfg.Name != "" {
		opts.Name = cfg.Name
	}
	opts.AllowReconnect = !cfg.DisableReconnect
	opts.RetryOnFailedConnect = true
	opts.MaxReconnect = -1
	opts.IgnoreAuthErrorAbort = true
	opts.ReconnectBufSize = -1
	var err error
	if login.Identity, err = credentials(cfg, &opts); err != nil {
		return nil, login, err
	}
	base := o.tls
	if base == nil {
		base = opts.TLSConfig.Clone()
	}
	if err := refuseOldTLS(base); err != nil {
		return nil, login, err
	}
	tlsConfig, err := cfg.TLS.build(base, &login)
	if err != nil {
		return nil, login, err
	}
	if tlsConfig != nil {
		opts.TLSConfig, opts.Secure = tlsConfig, true
	}
	if cfg.TLS.HandshakeFirst {
		opts.TLSHandshakeFirst, opts.Secure = true, true
	}
	return &opts, login, nil
}

// reconnectDelay is the pause after all servers were tried n times. It doubles up to
// two seconds. Up to half as much is added at random: a restarted server must not meet
// all its clients at once.
func reconnectDelay(n int) time.Duration {
	d := backoff.Exp{Min: reconnectMin, Max: reconnectMax}.Base(n)
	return d + rand.N(d/2)
}

// refuseOldTLS refuses a caller's settings that allow versions before TLS 1.2. Without a
// minimum it sets that one: Go's own default is the same, but the environment can lower
// it (GODEBUG).
func refuseOldTLS(cfg *tls.Config) error {
	if cfg == nil {
		return nil
	}
	for _, v := range []uint16{cfg.MinVersion, cfg.MaxVersion} {
		if v != 0 && v < tls.VersionTLS12 {
			return invalid("WithTLSConfig", tls.VersionName(v),
				"is too old to be safe; set MinVersion to tls.VersionTLS12, or leave it out, and MaxVersion too", nil)
		}
	}
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	return nil
}

// build makes a tls.Config from base and t, or returns nil if nothing asks for one. What
// t's files hold goes to login, as each handshake reads it again. build reads each file
// once, so that Connect names a wrong one at once, before a handshake fails.
func (t TLSConfig) build(base *tls.Config, login *conn.Login) (_ *tls.Config, err error) {
	if t == (TLSConfig{}) {
		return base, nil
	}
	cfg := base
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if t.CAFile != "" {
		login.CAs, err = conn.NewRotated(func() (*x509.CertPool, error) { return loadCAs(t.CAFile) })
		if err != nil {
			return nil, err
		}
	}
	switch {
	case t.CertFile == "" && t.KeyFile != "":
		return nil, invalid("tls.key_file", t.KeyFile, "set without tls.cert_file; set both", nil)
	case t.CertFile != "" && t.KeyFile == "":
		return nil, invalid("tls.cert_file", t.CertFile, "set without tls.key_file; set both", nil)
	case t.CertFile != "":
		login.Cert, err = conn.NewRotated(func() (tls.Certificate, error) { return loadPair(t.CertFile, t.KeyFile) })
		if err != nil {
			return nil, err
		}
		cfg.GetClientCertificate = nil // it would take precedence
	}
	if t.ServerName != "" {
		cfg.ServerName = t.ServerName
	}
	if t.InsecureSkipVerify {
		cfg.InsecureSkipVerify = true
	}
	return cfg, nil
}

func loadCAs(file string) (*x509.CertPool, error) {
	data, err := readPEM("tls.ca_file", file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, invalid("tls.ca_file", file,
			"holds "+pemContents(data)+"; "+
				"expected the PEM certificate of the authority that signed the server's", nil)
	}
	return pool, nil
}

func loadPair(certFile, keyFile string) (tls.Certificate, error) {
	none := tls.Certificate{}
	certPEM, err := readPEM("tls.cert_file", certFile)
	if err != nil {
		return none, err
	}
	keyPEM, err := readPEM("tls.key_file", keyFile)
	if err != nil {
		return none, err
	}
	certKinds, keyKinds := pemContents(certPEM), pemContents(keyPEM)
	switch {
	case !strings.Contains(certKinds, aCertificate) &&
		strings.Contains(certKinds, aKey) && strings.Contains(keyKinds, aCertificate):
		return none, invalid("tls.cert_file", certFile,
			"holds a private key, and tls.key_file a certificate: the two are swapped", nil)
	case !strings.Contains(certKinds, aCertificate):
		return none, invalid("tls.cert_file", certFile,
			"holds "+certKinds+"; expected the PEM certificate of this client", nil)
	case !strings.Contains(keyKinds, aKey):
		return none, invalid("tls.key_file", keyFile,
			"holds "+keyKinds+"; expected the PEM private key of tls.cert_file", nil)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return none, invalid("tls.key_file", keyFile,
			"does not go with tls.cert_file "+certFile+"; expected its private key, not encrypted", err)
	}
	if leaf := pair.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
		return none, invalid("tls.cert_file", certFile,
			"expired on "+leaf.NotAfter.UTC().Format(time.RFC3339)+"; get a new certificate", nil)
	}
	return pair, nil
}

const (
	aCertificate = "a certificate"
	aKey         = "a private key"
)

// pemContents says what a file holds, for errors about files that were mixed up.
func pemContents(data []byte) string {
	var kinds []string
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		kind := "a " + block.Type
		switch {
		case block.Type == "CERTIFICATE":
			kind = aCertificate
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				kind = "a damaged CERTIFICATE block"
			}
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			kind = aKey
		}
		kinds = append(kinds, kind)
	}
	if kinds == nil {
		return "no PEM data"
	}
	return strings.Join(kinds, ", ")
}

// readPEM reads a file that must not end within a block: it is being written, or the
// disk was full. crypto/tls and crypto/x509 would use the blocks before that one.
func readPEM(field, file string) ([]byte, error) {
	data, err := readFile(field, file)
	if err != nil {
		return nil, err
	}
	rest := data
	for block, behind := pem.Decode(rest); block != nil; block, behind = pem.Decode(rest) {
		rest = behind
	}
	if i := bytes.LastIndex(rest, []byte("-----BEGIN ")); i >= 0 {
		if _, end, _ := bytes.Cut(rest[i:], []byte("-----END ")); !bytes.Contains(end, []byte("-----")) {
			return nil, invalid(field, file, "ends within a PEM block; check what writes the file", nil)
		}
	}
	return data, nil
}

// readFile reads a file that must not be empty.
func readFile(field, file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, invalid(field, file, "there is no such file; check the path", err)
	case err != nil:
		return nil, invalid(field, file,
			"cannot be read; check that it is a file this process may read", err)
	case len(bytes.TrimSpace(data)) == 0:
		return nil, invalid(field, file, "is empty; check the path, and what writes the file", nil)
	}
	return data, nil
}
