package nattywatermill_test

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
	"github.com/natty-go/natty/nattywatermill"
)

// bench is a server with a stream for the suite's topics.
type bench struct {
	node   *nattytest.Node
	client *natty.Client
}

func newBench(t *testing.T) bench {
	t.Helper()
	node := nattytest.Server(t)
	client := testkit.ConnectTo(t, node.URL())
	testkit.Ensure(t, client, "WATERMILL", "watermill.>")
	return bench{node, client}
}

func underWatermill(topic string) string { return "watermill." + topic }

// make returns a Publisher and a Subscriber, which the end of t closes at the latest.
func (b bench) make(t *testing.T, group string, cfg natty.ConsumerConfig) (message.Publisher, message.Subscriber) {
	t.Helper()
	pub, err := nattywatermill.NewPublisher(b.client, nattywatermill.PublisherConfig{
		Subject: underWatermill, Logger: watermill.NopLogger{},
	})
	require.NoError(t, err)
	// The suite nacks a hundred times in a row, and expects the ctx of a message that
	// nobody acknowledges to end within 15 s of Close.
	cfg.Backoff = natty.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}
	cfg.DrainTimeout = 500 * time.Millisecond
	sub, err := nattywatermill.NewSubscriber(b.client, nattywatermill.SubscriberConfig{
		Group: group, Subject: underWatermill, Consumer: cfg, Logger: watermill.NopLogger{},
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, sub.Close()) })
	return pub, sub
}

// constructors are what the suite asks for, for consumers with cfg.
func (b bench) constructors(cfg natty.ConsumerConfig) (tests.PubSubConstructor, tests.ConsumerGroupPubSubConstructor) {
	ofGroup := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		return b.make(t, group, cfg)
	}
	return func(t *testing.T) (message.Publisher, message.Subscriber) { return ofGroup(t, "suite") }, ofGroup
}

// The ways of consuming for which the suite runs, and what they promise.
var ways = []struct {
	name     string
	cfg      natty.ConsumerConfig
	features tests.Features
}{
	{
		name: "shared", cfg: natty.ConsumerConfig{Concurrency: 4},
		features: tests.Features{ConsumerGroups: true, Persistent: true},
	},
	{
		name: "ordered by key", cfg: natty.ConsumerConfig{OrderBy: func(*nats.Msg) string { return "all" }},
		features: tests.Features{
			ConsumerGroups: true, Persistent: true,
			GuaranteedOrder: true, GuaranteedOrderWithSingleSubscriber: true, // each instance keeps its own order
		},
	},
	{
		name: "exclusive", cfg: natty.ConsumerConfig{Exclusive: true},
		features: tests.Features{ConsumerGroups: true, Persistent: true, GuaranteedOrder: true},
	},
}

// The race detector makes it slow, and needs no thousands of messages.
func TestUniversalSuite(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			features := way.features
			features.ForceShort = raceDetector
			constructor, ofGroup := newBench(t).constructors(way.cfg)
			tests.TestPubSub(t, features, constructor, ofGroup)
		})
	}
}

// Each Subscriber has a group of its own, and gets all messages.
func TestUniversalSuiteWithAGroupForEachSubscriber(t *testing.T) {
	b := newBench(t)
	features := tests.Features{Persistent: true, NewSubscriberReceivesOldMessages: true, ForceShort: true}
	tests.TestPubSub(t, features, func(t *testing.T) (message.Publisher, message.Subscriber) {
		return b.make(t, watermill.NewUUID(), natty.ConsumerConfig{})
	}, nil)
}

// STRESS_TEST_COUNT says how many times, as everywhere in Watermill.
func TestUniversalSuiteManyTimesAtOnce(t *testing.T) {
	if os.Getenv(stressCount) == "" {
		t.Setenv(stressCount, "2")
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			features := way.features
			features.ForceShort = true
			constructor, ofGroup := newBench(t).constructors(way.cfg)
			tests.TestPubSubStressTest(t, features, constructor, ofGroup)
		})
	}
}

const stressCount = "STRESS_TEST_COUNT"

// The suite's own test, which restarts the server twice while it publishes and consumes.
func TestUniversalSuiteReconnects(t *testing.T) {
	if testing.Short() {
		t.Skip("it has no short form; TestNothingIsLostWhileTheServerRestarts is one")
	}
	if raceDetector {
		t.Skip("the suite's test itself has a data race: it reads a list that another goroutine still fills")
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			features := way.features
			features.RestartServiceCommand = restartCommand(t, b.node)
			tests.TestReconnect(t, tests.TestContext{TestID: tests.NewTestID(), Features: features},
				func(t *testing.T) (message.Publisher, message.Subscriber) {
					pub, sub := b.make(t, "suite", way.cfg)
					return withLastMessageHeldBack(pub, sub)
				})
		})
	}
}

// suiteReconnectMessages is how many messages the suite's TestReconnect publishes.
const suiteReconnectMessages = 10_000

// withLastMessageHeldBack makes up for a mistake in the suite's TestReconnect. When that
// has received the last message, it compares what it received with a list of what was
// published. But the message may come before its Publish has returned, and the list is
// filled only after that. So the last message waits until all publishes have returned,
// and a moment longer.
func withLastMessageHeldBack(pub message.Publisher, sub message.Subscriber) (message.Publisher, message.Subscriber) {
	p := &countingPublisher{Publisher: pub, all: make(chan struct{})}
	return p, &waitingSubscriber{Subscriber: sub, publishedAll: p.all}
}

type countingPublisher struct {
	message.Publisher
	published atomic.Int64
	all       chan struct{} // closed when all messages are published
}

func (p *countingPublisher) Publish(topic string, messages ...*message.Message) error {
	err := p.Publisher.Publish(topic, messages...)
	if err == nil && p.published.Add(int64(len(messages))) == suiteReconnectMessages {
		close(p.all)
	}
	return err
}

type waitingSubscriber struct {
	message.Subscriber
	publishedAll chan struct{}
}

func (s *waitingSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := s.Subscriber.Subscribe(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		seen := map[string]bool{}
		for msg := range in {
			if seen[msg.UUID] = true; len(seen) == suiteReconnectMessages {
				<-s.publishedAll
				<-time.After(250 * time.Millisecond) // until the list is filled: nothing says when
			}
			select {
			case out <- msg:
			case <-msg.Context().Done(): // the suite has what it wanted
			}
		}
	}()
	return out, nil
}

func BenchmarkSubscriber(b *testing.B) {
	node := nattytest.Server(b)
	client := testkit.ConnectTo(b, node.URL())
	testkit.Ensure(b, client, "WATERMILL", "watermill.>")
	tests.BenchSubscriber(b, func(int) (message.Publisher, message.Subscriber) {
		pub, err := nattywatermill.NewPublisher(client, nattywatermill.PublisherConfig{
			Subject:   underWatermill,
			MessageID: func(string, *message.Message) string { return "" }, // all its messages have one UUID
		})
		require.NoError(b, err)
		sub, err := nattywatermill.NewSubscriber(client, nattywatermill.SubscriberConfig{
			Group: "suite", Subject: underWatermill,
			Consumer: natty.ConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy},
		})
		require.NoError(b, err)
		b.Cleanup(func() { assert.NoError(b, sub.Close()) })
		return pub, sub
	})
}
