package natty

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// A connection that is silent for this long twice over is given up as dead. nats.go's default of two
	// minutes would leave a frozen connection standing for five.
	pingInterval = 10 * time.Second
	// A write to a frozen connection is given up after this long; it holds the connection's lock, so
	// that everybody waits for it whatever their ctx says. nats.go's default is one minute.
	writeTimeout = 5 * time.Second

	// How long a lost connection is given before the servers are asked what is wrong.
	askAfter = time.Second

	reconnectMin = 50 * time.Millisecond
	reconnectMax = 2 * time.Second
)

// askAgain is the pause between two enquiries, which cost the servers a connection each.
var askAgain = Backoff{Min: 100 * time.Millisecond, Max: 10 * time.Second}

// closeGrace is how long closing waits for what holds nats.go's lock, such as a write to a frozen server.
const closeGrace = 50 * time.Millisecond

// conn keeps a nats.Conn alive, and its link informed.
type conn struct {
	nc      *nats.Conn
	link    *link
	events  *reports[Event]
	telling sync.Mutex // held while events are told of, so that they come in the order of what they say
	log     *slog.Logger
	dialer  *dialer // nil, like ask, for a connection that the caller made
	ask     *asker
	status  chan nats.Status
	giveUp  chan error // every server refuses; buffered

	closing   context.Context //nolint:containedctx // ends when close begins
	stop      context.CancelFunc
	closeOnce sync.Once
	released  atomic.Bool // closed, as far as handlers are concerned
	running   sync.WaitGroup

	mu   sync.Mutex // guards acks
	acks *acks      // to be told of losses and refusals; nil until attach
}

// dial makes the connection of a Client, or adopts the caller's. It returns before there is one, see await;
// only what can be known without a server is an error here.
//
// With LazyConnect nothing is dialed before start: nats.go holds its lock meanwhile, for as long as a
// server keeps silent, and what is still to be set up on the connection would wait for that.
func dial(ctx context.Context, cfg Config, o options, l *link, events *reports[Event]) (*conn, error) {
	cn := &conn{link: l, events: events, log: o.log, giveUp: make(chan error, 1)}
	cn.closing, cn.stop = context.WithCancel(context.Background())
	err := cn.open(ctx, cfg, o)
	if err != nil {
		cn.stop()
		return nil, err
	}
	cn.status = cn.nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	cn.running.Go(cn.follow)
	return cn, nil
}

func (cn *conn) open(ctx context.Context, cfg Config, o options) error {
	if o.adopt {
		return cn.adopt(o.conn)
	}
	opts, err := natsOptions(cfg, o)
	if err != nil {
		return err
	}
	cn.ask = &asker{opts: *opts}
	cn.dialer = newDialer(opts)
	opts.CustomDialer = cn.dialer
	opts.SkipHostLookup = true // the dialer does it, and can be interrupted
	cn.handlers(opts)
	if cfg.LazyConnect {
		cn.dialer.interrupt()
	} else {
		// The first attempt is made here, and ended with ctx whatever holds it up.
		defer context.AfterFunc(ctx, cn.dialer.interrupt)()
	}
	if cn.nc, err = opts.Connect(); err != nil {
		// With RetryOnFailedConnect only options that contradict each other end here.
		return &ConfigError{Field: "WithNATSOptions", Reason: "refused by nats.go", Err: err}
	}
	return nil
}

// adopt takes a connection that the caller made.
func (cn *conn) adopt(nc *nats.Conn) error {
	switch {
	case nc == nil:
		return &ConfigError{Field: "WithConn", Reason: "the connection is nil; give one that is open"}
	case nc.IsClosed():
		return &ConfigError{Field: "WithConn", Reason: "the connection is closed; give one that is open", Err: nats.ErrConnectionClosed}
	}
	cn.nc = nc
	// It stays there after close and then only passes on: putting theirs back would take away the handler of whoever
	// came later, and wait for the connection's lock.
	nc.SetErrorHandler(cn.beside(nc.ErrorHandler()))
	return nil
}

// handlers puts natty's handlers beside the caller's.
func (cn *conn) handlers(opts *nats.Options) {
	opts.AsyncErrorCB = cn.beside(opts.AsyncErrorCB)
	theirs, older := opts.DisconnectedErrCB, opts.DisconnectedCB // the older one is shadowed by ours
	opts.DisconnectedErrCB = func(nc *nats.Conn, err error) {
		if err != nil {
			cn.link.setReason(err)
			cn.observe(err) // once for each loss, news or not
		}
		switch {
		case theirs != nil:
			theirs(nc, err)
		case older != nil:
			older(nc)
		}
	}
}

