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
	// startWithin is generous: it is reached only where a start hangs, and a loaded machine starts a server in seconds.
	startWithin = 20 * time.Second
	// portWithin bounds how long a restart waits for its port.
	portWithin = 5 * time.Second
	pollEvery  = 2 * time.Millisecond
)

// Node is an embedded NATS server with JetStream, alone or in a cluster. It is safe for concurrent use.
type Node struct {
	name    string
	url     string
	config  *config
	creds   credentials
	cluster server.ClusterOpts // the zero value outside a cluster
	routes  string             // of the whole cluster, comma-separated
	store   string
	dir     string // "" where the cluster owns it
	ports   []*port
	client  int // the port for clients; settled by the first start

	mu     sync.Mutex // held over a whole start, stop or close, so that they follow one another; guards closed
	closed bool

	running atomic.Pointer[server.Server] // the last one started, also after it was stopped
	links   atomic.Int64                  // how many connections a route to another node has
}

// Server starts a server with JetStream for the test t: on 127.0.0.1, on a random port, with a store of its own in a
// temporary directory. It accepts connections when Server returns, usually some ten milliseconds later. It is stopped and
// its store removed in t's Cleanup, after the cleanups that t registers later. A failure ends the test with t.Fatal, so
// Server must be called on the test's own goroutine.
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

// Start is [Server] without a test around it. The caller must call Close, which stops the server and removes its store.
func Start(opts ...Option) (*Node, error) {
	config, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "nattytest-")
	if err != nil {
		return nil, err
	}
	node := &Node{name: "nattytest-" + rand.Text()[:12], config: config, dir: dir, store: filepath.Join(dir, "store")}
	if node.creds, err = config.issue(dir); err != nil {
		return nil, errors.Join(err, node.Close())
	}
	if err := node.firstStart(); err != nil {
		return nil, errors.Join(err, node.Close())
	}
	return node, nil
}

// URL returns the address for clients, nats://127.0.0.1:port, without credentials. It stays the same across restarts.
func (n *Node) URL() string { return n.url }

// Server returns the embedded server itself: the running one, or after Stop the one that ran last. After a Restart it is
// another one.
func (n *Node) Server() *server.Server { return n.running.Load() }

// Files returns the paths of the certificates for clients; all empty without [TLS].
func (n *Node) Files() Files { return n.creds.files }

// Stop stops the server in an orderly way and waits until it has ended: it hands its leaderships over, closes every
// connection and listener, and keeps its store. Connections to it are refused from then on. Stopping a stopped server does
// nothing.
func (n *Node) Stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopLocked()
}

// Restart stops the server if it is running and starts it again on the same port, with the same store and certificates.
// When it returns nil, the server accepts connections and a single server has recovered its streams; a node of a cluster may
// need a little longer to catch up, see [Nodes.WaitReady]. After an error the server is stopped, and Restart may be tried
// again. A closed node cannot be restarted.
func (n *Node) Restart() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errors.New("nattytest: restart: the server is closed and its store removed")
	}
	n.stopLocked()
	return n.startLocked()
}

// Close stops the server and removes its store and certificates. Closing again does nothing. The nodes that [Server] and
// [Cluster] made are closed by the test's Cleanup.
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

// stopLocked needs n.mu.
func (n *Node) stopLocked() {
	if srv := n.running.Load(); srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

// firstStart reserves a port for clients and starts the server on it, or on the port that the caller's [Options] demand.
func (n *Node) firstStart() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	reserved, err := reservePort()
	if err != nil {
		return err
	}
	n.ports = append(n.ports, reserved)
	n.client = reserved.number
	if err := n.startLocked(); err != nil {
		return err
	}
	addr, ok := n.Server().Addr().(*net.TCPAddr)
	if !ok {
		return nil // DontListen: in-process connections only
	}
	n.client = addr.Port
	host := loopback
	if !addr.IP.IsUnspecified() {
		host = addr.IP.String()
	}
	n.url = "nats://" + net.JoinHostPort(host, strconv.Itoa(addr.Port))
	return nil
}

// startLocked starts a new server and returns when it accepts connections. A restart waits for its port, which outside Linux
// another process may have for a moment. It needs n.mu.
func (n *Node) startLocked() error {
	deadline := time.Now().Add(portWithin)
	for {
		o := n.options()
		srv, err := start(o)
		if err == nil {
			n.links.Store(int64(max(o.Cluster.PoolSize, 1) + len(o.Cluster.PinnedAccounts))) // the server filled in its defaults
			n.running.Store(srv)
			return nil
		}
		if n.url == "" || !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return fmt.Errorf("nattytest: start %s: %w", n.name, err)
		}
		time.Sleep(10 * pollEvery)
	}
}

// options are new each time: the server keeps the pointer and writes into it.
func (n *Node) options() *server.Options {
	o := &server.Options{
		ServerName: n.name,
		Host:       loopback,
		Port:       n.client,
		JetStream:  true,
		StoreDir:   n.store,
		NoSigs:     true,
		NoLog:      true,
		Cluster:    n.cluster,
		Routes:     server.RoutesFromStr(n.routes),
	}
	n.config.login(o)
	n.creds.apply(o)
	for _, f := range n.config.last {
		f(o)
	}
	if n.url != "" {
		o.Port = n.client
	}
	return o
}

// start runs a server until it accepts connections. A server that cannot start says so to its logger alone, then stays half
// up; hence the logger.
func start(o *server.Options) (*server.Server, error) {
	srv, err := server.NewServer(o)
	if err != nil {
		return nil, err
	}
	log := &failures{first: make(chan error, 1)}
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

// failures is the logger of an embedded server. It keeps the first fatal error and drops the rest.
type failures struct {
	first chan error
}

func (f *failures) awaitStart(srv *server.Server) error {
	deadline := time.Now().Add(startWithin)
	for {
		select {
		case err := <-f.first:
			return err
		default:
		}
		if srv.ReadyForConnections(time.Millisecond) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server does not accept connections after %v", startWithin)
		}
		time.Sleep(pollEvery)
	}
}

// Fatalf keeps a cause among v in the error's chain: the server formats it with %v or %q.
func (f *failures) Fatalf(format string, v ...any) {
	failure := &startError{text: fmt.Sprintf(format, v...)}
	for _, arg := range v {
		if cause, ok := arg.(error); ok {
			failure.cause = cause
		}
	}
	select {
	case f.first <- failure:
	default:
	}
}

// Noticef and the others below drop what the server says.
func (*failures) Noticef(string, ...any) {}
func (*failures) Warnf(string, ...any)   {}
func (*failures) Errorf(string, ...any)  {}
func (*failures) Debugf(string, ...any)  {}
func (*failures) Tracef(string, ...any)  {}

// startError is what the server said when it could not start.
type startError struct {
	text  string
	cause error
}

func (e *startError) Error() string { return e.text }
func (e *startError) Unwrap() error { return e.cause }
