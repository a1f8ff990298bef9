package nattywatermill_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/requeuer"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattywatermill"
)

func publisher(t *testing.T, c *natty.Client, cfg nattywatermill.PublisherConfig) *nattywatermill.Publisher {
	t.Helper()
	cfg.Logger = watermill.NopLogger{}
	pub, err := nattywatermill.NewPublisher(c, cfg)
	require.NoError(t, err)
	return pub
}

func subscriber(t *testing.T, c *natty.Client, cfg nattywatermill.SubscriberConfig) *nattywatermill.Subscriber {
	t.Helper()
	cfg.Logger, cfg.Group = watermill.NopLogger{}, "group"
	sub, err := nattywatermill.NewSubscriber(c, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, sub.Close()) })
	return sub
}

func orders(t *testing.T) (*natty.Client, jetstream.Stream) {
	t.Helper()
	c := testkit.OnServer(t)
	return c, testkit.Ensure(t, c, "ORDERS", "orders.>")
}

func subscribe(t *testing.T, sub *nattywatermill.Subscriber) <-chan *message.Message {
	t.Helper()
	messages, err := sub.Subscribe(context.Background(), "orders.new")
	require.NoError(t, err)
	return messages
}

func publishOrder(t *testing.T, c *natty.Client) {
	t.Helper()
	pub := publisher(t, c, nattywatermill.PublisherConfig{})
	require.NoError(t, pub.Publish("orders.new", message.NewMessage("1", nil)))
}

func TestTopicsThatAreNotSubjectsAreRefused(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	pub, sub := publisher(t, c, nattywatermill.PublisherConfig{}), subscriber(t, c, nattywatermill.SubscriberConfig{})
	for _, topic := range []string{"", "new orders", "a..b", ".a", "a."} {
		var wrong *natty.ConfigError
		err := pub.Publish(topic, message.NewMessage("1", nil))
		require.ErrorAs(t, err, &wrong, "%q", topic)
		require.ErrorContains(t, err, "EscapeTopic")
		_, err = sub.Subscribe(t.Context(), topic)
		require.ErrorAs(t, err, &wrong, "%q", topic)
		require.ErrorContains(t, err, "EscapeTopic")
	}
	require.ErrorContains(t, pub.Publish("orders.*", message.NewMessage("1", nil)), "EscapeTopic")
	require.ErrorIs(t, pub.Publish("invoices", message.NewMessage("1", nil)), natty.ErrNoStream)
	_, err := sub.Subscribe(t.Context(), "invoices")
	require.ErrorIs(t, err, natty.ErrNoStream)
}

// A subscription that ends by itself ends its ctx too. Whichever Subscribe sees first, it
// returns the reason.
func TestSubscribingToATopicOfNoStreamAlwaysSaysSo(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	sub := subscriber(t, c, nattywatermill.SubscriberConfig{})
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			_, err := sub.Subscribe(context.Background(), "invoices")
			assert.ErrorIs(t, err, natty.ErrNoStream)
		})
	}
	all.Wait()
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	for wants, cfg := range map[string]nattywatermill.SubscriberConfig{
		"Group":                   {},
		"Consumer.Durable":        {Group: "g", Consumer: natty.ConsumerConfig{Durable: "d"}},
		"Consumer.Subjects":       {Group: "g", Consumer: natty.ConsumerConfig{Subjects: []string{"s"}}},
		"Consumer.HandlerTimeout": {Group: "g", Consumer: natty.ConsumerConfig{HandlerTimeout: -1}},
	} {
		_, err := nattywatermill.NewSubscriber(c, cfg)
		require.ErrorContains(t, err, wants)
	}
	_, err := nattywatermill.NewSubscriber(nil, nattywatermill.SubscriberConfig{Group: "g"})
	require.ErrorContains(t, err, "natty.Connect")
	_, err = nattywatermill.NewPublisher(nil, nattywatermill.PublisherConfig{})
	require.ErrorContains(t, err, "natty.Connect")
}

func TestASecondSubscriptionOfATopicIsRefusedAsTheFirstWouldBe(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, first := b.make(t, "group", natty.ConsumerConfig{})
	_, err := first.Subscribe(t.Context(), "a")
	require.NoError(t, err)
	for range 5 {
		_, wrong := b.make(t, "group", natty.ConsumerConfig{Concurrency: -1})
		_, err = wrong.Subscribe(t.Context(), "a")
		var config *natty.ConfigError
		require.ErrorAs(t, err, &config)
	}
	_, second := b.make(t, "group", natty.ConsumerConfig{})
	_, err = second.Subscribe(t.Context(), "a")
	require.NoError(t, err)
}