// beside returns an error handler that tells natty, then the caller's handler.
func (cn *conn) beside(theirs nats.ErrHandler) nats.ErrHandler {
	return func(nc *nats.Conn, sub *nats.Subscription, err error) {
		cn.asyncError(err)
		if theirs != nil {
			theirs(nc, sub, err)
		}
	}
}

// natsOptions turns cfg into nats.go's options: tunables first, so that WithNATSOptions can change them,
// then what natty's guarantees rest on.
func natsOptions(cfg Config, o options) (*nats.Options, error) {
	opts := nats.GetDefaultOptions()
	opts.PingInterval = pingInterval
	opts.FlusherTimeout = writeTimeout
	opts.ReconnectOnFlusherError = true
	opts.CustomReconnectDelayCB = reconnectDelay
	for _, opt := range o.nats {
		if opt == nil { // as nats.Connect does
			continue
		}
		if err := opt(&opts); err != nil {
			return nil, &ConfigError{Field: "WithNATSOptions", Reason: "refused by nats.go", Err: err}
		}
	}
	opts.Servers, opts.Url = cfg.Servers, ""
	if cfg.Name != "" {
		opts.Name = cfg.Name
	}
	opts.AllowReconnect = !cfg.DisableReconnect
	opts.RetryOnFailedConnect = true
	opts.MaxReconnect = -1
	opts.IgnoreAuthErrorAbort = true
	opts.ReconnectBufSize = -1
	if err := credentials(cfg, &opts); err != nil {
		return nil, err
	}
	base := o.tls
	if base == nil {
		base = opts.TLSConfig.Clone()
	}
	tlsConfig, err := cfg.TLS.build(base)
	if err != nil {
		return nil, err
	}
	if tlsConfig != nil {
		opts.TLSConfig, opts.Secure = tlsConfig, true
	}
	if cfg.TLS.HandshakeFirst {
		opts.TLSHandshakeFirst, opts.Secure = true, true
	}
	return &opts, nil
}

// reconnectDelay is the pause after all servers were tried n times: doubling to two seconds, and up to
// half as much again at random, so that a restarted server is not met by all its clients at once.
func reconnectDelay(n int) time.Duration {
	d := Backoff{Min: reconnectMin, Max: reconnectMax}.base(n)
	return d + rand.N(d/2)
}

// await waits for the first connection, until ctx ends or every server has refused.
func (cn *conn) await(ctx context.Context) error {
	for up, changed := cn.link.watch(); !up && ctx.Err() == nil && !cn.link.isGone(); up, changed = cn.link.watch() {
		select {
		case <-changed:
		case <-cn.link.gone:
		case <-ctx.Done():
		case err := <-cn.giveUp:
			return fmt.Errorf("natty: connect: %w", err)
		}
	}
	err := cn.link.wait(ctx, time.Time{})
	if err == nil {
		err = ctx.Err() // connected too late: dialing has been interrupted
	}
	if err != nil {
		return fmt.Errorf("natty: connect: %w", err)
	}
	return nil
}

// start lets a LazyConnect begin to dial.
func (cn *conn) start() {
	if cn.dialer != nil {
		cn.dialer.release()
	}
}

// follow keeps the link informed until the connection is closed, and while it is down asks the servers why.
func (cn *conn) follow() {
	defer cn.gone()
	ctx, cancel := context.WithCancel(cn.closing)
	defer cancel()
	var answer <-chan error // of the enquiry under way
	ask := time.NewTimer(0)
	defer ask.Stop()
	n := 0 // enquiries in a row
	for {
		select {
		case s, ok := <-cn.status:
			if !ok || s == nats.CLOSED {
				return
			}
			// Every failed attempt to reconnect repeats RECONNECTING.
			if cn.changed(s == nats.CONNECTED) {
				n = 0
				ask.Reset(askAfter)
			}
		case <-ask.C:
			switch {
			case cn.link.up.Load() || answer != nil:
			case cn.nc.IsConnected(): // since before StatusChanged, or a change was missed
				cn.changed(true)
			case cn.ask != nil:
				n++
				answer = cn.enquire(ctx)
			default:
				ask.Reset(askAgain.Max)
			}
		case err := <-answer:
			answer = nil
			cn.answered(err)
			ask.Reset(askAgain.delay(n))
		}
	}
}

