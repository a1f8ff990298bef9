package natty

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publisher is the role of a service that sends. A Client has it.
type Publisher interface {
	Publish(ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt) error
	PublishMsg(ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error)
}

// Consumer is the role of a service that receives. A Client has it.
type Consumer interface {
	Consume(ctx context.Context, subject string, errorCh chan error, cb func(msg *nats.Msg)) error
	Process(ctx context.Context, cfg ConsumerConfig, h Handler) error
}

// KeyValue is the role of a service that keeps state in buckets. A Client has it.
type KeyValue interface {
	Get(ctx context.Context, bucket, key string) ([]byte, error)
	Put(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error
	Create(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error
	Update(ctx context.Context, bucket, key string, data []byte, revision uint64) (uint64, error)
	Refresh(ctx context.Context, bucket, key string) error
	Delete(ctx context.Context, bucket, key string) error
}

// Elector is the role of a service of which one instance leads. A Client has it.
type Elector interface {
	AsLeader(ctx context.Context, cfg AsLeaderConfig, f func() error) error
	Lead(ctx context.Context, cfg AsLeaderConfig, f func(ctx context.Context, term *Term) error) error
}

// Natty is all of these roles.
type Natty interface {
	Publisher
	Consumer
	KeyValue
	Elector
}

var _ Natty = (*Client)(nil)

// Client is a connection to NATS and everything that natty runs on it. Its methods may be
// called from many goroutines. Make one with Connect, share it, Close it.
type Client struct {
	cfg  Config
	log  *slog.Logger
	nc   *nats.Conn
	js   jetstream.JetStream
	conn *conn // what keeps nc alive
	link *link
	acks *acks
	ids  *msgIDs

	events *reports[Event] // to the Observer; nil without one

	buckets sync.Map       // of bucketState by name: what was last seen of buckets
	caches  sync.WaitGroup // what keeps them up to date; added to under mu

	closeOnce sync.Once
	closed    chan struct{} // closed when Close has done everything; closeErr is set then
	closeErr  error

	life context.Context //nolint:containedctx // ends when Close begins: the other end of every run's ctx
	end  context.CancelFunc

	// mu guards what follows. It is never held across I/O.
	mu      sync.Mutex
	engines map[*engine]struct{}   // running consumers
	terms   map[*election]struct{} // that wait for leadership, or lead
	leases  map[*Lease]struct{}    // locks
	// released is when which locks were given back last; of those that were in the last second.
	released map[string]time.Time
	idle     *sync.Cond // signalled when engines or terms gets smaller
}

// Connect connects to the servers of cfg. It waits for one until ctx ends, then
// returns an error that says why there was none. It returns at once when cfg can never work, and
// when every server says that this client may not come in: refused login, unknown authority or
// wrong host name in the server's certificate, refused client certificate, TLS on one side only.
//
// An established connection is kept for ever: a lost one is made again with jittered pauses of at most
// about 2s, also through authentication errors, unless Config.DisableReconnect is set.
//
// With Config.LazyConnect it returns at once; why there is no connection yet is then found in
// Health, in the log and in the errors of the calls that wait for one.
func Connect(ctx context.Context, cfg Config, opts ...Option) (*Client, error) {
	o := options{log: slog.Default()}
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &Client{
		cfg:     cfg,
		log:     o.log,
		link:    newLink(),
		ids:     newMsgIDs(),
		closed:  make(chan struct{}),
		engines: map[*engine]struct{}{},
		terms:   map[*election]struct{}{},
		leases:  map[*Lease]struct{}{},

		released: map[string]time.Time{},
	}
	if o.observer != nil {
		c.events = newReports("Observer", o.observer.Observe, c.log)
	}
	c.idle = sync.NewCond(&c.mu)
	c.life, c.end = context.WithCancel(context.Background())
	if err := c.open(ctx, o); err != nil {
		c.end()
		c.events.close()
		return nil, err
	}
	return c, nil
}

// open makes or adopts the connection and what depends on it.
func (c *Client) open(ctx context.Context, o options) (err error) {
	if c.conn, err = dial(ctx, c.cfg, o, c.link, c.events); err != nil {
		return err
	}
	c.nc = c.conn.nc
	defer func() {
		if err != nil {
			c.conn.close()
		}
	}()
	if !c.cfg.LazyConnect {
		if err := c.conn.await(ctx); err != nil {
			return err
		}
	}
	switch {
	case c.cfg.Domain != "":
		c.js, err = jetstream.NewWithDomain(c.nc, c.cfg.Domain)
	case c.cfg.APIPrefix != "":
		c.js, err = jetstream.NewWithAPIPrefix(c.nc, c.cfg.APIPrefix)
	default:
		c.js, err = jetstream.New(c.nc)
	}
	if err != nil {
		return fmt.Errorf("natty: JetStream: %w", err)
	}
	if c.acks, err = newAcks(c.nc); err != nil {
		return err
	}
	c.conn.attach(c.acks)
	c.conn.start()
	return nil
}

// Conn returns the connection below, for what natty leaves to nats.go: plain publish and
// subscribe, requests, micro services. Closing it ends the Client.
func (c *Client) Conn() *nats.Conn { return c.nc }

// JetStream returns nats.go's JetStream on the same connection, with Config's Domain or APIPrefix,
// for what natty leaves to it: administration, ordered consumers, fetches.
func (c *Client) JetStream() jetstream.JetStream { return c.js }

// Format implements fmt.Formatter, so that a printed Client does not show the secrets within.
func (c *Client) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "natty.Client(%s)", c.cfg.Name)
}

