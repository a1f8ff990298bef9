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

// dialer dials for nats.go, which holds its lock meanwhile and asks no ctx: through the dialer a dial or
// handshake that hangs can be ended from outside.
type dialer struct {
	theirs  nats.CustomDialer // the caller's own, or nil
	net     *net.Dialer
	timeout time.Duration
	shuffle bool
	life    context.Context //nolint:containedctx // nats.go's Dial takes none
	end     context.CancelFunc

	// mu guards what follows.
	mu   sync.Mutex
	held bool
	last net.Conn // nats.go uses one at a time
}

func newDialer(opts *nats.Options) *dialer {
	life, end := context.WithCancel(context.Background())
	d := &dialer{theirs: opts.CustomDialer, net: opts.Dialer, timeout: opts.Timeout, shuffle: !opts.NoRandomize, life: life, end: end} //nolint:staticcheck // Dialer is deprecated and still in use
	if d.net == nil {
		d.net = &net.Dialer{}
	}
	return d
}

var errHeld = errors.New("not connecting yet")

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if held {
		return nil, errHeld
	}
	conn, err := d.dial(d.life, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.life.Err() != nil {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	d.last = conn
	return conn, nil
}

// dial tries the addresses of a host in random order, as nats.go does, to spread clients over them.
func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if d.theirs != nil {
		return d.theirs.Dial(network, address)
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

// SkipTLSHandshake passes on what the caller's dialer says; nats.go asks for it by this name.
func (d *dialer) SkipTLSHandshake() bool {
	s, ok := d.theirs.(interface{ SkipTLSHandshake() bool })
	return ok && s.SkipTLSHandshake()
}

// hold makes every dial fail at once while it is on.
func (d *dialer) hold(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = on
}

// interrupt ends the handshake under way, and holds further ones.
func (d *dialer) interrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = true
	if d.last != nil {
		_ = d.last.Close()
	}
}

// shut ends dialing for good.
func (d *dialer) shut() {
	d.end()
	d.interrupt()
}