// enquire asks the servers in the background. The answer comes soon after ctx ends at the latest.
func (cn *conn) enquire(ctx context.Context) <-chan error {
	answer := make(chan error, 1)
	cn.running.Go(func() { answer <- cn.ask.all(ctx) })
	return answer
}

// changed takes note of the state, and reports whether it is another one.
func (cn *conn) changed(up bool) bool {
	if !up {
		return cn.lost()
	}
	server := redactURL(cn.nc.ConnectedUrl())
	if !cn.turned(func() bool { return cn.link.setUp(server) }, ConnectionEvent{Connected: true, Server: server}) {
		return false
	}
	cn.log.Info("natty: connected", "server", server)
	return true
}

// turned makes a change of the state, tells of it, and reports whether it is one.
func (cn *conn) turned(change func() bool, event ConnectionEvent) bool {
	cn.telling.Lock()
	defer cn.telling.Unlock()
	news := change()
	if news {
		cn.events.add(event)
	}
	return news
}

// wrong takes note of what went wrong, and reports whether that is news.
func (cn *conn) wrong(err error) bool {
	news := cn.link.setReason(err)
	if news {
		cn.observe(err)
	}
	return news
}

func (cn *conn) observe(err error) {
	cn.telling.Lock()
	defer cn.telling.Unlock()
	cn.events.add(ConnectionEvent{Connected: cn.link.up.Load(), Server: cn.link.lastServer(), Err: err})
}

// lost tells those who wait for an answer that there will be none.
func (cn *conn) lost() bool {
	if !cn.turned(cn.link.setDown, ConnectionEvent{Server: cn.link.lastServer()}) {
		return false
	}
	cn.fail("", nats.ErrDisconnected)
	if cn.closing.Err() == nil {
		cn.log.Warn("natty: connection lost", "server", cn.link.lastServer())
	}
	return true
}

// gone takes note that there will be no connection any more.
func (cn *conn) gone() {
	if err := cn.nc.LastError(); err != nil && cn.dialer != nil && cn.closing.Err() == nil {
		cn.wrong(err) // DisableReconnect: it is told to nobody else
	}
	cn.lost()
	cn.link.setGone()
	cn.fail("", nats.ErrDisconnected) // those that began in between
}

// answered takes what the servers said about why there is no connection.
func (cn *conn) answered(err error) {
	if err == nil || cn.closing.Err() != nil || cn.link.up.Load() {
		return
	}
	news := cn.wrong(err)
	var said *answersError
	if errors.As(err, &said) && said.final() && !cn.link.everConnected() {
		select {
		case cn.giveUp <- err:
		default:
		}
	}
	if news {
		cn.log.Warn("natty: not connected", "reason", err)
	}
}

// attach sets who is told when the connection is lost, or a publish refused.
func (cn *conn) attach(a *acks) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	cn.acks = a
}

// fail tells the waiting publishes of a subject, or all for "", that no acknowledgement comes.
func (cn *conn) fail(subject string, err error) {
	cn.mu.Lock()
	a := cn.acks
	cn.mu.Unlock()
	if a != nil {
		a.fail(subject, err)
	}
}

// deniedPublish finds the subject in the server's only notice of a refused publish. The text is the
// protocol here: there is no code in it.
var deniedPublish = regexp.MustCompile(`(?i)permissions violation for publish to "([^"]+)"`)

func (cn *conn) asyncError(err error) {
	if cn.released.Load() {
		return
	}
	if errors.Is(err, nats.ErrPermissionViolation) {
		if m := deniedPublish.FindStringSubmatch(err.Error()); m != nil {
			cn.fail(m[1], err)
		}
	}
	if cn.wrong(err) {
		cn.log.Warn("natty: reported by the connection", "error", err)
	}
}

// close ends the connection, or lets go of the caller's, and waits for what runs beside it. It may be called again.
func (cn *conn) close() {
	cn.closeOnce.Do(func() {
		cn.stop()
		cn.released.Store(true)
		if cn.dialer != nil {
			stuck := time.AfterFunc(closeGrace, cn.dialer.interrupt)
			cn.nc.Close()
			stuck.Stop()
		}
		if cn.dialer == nil {
			// The caller's connection may be stuck in a write with its lock held, which is not ours to end.
			go cn.nc.RemoveStatusListener(cn.status)
			return
		}
		cn.nc.RemoveStatusListener(cn.status)
	})
	cn.running.Wait()
}
