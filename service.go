package natty

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/strictjson"
)

// Service is what a service file says: where the servers are, and what to consume. Make
// one with LoadService or ParseService, and run it with Run. Before that the program
// may set what a file cannot hold.
//
// Printed with fmt, logged with slog or marshalled to JSON, a Service shows no secret of
// its Configs.
type Service struct {
	// Config says how to connect.
	Config Config
	// Consumers are in the order of the file.
	Consumers []ServiceConsumer

	running *serviceRun // the last Run, or nil; serviceRuns guards it
}

// serviceRuns guards the field running of every Service, so that a Service can be
// copied.
var serviceRuns sync.Mutex

// ServiceConsumer is one consumer of a Service.
type ServiceConsumer struct {
	// Name is what Run finds the handler by. The server does not know it.
	Name string
	// Config is how this consumer connects if that differs from Service.Config: with
	// brokers, disable_reconnect, a login or tls of its own in the file. Else nil.
	Config *Config
	// Consumer says what to consume and how. OnError has no place in a file.
	Consumer ConsumerConfig
	// CreateStream makes Consumer.Stream, with Consumer.Subjects, if it is missing. It
	// does not change an existing stream. It is for development: a stream deserves
	// limits and replicas that somebody has thought about.
	CreateStream bool
	// Disabled keeps Run from running the consumer, which then needs no handler. In the
	// file it is "enabled": false.
	Disabled bool
}

// Format implements fmt.Formatter, for every verb.
func (s Service) Format(f fmt.State, verb rune) {
	formatPlain(f, verb, struct {
		Config    Config
		Consumers []ServiceConsumer
	}{s.Config, s.Consumers})
}

// plainServiceConsumer is a ServiceConsumer without methods.
type plainServiceConsumer ServiceConsumer

// Format implements fmt.Formatter, for every verb.
func (sc ServiceConsumer) Format(f fmt.State, verb rune) {
	formatPlain(f, verb, plainServiceConsumer(sc))
}

