// Package natty is an opinionated client for NATS JetStream. It is a small interface
// over nats.go for what every service writes again and gets wrong somewhere:
// reconnecting, retrying, dead-lettering, leading and stopping.
//
//	in:   server → consume → dispatch → your handler → settle → server
//	out:  you → publish → server → acknowledged, or an error
//
// # Finding your way
//
//   - Connect: [Connect], [Client.Close], [Config]. [WithTLSConfig], [WithNATSOptions]
//     and [WithConn] are for what Config cannot say.
//   - Send: [Client.Publish] and [Client.PublishMsg] send one message,
//     [Client.PublishBatch] several of which all or none are stored, [Client.NewWriter]
//     many at high speed. [PublishJSON] and [PublishTyped] encode.
//   - Send later: [Client.Schedule], [Client.Schedules], [Client.Unschedule].
//   - Receive: [Client.Process] and [Client.ProcessBatch] call your [Handler],
//     [Client.Consume] a plain function. [JSON], [JSONBatch] and [Typed] decode, a [Mux]
//     has a handler for each subject, [WithMiddleware] wraps every handler.
//     [DeliveryFrom] says more about a message, [ClientFrom] is for publishing.
//   - Fail: [Permanent], [RetryAfter] and [PartialError] say what becomes of a failed
//     message; [IsPermanent] and [RetryDelay] ask it. [Client.DeadLetters] and
//     [Client.Redrive] handle those that failed for good.
//   - Keep order: [ConsumerConfig].OrderBy for each key, Exclusive for a whole consumer.
//   - Keep state: [Client.Get], [Client.GetEntry], [Client.Put], [Client.Create],
//     [Client.Update], [Client.Refresh], [Client.Delete], [Client.Keys] and
//     [Client.Watch] work on the keys of a bucket, [NewBucket] on typed values,
//     [Bucket.Cached] on a copy in memory. [Client.Status] and [Client.DeleteBucket] are
//     about the bucket.
//   - Run on one instance only: [Client.Lead] and [Client.AsLeader], [Term.Put];
//     [Client.HaveLeader] and [Client.GetLeader] ask who leads.
//   - Lock: [Client.Lock], [Client.TryLock], [Lease.Release].
//   - Set up: [Client.EnsureStream], [Client.EnsureBucket]. [LoadService] and
//     [ParseService] read a whole service from a file, [Service.Run] runs it.
//   - Look inside: [Client.Health] is for programs ([Health.Live], [Health.Ready]) and
//     people ([Health.Explain]), [HealthHandler] for supervisors. [WithTracer] follows
//     messages, [WithObserver] gets events, [WithLogger] the log.
//   - Test: [WithDelivery] for a handler, the package nattytest for a service.
//
// # Guarantees
//
// Nothing is lost silently. A nil error from [Client.Publish] means that the server
// acknowledged the message. An error says whether the message may be stored all the
// same ([PublishError]). A message leaves a consumer only when its handler accepted it,
// or when its copy is safe in a dead-letter stream ([ConsumerConfig].DeadLetter).
// Without a dead-letter stream it also leaves when the handler returned [Permanent].
//
// Nothing stops silently. A Client reconnects for as long as it lives, and
// [Client.Process] survives lost connections, server restarts, leader changes and
// missed heartbeats. What it cannot survive it returns as an error. What it repaired it
// reports: to [ConsumerConfig].OnError, the log and [Client.Health].
//
// Delivery is at least once. The server redelivers a message when its process or
// connection ends before the acknowledgement reaches the server. Publishing is exactly
// once within the stream's duplicate window; docs/guarantees.md says where that ends.
//
// # What natty leaves to nats.go
//
// Plain publish and subscribe, requests, micro services and the administration of
// streams are nats.go's. [Client.Conn] and [Client.JetStream] return what natty runs
// on.
package natty

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/kv"
	"github.com/natty-go/natty/internal/lease"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/respmux"
	"github.com/natty-go/natty/internal/schedule"
)

