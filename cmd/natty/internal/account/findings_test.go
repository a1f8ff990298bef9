package account

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

// read returns what there is on a server, by a connection of its own.
func read(t *testing.T, url string) *Snapshot {
	t.Helper()
	s, err := accountAt(t, url).Read(t.Context())
	require.NoError(t, err)
	return s
}

func accountAt(t *testing.T, url string) *Account {
	t.Helper()
	refusals := &Refusals{}
	return New(fixture.Client(t, url, natty.WithNATSOptions(refusals.Option())), refusals)
}

func TestHandlersThatHangAreFoundWhileMoreIsDelivered(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := fixture.Client(t, node.URL())
	fixture.Streams(t, c)
	durable, err := c.JetStream().CreateConsumer(t.Context(), "ORDERS", jetstream.ConsumerConfig{
		Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 10 * time.Second,
	})
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, c.Publish(t.Context(), "orders.new", []byte("1")))
	}
	batch, err := durable.Fetch(3)
	require.NoError(t, err)
	for range 3 {
		require.NotNil(t, <-batch.Messages())
	}
	consumer := &read(t, node.URL()).Consumers[0]
	assert.Empty(t, consumer.Warning)

	later := time.Now().Add(2 * time.Minute)
	consumer.info.Delivered.Last = &later // one more came just now
	assert.Equal(t, "in flight are 3, and none was settled for 2m0s, though more are delivered", stall(later, consumer))
	var f findings
	consumer.Warning = stall(later, consumer)
	f.stalled(later, consumer)
	require.Len(t, f, 1)
	assert.Equal(t, levelError, f[0].Level)
	assert.Contains(t, f[0].Remedy, "if no instance of the service runs, start one; else see what the handlers wait for")
	consumer.info.NumWaiting, f = 1, nil
	f.stalled(later, consumer)
	require.Len(t, f, 1)
	assert.NotContains(t, f[0].Remedy, "start one", "an instance asks for messages")

	consumer.info.AckFloor.Last = &later
	assert.Empty(t, stall(later, consumer), "one was settled just now")
	consumer.info.AckFloor.Last, consumer.Oldest = nil, &later
	assert.Empty(t, stall(later, consumer), "what is in flight has just come")
}

func TestDeadLettersThatAgeRemovesAreFoundFromHalfOfItOn(t *testing.T) {
	t.Parallel()
	const month = 30 * 24 * time.Hour
	now := time.Now()
	found := func(maxAge, age time.Duration) findings {
		st := &Stream{Name: "DEAD", info: &jetstream.StreamInfo{
			Config: jetstream.StreamConfig{MaxAge: maxAge}, State: jetstream.StreamState{FirstTime: now.Add(-age)},
		}}
		var f findings
		f.stream(&Snapshot{Time: now}, st, true)
		return f
	}
	assert.Empty(t, found(0, month))
	assert.Empty(t, found(month, time.Hour))
	f := found(month, month-time.Hour)
	require.Len(t, f, 1)
	assert.Equal(t, "max_age is 720h0m0s, and removes the oldest dead letter in 1h0m0s", f[0].Problem)
}