func TestNothingWorksAfterClose(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	pub, sub := publisher(t, c, nattywatermill.PublisherConfig{}), subscriber(t, c, nattywatermill.SubscriberConfig{})
	for range 2 {
		require.NoError(t, pub.Close())
		require.NoError(t, sub.Close())
	}
	require.ErrorIs(t, pub.Publish("orders.new", message.NewMessage("1", nil)), nattywatermill.ErrClosed)
	_, err := sub.Subscribe(t.Context(), "orders.new")
	require.ErrorIs(t, err, nattywatermill.ErrClosed)
}

func TestMessagesArriveAsTheyWerePublished(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	pub := publisher(t, c, nattywatermill.PublisherConfig{})
	messages := subscribe(t, subscriber(t, c, nattywatermill.SubscriberConfig{}))
	for _, uuid := range []string{"plain", "", " with spaces\r\nand lines ", "\xff"} {
		sent := message.NewMessage(uuid, []byte{0, 1, 2})
		sent.Metadata = message.Metadata{
			"a": "1", "A": "2", "aB-c_d": "3", "empty": "", "": "no key", "two words": "x", "colon:": "x",
			"lines": "a\r\nb: c\r\n\r\n", "spaces": " x ", "umläut": "ü", "bytes": "\x00\xff", "ü": "\xff",
			"Nats-Msg-Id": "mine", "nats-ttl": "1s", "Nats-Expected-Last-Sequence": "99", "Natty-Redrive": "x",
			"Status": "404", "Description": "x", "_watermill_message_uuid": "x", "Watermill-Escaped": "x", "m.a": "m",
			"uuid": "u",
		}
		require.NoError(t, pub.Publish("orders.new", sent))
		got := testkit.Receive(t, messages)
		assert.True(t, sent.Equals(got), "%q %q", got.UUID, got.Metadata)
		got.Ack()
	}
	// nats.go takes a message without data and with a Status for the server's answer.
	sent := message.NewMessage("no payload", nil)
	sent.Metadata["Status"] = "503"
	require.NoError(t, pub.Publish("orders.new", sent))
	got := testkit.Receive(t, messages)
	assert.True(t, sent.Equals(got))
	got.Ack()
}

func TestMessagesOfOtherPublishersAreReceived(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	messages := subscribe(t, subscriber(t, c, nattywatermill.SubscriberConfig{}))
	_, err := c.PublishMsg(t.Context(), &nats.Msg{Subject: "orders.new", Data: []byte("x"), Header: nats.Header{
		"Nats-Msg-Id": {"id"}, "many": {"a", "b"},
	}})
	require.NoError(t, err)
	got := testkit.Receive(t, messages)
	assert.Equal(t, "id", got.UUID)
	assert.Equal(t, message.Metadata{"many": "a, b"}, got.Metadata)
	d, ok := natty.DeliveryFrom(got.Context())
	require.True(t, ok)
	assert.Equal(t, []string{"a", "b"}, d.Header["many"])
	got.Ack()

	require.NoError(t, c.Conn().Publish("orders.new", []byte("bare")))
	got = testkit.Receive(t, messages)
	assert.Equal(t, "ORDERS/2", got.UUID)
	got.Ack()
}

func TestAMessageThatIsPublishedAgainIsStoredOnce(t *testing.T) {
	t.Parallel()
	c, stream := orders(t)
	pub := publisher(t, c, nattywatermill.PublisherConfig{})
	msg := message.NewMessage("uuid", []byte("x"))
	for range 3 {
		require.NoError(t, pub.Publish("orders.new", msg))
	}
	require.EqualValues(t, 1, testkit.Stored(t, stream))
	require.NoError(t, pub.Publish("orders.other", msg)) // another topic of the stream
	require.EqualValues(t, 2, testkit.Stored(t, stream))
	msg.Metadata[requeuer.RetriesKey] = "1" // what the Requeuer publishes again is to come again
	require.NoError(t, pub.Publish("orders.new", msg))
	require.EqualValues(t, 3, testkit.Stored(t, stream))
	for range 2 {
		require.NoError(t, pub.Publish("orders.new", message.NewMessage("", nil))) // no identity
	}
	require.EqualValues(t, 5, testkit.Stored(t, stream))
}