// Run runs every consumer with the handler of its name, until ctx ends; then it stops
// them as Process does, and returns nil. Several processes that run the same file share
// the work.
//
// Consumers with equal connection settings share a Client, which Run makes with opts
// and closes at the end. Run waits for a server that is not there, while consumers of
// other servers run. With WithConn all consumers use that one connection, whatever the
// file says about servers.
//
// If a consumer ends with an error, for the reasons for which Process and Connect do,
// Run stops the others in the same orderly way. It returns that error, joined with what
// else went wrong. A consumer without a handler, and a handler without a consumer, are
// errors before anything is started; all of them are in the error.
//
// A disabled consumer is not run. If all are, Run only waits for the end of ctx.
func (s *Service) Run(ctx context.Context, handlers map[string]Handler, opts ...Option) error {
	if err := s.checkHandlers(handlers); err != nil {
		return err
	}
	run := &serviceRun{since: time.Now(), groups: s.groups()}
	serviceRuns.Lock()
	s.running = run
	serviceRuns.Unlock()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards errs
		errs []error
	)
	fail := func(err error) {
		if err == nil {
			return
		}
		mu.Lock()
		errs = append(errs, err)
		mu.Unlock()
		stop()
	}
	for _, g := range run.groups {
		wg.Go(func() { run.run(ctx, g, handlers, opts, fail) })
	}
	if len(run.groups) == 0 {
		<-ctx.Done()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// checkHandlers expects one handler for each consumer that is not disabled.
func (s *Service) checkHandlers(handlers map[string]Handler) error {
	var errs []error
	names := make([]string, len(s.Consumers))
	for i, sc := range s.Consumers {
		names[i] = sc.Name
		if handlers[sc.Name] == nil && !sc.Disabled {
			errs = append(errs, invalid("handlers", sc.Name,
				"this consumer has no handler; add one under its name", nil))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		if !slices.Contains(names, name) {
			errs = append(errs, invalid("handlers", name,
				"is no consumer of the service; "+strictjson.Suggestion(name, names), nil))
		}
	}
	return joined(errs...)
}

// serviceRun is one call of Run.
type serviceRun struct {
	since  time.Time
	groups []*group

	mu sync.Mutex // guards the groups' clients and connected
}

// group is the consumers that share a connection.
type group struct {
	config    Config
	consumers []*ServiceConsumer
	client    *Client // nil until it is made
	waited    bool    // whether the wait for the first connection is over
}

// groups returns the consumers that are to run, by connection.
func (s *Service) groups() []*group {
	var groups []*group
	for i := range s.Consumers {
		sc := &s.Consumers[i]
		if sc.Disabled {
			continue
		}
		cfg := s.configOf(sc).withDefaults()
		at := slices.IndexFunc(groups, func(g *group) bool { return reflect.DeepEqual(g.config, cfg) })
		if at < 0 {
			at = len(groups)
			groups = append(groups, &group{config: cfg})
		}
		groups[at].consumers = append(groups[at].consumers, sc)
	}
	return groups
}

// run runs a group's consumers, calls fail with what goes wrong, and returns when all
// have ended.
func (r *serviceRun) run(
	ctx context.Context, g *group, handlers map[string]Handler, opts []Option, fail func(error),
) {
	c, err := r.connect(ctx, g, opts)
	if c != nil {
		defer func() {
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*flushTimeout)
			defer cancel()
			fail(c.Close(end))
		}()
	}
	if err != nil {
		if ctx.Err() == nil {
			fail(&consumerError{g.consumers[0].Name, err})
		}
		return
	}
	var wg, made sync.WaitGroup
	for _, sc := range g.consumers {
		if sc.CreateStream {
			made.Add(1)
		}
	}
	for _, sc := range g.consumers {
		wg.Go(func() {
			if err := sc.run(ctx, c, handlers[sc.Name], &made); err != nil {
				fail(&consumerError{sc.Name, err})
			}
		})
	}
	wg.Wait()
}

// connect makes the group's Client, which Health shows from then on, and waits for its
// connection, unless the configuration says not to. The Client is to be closed even if
// there is an error.
func (r *serviceRun) connect(ctx context.Context, g *group, opts []Option) (*Client, error) {
	lazy := g.config
	lazy.LazyConnect = true
	c, err := Connect(ctx, lazy, opts...)
	r.mu.Lock()
	g.client = c
	r.mu.Unlock()
	if err == nil && !g.config.LazyConnect {
		err = c.conn.Await(ctx)
	}
	r.mu.Lock()
	g.waited = true
	r.mu.Unlock()
	return c, err
}

// Health returns the present state of all that Run runs, as one Health:
//
//   - Connected says whether every connection is up. Since is from when on that is so;
//     if it is not, when the first of those that are down was lost.
//   - Server lists the servers of all connections. Reconnects and EventsDropped are
//     sums.
//   - Closed says whether any connection is gone for good. ServerVersion and Cluster are
//     those of one connection.
//   - LastError is that of the connections that are down, or of all if none is.
//   - Consumers, Elections and Writers are those of all connections. A consumer whose
//     server is not there yet is starting. A disabled consumer is left out.
//
// Before Run it is not connected, with a LastError that says so. After Run it is how
// the last Run ended.
func (s *Service) Health() Health {
	serviceRuns.Lock()
	run := s.running
	serviceRuns.Unlock()
	if run == nil {
		return Health{LastError: "the service does not run: Run was not called"}
	}
	return run.health()
}

func (r *serviceRun) health() Health {
	all := make([]Health, len(r.groups))
	for i, g := range r.groups {
		r.mu.Lock()
		c, waited := g.client, g.waited
		r.mu.Unlock()
		if all[i] = (Health{Since: r.since}); c != nil {
			all[i] = c.Health()
		}
		if waited {
			continue
		}
		for _, sc := range g.consumers {
			cfg := sc.Consumer.withDefaults(g.config.Name)
			all[i].Consumers = append(all[i].Consumers, ConsumerHealth{
				Stream: cfg.Stream, Durable: cfg.Durable, State: ConsumerStarting, Since: r.since,
			})
		}
	}
	if len(all) == 0 { // all consumers are disabled
		return Health{Since: r.since, LastError: "all consumers of the service are disabled"}
	}
	return joinHealth(all)
}

// joinHealth makes one Health of those of several connections.
func joinHealth(all []Health) Health {
	h := Health{Connected: !slices.ContainsFunc(all, func(one Health) bool { return !one.Connected })}
	var servers, errs []string
	for _, one := range all {
		h.Reconnects += one.Reconnects
		h.EventsDropped += one.EventsDropped
		h.Consumers = append(h.Consumers, one.Consumers...)
		h.Elections = append(h.Elections, one.Elections...)
		h.Writers = append(h.Writers, one.Writers...)
		h.Closed = h.Closed || one.Closed
		if h.ServerVersion == "" || one.Cluster != "" {
			h.ServerVersion, h.Cluster = one.ServerVersion, one.Cluster
		}
		if one.Server != "" && !slices.Contains(servers, one.Server) {
			servers = append(servers, one.Server)
		}
		if one.Connected != h.Connected {
			continue
		}
		later := one.Since.After(h.Since)
		if h.Since.IsZero() || later == h.Connected {
			h.Since = one.Since
		}
		if one.LastError != "" && !slices.Contains(errs, one.LastError) {
			errs = append(errs, one.LastError)
		}
	}
	h.Server, h.LastError = strings.Join(servers, ", "), strings.Join(errs, "; ")
	sortConsumers(h.Consumers)
	sortElections(h.Elections)
	return h
}

// run runs one consumer. A consumer that makes no stream waits until the others of its
// connection have made theirs, since it may consume from one of them.
func (sc *ServiceConsumer) run(ctx context.Context, c *Client, h Handler, made *sync.WaitGroup) error {
	if sc.CreateStream {
		err := c.createMissing(ctx, sc.Consumer)
		made.Done()
		// If ctx has ended, Process finds out, and stops.
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("natty: make stream %q: %w", sc.Consumer.Stream, err)
		}
	} else {
		made.Wait()
	}
	return c.Process(ctx, sc.Consumer, h)
}

