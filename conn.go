package natty

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"sync"
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

// conn keeps a nats.Conn alive, and its link informed.
type conn struct {
	nc      *nats.Conn
	link    *link
	log     *slog.Logger
	ask     *asker // nil for a connection that the caller made
	status  chan nats.Status
	release func() // undoes what was done to the caller's connection
	stop    context.CancelFunc
	refusal chan error // the first fatal answer; buffered
	done    sync.WaitGroup
	once    sync.Once

	mu   sync.Mutex // guards acks
	acks *acks      // to be told of losses and refusals; nil until attach
}

// dial makes the connection of a Client, or adopts the caller's. It returns before there is one, see await;
// only what can be known without a server is an error here.
func dial(ctx context.Context, cfg Config, o options, l *link, log *slog.Logger) (*conn, error) {
	cn := &conn{link: l, log: log, release: func() {}, refusal: make(chan error, 1)}
	life, stop := context.WithCancel(context.Background())
	cn.stop = stop
	onError := func(_ *nats.Conn, _ *nats.Subscription, err error) { cn.asyncError(err) }
	var err error
	if o.conn != nil {
		err = cn.adopt(o.conn, onError)
	} else {
		err = cn.make(ctx, cfg, o, onError)
	}
	if err != nil {
		stop()
		return nil, err
	}
	cn.status = cn.nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	// Asked after listening, so that no change is missed in between.
	if cn.nc.IsConnected() {
		l.setUp(redactURL(cn.nc.ConnectedUrl()))
	}
	cn.done.Add(1)
	go func() {
		defer cn.done.Done()
		cn.follow(life)
	}()
	return cn, nil
}

// adopt takes a connection that the caller made.
func (cn *conn) adopt(nc *nats.Conn, onError nats.ErrHandler) error {
	if nc.IsClosed() {
		return &ConfigError{Field: "WithConn", Reason: "the connection is closed", Err: nats.ErrConnectionClosed}
	}
	cn.nc = nc
	theirs := nc.ErrorHandler()
	nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		onError(nc, sub, err)
		if theirs != nil {
			theirs(nc, sub, err)
		}
	})
	cn.release = func() { nc.SetErrorHandler(theirs) }
	return nil
}

// make starts to connect.
func (cn *conn) make(ctx context.Context, cfg Config, o options, onError nats.ErrHandler) error {
	opts, err := natsOptions(cfg, o)
	if err != nil {
		return err
	}
	d := newDialer(opts)
	cn.ask = &asker{opts: *opts, dialer: d}
	opts.CustomDialer = d
	opts.SkipHostLookup = true // the dialer does it, within its ctx
	cn.handlers(opts, onError)

	// The first attempt is made here, in the foreground, and ended with ctx whatever holds it up.
	stop := context.AfterFunc(ctx, d.interrupt)
	defer stop()
	d.hold(cfg.LazyConnect)
	cn.nc, err = opts.Connect()
	d.hold(false)
	if err != nil {
		// With RetryOnFailedConnect only options that contradict each other end here.
		return fmt.Errorf("natty: connect: %w", err)
	}
	return nil
}

