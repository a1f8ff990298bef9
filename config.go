package natty

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// Service is what a service file says: where the servers are, and what to consume. Make one with LoadService or
// ParseService, and run it with Run. Before that the program may set what a file cannot hold.
type Service struct {
	// Config says how to connect.
	Config Config
	// Consumers are in the order of the file.
	Consumers []ServiceConsumer
}

// ServiceConsumer is one consumer of a Service.
type ServiceConsumer struct {
	// Name is what Run finds the handler by. It is not known to the server.
	Name string
	// Config is how this consumer connects, where that is not as Service.Config says: with brokers or
	// disable_reconnect in the file. Else nil.
	Config *Config
	// Consumer says what to consume and how. OnError has no place in a file.
	Consumer ConsumerConfig
	// CreateStream makes Consumer.Stream, with Consumer.Subjects, when it is missing. An existing one is not changed.
	// It is for development: a stream deserves limits and replicas that somebody has thought about.
	CreateStream bool
}

// LoadService reads a service file, see ParseService.
func LoadService(path string) (*Service, error) {
	data, err := readFile("path", path)
	if err != nil {
		return nil, err
	}
	s, err := ParseService(data)
	return s, under(path+": ", err)
}

// ParseService reads the JSON of a service file: at the top the settings of Config under their JSON names, and a list
// of consumers.
//
//	{
//	  "name": "billing",
//	  "servers": ["nats://billing:${PASSWORD}@127.0.0.1:4222"],
//	  "consumers": [
//	    {"name": "orders", "type": "nats", "nats": {"subjects": ["orders.>"], "concurrency": 4, "ack_wait": "30s"}}
//	  ]
//	}
//
// Each consumer has a name, which its handler is found by, the type "nats", and under nats the settings of
// ConsumerConfig under their JSON names, backoff_min, backoff_max, and:
//
//   - brokers: servers of its own, instead of the file's. Everything else about its connection is as for the
//     others, the login too where a URL of brokers has none;
//   - disable_reconnect: ends this consumer, and so Run, when its connection is lost;
//   - create_stream_if_not_exist: see ServiceConsumer.CreateStream; needs stream_name and subjects.
//
// Durations are strings such as "10s" or "250ms", and deliver_policy is "all", "new", "last" or "last_per_subject".
// In every string ${NAME} stands for an environment variable, which must be set, and $$ for a dollar sign.
//
// What can be known to be wrong without a server is a *ConfigError that says where it is: a key that is unknown or
// there twice, a value of the wrong type, a setting that can never work. Values of password, token, servers and
// brokers are not shown in it.
func ParseService(data []byte) (*Service, error) {
	var f serviceFile
	if err := decodeFile(data, &f); err != nil {
		return nil, err
	}
	if err := f.Config.withDefaults().validate(); err != nil {
		return nil, err
	}
	if len(f.Consumers) == 0 {
		return nil, &ConfigError{Field: "consumers", Reason: "there are none, so that there is nothing to run; add at least one"}
	}
	s := &Service{Config: f.Config}
	for i, cf := range f.Consumers {
		place := fmt.Sprintf("consumers[%d].", i)
		sc, err := cf.consumer(f.Config)
		if err != nil {
			return nil, under(place, err)
		}
		for j := range s.Consumers {
			if err := s.clash(&s.Consumers[j], sc); err != nil {
				return nil, under(place, err)
			}
		}
		s.Consumers = append(s.Consumers, *sc)
	}
	return s, nil
}

// serviceFile is a service file. The names of settings stand at the fields that they fill, and nowhere else.
type serviceFile struct {
	Config
	Consumers []consumerFile `json:"consumers"`
}

type consumerFile struct {
	Name string       `json:"name"`
	Type string       `json:"type"`
	NATS natsConsumer `json:"nats"`
}

