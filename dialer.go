package natty

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// dialer dials for nats.go, which holds its lock while it dials and shakes hands, and asks no ctx: through the
// dialer both can be ended from outside.
type dialer struct {
	theirs  nats.CustomDialer // the caller's own, or nil
	net     net.Dialer
	timeout time.Duration
	shuffle bool

	// mu guards what follows.
	mu     sync.Mutex
	held   bool   // refuses to dial
	end    func() // ends the dial under way, or the connection that it made; nats.go uses one at a time
	dialed bool   // the last dial made a connection
	err    error  // why it did not
}

func newDialer(opts *nats.Options) *dialer {
	d := &dialer{theirs: opts.CustomDialer, timeout: opts.Timeout, shuffle: !opts.NoRandomize}
	if opts.Dialer != nil {
		d.net = *opts.Dialer
	}
	if mptcp := opts.AllowMultipathTCP; mptcp != nil {
		d.net.SetMultipathTCP(*mptcp)
	}
	return d
}

var errHeld = errors.New("not connecting")

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !d.begin(cancel) {
		return nil, errHeld
	}
	conn, err := d.dial(ctx, network, address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dialed, d.err = err == nil, err
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	d.end = func() { _ = conn.Close() }
	return conn, nil
}

func (d *dialer) begin(cancel func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held {
		return false
	}
	d.end = cancel
	return true
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if d.theirs != nil {
		return d.dialTheirs(ctx, network, address)
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
	// In random order, as nats.go does, to spread clients over them.
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

// dialTheirs leaves a dial that hangs behind when ctx ends: it takes no ctx.
func (d *dialer) dialTheirs(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := d.theirs.Dial(network, address)
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

// SkipTLSHandshake passes on what the caller's dialer says; nats.go asks for it by this name.
func (d *dialer) SkipTLSHandshake() bool {
	s, ok := d.theirs.(interface{ SkipTLSHandshake() bool })
	return ok && s.SkipTLSHandshake()
}

// interrupt ends the dial, the handshake or the connection that there is, and makes further dials fail at once
// until release.
func (d *dialer) interrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = true
	if d.end != nil {
		d.end()
	}
}

func (d *dialer) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = false
}

// last returns whether the last dial made a connection, and if not, why.
func (d *dialer) last() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dialed, d.err
}
