package nattywatermill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/natty-go/natty"
)

// SubscriberConfig says how a Subscriber works. Only Group is required.
type SubscriberConfig struct {
	// Group is the consumer group. Subscribers of one group share the messages of a
	// topic; each group gets all of them. The group and the topic's subject make the name
	// of the durable: "billing" and "orders.>" make billing_orders-all.
	Group string
	// Subject returns the NATS subject of a topic. Default: the topic itself, which may
	// then have wildcards. Use the same for Publisher and Subscriber.
	Subject func(topic string) string
	// Consumer holds all other settings of the durable, for every topic: Concurrency,
	// MaxDeliver and DeadLetter, Backoff, AckWait, DrainTimeout, OrderBy, Exclusive,
	// DeliverPolicy, OnError. Its Durable, Subjects and ReplaceSubjects must be empty:
	// they come from the group and the topic.
	//
	// Concurrency, default 1, is how many messages may be unacknowledged at once.
	// HandlerTimeout begins when a message is taken from the channel, and ends the
	// message's context. The next message still waits for Ack or Nack.
	Consumer natty.ConsumerConfig
	// OnNack returns what becomes of a message for which Nack was called, as a handler's
	// error in natty: an error (redelivered after Consumer.Backoff, which is the
	// default), natty.RetryAfter, or natty.Permanent. With nil the message counts as
	// acknowledged. natty.DeliveryFrom(ctx) has the number of the attempt. It may be
	// called from several goroutines at once.
	OnNack func(ctx context.Context, msg *message.Message) error
	// Logger gets what the Subscriber has to say. Default: slog.Default().
	Logger watermill.LoggerAdapter
}

// ErrNacked is the error of a message for which Nack was called. It is in the errors
// that natty reports, and is the reason in a dead letter.
var ErrNacked = errors.New("nattywatermill: Nack was called")

func (cfg SubscriberConfig) withDefaults() SubscriberConfig {
	if cfg.OnNack == nil {
		cfg.OnNack = func(context.Context, *message.Message) error { return ErrNacked }
	}
	cfg.Logger = loggerOr(cfg.Logger)
	if report := cfg.Consumer.OnError; report != nil {
		cfg.Consumer.OnError = func(err error) {
			if !errors.Is(err, errNotTaken) {
				report(err)
			}
		}
	}
	return cfg
}

func (cfg SubscriberConfig) validate() error {
	switch c := cfg.Consumer; {
	case cfg.Group == "":
		return &natty.ConfigError{
			Field: "Group", Reason: "is empty; name the group whose subscribers share the messages",
		}
	case c.Durable != "":
		return &natty.ConfigError{
			Field: "Consumer.Durable", Value: c.Durable,
			Reason: "is set; leave it empty, Group and the topic make the name",
		}
	case c.HandlerTimeout < 0:
		return &natty.ConfigError{
			Field: "Consumer.HandlerTimeout", Value: c.HandlerTimeout.String(),
			Reason: "is negative; give a duration, or 0 for none",
		}
	case len(c.Subjects) > 0 || c.ReplaceSubjects:
		return &natty.ConfigError{
			Field:  "Consumer.Subjects",
			Reason: "Subjects or ReplaceSubjects is set; leave both out, the topic is the subject",
		}
	}
	return nil
}

// Subscriber receives the messages of JetStream streams as Watermill's. It implements
// message.Subscriber. Its methods may be called from many goroutines.
type Subscriber struct {
	client *natty.Client
	cfg    SubscriberConfig

	mu      sync.Mutex // guards what follows
	closed  bool
	running map[*subscription]bool
	done    sync.WaitGroup // of the subscriptions
	errs    []error        // of subscriptions that Close ended
}

var _ message.Subscriber = (*Subscriber)(nil)

// NewSubscriber returns a Subscriber that consumes with client. Close it before the
// Client.
func NewSubscriber(client *natty.Client, cfg SubscriberConfig) (*Subscriber, error) {
	if client == nil {
		return nil, noClient()
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Subscriber{client: client, cfg: cfg.withDefaults(), running: map[*subscription]bool{}}, nil
}

// Subscribe delivers the messages of a topic to the channel that it returns. It makes
// the group's durable if that is missing. With the default DeliverPolicy a new group
// begins with the first message of the stream.
//
// The next message comes when Ack or Nack was called on the last one, or with
// Consumer.Concurrency several are unacknowledged at once. Until then the message stays
// with this subscriber, however long that takes. Its context carries the values of ctx
// and the natty.Delivery. It ends with Ack or Nack, when Consumer.HandlerTimeout is over,
// and when the subscription has ended and DrainTimeout is over.
//
// When ctx ends, or with Close, no more messages are delivered. Those that nobody has
// taken from the channel go back to the server at once. Those that were taken can be
// acknowledged within Consumer.DrainTimeout; the server redelivers the others. Then the
// channel is closed.
//
// Subscribe returns when the durable is there, so that it receives what is published
// from then on, also with DeliverNew. It waits for that for five seconds at most and
// goes on in the background, so that a service can start before its server. It returns
// an error for a configuration that cannot work, and natty.ErrNoStream if no stream
// holds the topic. Should a subscription end by itself later, an error is logged and
// the channel closed.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	sub := newSubscription(ctx, s, topic)
	if err := s.enter(sub); err != nil {
		sub.stop()
		return nil, err
	}
	go sub.run()
	if err := sub.awaitStart(); err != nil {
		return nil, aboutTopic(topic, err)
	}
	return sub.out, nil
}

func (s *Subscriber) enter(sub *subscription) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("%w: topic %q: make another Subscriber", ErrClosed, sub.topic)
	}
	s.running[sub] = true
	s.done.Add(1)
	return nil
}

// leave forgets a subscription that has ended.
func (s *Subscriber) leave(sub *subscription, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, sub)
	if s.closed && err != nil {
		s.errs = append(s.errs, aboutTopic(sub.topic, err))
	}
	s.done.Done()
}

// Close ends all subscriptions as the end of their ctx does, waits for that, and leaves
// the Client open. Messages that are not acknowledged within DrainTimeout are no error:
// they are logged, and the server redelivers them. An error says that acknowledgements
// may not have reached the server, which then redelivers their messages. Close may be
// called again, and from several goroutines: all calls wait.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	for sub := range s.running {
		sub.stop()
	}
	s.mu.Unlock()
	s.done.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}

const (
	// startTimeout is how long Subscribe waits for the durable.
	startTimeout = 5 * time.Second
	startPoll    = 2 * time.Millisecond
)