type natsConsumer struct {
	ConsumerConfig
	Backoff                   // hides ConsumerConfig's, which is a level too deep for a file
	Brokers          []string `json:"brokers"`
	DisableReconnect *bool    `json:"disable_reconnect"`
	CreateStream     bool     `json:"create_stream_if_not_exist"`
}

// consumer checks what the file says about one consumer.
func (cf *consumerFile) consumer(base Config) (*ServiceConsumer, error) {
	switch {
	case cf.Name == "":
		return nil, &ConfigError{Field: "name", Reason: "is missing; give the consumer a name, by which its handler is found"}
	case cf.Type == "":
		return nil, &ConfigError{Field: "type", Reason: `is missing; set it to "nats"`}
	case cf.Type != "nats":
		return nil, &ConfigError{Field: "type", Value: cf.Type, Reason: `is not known; set it to "nats"`}
	}
	n := &cf.NATS
	sc := &ServiceConsumer{Name: cf.Name, Consumer: n.ConsumerConfig, CreateStream: n.CreateStream}
	sc.Consumer.Backoff = n.Backoff
	own := base
	if n.Brokers != nil {
		own.Servers = n.Brokers
	}
	if n.DisableReconnect != nil {
		own.DisableReconnect = *n.DisableReconnect
	}
	if !reflect.DeepEqual(own, base) {
		sc.Config = &own
	}
	return sc, under("nats.", n.validate(own, sc.Consumer))
}

func (n *natsConsumer) validate(own Config, cfg ConsumerConfig) error {
	filled := cfg.withDefaults(own.Name)
	switch {
	case n.Brokers != nil && strings.Trim(strings.Join(n.Brokers, ""), ", ") == "":
		return &ConfigError{Field: "brokers", Reason: "holds no server; give at least one, or leave it out for those of the file"}
	case n.CreateStream && (cfg.Stream == "" || len(cfg.Subjects) == 0):
		return &ConfigError{Field: "create_stream_if_not_exist", Reason: "set without stream_name and subjects, which say what to make; set all three"}
	case filled.Durable == "" && len(cfg.Subjects) < 2 && own.Name == "":
		return &ConfigError{Field: "consumer_group", Reason: "is missing, and so is the service's name, from which it could be made; set one of them"}
	}
	if err := own.withDefaults().validate(); err != nil {
		// All but the servers has been found good with the file's own settings.
		if bad, ok := errors.AsType[*ConfigError](err); ok {
			bad.Field = strings.Replace(bad.Field, "servers", "brokers", 1)
		}
		return err
	}
	return filled.validate()
}

// clash refuses a second consumer with the name, or the durable, of another. Two handlers on one durable would each get
// some of the messages.
func (s *Service) clash(old, sc *ServiceConsumer) error {
	if old.Name == sc.Name {
		return &ConfigError{Field: "name", Value: sc.Name, Reason: "is another consumer's too; give each a name of its own"}
	}
	a, b := old.Consumer.withDefaults(s.Config.Name), sc.Consumer.withDefaults(s.Config.Name)
	same := a.Durable == b.Durable && a.Stream == b.Stream && reflect.DeepEqual(s.configOf(old), s.configOf(sc))
	if same && (a.Stream != "" || slices.Equal(a.Subjects, b.Subjects)) {
		return &ConfigError{
			Field: "nats.consumer_group", Value: b.Durable,
			Reason: fmt.Sprintf("is that of the consumer %q, so that each would get only some of the messages; set another", old.Name),
		}
	}
	return nil
}

func (s *Service) configOf(sc *ServiceConsumer) Config {
	if sc.Config != nil {
		return *sc.Config
	}
	return s.Config
}

// under puts the place of what a ConfigError is about before its field.
func under(place string, err error) error {
	bad, ok := errors.AsType[*ConfigError](err)
	if !ok {
		return err
	}
	moved := *bad
	moved.Field = place + bad.Field
	return &moved
}

