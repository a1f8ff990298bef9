package conn

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/serverurl"
)

// dialer dials for nats.go and can be interrupted. nats.go holds its lock while it
// dials and shakes hands, and asks no ctx.
type dialer struct {
	opts       *nats.Options
	userDialer nats.CustomDialer  // the caller's own, or nil
	onError    func(*ServerError) // called for errors that are kept from nats.go, see wire
	net        net.Dialer
	timeout    time.Duration
	shuffle    bool

	login    Login
	identity atomic.Pointer[Identity]  // of the last dial
	nc       atomic.Pointer[nats.Conn] // that dials; nil until its first attempt is over

	// mu guards what follows.
	mu      sync.Mutex
	blocked bool   // refuses to dial
	end     func() // ends the last dial, or its connection; nats.go uses one at a time
	dialed  bool   // the last dial made a connection
	name    string // the last host that was no IP address
	err     error  // why it did not
	wire    *wire  // what it made
}

// wantTLS reports whether a URL asks for TLS. nats.go then uses TLS for all servers, but
// notes that in a copy of its options, which wire does not see.
func wantTLS(opts *nats.Options) bool {
	return slices.ContainsFunc(urlsOf(opts), func(server string) bool {
		u := serverurl.Parse(server)
		return u != nil && (u.Scheme == "tls" || u.Scheme == "wss")
	})
}

// newDialer makes opts dial, and log in, with the dialer.
func newDialer(opts *nats.Options, login Login, onError func(*ServerError)) *dialer {
	d := &dialer{
		opts: opts, userDialer: opts.CustomDialer, onError: onError, login: login,
		timeout: opts.Timeout, shuffle: !opts.NoRandomize,
	}
	if opts.Dialer != nil {
		d.net = *opts.Dialer
	}
	if mptcp := opts.AllowMultipathTCP; mptcp != nil {
		d.net.SetMultipathTCP(*mptcp)
	}
	d.identify(opts)
	opts.CustomDialer = d
	return d
}

var errBlocked = errors.New("not connecting")

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !d.begin(cancel) {
		return nil, errBlocked
	}
	d.renew()
	conn, err := d.dial(ctx, network, address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dialed, d.err, d.wire = err == nil, err, nil
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	d.end = func() { _ = conn.Close() }
	if d.webSocket() {
		if !d.legible() {
			return conn, nil
		}
		d.wire = newFramedWire(conn, d.opts, d.onError)
		return d.wire, nil
	}
	d.wire = newWire(conn, d.opts, d.serverName(address), d.skipsTLS(), d.onError)
	return d.wire, nil
}

// webSocket reports whether the servers are reached by WebSocket. nats.go makes that
// handshake, and its frames.
func (d *dialer) webSocket() bool { return strings.HasPrefix(urlsOf(d.opts)[0], "ws") }

// legible reports whether what a server sends by WebSocket can be read: it is neither
// encrypted nor compressed. nats.go makes the TLS handshake of a WebSocket itself, and
// cannot be kept from that (v1.55.0).
func (d *dialer) legible() bool {
	o := d.opts
	encrypted := o.Secure || wantTLS(o) || o.TLSConfig != nil || o.TLSCertCB != nil || o.RootCAsCB != nil
	return !encrypted && !o.Compression
}

// urlsOf returns the servers' URLs as they are configured, at least one.
func urlsOf(opts *nats.Options) []string {
	urls := opts.Servers
	if len(urls) == 0 {
		urls = []string{opts.Url}
	}
	trimmed := make([]string, len(urls))
	for i, url := range urls {
		trimmed[i] = strings.TrimSpace(url)
	}
	return trimmed
}

// serverName is the name that the certificate of the server at an address must have. It
// is the server's host. nats.go also dials addresses that a server of its cluster has
// announced; those must have the last host name that was dialed. d.mu must be held.
func (d *dialer) serverName(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if net.ParseIP(host) == nil {
		d.name = host
		return host
	}
	configured := func(server string) bool {
		u := serverurl.Parse(server)
		return u != nil && u.Hostname() == host && cmp.Or(u.Port(), serverurl.DefaultPort) == port
	}
	if d.name != "" && !slices.ContainsFunc(d.opts.Servers, configured) {
		return d.name
	}
	return host
}

func (d *dialer) begin(cancel func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blocked {
		return false
	}
	d.end = cancel
	return true
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if d.userDialer != nil {
		return d.dialUser(ctx, network, address)
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil || net.ParseIP(host) != nil {
		return d.net.DialContext(ctx, network, address)
	}
	addrs, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil, err
	}
	// A random order spreads clients over the addresses, as in nats.go.
	if d.shuffle {
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	}
	var conn net.Conn
	for _, addr := range addrs {
		each, cancel := context.WithTimeout(ctx, d.timeout/time.Duration(len(addrs)))
		conn, err = d.net.DialContext(each, network, net.JoinHostPort(addr, port))
		cancel()
		if err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// dialUser dials with the caller's dialer. That takes no ctx, so a dial that hangs when
// ctx ends is left behind.
func (d *dialer) dialUser(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := d.userDialer.Dial(network, address)
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// SkipTLSHandshake keeps nats.go from making the TLS handshake, because wire makes it.
// nats.go looks for this method.
func (d *dialer) SkipTLSHandshake() bool { return !d.webSocket() || d.skipsTLS() }

// skipsTLS is what the caller's dialer says.
func (d *dialer) skipsTLS() bool {
	s, ok := d.userDialer.(interface{ SkipTLSHandshake() bool })
	return ok && s.SkipTLSHandshake()
}

// interrupt ends the dial, handshake or connection that there is. Further dials fail at
// once until resume.
func (d *dialer) interrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blocked = true
	if d.end != nil {
		d.end()
	}
}

func (d *dialer) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blocked = false
}

// last returns whether the last dial made a connection, and why if not.
func (d *dialer) last() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dialed, d.err
}

// silent reports whether the server of the last dial has said nothing at all. The attempt
// must be over.
func (d *dialer) silent() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wire != nil && !d.wire.greeted && len(d.wire.info) == 0
}

// reason returns why the server refused the last attempt to connect, or failure if the
// server has not said so. The attempt must be over.
func (d *dialer) reason(failure error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wire == nil {
		return failure
	}
	return d.wire.heard.reason(failure)
}
