package conn

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Login is what comes from files that may be replaced while the connection lives. Each
// dial reads them again. What is nil is left to nats.go's options.
type Login struct {
	Identity *Rotated[Identity]
	Cert     *Rotated[tls.Certificate]
	CAs      *Rotated[*x509.CertPool]
}

// Identity says who the client is, and proves it.
type Identity struct {
	NKey    string // the public key, for a login without a JWT
	JWT     string
	Expires time.Time // of the JWT; zero for never
	Sign    nats.SignatureHandler
}

// expired reports whether a JWT had an end that has passed. A nil Identity never expires.
func (id *Identity) expired() bool {
	return id != nil && !id.Expires.IsZero() && time.Now().After(id.Expires)
}

// Rotated is what a file holds that may be replaced at any time. While the file cannot
// be used, the last good value stays: a file may be read while it is being written.
type Rotated[T any] struct {
	read func() (T, error)

	mu   sync.Mutex // guards what follows, so that news come in their order
	good T
	tell func(trouble error, news bool) // nil until somebody listens
	bad  bool                           // the file could not be used at the last Get
}

// NewRotated reads a file for the first time, which must succeed.
func NewRotated[T any](read func() (T, error)) (*Rotated[T], error) {
	good, err := read()
	if err != nil {
		return nil, err
	}
	return &Rotated[T]{read: read, good: good}, nil
}

// Get reads the file again. It returns the last good value if that fails.
func (r *Rotated[T]) Get() T {
	r.mu.Lock()
	defer r.mu.Unlock()
	value, err := r.read()
	news := (err != nil) != r.bad
	r.bad = err != nil
	if err == nil {
		r.good = value
	} else {
		err = fmt.Errorf("the last good one is used instead: %w", err)
	}
	if r.tell != nil && (news || err != nil) {
		r.tell(err, news)
	}
	return r.good
}

// onTrouble sets who is told when the file cannot be used, and, with nil, when that is
// over. tell must not block.
func (r *Rotated[T]) onTrouble(tell func(trouble error, news bool)) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell = tell
}

// watch tells the connection about files that cannot be used.
func (l Login) watch(cn *Conn) {
	tell := func(kind string) func(error, bool) {
		return func(trouble error, news bool) { cn.onFile(kind, trouble, news) }
	}
	l.Identity.onTrouble(tell("login"))
	l.Cert.onTrouble(tell("certificate"))
	l.CAs.onTrouble(tell("authorities"))
}

// onFile records that a file cannot be used, or with nil that it can again. A dial calls
// it with nats.go's lock held, which the log's and the events' receivers may want: follow
// tells them.
func (cn *Conn) onFile(kind string, trouble error, news bool) {
	cn.Link.setFile(kind, trouble)
	if trouble == nil || !news {
		return
	}
	select {
	case cn.files <- trouble:
	default: // there are three kinds, and follow is not that late
	}
}

// install makes opts use the certificates of the files. wire and nats.go call these
// functions for each handshake.
func (l Login) install(opts *nats.Options) {
	if l.Cert != nil {
		opts.TLSCertCB = func() (tls.Certificate, error) { return l.Cert.Get(), nil }
	}
	if l.CAs != nil {
		opts.RootCAsCB = func() (*x509.CertPool, error) { return l.CAs.Get(), nil }
	}
}

// identify makes opts log in as the identity of the dialer's last dial. Key, JWT and
// signature so come from one reading of the file.
func (d *dialer) identify(opts *nats.Options) {
	if d.login.Identity == nil {
		return
	}
	id := d.login.Identity.Get()
	d.identity.Store(&id)
	opts.Nkey, opts.UserJWT = id.NKey, nil
	if id.JWT != "" {
		opts.UserJWT = func() (string, error) { return d.identity.Load().JWT, nil }
	}
	opts.SignatureCB = func(nonce []byte) ([]byte, error) { return d.identity.Load().Sign(nonce) }
}

// renew reads the identity again for a dial. nats.go takes the public key from its
// options, and holds its lock while it dials, so that they may be written to.
func (d *dialer) renew() {
	nc := d.nc.Load()
	if d.login.Identity == nil || nc == nil {
		return // the first dial has the identity of identify
	}
	id := d.login.Identity.Get()
	d.identity.Store(&id)
	nc.Opts.Nkey = id.NKey
}
