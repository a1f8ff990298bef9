// Package conn keeps a NATS connection alive, knows its state without asking nats.go,
// and says why there is none. It knows nothing of what the connection is used for, and
// leaves login and TLS to the options that its caller gives.
package conn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/serverurl"
)

const (
	// probeAfter is how long a connection has been lost before the servers are probed.
	probeAfter = time.Second
	// closeGrace is how long Close waits for whoever holds nats.go's lock, such as a
	// write to a frozen server.
	closeGrace = 50 * time.Millisecond
)

// probeAgain is the pause between two probes. Each costs every server a connection.
var probeAgain = backoff.Exp{Min: 100 * time.Millisecond, Max: 10 * time.Second}

// Conn keeps a nats.Conn alive and its Link up to date.
type Conn struct {
	NC      *nats.Conn
	Link    *Link
	log     *slog.Logger
	dialer  *dialer // nil, like prober, for a connection that the caller made
	prober  *prober
	status  chan nats.Status
	refused chan error // gets the reason when every server refuses; buffered
	files   chan error // trouble with files that is news; buffered

	closing   context.Context //nolint:containedctx // ends when Close begins
	stop      context.CancelFunc
	closeOnce sync.Once
	running   sync.WaitGroup

	notifying sync.Mutex // serializes events, so that they arrive in the order of the changes
	notify    func(Event)

	// cut is why the server ended the connection, until those who wait are told.
	cut atomic.Pointer[ServerError]
	// revoked is what the server has said of the login before it ends the connection. Only
	// nats.go's goroutine for handlers uses it.
	revoked error

	mu     sync.Mutex // guards failer
	failer failer     // nil until Attach
}

// Event says that the connection was made or lost, or what is wrong with it.
type Event struct {
	Connected bool
	Server    string // last connected to, without credentials
	Err       error  // nil if Connected has changed
}

// failer learns that waiting publishes to a subject, or all for "", get no
// acknowledgement.
type failer interface {
	Fail(subject string, err error)
}

func newConn(log *slog.Logger, notify func(Event)) *Conn {
	cn := &Conn{Link: NewLink(), notify: notify, log: log, refused: make(chan error, 1), files: make(chan error, 16)}
	cn.closing, cn.stop = context.WithCancel(context.Background())
	return cn
}

// Config says how to connect.
type Config struct {
	Options *nats.Options
	Login   Login
	// Lazy dials nothing before Start. nats.go holds its lock while it dials, for as long
	// as a server is silent, and what the caller still sets up on the connection would
	// wait for the lock.
	Lazy   bool
	Log    *slog.Logger
	Notify func(Event) // must not block
}

// Dial begins to connect. It returns before there is a connection; Await waits for
// that. Its only errors are options that nats.go refuses, which takes no server to
// know.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	cn, opts := newConn(cfg.Log, cfg.Notify), cfg.Options
	opts.Secure = opts.Secure || wantTLS(opts)
	cfg.Login.watch(cn)
	cfg.Login.install(opts)
	cn.prober = &prober{opts: *opts, login: cfg.Login}
	cn.dialer = newDialer(opts, cfg.Login, func(cut *ServerError) { cn.cut.Store(cut) })
	opts.SkipHostLookup = true // the dialer looks hosts up, and can be interrupted
	cn.chainHandlers(opts)
	if cfg.Lazy {
		cn.dialer.interrupt()
	} else {
		// The first attempt happens here. It ends with ctx, whatever holds it up.
		defer context.AfterFunc(ctx, cn.dialer.interrupt)()
	}
	var err error
	if cn.NC, err = opts.Connect(); err != nil {
		cn.stop()
		return nil, err // with RetryOnFailedConnect: options contradict each other
	}
	cn.dialer.nc.Store(cn.NC)
	cn.begin()
	return cn, nil
}

// Adopt takes a connection that the caller made.
func Adopt(nc *nats.Conn, log *slog.Logger, notify func(Event)) *Conn {
	cn := newConn(log, notify)
	cn.NC = nc
	// The handler stays there after Close, and then only calls the caller's. Restoring
	// the caller's would remove a handler that somebody set later, and wait for
	// nats.go's lock.
	nc.SetErrorHandler(cn.chainErrHandler(nc.ErrorHandler()))
	cn.begin()
	return cn
}

func (cn *Conn) begin() {
	cn.status = cn.NC.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	cn.running.Go(cn.follow)
}

// Start lets a lazy connection begin to dial.
func (cn *Conn) Start() {
	if cn.dialer != nil {
		cn.dialer.resume()
	}
}

// Await waits for the first connection, until ctx ends or every server has refused.
func (cn *Conn) Await(ctx context.Context) error {
	for {
		up, changed := cn.Link.Watch()
		if up || ctx.Err() != nil || cn.Link.IsGone() {
			break
		}
		select {
		case <-changed:
		case <-cn.Link.Gone:
		case <-ctx.Done():
		case err := <-cn.refused:
			return fmt.Errorf("natty: connect: %w", err)
		}
	}
	err := cn.Link.Wait(ctx, time.Time{})
	if err == nil {
		err = ctx.Err() // connected too late: dialing has been interrupted
	}
	if err != nil {
		return fmt.Errorf("natty: connect: %w", err)
	}
	return nil
}

// Attach sets who learns that the connection was lost, or a publish refused.
func (cn *Conn) Attach(f failer) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	cn.failer = f
}

