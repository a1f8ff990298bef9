package nattytest

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/natty-go/natty/internal/testcerts"
)

// Option configures the servers that [Server], [Start] and [Cluster] make. Without
// options a server asks for no login and speaks no TLS.
type Option func(*config)

type config struct {
	tls, clientCerts bool
	users            []server.User
	token            string
	nkeys            []string
	overrides        []func(*server.Options)
}

// TLS requires TLS of every client. The server's certificate is valid for 127.0.0.1,
// ::1 and localhost. An authority made for this server signs it, or one for the whole
// cluster; [Node.Files] names the file with the authority's certificate. All
// certificates are valid for a day.
func TLS() Option {
	return func(c *config) { c.tls = true }
}

// ClientCerts requires TLS, and of every client a certificate that the server's
// authority has signed, such as the one in [Node.Files]. The common name of that one is
// "client".
func ClientCerts() Option {
	return func(c *config) { c.tls, c.clientCerts = true, true }
}

// User requires a login and accepts this one. The user may do everything in the default
// account. User can be given several times, also together with [NKey].
func User(name, password string) Option {
	return func(c *config) { c.users = append(c.users, server.User{Username: name, Password: password}) }
}

// Token requires this token of every client. The server ignores a token when it has
// users or nkeys, so Token together with [User] or [NKey] is an error.
func Token(token string) Option {
	return func(c *config) { c.token = token }
}

// NKey requires a login and accepts the owner of the nkey with this public key ("U…"),
// who may do everything in the default account. NKey can be given several times, also
// together with [User].
func NKey(publicKey string) Option {
	return func(c *config) { c.nkeys = append(c.nkeys, publicKey) }
}

// Options lets f change the server's own options: limits, permissions, accounts, a
// JetStream domain. It runs after all other options, in the order given, before every
// start of a node, so also in [Node.Restart]. In a [Cluster] it runs for each node,
// possibly at the same time.
//
// Each start has new options, so f must not keep the pointer, and must make the
// accounts that it adds. A restart uses the port of the first start, whatever f sets.
func Options(f func(*server.Options)) Option {
	return func(c *config) { c.overrides = append(c.overrides, f) }
}

func newConfig(opts []Option) (*config, error) {
	c := &config{}
	for _, opt := range opts {
		opt(c)
	}
	if c.token != "" && len(c.users)+len(c.nkeys) > 0 {
		return nil, errors.New("nattytest: Token cannot be combined with User or NKey: the server would ignore it")
	}
	return c, nil
}

// login sets who may connect. Users and nkeys are copies, because the server writes
// into them.
func (c *config) login(o *server.Options) {
	o.Authorization = c.token
	for _, user := range c.users {
		o.Users = append(o.Users, &user)
	}
	for _, key := range c.nkeys {
		o.Nkeys = append(o.Nkeys, &server.NkeyUser{Nkey: key})
	}
}

// Files are the paths of PEM files. The files exist until the node is closed. Without
// [TLS] all paths are empty.
type Files struct {
	// CA is the authority that signed the certificates of the server and the client.
	CA string
	// Cert is a client's certificate.
	Cert string
	// Key is the private key of Cert.
	Key string
}

// certificates are what a server or a whole cluster uses for TLS. The zero value means
// a server without TLS.
type certificates struct {
	files  Files
	server *tls.Config
}

const certsValidFor = 24 * time.Hour

// issue makes the authority and the certificates, and writes the client's files into
// the folder tls below dir.
func (c *config) issue(dir string) (certificates, error) {
	if !c.tls {
		return certificates{}, nil
	}
	ca, err := testcerts.NewCA("nattytest CA", certsValidFor)
	if err != nil {
		return certificates{}, err
	}
	pair, err := ca.KeyPair(testcerts.Leaf{
		CommonName: "nattytest server", Hosts: []string{"127.0.0.1", "::1", "localhost"}, Server: true,
	})
	if err != nil {
		return certificates{}, err
	}
	dir = filepath.Join(dir, "tls")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return certificates{}, err
	}
	files := Files{CA: filepath.Join(dir, "ca.crt")}
	if err := ca.WritePEM(files.CA); err != nil {
		return certificates{}, err
	}
	files.Cert, files.Key, err = ca.WriteLeaf(dir, "client", testcerts.Leaf{CommonName: "client", Client: true})
	if err != nil {
		return certificates{}, err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: ca.Pool(),
	}
	if c.clientCerts {
		conf.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return certificates{files: files, server: conf}, nil
}

// apply sets o's TLS configuration to a copy, because the server changes it.
func (c certificates) apply(o *server.Options) {
	if c.server == nil {
		return
	}
	o.TLS, o.TLSConfig = true, c.server.Clone()
	o.TLSVerify = c.server.ClientAuth == tls.RequireAndVerifyClientCert
}
