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

// Option configures the servers that [Server], [Start] and [Cluster] make. Without options a server asks for no login and
// speaks no TLS.
type Option func(*config)

type config struct {
	tls, clientCerts bool
	users            []server.User
	token            string
	nkeys            []string
	last             []func(*server.Options)
}

// TLS demands TLS of every client. The server's certificate is good for 127.0.0.1, ::1 and localhost, and is signed by an
// authority that is made for this server (or for this cluster, whose nodes share it); [Node.Files] says where its certificate
// is. Everything is valid for a day.
func TLS() Option {
	return func(c *config) { c.tls = true }
}

// ClientCerts is [TLS], and every client must show a certificate that the same authority has signed, such as the one in
// [Node.Files]. Its common name is "client".
func ClientCerts() Option {
	return func(c *config) { c.tls, c.clientCerts = true, true }
}

// User demands a login and accepts this one, which sees everything in the default account. It can be given several times and
// together with [NKey].
func User(name, password string) Option {
	return func(c *config) { c.users = append(c.users, server.User{Username: name, Password: password}) }
}

// Token demands this token of every client. The server knows no token beside users or nkeys: together with [User] or [NKey]
// it is an error.
func Token(token string) Option {
	return func(c *config) { c.token = token }
}

// NKey demands a login and accepts the holder of the nkey with this public key ("U…"), who sees everything in the default
// account. It can be given several times and together with [User].
func NKey(publicKey string) Option {
	return func(c *config) { c.nkeys = append(c.nkeys, publicKey) }
}

// Options gives f the last word over the server's own options: limits, permissions, accounts, a JetStream domain. It runs
// after all other options, in the order given, with new options before every start of every node: also in
// [Node.Restart], and once for each node of a [Cluster], at the same time. So f must not keep the pointer, and must make the
// accounts that it adds. The port of a restart stays that of the first start, whatever f says.
func Options(f func(*server.Options)) Option {
	return func(c *config) { c.last = append(c.last, f) }
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

// login sets who may connect. Users and nkeys are new ones each time, because the server writes into them.
func (c *config) login(o *server.Options) {
	o.Authorization = c.token
	for _, user := range c.users {
		o.Users = append(o.Users, &user)
	}
	for _, key := range c.nkeys {
		o.Nkeys = append(o.Nkeys, &server.NkeyUser{Nkey: key})
	}
}

// Files are the paths of PEM files: the authority that signed the server's certificate, and a client's certificate and key
// signed by it. They exist until the node is closed. All are empty for a server without [TLS].
type Files struct {
	CA, Cert, Key string
}

// credentials are the TLS side of a server or of a whole cluster. The zero value is a server without TLS.
type credentials struct {
	files  Files
	server *tls.Config
}

const certsValidFor = 24 * time.Hour

// issue makes the authority and the certificates, and writes the client's files below dir.
func (c *config) issue(dir string) (credentials, error) {
	if !c.tls {
		return credentials{}, nil
	}
	ca, err := testcerts.NewCA("nattytest CA", certsValidFor)
	if err != nil {
		return credentials{}, err
	}
	pair, err := ca.KeyPair(testcerts.Leaf{
		CommonName: "nattytest server", Hosts: []string{"127.0.0.1", "::1", "localhost"}, Server: true,
	})
	if err != nil {
		return credentials{}, err
	}
	dir = filepath.Join(dir, "tls")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return credentials{}, err
	}
	files := Files{CA: filepath.Join(dir, "ca.crt")}
	if err := ca.WritePEM(files.CA); err != nil {
		return credentials{}, err
	}
	files.Cert, files.Key, err = ca.WriteLeaf(dir, "client", testcerts.Leaf{CommonName: "client", Client: true})
	if err != nil {
		return credentials{}, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: ca.Pool()}
	if c.clientCerts {
		conf.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return credentials{files: files, server: conf}, nil
}

// apply puts a copy into o, because the server changes its own.
func (c credentials) apply(o *server.Options) {
	if c.server == nil {
		return
	}
	o.TLS, o.TLSConfig = true, c.server.Clone()
	o.TLSVerify = c.server.ClientAuth == tls.RequireAndVerifyClientCert
}