// Publisher is the role of a service that sends. A Client implements it.
type Publisher interface {
	Publish(ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt) error
	PublishMsg(ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error)
}

// Consumer is the role of a service that receives. A Client implements it.
type Consumer interface {
	Consume(ctx context.Context, subject string, errorCh chan error, cb func(msg *nats.Msg)) error
	Process(ctx context.Context, cfg ConsumerConfig, h Handler) error
}

// KeyValue is the role of a service that keeps state in buckets. A Client implements
// it.
type KeyValue interface {
	Get(ctx context.Context, bucket, key string) ([]byte, error)
	Put(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error
	Create(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error
	Update(ctx context.Context, bucket, key string, data []byte, revision uint64) (uint64, error)
	Refresh(ctx context.Context, bucket, key string) error
	Delete(ctx context.Context, bucket, key string) error
}

// Elector is the role of a service of which one instance leads. A Client implements it.
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

// Client is a connection to NATS and everything that natty runs on it. Its methods are
// safe for concurrent use. Make one with Connect, share it, Close it.
type Client struct {
	cfg       Config
	log       *slog.Logger
	nc        *nats.Conn
	js        jetstream.JetStream
	conn      *conn.Conn // keeps nc alive
	api       *jsapi.Client
	link      *conn.Link
	acks      *respmux.Mux
	pub       *publish.Publisher
	kv        *kv.Store
	leases    *lease.Keys
	consumers *consumer.Client
	schedules *schedule.Keeper
	ids       *publish.IDs
	ended     endedConsumers
	inside    callback.Inside

	events     *callback.Queue[Event] // to the Observers; nil without one
	tracing    *tracing               // nil without a Tracer
	middleware []func(Handler) Handler

	closeOnce sync.Once
	closed    chan struct{} // closed at the end of the shutdown, after closeErr is set
	closeErr  error

	// life is canceled when Close begins. Every run ends with life or with its own ctx.
	life context.Context //nolint:containedctx // the Client's own life, not a call's
	end  context.CancelFunc

	// mu guards the registries and released. It is never held across I/O.
	mu        sync.Mutex
	idle      *sync.Cond // signalled when a registry gets smaller
	running   registry[*consumer.Consumer]
	elections registry[*election] // calls of Lead that wait for leadership, or lead
	writers   registry[*Writer]
	locks     registry[*Lease]
	caches    sync.WaitGroup // goroutines that update a Cache; added to under mu
	locking   sync.WaitGroup // calls of Lock and TryLock; added to under mu
	// released maps a lock to when this Client released it. Entries older than a second
	// are dropped.
	released map[string]time.Time
}

// Connect connects to the servers of cfg. It waits for a server until ctx ends; the
// error then says why there was none. It returns at once when cfg can never work, and
// when every server rejects this client for good: a refused login or client
// certificate, an unknown authority or wrong host name in the server's certificate, TLS
// on one side only.
//
// The Client keeps its connection for ever: it reconnects with jittered pauses of at
// most about 2s, even after authentication errors, unless Config.DisableReconnect is
// set.
//
// With Config.LazyConnect, Connect returns at once. Health, the log and the errors of
// calls that wait for the connection then say why there is none yet.
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
		cfg: cfg, log: o.log, ids: publish.NewIDs(), closed: make(chan struct{}), released: map[string]time.Time{},
		middleware: o.middleware,
	}
	c.running.c, c.elections.c, c.writers.c, c.locks.c = c, c, c, c
	if observe := o.observe(c.log); observe != nil {
		c.events = callback.New("Observer", observe, c.log)
	}
	if len(o.tracers) > 0 {
		c.tracing = &tracing{all: o.tracers, log: c.log}
	}
	c.idle = sync.NewCond(&c.mu)
	c.life, c.end = context.WithCancel(context.Background())
	if err := c.open(ctx, o); err != nil {
		c.end()
		c.events.Close()
		return nil, err
	}
	return c, nil
}