// handlers puts natty's handlers beside the caller's.
func (cn *conn) handlers(opts *nats.Options, onError nats.ErrHandler) {
	theirError, theirLoss := opts.AsyncErrorCB, opts.DisconnectedErrCB
	opts.AsyncErrorCB = func(nc *nats.Conn, sub *nats.Subscription, err error) {
		onError(nc, sub, err)
		if theirError != nil {
			theirError(nc, sub, err)
		}
	}
	opts.DisconnectedErrCB = func(nc *nats.Conn, err error) {
		if err != nil {
			cn.link.setReason(err)
		}
		if theirLoss != nil {
			theirLoss(nc, err)
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
		base = opts.TLSConfig
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

// credentials applies the way to log in, after a look into its file.
func credentials(cfg Config, opts *nats.Options) error {
	var opt nats.Option
	switch {
	case cfg.User != "":
		opt = nats.UserInfo(cfg.User, string(cfg.Password))
	case cfg.Token != "":
		opt = nats.Token(string(cfg.Token))
	case cfg.CredsFile != "":
		if _, err := readFile("creds_file", cfg.CredsFile); err != nil {
			return err
		}
		opt = nats.UserCredentials(cfg.CredsFile)
		var probe nats.Options
		err := opt(&probe)
		if err == nil {
			_, err = probe.UserJWT()
		}
		if err == nil {
			_, err = probe.SignatureCB([]byte("nonce"))
		}
		if err != nil {
			// The cause may quote the file.
			return &ConfigError{Field: "creds_file", Value: cfg.CredsFile, Reason: "is no credentials file; expected a user's JWT and seed, as nsc writes them"}
		}
	case cfg.NKeyFile != "":
		if _, err := readFile("nkey_file", cfg.NKeyFile); err != nil {
			return err
		}
		var err error
		if opt, err = nats.NkeyOptionFromSeed(cfg.NKeyFile); err != nil {
			return &ConfigError{Field: "nkey_file", Value: cfg.NKeyFile, Reason: "holds no nkey seed of a user; expected a line that starts with SU"}
		}
	default:
		return nil
	}
	return opt(opts)
}

// reconnectDelay is the pause after all servers were tried n times: doubling to two seconds, and up to
// half as much again at random, so that a restarted server is not met by all its clients at once.
func reconnectDelay(n int) time.Duration {
	d := Backoff{Min: reconnectMin, Max: reconnectMax}.base(n)
	return d + rand.N(d/2)
}

// await waits for the first connection, a fatal answer, or the end of ctx.
func (cn *conn) await(ctx context.Context) error {
	wait, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	up := make(chan error, 1)
	go func() { up <- cn.link.wait(wait, time.Time{}) }()
	select {
	case err := <-up:
		if err != nil {
			return fmt.Errorf("natty: connect: %w", err)
		}
		return nil
	case err := <-cn.refusal:
		stop(err)
		<-up
		return err
	}
}

// follow keeps the link informed until the connection is gone, and while it is down asks the
// servers why.
func (cn *conn) follow(life context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	var asked <-chan error // the running enquiry
	stopAsking := func() {}
	defer func() { stopAsking() }()
	for n := 0; ; {
		select {
		case s, ok := <-cn.status:
			if !ok || s == nats.CLOSED {
				cn.lost(cn.link.setGone)
				return
			}
			n = 0
			stopAsking()
			if s == nats.CONNECTED {
				cn.link.setUp(redactURL(cn.nc.ConnectedUrl()))
				cn.log.Info("natty: connected", "server", cn.Server())
			} else {
				cn.lost(cn.link.setDown)
				pause.Reset(askAfter)
			}
		case <-pause.C:
			if cn.link.up.Load() || cn.ask == nil || asked != nil {
				continue
			}
			n++
			var ctx context.Context
			ctx, stopAsking = context.WithCancel(life)
			asked = cn.ask.start(ctx)
		case err := <-asked:
			asked = nil
			stopAsking()
			cn.answered(err)
			pause.Reset(askAgain.delay(n))
		case <-life.Done():
			if asked != nil {
				<-asked
			}
			cn.lost(cn.link.setGone)
			return
		}
	}
}

// answered takes what the servers said about why there is no connection.
func (cn *conn) answered(err error) {
	if err == nil || errors.Is(err, context.Canceled) || cn.link.up.Load() {
		return
	}
	if cn.link.setReason(err) {
		cn.log.Warn("natty: not connected, trying on", "reason", err)
	}
	var fatal *refusedError
	if errors.As(err, &fatal) && !cn.link.everConnected() {
		select {
		case cn.refusal <- err:
		default:
		}
	}
}

func (cn *conn) lost(set func()) {
	wasUp := cn.link.up.Load()
	set()
	if a := cn.attached(); a != nil {
		a.fail("", nats.ErrDisconnected)
	}
	if wasUp && cn.nc != nil {
		cn.log.Warn("natty: connection lost", "server", cn.Server())
	}
}

// attach sets who is told when the connection is lost, or a publish refused.
func (cn *conn) attach(a *acks) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	cn.acks = a
}

func (cn *conn) attached() *acks {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return cn.acks
}

// Server is the redacted URL of the server last connected to.
func (cn *conn) Server() string {
	cn.link.mu.Lock()
	defer cn.link.mu.Unlock()
	return cn.link.server
}

// deniedPublish finds the subject in the server's only notice of a refused publish. The text
// is the protocol here: there is no code in it.
var deniedPublish = regexp.MustCompile(`(?i)permissions violation for publish to "([^"]+)"`)

func (cn *conn) asyncError(err error) {
	if a := cn.attached(); a != nil && errors.Is(err, nats.ErrPermissionViolation) {
		if m := deniedPublish.FindStringSubmatch(err.Error()); m != nil {
			a.fail(m[1], err)
		}
	}
	if cn.link.setReason(err) {
		cn.log.Warn("natty: reported by the connection", "error", err)
	}
}

// close ends the connection, or lets go of the caller's, and waits for what follows it. It may be called again.
func (cn *conn) close() {
	cn.once.Do(func() {
		cn.release()
		if cn.ask != nil {
			cn.ask.dialer.shut()
			cn.nc.Close()
		}
		cn.nc.RemoveStatusListener(cn.status)
		cn.stop()
	})
	cn.done.Wait()
}