// handlerOf marks the ctx of a handler with its Client.
type handlerOf struct{}

// Close ends everything that runs on the Client: consumers stop pulling, hand back what they have not
// begun, and their handlers get DrainTimeout to finish; Writers are closed; then the connection is flushed and closed
// (one given by WithConn is flushed and left open). When ctx ends before, Close closes the connection all
// the same and returns ctx's error. Publishing is possible until the handlers have ended.
//
// Close may be called again, and from several goroutines: all calls wait for the one
// shutdown. Called with a handler's own ctx it returns an error at once, since it would wait for that
// handler.
func (c *Client) Close(ctx context.Context) error {
	if ctx.Value(handlerOf{}) == c {
		return errors.New("natty: Close called with the ctx of a handler, which it would wait for; call it from outside")
	}
	c.closeOnce.Do(func() { go c.shutdown(ctx) })
	select {
	case <-c.closed:
		return c.closeErr
	case <-ctx.Done():
	}
	// The shutdown may belong to another call, whose ctx goes on.
	c.conn.close()
	select {
	case <-c.closed:
		return c.closeErr
	default:
		return fmt.Errorf("natty: close: %w", ctx.Err())
	}
}

func (c *Client) shutdown(ctx context.Context) {
	defer close(c.closed)
	c.mu.Lock()
	c.end() // under the lock, so that whileOpen sees it
	c.mu.Unlock()

	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.idle.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	for len(c.engines)+len(c.terms) > 0 && ctx.Err() == nil {
		c.idle.Wait()
	}
	left, terms := len(c.engines), len(c.terms)
	c.mu.Unlock()
	c.releaseAll(ctx)
	c.caches.Wait() // they wait for nobody
	writersErr := c.closeWriters(ctx)
	defer func() { c.closeErr = errors.Join(c.closeErr, writersErr) }() // before closed is closed

	switch {
	case left > 0:
		c.closeErr = fmt.Errorf("natty: close: %d consumers still had handlers running: %w", left, ctx.Err())
	case terms > 0:
		c.closeErr = fmt.Errorf("natty: close: %d elections still had their function running: %w", terms, ctx.Err())
	case ctx.Err() != nil:
		c.closeErr = fmt.Errorf("natty: close: %w", ctx.Err())
	case c.link.up.Load():
		// A connection that was lost meanwhile took nothing along that is not known to be; one that Close gave up may have.
		// nats.go knows of a loss before link is told.
		if err := c.flush(ctx); err != nil && (c.link.up.Load() && c.nc.IsConnected() || ctx.Err() != nil) {
			c.closeErr = fmt.Errorf("natty: close: what was sent last may not have reached the server: %w", err)
		}
	}
	c.conn.close()
	c.acks.close() // after it: nats.go's lock may be held for long while there is a connection
	c.events.close()
}

// openWriter registers a new Writer.
func (c *Client) openWriter(w *Writer) error {
	if c.link.isGone() {
		return fmt.Errorf("natty: %w", ErrClosed)
	}
	return c.whileOpen(func() { c.acks.open(w) })
}

// closeWriters closes all Writers at the same time and joins what they return.
func (c *Client) closeWriters(ctx context.Context) error {
	var mu sync.Mutex
	var errs []error
	var closing sync.WaitGroup
	for _, w := range c.acks.openWriters() {
		closing.Go(func() {
			err := w.Close(ctx)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	closing.Wait()
	return errors.Join(errs...)
}

// flush waits until the server has seen what was sent, or the connection is lost: consumers have seen to their verdicts
// themselves by then.
func (c *Client) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if up, changed := c.link.watch(); up {
		go func() {
			defer cancel()
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}()
	}
	return c.nc.FlushWithContext(ctx)
}

// flushTimeout bounds the wait for the server to have seen what was sent last.
const flushTimeout = 5 * time.Second

// whileOpen runs join, which registers what Close is to wait for or to end, unless the Client is closing. join must not
// block.
func (c *Client) whileOpen(join func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Err() != nil {
		return fmt.Errorf("natty: %w", ErrClosed)
	}
	join()
	return nil
}

// enter registers a consumer that begins to run.
func (c *Client) enter(e *engine) error { return c.whileOpen(func() { c.engines[e] = struct{}{} }) }

func (c *Client) leave(e *engine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.engines, e)
	c.idle.Broadcast()
}

// enterTerm registers a call that waits for leadership or leads.
func (c *Client) enterTerm(e *election) error { return c.whileOpen(func() { c.terms[e] = struct{}{} }) }

func (c *Client) leaveTerm(e *election) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.terms, e)
	c.idle.Broadcast()
}

// keepLease registers a lock that Close is to give back.
func (c *Client) keepLease(l *Lease) error { return c.whileOpen(func() { c.leases[l] = struct{}{} }) }

func (c *Client) leaveLease(l *Lease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.leases, l)
}

// releaseAll gives back the locks that are still held.
func (c *Client) releaseAll(ctx context.Context) {
	c.mu.Lock()
	leases := slices.Collect(maps.Keys(c.leases))
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range leases {
		wg.Go(func() { _ = l.Release(ctx) }) // what the server does not learn expires by itself
	}
	wg.Wait()
}