// open makes or adopts the connection, and sets up what runs on it.
func (c *Client) open(ctx context.Context, o options) (err error) {
	if c.conn, err = c.dial(ctx, o); err != nil {
		return err
	}
	c.nc, c.link = c.conn.NC, c.conn.Link
	defer func() {
		if err != nil {
			c.conn.Close()
		}
	}()
	if !c.cfg.LazyConnect {
		if err := c.conn.Await(ctx); err != nil {
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
	if c.acks, err = respmux.New(c.nc); err != nil {
		return err
	}
	c.conn.Attach(c.acks)
	c.link.OnRefusal(func(r conn.Refusal) {
		if r.Subscribe {
			c.acks.Refused(r.Subject, r.Err)
		}
	})
	c.api = &jsapi.Client{
		NC: c.nc, JS: c.js, Link: c.link, Mux: c.acks, Prefix: c.cfg.apiPrefix(),
		Log: c.log, Drift: drift,
	}
	c.pub = &publish.Publisher{
		API: c.api, IDs: c.ids, Timeout: c.cfg.PublishTimeout, Domain: c.cfg.Domain, Log: c.log,
		Invalid: invalid, Failed: notPublished,
	}
	untraced := *c.pub
	c.kv = &kv.Store{
		API: c.api, Pub: &untraced, Log: c.log, Life: c.life, Replicas: c.cfg.Replicas, Invalid: invalid, Changed: changed,
	}
	c.leases = lease.New(c.kv)
	c.consumers = &consumer.Client{
		Manager: durable.Manager{API: c.api, Invalid: invalid}, Pub: c.pub, Log: c.log,
		Failed: failed, Removed: removed,
	}
	c.schedules = &schedule.Keeper{
		API: c.api, Pub: &untraced, Overlapping: c.consumers.Overlapping, Invalid: invalid,
	}
	if c.tracing != nil { // a nil pointer in an interface would not be nil
		c.pub.Tracer, c.schedules.Tracer, c.consumers.Tracer = c.tracing, c.tracing, c.tracing
	}
	c.conn.Start()
	return nil
}

// dial makes a connection, or adopts the caller's.
func (c *Client) dial(ctx context.Context, o options) (*conn.Conn, error) {
	notify := func(e conn.Event) {
		c.events.Add(ConnectionEvent{Connected: e.Connected, Server: e.Server, Err: e.Err})
	}
	switch {
	case o.adopt && o.conn == nil:
		return nil, invalid("WithConn", "", "the connection is nil; give one that is open", nil)
	case o.adopt && o.conn.IsClosed():
		return nil, invalid("WithConn", "", "the connection is closed; give one that is open", nats.ErrConnectionClosed)
	case o.adopt:
		return conn.Adopt(o.conn, o.log, notify), nil
	}
	opts, login, err := natsOptions(c.cfg, o)
	if err != nil {
		return nil, err
	}
	cn, err := conn.Dial(ctx, conn.Config{
		Options: opts, Login: login, Lazy: c.cfg.LazyConnect, Log: o.log, Notify: notify,
	})
	if err != nil {
		return nil, invalid("WithNATSOptions", "", "refused by nats.go", err)
	}
	return cn, nil
}

// Conn returns the connection for what natty leaves to nats.go: plain publish and
// subscribe, requests, micro services. Closing it ends the Client.
func (c *Client) Conn() *nats.Conn { return c.nc }

// JetStream returns nats.go's JetStream on the same connection, with Config's Domain or
// APIPrefix, for what natty leaves to it: administration, ordered consumers, fetches.
func (c *Client) JetStream() jetstream.JetStream { return c.js }

// Format implements fmt.Formatter: a printed Client does not show its secrets.
func (c *Client) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "natty.Client(%s)", c.cfg.Name)
}