// createMissing makes cfg's stream if there is none of its name. It waits for a server
// that is not there.
func (c *Client) createMissing(ctx context.Context, cfg ConsumerConfig) error {
	subjects := make([]any, len(cfg.Subjects))
	for i, subject := range cfg.Subjects {
		subjects[i] = subject
	}
	r := jsapi.Resource{
		Kind: "stream", Name: cfg.Stream, Want: map[string]any{"subjects": subjects},
		Info: "STREAM.INFO." + cfg.Stream,
		Create: func(ctx context.Context) error {
			config := jetstream.StreamConfig{Name: cfg.Stream, Subjects: cfg.Subjects, Replicas: c.cfg.Replicas}
			return c.api.Query(ctx, "STREAM.CREATE."+cfg.Stream, config, &struct{}{})
		},
	}
	for n := 1; ; n++ {
		_, err := c.api.ReadOrMake(ctx, r)
		if err == nil || !jsapi.Passing(err) {
			return err
		}
		c.log.Warn("natty: waiting to make a stream", "stream", cfg.Stream, "error", err)
		if consumer.RetryPrepare.Wait(ctx, n) != nil {
			return err
		}
	}
}

// consumerError names the consumer of a Service that has ended.
type consumerError struct {
	name string
	err  error
}

func (e *consumerError) Error() string {
	return fmt.Sprintf("natty: configured consumer %q: %s", e.name, strings.TrimPrefix(e.err.Error(), "natty: "))
}

func (e *consumerError) Unwrap() error { return e.err }