func (cn *Conn) fail(subject string, err error) {
	cn.mu.Lock()
	f := cn.failer
	cn.mu.Unlock()
	if f != nil {
		f.Fail(subject, err)
	}
}

// Close closes the connection, or only leaves the caller's, and waits for the
// goroutines beside it. It may be called again.
func (cn *Conn) Close() {
	cn.closeOnce.Do(func() {
		cn.stop()
		if cn.dialer == nil {
			// The caller's connection is not ours to interrupt: it may be stuck in a
			// write that holds its lock.
			go cn.NC.RemoveStatusListener(cn.status)
			return
		}
		stuck := time.AfterFunc(closeGrace, cn.dialer.interrupt)
		cn.NC.Close()
		stuck.Stop()
		cn.NC.RemoveStatusListener(cn.status)
	})
	cn.running.Wait()
}

// follow keeps the link up to date until the connection is closed. While there is no
// connection it probes the servers.
func (cn *Conn) follow() {
	defer cn.onClosed()
	ctx, cancel := context.WithCancel(cn.closing)
	defer cancel()
	var result <-chan error // of the probe under way
	probe := time.NewTimer(0)
	defer probe.Stop()
	n := 0 // probes in a row
	for {
		select {
		case s, ok := <-cn.status:
			if !ok || s == nats.CLOSED {
				return
			}
			// Every failed attempt to reconnect repeats RECONNECTING.
			if cn.onStatus(s == nats.CONNECTED) {
				n = 0
				probe.Reset(probeAfter)
			}
		case <-probe.C:
			switch {
			case cn.Link.Up() || result != nil:
			case cn.NC.IsConnected(): // since before StatusChanged, or a change was missed
				cn.onStatus(true)
			case cn.prober != nil:
				n++
				result = cn.probe(ctx)
			default:
				probe.Reset(probeAgain.Max)
			}
		case err := <-cn.files:
			cn.notifyError(err)
			cn.log.Warn("natty: a file cannot be used", "error", err)
		case err := <-result:
			result = nil
			cn.onProbe(err)
			probe.Reset(probeAgain.Delay(n))
		}
	}
}

// probe asks the servers in the background. The result comes soon after ctx ends at the
// latest.
func (cn *Conn) probe(ctx context.Context) <-chan error {
	result := make(chan error, 1)
	cn.running.Go(func() { result <- cn.prober.probeAll(ctx) })
	return result
}

// onStatus records whether there is a connection, and reports whether that is news.
func (cn *Conn) onStatus(up bool) (news bool) {
	if !up {
		return cn.onDisconnect()
	}
	server := serverurl.Redact(cn.NC.ConnectedUrl())
	version, cluster := cn.NC.ConnectedServerVersion(), cn.NC.ConnectedClusterName()
	setUp := func() bool {
		cn.Link.forgetRefusals()
		cn.Link.setServer(version, cluster)
		return cn.Link.SetUp(server)
	}
	if !cn.setState(setUp, Event{Connected: true, Server: server}) {
		return false
	}
	cn.log.Info("natty: connected", "server", server)
	return true
}

// onDisconnect ends the waiting for answers that will not come.
func (cn *Conn) onDisconnect() (news bool) {
	server := cn.Link.State().Server
	if !cn.setState(cn.Link.SetDown, Event{Server: server}) {
		return false
	}
	reason := nats.ErrDisconnected
	if cut := cn.cut.Swap(nil); cut != nil {
		reason = cut
	}
	cn.fail("", reason)
	if cn.closing.Err() == nil {
		cn.log.Warn("natty: connection lost", "server", server, "reason", reason)
	}
	return true
}

// onClosed records that there will be no connection any more.
func (cn *Conn) onClosed() {
	if err := cn.NC.LastError(); err != nil && cn.dialer != nil && cn.closing.Err() == nil {
		cn.reportError(err) // DisableReconnect: nobody else hears of it
	}
	cn.onDisconnect()
	cn.Link.setGone()
	cn.fail("", nats.ErrDisconnected) // those that began in between
}

// onProbe records why the servers say there is no connection.
func (cn *Conn) onProbe(err error) {
	if err == nil || cn.closing.Err() != nil || cn.Link.Up() {
		return
	}
	news := cn.reportError(err)
	answers, ok := errors.AsType[*answersError](err)
	if ok && answers.final() && !cn.Link.State().EverUp {
		select {
		case cn.refused <- err:
		default:
		}
	}
	if news {
		cn.log.Warn("natty: not connected", "error", err)
	}
}

// setState changes the link's state and reports whether that is news. If so it
// notifies.
func (cn *Conn) setState(change func() bool, event Event) (news bool) {
	cn.notifying.Lock()
	defer cn.notifying.Unlock()
	news = change()
	if news {
		cn.notify(event)
	}
	return news
}

// reportError records what went wrong and reports whether that is news. If so it
// notifies.
func (cn *Conn) reportError(err error) (news bool) {
	news = cn.Link.setReason(err)
	if news {
		cn.notifyError(err)
	}
	return news
}

func (cn *Conn) notifyError(err error) {
	cn.notifying.Lock()
	defer cn.notifying.Unlock()
	state := cn.Link.State()
	cn.notify(Event{Connected: state.Up, Server: state.Server, Err: err})
}