// Run runs every consumer with the handler of its name, until ctx ends; then it stops them as Process does, and
// returns nil. Several processes that run the same file share the work.
//
// Consumers with equal connection settings share a Client, which is made with opts and closed at the end. A server
// that is not there is waited for, while consumers of other servers go on. With WithConn all use that one connection,
// whatever the file says about servers.
//
// When one consumer ends with an error, for the reasons for which Process and Connect do, Run stops the others in the same
// orderly way and returns that error, joined with what else went wrong. A consumer without a handler, and
// a handler without a consumer, are errors before anything is started.
func (s *Service) Run(ctx context.Context, handlers map[string]Handler, opts ...Option) error {
	if err := s.checkHandlers(handlers); err != nil {
		return err
	}
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
	for _, g := range s.groups() {
		wg.Go(func() { g.run(ctx, handlers, opts, fail) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// checkHandlers expects one handler for each consumer.
func (s *Service) checkHandlers(handlers map[string]Handler) error {
	names := make([]string, len(s.Consumers))
	for i, sc := range s.Consumers {
		names[i] = sc.Name
		if handlers[sc.Name] == nil {
			return &ConfigError{Field: "handlers", Value: sc.Name, Reason: "this consumer has no handler; add one under its name"}
		}
	}
	for name := range handlers {
		if !slices.Contains(names, name) {
			return &ConfigError{Field: "handlers", Value: name, Reason: "is no consumer of the service; " + suggestion(name, names)}
		}
	}
	return nil
}

// group is the consumers that share a connection.
type group struct {
	config    Config
	consumers []*ServiceConsumer
}

func (s *Service) groups() []*group {
	var groups []*group
	for i := range s.Consumers {
		sc := &s.Consumers[i]
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

// run tells fail what goes wrong, and returns when all has ended.
func (g *group) run(ctx context.Context, handlers map[string]Handler, opts []Option, fail func(error)) {
	c, err := Connect(ctx, g.config, opts...)
	if err != nil {
		if ctx.Err() == nil {
			fail(&consumerError{g.consumers[0].Name, err})
		}
		return
	}
	var wg sync.WaitGroup
	for _, sc := range g.consumers {
		wg.Go(func() {
			if err := sc.run(ctx, c, handlers[sc.Name]); err != nil {
				fail(&consumerError{sc.Name, err})
			}
		})
	}
	wg.Wait()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*flushTimeout)
	defer cancel()
	fail(c.Close(end))
}

func (sc *ServiceConsumer) run(ctx context.Context, c *Client, h Handler) error {
	if sc.CreateStream {
		// When ctx has ended, Process finds that out.
		if err := c.createMissing(ctx, sc.Consumer); err != nil && ctx.Err() == nil {
			return fmt.Errorf("natty: make stream %q: %w", sc.Consumer.Stream, err)
		}
	}
	return c.Process(ctx, sc.Consumer, h)
}

// createMissing makes cfg's stream if there is none of its name. A server that is not there is waited for.
func (c *Client) createMissing(ctx context.Context, cfg ConsumerConfig) error {
	for n := 1; ; n++ {
		exists, err := c.streamExists(ctx, cfg.Stream)
		if err == nil && !exists {
			err = c.query(ctx, "STREAM.CREATE."+cfg.Stream, jetstream.StreamConfig{
				Name: cfg.Stream, Subjects: cfg.Subjects, Replicas: c.cfg.Replicas,
			}, &struct{}{})
			if err == nil {
				c.log.Info("natty: made the stream", "stream", cfg.Stream, "subjects", cfg.Subjects)
			}
		}
		switch {
		case errors.Is(err, jetstream.ErrStreamNameAlreadyInUse): // another instance was faster
			return nil
		case err == nil, !passing(err):
			return err
		}
		c.log.Warn("natty: waiting to make a stream", "stream", cfg.Stream, "error", err)
		if sleep(ctx, retryPrepare.delay(n)) != nil {
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
