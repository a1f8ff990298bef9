package procs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/natty-go/natty/internal/testcerts"
)

// Files are what a client needs to log in.
type Files struct {
	CA   string // the authorities to trust
	Cert string // a client's certificate and its key. Empty: the servers ask for none
	NKey string // a user's seed. Empty: as above
}

// identity is what everybody proves who they are with: servers and clients have
// certificates of one authority, and clients are one user.
type identity struct {
	ca   *testcerts.CA
	user nkeys.KeyPair
}

func newIdentity() (id identity, err error) {
	if id.ca, err = testcerts.NewCA("chaos", 24*time.Hour); err != nil {
		return id, err
	}
	id.user, err = nkeys.CreateUser()
	return id, err
}

// credentials are the files of the present identity, and while they are rotated also
// those of the next one.
type credentials struct {
	Files
	serverCert    string
	users         string // a part of the servers' configuration
	present, next identity
}

// newCredentials writes the files into dir. Open: clients do not log in.
func newCredentials(dir string, open bool) (c *credentials, err error) {
	in := func(name string) string { return filepath.Join(dir, name) }
	c = &credentials{Files: Files{CA: in("ca.crt")}, serverCert: in("server.pem"), users: in("users.conf")}
	if !open {
		c.Cert, c.NKey = in("client.pem"), in("user.nk")
	}
	if c.present, err = newIdentity(); err != nil {
		return nil, err
	}
	return c, errors.Join(c.accept(c.present), c.use(c.present))
}

// accept makes servers and clients accept some identities, and no others.
func (c *credentials) accept(ids ...identity) error {
	var authorities strings.Builder
	var users []string
	for _, id := range ids {
		authorities.Write(id.ca.PEM())
		key, err := id.user.PublicKey()
		if err != nil {
			return err
		}
		users = append(users, "{nkey: "+key+"}")
	}
	conf := ""
	if c.NKey != "" {
		conf = fmt.Sprintf("authorization { users: [%s] }\n", strings.Join(users, ", "))
	}
	return errors.Join(replace(c.CA, []byte(authorities.String())), replace(c.users, []byte(conf)))
}

// use makes servers and clients show an identity.
func (c *credentials) use(id identity) error {
	hosts := []string{"127.0.0.1", "localhost"}
	err := writePair(c.serverCert, id.ca, testcerts.Leaf{CommonName: "server", Hosts: hosts, Server: true})
	if c.NKey == "" {
		return err
	}
	seed, seedErr := id.user.Seed()
	return errors.Join(err, seedErr, replace(c.NKey, seed),
		writePair(c.Cert, id.ca, testcerts.Leaf{CommonName: "client", Client: true}))
}

// writePair writes a certificate and its key into one file: they are replaced together.
func writePair(file string, ca *testcerts.CA, leaf testcerts.Leaf) error {
	cert, key, err := ca.Issue(leaf)
	if err != nil {
		return err
	}
	return replace(file, append(cert, key...))
}

// replace replaces a file as a whole.
func replace(file string, data []byte) error {
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// Offer makes the next identity accepted beside the present one.
func (c *credentials) Offer() (err error) {
	if c.next, err = newIdentity(); err != nil {
		return err
	}
	return c.accept(c.present, c.next)
}

// Switch replaces what servers and clients show. Clients that are connected notice it
// when they connect again.
func (c *credentials) Switch() error { return c.use(c.next) }

// Retire makes the old identity refused.
func (c *credentials) Retire() error {
	c.present = c.next
	return c.accept(c.present)
}