func TestOfSeveralMessagesThoseBeforeTheFailedOneAreStored(t *testing.T) {
	t.Parallel()
	c, stream := orders(t)
	pub := publisher(t, c, nattywatermill.PublisherConfig{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	err := pub.Publish("orders.new", message.NewMessage("1", nil),
		message.NewMessageWithContext(ended, "2", nil), message.NewMessage("3", nil))
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "message 2 of 3")
	require.EqualValues(t, 1, testkit.Stored(t, stream))
	require.ErrorContains(t, pub.Publish("orders.new", nil), "nil")
}

func TestANackedMessageComesAgainAfterThePauseOfOnNack(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	const pause = 300 * time.Millisecond
	messages := subscribe(t, subscriber(t, c, nattywatermill.SubscriberConfig{
		OnNack: func(ctx context.Context, msg *message.Message) error {
			d, _ := natty.DeliveryFrom(ctx)
			assert.Equal(t, 1, d.Attempt)
			return natty.RetryAfter(pause, errors.New("busy with "+msg.UUID))
		},
	}))
	publishOrder(t, c)
	first := testkit.Receive(t, messages)
	start := time.Now()
	first.Nack()
	again := testkit.Receive(t, messages)
	assert.GreaterOrEqual(t, time.Since(start), pause-10*time.Millisecond)
	assert.Less(t, time.Since(start), 5*time.Second)
	assert.Equal(t, "1", again.UUID)
	again.Ack()
}

func TestPoisonGoesToTheDeadLetterStream(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	testkit.Ensure(t, c, "DEAD", "dead.>")
	messages := subscribe(t, subscriber(t, c, nattywatermill.SubscriberConfig{Consumer: natty.ConsumerConfig{
		MaxDeliver: 2, DeadLetter: "dead.orders", Backoff: natty.Backoff{Min: time.Millisecond},
	}}))
	poison := message.NewMessage("poison", []byte("x"))
	poison.Metadata["k"] = "v"
	require.NoError(t, publisher(t, c, nattywatermill.PublisherConfig{}).Publish("orders.new", poison))
	for range 2 {
		testkit.Receive(t, messages).Nack()
	}
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead.orders")) == 1 }, "no dead letter")
	letter := testkit.Letters(t, c, "dead.orders")[0]
	assert.Equal(t, nattywatermill.ErrNacked.Error(), letter.Reason)

	n, err := c.Redrive(t.Context(), "dead.orders", func(natty.DeadLetter) bool { return true })
	require.NoError(t, err)
	require.Equal(t, 1, n)
	again := testkit.Receive(t, messages)
	assert.True(t, poison.Equals(again), "%q %q", again.UUID, again.Metadata)
	again.Ack()
}

// hasBack waits for the message that a subscriber did not acknowledge, and returns its
// attempt. AckWait is ten seconds: what comes at once was handed back.
func hasBack(t *testing.T, c *natty.Client, cfg natty.ConsumerConfig) int {
	t.Helper()
	start := time.Now()
	got := testkit.Receive(t, subscribe(t, subscriber(t, c, nattywatermill.SubscriberConfig{Consumer: cfg})))
	require.Less(t, time.Since(start), 5*time.Second)
	d, _ := natty.DeliveryFrom(got.Context())
	got.Ack()
	return d.Attempt
}

func TestCloseHandsBackWhatNobodyHasTaken(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]natty.ConsumerConfig{
		"shared": {}, "ordered": {OrderBy: testkit.KeyOf}, "exclusive": {Exclusive: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := orders(t)
			testkit.Ensure(t, c, "DEAD", "dead.>")
			cfg.MaxDeliver, cfg.DeadLetter = 1, "dead.orders" // a failure would be final
			cfg.DrainTimeout = 2 * time.Second
			sub := subscriber(t, c, nattywatermill.SubscriberConfig{Consumer: cfg})
			messages := subscribe(t, sub)
			publishOrder(t, c)
			testkit.Eventually(t, func() bool { return testkit.Only(c).Handling == 1 }, "nothing was offered")
			require.NoError(t, sub.Close())
			_, open := <-messages
			require.False(t, open)
			hasBack(t, c, cfg)
			require.Empty(t, testkit.Letters(t, c, "dead.orders"))
		})
	}
}

