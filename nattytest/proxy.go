package nattytest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// dialTimeout bounds how long a client waits for a target that does not answer. Then
// the proxy closes the client's connection.
const dialTimeout = 5 * time.Second

// Link is a TCP proxy between clients and one server that simulates faults of the
// network. A setting, such as Freeze or Delay, applies to open connections and to later
// ones. A Link is safe for concurrent use.
type Link struct {
	target string
	port   *port
	onErr  func(...any) // the test's Error, for methods that return no error

	requests, replies gate // from client to server, and from server to client
	delay             atomic.Int64

	// control is held over a whole Freeze, Thaw, Refuse or close, to serialize them.
	control  sync.Mutex
	listener net.Listener // guarded by control

	mu       sync.Mutex // guards what follows; closed is set under both
	sessions map[*session]struct{}
	closed   bool

	work sync.WaitGroup // the accept loop and every session
}

// Proxy starts a proxy for the test t on a random port of 127.0.0.1. The target is the
// URL of a [Node], or a host:port. While the target is down, the proxy accepts clients
// and closes their connections. The Cleanup of t ends the proxy and its connections. A
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

func newLink(target string, onErr func(...any)) (*Link, error) {
	address, err := hostPort(target)
	if err != nil {
		return nil, err
	}
	reserved, err := reservePort()
	if err != nil {
		return nil, err
	}
	l := &Link{target: address, port: reserved, onErr: onErr, sessions: make(map[*session]struct{})}
	if err := l.listen(); err != nil { // nobody else has l yet
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

// Cut closes every open connection with a reset, on both sides. Bytes that are held or
// delayed are lost. New connections are accepted, and a freeze or a delay applies to
// them.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.sessions {
		s.end(true)
	}
}

// Freeze silences the network until [Link.Thaw]. Connections stay open, and new ones
// are accepted, but their target is dialed only after Thaw. Once Freeze has returned,
// neither a byte nor the end of a connection passes in either direction. Only bytes
// passed on before, which wait in the sockets for a slow receiver, can still arrive.
//
// The proxy holds up to 64 MiB for each direction of a connection. Beyond that it stops
// reading from the sender.
func (l *Link) Freeze() { l.shut(&l.requests, &l.replies) }

// FreezeReplies freezes one direction: what clients send still arrives, and what the
// server answers is held until [Link.Thaw]. A [Link.Cut] before that loses the answers,
// as when a connection drops between a publish and its acknowledgement. After
// [Link.Freeze] it changes nothing.
func (l *Link) FreezeReplies() { l.shut(&l.replies) }

// FreezeRequests freezes the other direction: what clients send is held until
// [Link.Thaw], and what the server sends still arrives. The target of a new connection
// is dialed only after Thaw. After [Link.Freeze] it changes nothing.
func (l *Link) FreezeRequests() { l.shut(&l.requests) }

// Thaw ends [Link.Freeze], [Link.FreezeReplies] and [Link.FreezeRequests]. All held
// bytes pass on, in order.
func (l *Link) Thaw() {
	l.control.Lock()
	defer l.control.Unlock()
	l.requests.open()
	l.replies.open()
}

// Delay makes every byte arrive d later in each direction, so that a round trip takes
// 2d longer; 0 turns the delay off. Order and throughput stay: up to 64 MiB for each
// direction of a connection are on their way at the same time. Bytes that are already
// on their way keep their delay, and later ones do not overtake them.
func (l *Link) Delay(d time.Duration) { l.delay.Store(int64(max(d, 0))) }

// Refuse closes the port with true, and opens the same port again with false. While it
// is closed, the operating system refuses new connections, as if the server were gone.
// Open connections stay; [Link.Cut] ends them.
func (l *Link) Refuse(refuse bool) {
	l.control.Lock()
	defer l.control.Unlock()
	if refuse {
		l.stopListening()
		return
	}
	if err := l.listen(); err != nil {
		l.onErr(err)
	}
}

// close ends the proxy and its sessions, and waits for them.
func (l *Link) close() {
	l.control.Lock()
	defer l.control.Unlock()
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.stopListening()
	l.Cut()
	l.work.Wait()
	l.port.release()
}

// stopListening closes the port. The caller holds l.control.
func (l *Link) stopListening() {
	if l.listener != nil {
		l.listener.Close()
		l.listener = nil
	}
}

// listen opens the port and starts to accept, unless the port is open or the proxy
// closed. The caller holds l.control.
func (l *Link) listen() error {
	if l.closed || l.listener != nil {
		return nil
	}
	err := awaitPort(portTimeout, func() error {
		listener, err := net.Listen("tcp4", l.address())
		if err != nil {
			return err
		}
		l.listener = listener
		l.work.Go(func() { l.accept(listener) })
		return nil
	})
	if err != nil {
		return fmt.Errorf("nattytest: proxy: %w", err)
	}
	return nil
}

func (l *Link) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of files, or the client was gone before it was accepted
			time.Sleep(pollInterval)
			continue
		}
		s := &session{client: conn.(*net.TCPConn), done: make(chan struct{})}
		if !l.add(s) {
			s.end(true)
			return
		}
		l.work.Go(func() {
			defer l.remove(s)
			l.serve(s)
		})
	}
}

func (l *Link) add(s *session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.sessions[s] = struct{}{}
	return true
}

func (l *Link) remove(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sessions, s)
}

// serve carries one session until both directions have ended.
func (l *Link) serve(s *session) {
	defer s.end(false)
	if !l.requests.wait(s.done) {
		return
	}
	conn, err := net.DialTimeout("tcp", l.target, dialTimeout)
	if err != nil || !s.connect(conn.(*net.TCPConn), l) {
		return
	}
	s.up.start()
	s.down.start()
	s.work.Wait()
}

// shut closes gates, and returns when no write behind them is under way.
func (l *Link) shut(gates ...*gate) {
	l.control.Lock()
	defer l.control.Unlock()
	for _, g := range gates {
		g.shut()
	}
	l.mu.Lock()
	sessions := slices.Collect(maps.Keys(l.sessions))
	l.mu.Unlock()
	for _, s := range sessions {
		for _, g := range gates {
			s.interruptWrites(g)
		}
	}
}
