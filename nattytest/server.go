package nattytest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	loopback = "127.0.0.1"
	// startTimeout is generous. Even a loaded machine starts a server in seconds, so
	// only a start that hangs reaches it.
	startTimeout = 20 * time.Second
	// portTimeout bounds how long a restart, or a Link, waits for its port.
	portTimeout  = 5 * time.Second
	pollInterval = 2 * time.Millisecond
)

// Node is an embedded NATS server with JetStream, alone or in a cluster. It is safe for
// concurrent use.
type Node struct {
	name       string
	url        string // "" until the first start
	config     *config
	certs      certificates
	cluster    server.ClusterOpts // the zero value outside a cluster
	routes     string             // of the whole cluster, comma-separated
	store      string
	dir        string // "" in a cluster, which owns the folder of its nodes
	ports      []*port
	clientPort int // final after the first start

	mu     sync.Mutex // guards closed; held over a whole start, stop or close, to serialize them
	closed bool

	latest    atomic.Pointer[server.Server] // the server started last, also after its stop
	routePool atomic.Int64                  // connections of a route to another node
}

// Server starts a server with JetStream for the test t, on a random port of 127.0.0.1,
// with its store in a temporary directory. When Server returns, usually after some ten
// milliseconds, the server accepts connections.
//
// The Cleanup of t stops the server and removes its store, after the cleanups that t
// registers later. A failure ends the test with t.Fatal, so call Server on the test's
// own goroutine.
func Server(t testing.TB, opts ...Option) *Node {
	t.Helper()
	node, err := Start(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	return node
}

// Start is [Server] for programs without a test. The caller must call Close, which
// stops the server and removes its store.
func Start(opts ...Option) (*Node, error) {
	config, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "nattytest-")
	if err != nil {
		return nil, err
	}
	node := &Node{
		name: "nattytest-" + rand.Text()[:12], config: config, dir: dir, store: filepath.Join(dir, "store"),
	}
	if node.certs, err = config.issue(dir); err != nil {
		return nil, errors.Join(err, node.Close())
	}
	if err := node.firstStart(); err != nil {
		return nil, errors.Join(err, node.Close())
	}
	return node, nil
}

// URL returns the address for clients, nats://127.0.0.1:port, without credentials. A
// restart does not change it.
func (n *Node) URL() string { return n.url }

// Server returns the embedded server: the running one, or after Stop the one that ran
// last. A Restart replaces it.
func (n *Node) Server() *server.Server { return n.latest.Load() }

// Files returns the paths of the certificates for clients. Without [TLS] all are empty.
func (n *Node) Files() Files { return n.certs.files }

// Stop shuts the server down in an orderly way and waits for its end. The server hands
// its leaderships over, closes every connection and listener, and keeps its store.
// Afterwards connections to it are refused. Stopping a stopped server does nothing.
func (n *Node) Stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopLocked()
}

// Restart stops the server, if it is running, and starts it again on the same port,
// with the same store and certificates. When Restart returns nil, the server accepts
// connections. A single server has then recovered its streams; a node of a cluster may
// need longer to catch up, see [Nodes.WaitReady].
//
// After an error the server is stopped, and the caller may retry Restart. A closed node
// cannot be restarted.
func (n *Node) Restart() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errors.New("nattytest: restart: the server is closed and its store removed")
	}
	n.stopLocked()
	return n.startLocked()
}

// Close stops the server and removes its store and certificates. Closing again does
// nothing. The test's Cleanup closes the nodes that [Server] and [Cluster] made.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	n.stopLocked()
	for _, p := range n.ports {
		p.release()
	}
	if n.dir == "" {
		return nil
	}
	return os.RemoveAll(n.dir)
}

