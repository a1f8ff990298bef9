package nattywatermill

import (
	"errors"
	"fmt"
	"net/url"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/natty-go/natty"
)

// ErrClosed says that the Publisher or Subscriber was closed. Make another one.
var ErrClosed = errors.New("nattywatermill: closed")

// PublisherConfig says how a Publisher works. The zero value is a good one.
type PublisherConfig struct {
	// Subject returns the NATS subject of a topic. Default: the topic itself. Use the
	// same for Publisher and Subscriber. EscapeTopic accepts any topic.
	Subject func(topic string) string
	// MessageID returns the id by which the server recognises a message that is
	// published again. Inside the stream's duplicate window, two minutes by default, a
	// stream stores one message of an id. An empty id gives each call of Publish another
	// one. Default: DefaultMessageID.
	MessageID func(subject string, msg *message.Message) string
	// Logger gets what the Publisher has to say. Default: slog.Default().
	Logger watermill.LoggerAdapter
}

// retriesKey is the metadata key by which Watermill's Requeuer counts.
const retriesKey = "_watermill_requeuer_retries"

// DefaultMessageID makes the id of the subject and the message's UUID: a message that is
// published again on the same topic is stored once, and may be published on other topics
// of the stream. What Watermill's Requeuer publishes again is a message of its own. A
// message without a UUID has no id.
//
// A program that publishes different messages with one UUID on one topic, or publishes
// one again on purpose within the duplicate window, needs another MessageID: these
// would not be stored.
func DefaultMessageID(subject string, msg *message.Message) string {
	if msg.UUID == "" {
		return ""
	}
	id := subject + "/" + url.QueryEscape(msg.UUID)
	if retries := msg.Metadata.Get(retriesKey); retries != "" {
		id += "/" + url.QueryEscape(retries)
	}
	return id
}

// Publisher publishes Watermill's messages to JetStream streams. It implements
// message.Publisher. Its methods may be called from many goroutines.
type Publisher struct {
	client *natty.Client
	cfg    PublisherConfig

	mu      sync.Mutex // guards closed
	closed  bool
	running sync.WaitGroup
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher returns a Publisher that publishes with client.
func NewPublisher(client *natty.Client, cfg PublisherConfig) (*Publisher, error) {
	if client == nil {
		return nil, noClient()
	}
	if cfg.MessageID == nil {
		cfg.MessageID = DefaultMessageID
	}
	cfg.Logger = loggerOr(cfg.Logger)
	return &Publisher{client: client, cfg: cfg}, nil
}

// Publish stores messages one after the other in the stream that holds the topic's
// subject, within the messages' contexts. A nil error means that the server has stored
// all of them. If one fails, Publish stops there, and the error says how many are
// stored. Publishing all of them again is safe inside the stream's duplicate window, as
// long as the messages keep their UUIDs.
//
// When the outcome of a publish is unknown, because the connection was lost, Publish
// sends the message again until its context ends (natty.Config.PublishTimeout when that
// has no deadline). Errors wrap a *natty.PublishError: natty.ErrNoStream when no stream
// holds the subject, natty.ErrOutcomeUnknown when a message may be stored, and others,
// see natty.Client.PublishMsg. A topic that is not a subject is a *natty.ConfigError.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	if !p.enter() {
		return fmt.Errorf("%w: topic %q: make another Publisher", ErrClosed, topic)
	}
	defer p.running.Done()
	subject := subjectOf(p.cfg.Subject, topic)
	for i, msg := range messages {
		if err := p.publish(subject, msg); err != nil {
			if len(messages) > 1 {
				err = fmt.Errorf("message %d of %d, those before it are stored: %w", i+1, len(messages), err)
			}
			return aboutTopic(topic, err)
		}
	}
	return nil
}

func (p *Publisher) publish(subject string, msg *message.Message) error {
	if msg == nil {
		return &natty.ConfigError{Field: "messages", Reason: "one is nil; give messages"}
	}
	id := p.cfg.MessageID(subject, msg)
	ack, err := p.client.PublishMsg(msg.Context(), toNATS(subject, id, msg))
	if err != nil {
		return err
	}
	if ack.Duplicate {
		p.cfg.Logger.Info("nattywatermill: the stream had a message with this id already, and stored no other",
			watermill.LogFields{
				"subject": subject, "message_uuid": msg.UUID, "message_id": id, "sequence": ack.Sequence,
			})
	}
	return nil
}

// enter counts a call, unless the Publisher is closed.
func (p *Publisher) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.running.Add(1)
	return true
}

// Close waits for calls of Publish and refuses later ones. It leaves the Client open. It
// may be called again.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.running.Wait()
	return nil
}

func noClient() error {
	return &natty.ConfigError{Field: "client", Reason: "is nil; give what natty.Connect returned"}
}

func loggerOr(l watermill.LoggerAdapter) watermill.LoggerAdapter {
	if l == nil {
		return watermill.NewSlogLogger(nil)
	}
	return l
}
