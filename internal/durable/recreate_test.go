package durable

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/roomtest"
	"github.com/natty-go/natty/nattytest"
)

// A server before 2.14 has no resets. What is done instead works with every version.
func TestDurableIsMadeAgainBehindItsFloorWithoutResets(t *testing.T) {
	t.Parallel()
	c := manager(t)
	for name, retention := range map[string]jetstream.RetentionPolicy{"LIMITS": jetstream.LimitsPolicy, "QUEUE": jetstream.WorkQueuePolicy} {
		s, err := c.API.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{name}, Retention: retention})
		require.NoError(t, err)
		for range 3 {
			_, err := c.API.JS.Publish(t.Context(), name, nil)
			require.NoError(t, err)
		}
		cfg := Spec{Durable: "d", Stream: name}
		d, err := c.EnsureDurable(t.Context(), name, cfg)
		require.NoError(t, err)
		consumer, err := s.Consumer(t.Context(), "d")
		require.NoError(t, err)
		for range 2 {
			msg, err := consumer.Next()
			require.NoError(t, err)
			require.NoError(t, msg.DoubleAck(t.Context()))
		}
		require.NoError(t, c.Refresh(t.Context(), &d))
		require.EqualValues(t, 2, d.Floor)
		require.NoError(t, s.DeleteConsumer(t.Context(), "d"))

		stream := s.CachedInfo().Config
		stream.Metadata = map[string]string{jsapi.MetaServerVersion: "2.13.9"}
		made, err := c.RecreateDurable(t.Context(), d, stream, false)
		require.NoError(t, err)
		assert.True(t, made)
		consumer, err = s.Consumer(t.Context(), "d")
		require.NoError(t, err)
		msg, err := consumer.Next(jetstream.FetchMaxWait(10 * time.Second))
		require.NoError(t, err)
		meta, err := msg.Metadata()
		require.NoError(t, err)
		assert.EqualValues(t, 3, meta.Sequence.Stream, "%s: nothing again, and nothing skipped", name)
		_, err = c.EnsureDurable(t.Context(), name, cfg)
		assert.NoError(t, err, "%s: it is no drift", name)
	}
}

// A server that is alone takes a second request for a repeated one. Whoever sent it reset
// the durable once more, and what others had handled meanwhile came again.
func TestDurableThatHasBegunIsNotResetByTheNextToRecreateIt(t *testing.T) {
	t.Parallel()
	c := manager(t)
	s, lost := c.stream(t, Spec{})
	for range 5 {
		_, err := c.API.JS.Publish(t.Context(), "s.a", nil)
		require.NoError(t, err)
	}
	require.NoError(t, s.DeleteConsumer(t.Context(), "d"))
	lost.Floor = 2
	made, err := c.RecreateDurable(t.Context(), lost, s.CachedInfo().Config, false)
	require.NoError(t, err)
	assert.True(t, made)
	consumer, err := s.Consumer(t.Context(), "d")
	require.NoError(t, err)
	msg, err := consumer.Next()
	require.NoError(t, err)
	require.NoError(t, msg.DoubleAck(t.Context()))

	made, err = c.RecreateDurable(t.Context(), lost, s.CachedInfo().Config, false)
	require.NoError(t, err)
	assert.False(t, made)
	info, err := consumer.Info(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 3, info.AckFloor.Stream, "nothing comes again")
}

// The limit of the account or stream was lowered since it was made.
func TestDurableIsMadeAgainWithTheRoomThatIsAllowedNow(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]Spec{"as much as there is": {}, "chosen": {MaxAckPending: 50}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := manager(t)
			s, lost := c.stream(t, spec)
			require.NoError(t, s.DeleteConsumer(t.Context(), "d"))
			cfg := s.CachedInfo().Config
			cfg.ConsumerLimits.MaxAckPending = 10
			s, err := c.API.JS.UpdateStream(t.Context(), cfg)
			require.NoError(t, err)
			made, err := c.RecreateDurable(t.Context(), lost, s.CachedInfo().Config, false)
			require.NoError(t, err)
			assert.True(t, made)
			require.NoError(t, c.Refresh(t.Context(), &lost))
			assert.LessOrEqual(t, lost.Config.MaxAckPending, 10)
		})
	}
}

// The server removes the files of a deleted durable after it has forgotten it. Without
// awaitRemoval, the server removes those of the recreated one as well.
func TestRecreatedDurableSurvivesARestart(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		version string // of the server, as far as natty knows
		floor   uint64
	}{
		"nothing acked": {}, "something acked": {floor: 2}, "without resets": {version: "2.13.9", floor: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			c := &Manager{API: roomtest.API(t, server.URL()), Invalid: roomtest.Invalid}
			s, lost := c.stream(t, Spec{})
			for range 3 {
				_, err := c.API.JS.Publish(t.Context(), "s.a", nil)
				require.NoError(t, err)
			}
			lost.Floor = test.floor
			folder := filepath.Join(server.Server().StoreDir(), "$G", "streams", "S", "obs", "d")
			fill(t, folder)
			deleted := make(chan error, 1)
			go func() { deleted <- s.DeleteConsumer(t.Context(), "d") }()
			var err error
			for !jsapi.Missing(err) {
				require.NoError(t, err)
				_, err = c.API.ConsumerInfo(t.Context(), "S", "d")
			}
			stream := s.CachedInfo().Config
			if test.version != "" {
				stream.Metadata = map[string]string{jsapi.MetaServerVersion: test.version}
			}
			made, err := c.RecreateDurable(t.Context(), lost, stream, false)
			require.NoError(t, err)
			assert.True(t, made)
			require.NoError(t, <-deleted)
			require.NoError(t, c.note(t, map[string]any{"a": "b"}), "the server can write it")
			require.NoError(t, c.Refresh(t.Context(), &lost))

			require.NoError(t, server.Restart())
			c.API = roomtest.API(t, server.URL())
			after := lost
			require.NoError(t, c.Refresh(t.Context(), &after), "it is on disk")
			after.Read = lost.Read
			assert.Equal(t, lost, after)
			assert.Equal(t, 3-test.floor, after.Waiting)
		})
	}
}

// fill puts so many files into a folder that its removal takes a while.
func fill(t *testing.T, folder string) {
	t.Helper()
	for i := range 2_000 {
		require.NoError(t, os.WriteFile(filepath.Join(folder, strconv.Itoa(i)), nil, 0o600))
	}
}
