package nattytest

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// dialTimeout bounds how long a client of a Link waits for a target that does not answer; then its connection is closed.
const dialTimeout = 5 * time.Second

// Link is a TCP proxy between clients and one server, and the faults of the network between them. What has been set, such
// as Freeze or Delay, holds for the connections that are open and for those that come later. It is safe for concurrent use.
type Link struct {
	target string
	port   *port
	fail   func(...any) // reports what a method without an error met: the test's Error

	requests, replies gate // client to server, server to client
	delay             atomic.Int64

	control sync.Mutex // held over a whole Freeze, Thaw, Refuse or close, so that they follow one another

	mu       sync.Mutex // guards what follows
	listener net.Listener
	pairs    map[*pair]struct{}
	closed   bool

	work sync.WaitGroup // accepting, and every connection
}

// Proxy starts a proxy for the test t on a random port of 127.0.0.1. The target is the URL of a [Node] or a host:port; it
// need not be up: while it is down, clients are accepted and closed. The proxy and its connections end in t's Cleanup. A
// failure ends the test with t.Fatal.
func Proxy(t testing.TB, target string) *Link {
	t.Helper()
	l, err := newLink(target, t.Error)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func newLink(target string, fail func(...any)) (*Link, error) {
	address, err := hostPort(target)
	if err != nil {
		return nil, err
	}
	reserved, err := reservePort()
	if err != nil {
		return nil, err
	}
	l := &Link{target: address, port: reserved, fail: fail, pairs: make(map[*pair]struct{})}
	l.control.Lock()
	defer l.control.Unlock()
	if err := l.listen(); err != nil {
		reserved.release()
		return nil, err
	}
	return l, nil
}

func hostPort(target string) (string, error) {
	address := target
	if strings.Contains(target, "://") {
		u, err := url.Parse(target)
		if err != nil {
			return "", errors.New("nattytest: the proxy's target is not a URL") // the cause would show the credentials
		}
		address = u.Host
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return "", fmt.Errorf("nattytest: the proxy's target needs a host and a port: %w", err)
	}
	return address, nil
}

// URL returns the proxy's address for clients, nats://127.0.0.1:port. It never changes.
func (l *Link) URL() string { return "nats://" + l.address() }

func (l *Link) address() string { return fmt.Sprintf("%s:%d", loopback, l.port.number) }

// Cut closes every open connection at once, on both sides and with a reset. Bytes that are held or delayed are lost.
// New connections are accepted, and a freeze or a delay goes on for them.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pairs {
		p.abort()
	}
}

// Freeze makes the network go silent: connections stay open, new ones are accepted, and once Freeze has returned no byte
// passes either way, nor does the end of a connection. Only what was passed on before, and waits in the sockets for a
// receiver that is slow to read, can still arrive. Bytes are held until [Link.Thaw], up to 64 MiB for each direction of a
// connection; then the sender is not read from any more. The target is not dialed for a new connection before Thaw.
func (l *Link) Freeze() { l.shut(&l.requests, &l.replies) }

// FreezeReplies freezes one direction: what clients send goes on arriving, what the server answers is held until
// [Link.Thaw]. With a [Link.Cut] before that it is lost, as an acknowledgement is when the connection drops at the wrong
// moment. After [Link.Freeze] it changes nothing.
func (l *Link) FreezeReplies() { l.shut(&l.replies) }

// Thaw ends what [Link.Freeze] and [Link.FreezeReplies] began. The bytes held pass on, in order, with nothing missing.
func (l *Link) Thaw() {
	l.control.Lock()
	defer l.control.Unlock()
	l.requests.open()
	l.replies.open()
}

// Delay makes every byte arrive d later, in each direction, so that a round trip takes 2d longer. Order and throughput stay:
// bytes are on the way at the same time, up to 64 MiB for each direction of a connection. 0 turns the delay off. Bytes
// that are already on the way keep the delay that they began with, and are not overtaken.
func (l *Link) Delay(d time.Duration) { l.delay.Store(int64(max(d, 0))) }

// Refuse with true closes the port: the operating system refuses new connections, as if the server were gone. Open
// connections stay; [Link.Cut] ends them. Refuse with false opens the same port again.
func (l *Link) Refuse(refuse bool) {
	l.control.Lock()
	defer l.control.Unlock()
	if refuse {
		l.stopListening()
		return
	}
	if err := l.listen(); err != nil {
		l.fail(err)
	}
}

// close ends the proxy and everything that runs in it, and waits.
func (l *Link) close() {
	l.control.Lock()
	defer l.control.Unlock()
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return
	}
	l.stopListening()
	l.Cut()
	l.work.Wait()
	l.port.release()
}

// stopListening closes the port; it needs l.control.
func (l *Link) stopListening() {
	l.mu.Lock()
	listener := l.listener
	l.listener = nil
	l.mu.Unlock()
	if listener != nil {
		listener.Close()
	}
}

// listen opens the port, unless it is open or the proxy closed, and starts accepting. It waits for a port that is taken:
// outside Linux another process may have it for a moment. It needs l.control.
func (l *Link) listen() error {
	l.mu.Lock()
	pointless := l.closed || l.listener != nil
	l.mu.Unlock()
	if pointless {
		return nil
	}
	deadline := time.Now().Add(portWithin)
	for {
		listener, err := net.Listen("tcp4", l.address())
		if err == nil {
			l.mu.Lock()
			l.listener = listener
			l.mu.Unlock()
			l.work.Go(func() { l.accept(listener) })
			return nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return fmt.Errorf("nattytest: proxy: %w", err)
		}
		time.Sleep(10 * pollEvery)
	}
}

func (l *Link) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of files, or a client that was gone before it was accepted
			time.Sleep(pollEvery)
			continue
		}
		p := &pair{client: conn.(*net.TCPConn), done: make(chan struct{})}
		if !l.add(p) {
			p.abort()
			return
		}
		l.work.Go(func() {
			defer l.remove(p)
			l.serve(p)
		})
	}
}

func (l *Link) add(p *pair) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.pairs[p] = struct{}{}
	return true
}

func (l *Link) remove(p *pair) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pairs, p)
}

// serve carries one connection until both directions have ended.
func (l *Link) serve(p *pair) {
	defer p.finish()
	if !l.requests.wait(p.done) {
		return
	}
	conn, err := net.DialTimeout("tcp", l.target, dialTimeout)
	if err != nil {
		return
	}
	if !p.connect(conn.(*net.TCPConn), l) {
		return
	}
	p.up.run()
	p.down.run()
	p.work.Wait()
}

// shut closes gates, then sees to it that no write is under way behind them.
func (l *Link) shut(gates ...*gate) {
	l.control.Lock()
	defer l.control.Unlock()
	for _, g := range gates {
		g.shut()
	}
	l.mu.Lock()
	pairs := make([]*pair, 0, len(l.pairs))
	for p := range l.pairs {
		pairs = append(pairs, p)
	}
	l.mu.Unlock()
	for _, p := range pairs {
		for _, g := range gates {
			p.settle(g)
		}
	}
}
