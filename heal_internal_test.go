package natty

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

// A server before 2.14 has no resets. What is done instead works with every version.
func TestDurableIsMadeAgainBehindItsFloorWithoutResets(t *testing.T) {
	t.Parallel()
	c, err := Connect(t.Context(), Config{Name: "test", Servers: []string{nattytest.Server(t).URL()}})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close(context.WithoutCancel(t.Context()))) })
	for name, retention := range map[string]jetstream.RetentionPolicy{"LIMITS": jetstream.LimitsPolicy, "QUEUE": jetstream.WorkQueuePolicy} {
		s, err := c.EnsureStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{name}, Retention: retention})
		require.NoError(t, err)
		for range 3 {
			require.NoError(t, c.Publish(t.Context(), name, nil))
		}
		cfg := ConsumerConfig{Durable: "d", Stream: name}
		d, err := c.ensureDurable(t.Context(), name, cfg)
		require.NoError(t, err)
		consumer, err := s.Consumer(t.Context(), "d")
		require.NoError(t, err)
		for range 2 {
			msg, err := consumer.Next()
			require.NoError(t, err)
			require.NoError(t, msg.DoubleAck(t.Context()))
		}
		require.NoError(t, c.refresh(t.Context(), &d))
		require.EqualValues(t, 2, d.floor)
		require.NoError(t, s.DeleteConsumer(t.Context(), "d"))

		stream := s.CachedInfo().Config
		stream.Metadata = map[string]string{metaServerVersion: "2.13.9"}
		made, err := c.recreateDurable(t.Context(), d, stream)
		require.NoError(t, err)
		assert.True(t, made)
		consumer, err = s.Consumer(t.Context(), "d")
		require.NoError(t, err)
		msg, err := consumer.Next(jetstream.FetchMaxWait(10 * time.Second))
		require.NoError(t, err)
		meta, err := msg.Metadata()
		require.NoError(t, err)
		assert.EqualValues(t, 3, meta.Sequence.Stream, "%s: nothing again, and nothing skipped", name)
		_, err = c.ensureDurable(t.Context(), name, cfg)
		assert.NoError(t, err, "%s: it is no drift", name)
	}
}