func TestCloseWaitsForTheAckOfAMessageThatWasTaken(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	sub := subscriber(t, c, nattywatermill.SubscriberConfig{})
	messages := subscribe(t, sub)
	publishOrder(t, c)
	taken := testkit.Receive(t, messages)
	closed := make(chan error)
	go func() { closed <- sub.Close() }()
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerStopping }, "does not stop")
	require.NoError(t, taken.Context().Err(), "there is time to finish")
	taken.Ack()
	require.NoError(t, testkit.Receive(t, closed))
	require.Error(t, taken.Context().Err())
	testkit.Eventually(t, testkit.Settled(c, "ORDERS", "group_orders-new"), "it was not acknowledged")
}

func TestCloseHandsBackWhatIsNotAcknowledgedInTime(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	cfg := natty.ConsumerConfig{DrainTimeout: 100 * time.Millisecond}
	sub := subscriber(t, c, nattywatermill.SubscriberConfig{Consumer: cfg})
	messages := subscribe(t, sub)
	publishOrder(t, c)
	taken := testkit.Receive(t, messages)
	require.NoError(t, sub.Close())
	require.Error(t, taken.Context().Err())
	require.Equal(t, 2, hasBack(t, c, cfg))
	taken.Ack() // too late, and no harm
}

func TestTheHandlerTimeoutEndsTheContextAndAnAckStillCounts(t *testing.T) {
	t.Parallel()
	c, _ := orders(t)
	messages := subscribe(t, subscriber(t, c, nattywatermill.SubscriberConfig{
		Consumer: natty.ConsumerConfig{HandlerTimeout: 20 * time.Millisecond},
	}))
	publishOrder(t, c)
	taken := testkit.Receive(t, messages)
	testkit.Receive(t, taken.Context().Done())
	require.ErrorIs(t, context.Cause(taken.Context()), context.DeadlineExceeded)
	taken.Ack()
	testkit.Eventually(t, testkit.Settled(c, "ORDERS", "group_orders-new"), "it was not acknowledged")
}

// A service can change between this package and natty's Process.
func TestDurablesAreNamedAsNattyNamesThem(t *testing.T) {
	t.Parallel()
	node := orderServer(t)
	long := strings.Repeat("x", 200)
	for _, group := range []string{"billing", "a-b", "a_b", "a--b", "ä", "all", "g" + long} {
		c := testkit.Connect(t, natty.Config{Name: group, Servers: []string{node}})
		for _, topic := range []string{
			"orders.>", "orders.*", "orders.new", "orders.a-b", "orders.all", "orders.ä", "orders." + long,
		} {
			ctx, cancel := context.WithCancel(t.Context())
			cfg := nattywatermill.SubscriberConfig{Group: group, Logger: watermill.NopLogger{}}
			sub, err := nattywatermill.NewSubscriber(c, cfg)
			require.NoError(t, err)
			_, err = sub.Subscribe(ctx, topic)
			require.NoError(t, err)
			name := testkit.Only(c).Durable
			require.NoError(t, sub.Close())

			stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{topic}},
				func(context.Context, *nats.Msg) error { return nil })
			testkit.Eventually(t, func() bool { return len(c.Health().Consumers) == 1 }, "does not begin")
			require.Equal(t, testkit.Only(c).Durable, name)
			require.NoError(t, stop())
			cancel()
		}
	}
}

func orderServer(t *testing.T) string {
	t.Helper()
	b := newBench(t)
	testkit.Ensure(t, b.client, "ORDERS", "orders.>")
	return b.node.URL()
}

func TestEscapedTopicsAreSubjectsOfTheirOwn(t *testing.T) {
	t.Parallel()
	for topic, subject := range map[string]string{
		"orders.new": "orders.new", "a-b_C9": "a-b_C9", "": "%", "new orders": "new%20orders", "100%": "100%25",
		".a": "%2Ea", "a.": "a%2E", "a..b": "a.%2Eb", ".": "%2E", "*": "%2A", ">": "%3E", "ä": "%C3%A4", "$JS": "%24JS",
	} {
		assert.Equal(t, subject, nattywatermill.EscapeTopic(topic))
	}
}