// stopLocked stops the server. The caller holds n.mu.
func (n *Node) stopLocked() {
	if srv := n.latest.Load(); srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

// firstStart reserves a port for clients and starts the server on it, or on the port
// that the caller's [Options] set.
func (n *Node) firstStart() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	reserved, err := reservePort()
	if err != nil {
		return err
	}
	n.ports = append(n.ports, reserved)
	n.clientPort = reserved.number
	if err := n.startLocked(); err != nil {
		return err
	}
	addr, ok := n.Server().Addr().(*net.TCPAddr)
	if !ok {
		return nil // DontListen: in-process connections only
	}
	n.clientPort = addr.Port
	host := loopback
	if !addr.IP.IsUnspecified() {
		host = addr.IP.String()
	}
	n.url = "nats://" + net.JoinHostPort(host, strconv.Itoa(addr.Port))
	return nil
}

// startLocked starts a new server and returns when it accepts connections. A restart
// waits for its port. The caller holds n.mu.
func (n *Node) startLocked() error {
	timeout := portTimeout
	if n.url == "" {
		timeout = 0
	}
	err := awaitPort(timeout, func() error {
		o := n.options()
		srv, err := start(o)
		if err != nil {
			return err
		}
		// The server has filled in the defaults.
		n.routePool.Store(int64(max(o.Cluster.PoolSize, 1) + len(o.Cluster.PinnedAccounts)))
		n.latest.Store(srv)
		return nil
	})
	if err != nil {
		return fmt.Errorf("nattytest: start %s: %w", n.name, err)
	}
	return nil
}

// awaitPort retries listen until timeout while its port is taken: outside Linux another
// process may have the port for a moment.
func awaitPort(timeout time.Duration, listen func() error) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(10 * pollInterval) {
		err := listen()
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return err
		}
	}
}

// options returns new options for each start, because the server keeps the pointer and
// writes into them.
func (n *Node) options() *server.Options {
	o := &server.Options{
		ServerName: n.name,
		Host:       loopback,
		Port:       n.clientPort,
		JetStream:  true,
		StoreDir:   n.store,
		NoSigs:     true,
		NoLog:      true,
		Cluster:    n.cluster,
		Routes:     server.RoutesFromStr(n.routes),
	}
	n.config.login(o)
	n.certs.apply(o)
	for _, override := range n.config.overrides {
		override(o)
	}
	if n.url != "" {
		o.Port = n.clientPort
	}
	return o
}

// start returns a server that accepts connections. A server that cannot start tells the
// reason to its logger only, and stays half up; so start gives it a logger.
func start(o *server.Options) (*server.Server, error) {
	srv, err := server.NewServer(o)
	if err != nil {
		return nil, err
	}
	log := &startLog{fatal: make(chan error, 1)}
	srv.SetLoggerV2(log, false, false, false)
	srv.Start()
	err = log.awaitStart(srv)
	if err != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, err
	}
	return srv, nil
}

// startLog is the logger of an embedded server. It keeps the first fatal error and
// drops everything else.
type startLog struct {
	fatal chan error
}

func (l *startLog) awaitStart(srv *server.Server) error {
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(pollInterval) {
		select {
		case err := <-l.fatal:
			return err
		default:
		}
		if srv.ReadyForConnections(time.Millisecond) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server does not accept connections after %v", startTimeout)
		}
	}
}

// Fatalf keeps an error among v in the error's chain: the server formats it with %v or
// %q.
func (l *startLog) Fatalf(format string, v ...any) {
	failure := &startError{text: fmt.Sprintf(format, v...)}
	for _, arg := range v {
		if cause, ok := arg.(error); ok {
			failure.cause = cause
		}
	}
	select {
	case l.fatal <- failure:
	default:
	}
}

// Noticef and the methods below drop what the server logs.
func (*startLog) Noticef(string, ...any) {}
func (*startLog) Warnf(string, ...any)   {}
func (*startLog) Errorf(string, ...any)  {}
func (*startLog) Debugf(string, ...any)  {}
func (*startLog) Tracef(string, ...any)  {}

// startError is the reason that the server logged when it could not start.
type startError struct {
	text  string
	cause error
}

func (e *startError) Error() string { return e.text }
func (e *startError) Unwrap() error { return e.cause }
