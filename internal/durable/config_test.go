package durable

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/roomtest"
	"github.com/natty-go/natty/nattytest"
)

// manager returns a Manager on a server of its own.
func manager(t *testing.T) *Manager {
	t.Helper()
	api := roomtest.API(t, nattytest.Server(t).URL())
	api.Drift = func(kind, name string, differ []jsapi.Difference, cause error) error {
		return fmt.Errorf("%s %s differs: %v: %w", kind, name, differ, cause)
	}
	return &Manager{API: api, Invalid: roomtest.Invalid}
}

// stream makes the stream S with a durable d, and returns the durable.
func (c *Manager) stream(t *testing.T, cfg Spec) (jetstream.Stream, Durable) {
	t.Helper()
	s, err := c.API.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	require.NoError(t, err)
	cfg.Durable = "d"
	d, err := c.EnsureDurable(t.Context(), "S", cfg)
	require.NoError(t, err)
	return s, d
}

// note notes something on the durable d.
func (c *Manager) note(t *testing.T, notes map[string]any) error {
	t.Helper()
	return c.Note(t.Context(), "S", "d", func(map[string]any) map[string]any { return notes })
}

// config returns the configuration that the server has.
func (c *Manager) config(t *testing.T) jetstream.ConsumerConfig {
	t.Helper()
	d := Durable{Stream: "S", Name: "d"}
	require.NoError(t, c.Refresh(t.Context(), &d))
	return d.Config
}

// writes counts what is written of the configuration, until the end of the test.
func (c *Manager) writes(t *testing.T) func() int {
	t.Helper()
	sub, err := c.API.NC.SubscribeSync("$JS.API.CONSUMER.CREATE.S.>")
	require.NoError(t, err)
	return func() int {
		n, _, err := sub.Pending()
		require.NoError(t, err)
		return n
	}
}

func TestDurableIsMadeOnceAndChangedWhereItDiffers(t *testing.T) {
	t.Parallel()
	c := manager(t)
	_, d := c.stream(t, Spec{AckWait: 5 * time.Second})
	assert.Equal(t, 5*time.Second, d.Config.AckWait)
	assert.Equal(t, MaxAckPending, d.Config.MaxAckPending)
	assert.True(t, d.Whole)

	writes := c.writes(t)
	_, err := c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", AckWait: 5 * time.Second})
	require.NoError(t, err)
	assert.Zero(t, writes(), "nothing differs")
	d, err = c.EnsureDurable(t.Context(), "S", Spec{
		Durable: "d", AckWait: 7 * time.Second, Subjects: []string{"s.a"}, ReplaceSubjects: true,
	})
	require.NoError(t, err)
	assert.Equal(t, 1, writes())
	assert.Equal(t, 7*time.Second, d.Config.AckWait)
	assert.Equal(t, []string{"s.a"}, d.Filters())
	assert.Equal(t, MaxAckPending, d.Config.MaxAckPending, "the rest stays")

	_, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Exclusive: true})
	require.ErrorContains(t, err, "ack_policy")
	assert.Equal(t, 1, writes(), "what cannot be changed is not tried")
}

// The caller's configuration may be from before another instance changed the filters.
func TestNoteBringsNoOlderConfigurationBack(t *testing.T) {
	t.Parallel()
	c := manager(t)
	s, d := c.stream(t, Spec{Subjects: []string{"s.a"}})
	wider := d.Config
	wider.FilterSubject, wider.FilterSubjects = "", []string{"s.a", "s.b"}
	_, err := s.UpdateConsumer(t.Context(), wider)
	require.NoError(t, err)

	require.NoError(t, c.note(t, map[string]any{"x": "1"}))
	now := c.config(t)
	assert.Equal(t, []string{"s.a", "s.b"}, now.FilterSubjects)
	assert.Equal(t, "1", now.Metadata["x"])
}

func TestRefusedNoteIsReturnedAsItIs(t *testing.T) {
	t.Parallel()
	c := manager(t)
	err := c.note(t, map[string]any{"x": "1"})
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
	c.stream(t, Spec{})
	big := map[string]any{"x": strings.Repeat("x", 200_000)}
	err = c.note(t, big)
	assert.EqualValues(t, 10135, jsapi.Code(err))
	assert.NotContains(t, err.Error(), "differs")
}

func TestATrialIsKnownToTheNextOne(t *testing.T) {
	t.Parallel()
	c := manager(t)
	_, _ = c.stream(t, Spec{})
	record := func(message uint64, atLeast int) Trial {
		t.Helper()
		before, err := c.RecordTrial(t.Context(), "S", "d", message, atLeast)
		require.NoError(t, err)
		return before
	}
	for _, step := range []struct {
		message uint64
		before  bool
	}{{7, false}, {8, false}, {7, true}, {8, true}} {
		assert.Equal(t, Trial{Died: step.before}, record(step.message, 1), "message %d", step.message)
	}
	require.NoError(t, c.RecordReturn(t.Context(), "S", "d", 7, 20))
	assert.Equal(t, Trial{Returned: 20}, record(7, 15), "its handler returned, so it does not kill its process")
	assert.Equal(t, Trial{Returned: 20}, record(7, 21), "that was long ago")
	assert.Equal(t, Trial{Died: true}, record(7, 21))

	require.NoError(t, c.note(t, map[string]any{metaTried: strings.Repeat("1 ", maxTried)}))
	record(9, 1)
	assert.Len(t, strings.Fields(c.config(t).Metadata[metaTried]), maxTried, "older ones are dropped")
}

func TestTakeoversAreCountedPerMessageAndOwner(t *testing.T) {
	t.Parallel()
	c := manager(t)
	_, d := c.stream(t, Spec{Exclusive: true, PinnedTTL: time.Minute})
	for i, step := range []struct {
		first uint64
		owner string
		want  int
	}{{7, "a", 1}, {7, "a", 1}, {7, "b", 2}, {7, "c", 3}, {7, "c", 3}, {8, "c", 1}, {7, "a", 1}} {
		n, err := c.CountTakeover(t.Context(), d, step.first, step.owner)
		require.NoError(t, err)
		assert.Equal(t, step.want, n, "step %d", i)
	}
	require.NoError(t, c.note(t, map[string]any{metaTakeovers: "many"}))
	n, err := c.CountTakeover(t.Context(), d, 7, "b")
	require.NoError(t, err)
	assert.Equal(t, 1, n, "somebody has changed the count")
}

// An instance that looked before another one widened the filters must not narrow them.
func TestFiltersFollowThoseThatTheServerHasWhenTheyAreWritten(t *testing.T) {
	t.Parallel()
	c := manager(t)
	subjects := []string{"s.>", "t", Holders("S")}
	s, err := c.API.JS.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "S", Subjects: subjects, AllowMsgSchedules: true, AllowMsgTTL: true,
	})
	require.NoError(t, err)
	d, err := c.EnsureDurable(t.Context(), "S", Spec{Durable: "d"})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"s.>", "t"}, d.Filters())

	d.stored = append(slices.Clone(subjects), "u") // it has seen the stream with one more
	wider := d.Config
	wider.FilterSubjects = []string{"s.>", "t", "v"}
	_, err = c.API.JS.UpdateStream(t.Context(), jetstream.StreamConfig{
		Name: "S", Subjects: append(slices.Clone(subjects), "u", "v"), AllowMsgSchedules: true, AllowMsgTTL: true,
	})
	require.NoError(t, err)
	_, err = s.UpdateConsumer(t.Context(), wider)
	require.NoError(t, err)

	writes := c.writes(t)
	require.NoError(t, c.KeepUp(t.Context(), d))
	assert.ElementsMatch(t, []string{"s.>", "t", "u", "v"}, c.config(t).FilterSubjects)
	require.NoError(t, c.KeepUp(t.Context(), d))
	assert.Equal(t, 1, writes(), "once")
}

// scripted stands in for the API of a durable, under the prefix "FAKE.". After each
// write, another writer may change what was written.
type scripted struct {
	mu     sync.Mutex
	config map[string]any
	other  func(written map[string]any) map[string]any
	wrote  int
}

func (s *scripted) play(t *testing.T, c *Manager) {
	t.Helper()
	c.API.Prefix = "FAKE."
	answer := func(m *nats.Msg, change bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if change {
			var request struct {
				Config map[string]any `json:"config"`
			}
			if err := json.Unmarshal(m.Data, &request); err != nil {
				t.Error(err)
			}
			s.wrote++
			s.config = s.other(request.Config)
		}
		data, err := json.Marshal(map[string]any{"config": s.config})
		assert.NoError(t, err)
		assert.NoError(t, m.Respond(data))
	}
	for subject, change := range map[string]bool{
		"FAKE.CONSUMER.INFO.S.d": false, "FAKE.CONSUMER.CREATE.S.d": true, "FAKE.CONSUMER.CREATE.S.d.>": true,
	} {
		_, err := c.API.NC.Subscribe(subject, func(m *nats.Msg) { answer(m, change) })
		require.NoError(t, err)
	}
}

func TestChangeThatAnotherWriterUndoesIsMadeAgain(t *testing.T) {
	t.Parallel()
	c := manager(t)
	s := &scripted{config: map[string]any{"filter_subject": "s.a", "future": 1}}
	s.other = func(written map[string]any) map[string]any {
		if s.wrote == 1 { // it had read before the first write
			return map[string]any{"filter_subjects": []string{"s.a", "s.b"}, "future": 2}
		}
		return written
	}
	s.play(t, c)
	require.NoError(t, c.note(t, map[string]any{"x": "1"}))
	assert.Equal(t, 2, s.wrote)
	assert.Equal(t, map[string]any{
		"filter_subjects": []any{"s.a", "s.b"}, "future": 2.0, "metadata": map[string]any{"x": "1"},
	}, s.config, "on top of what the other one wrote")
}

func TestWritersThatWantDifferentThingsGiveUp(t *testing.T) {
	t.Parallel()
	c := manager(t)
	s := &scripted{config: map[string]any{"ack_wait": 1}}
	s.other = func(map[string]any) map[string]any { return map[string]any{"ack_wait": 1} }
	s.play(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	want := func(map[string]any) (map[string]any, error) {
		return map[string]any{"ack_wait": json.Number("2")}, nil
	}
	require.NoError(t, c.write(ctx, resource("S", "d"), nil, want))
	assert.Equal(t, maxWrites, s.wrote)
}

func TestNothingIsWrittenThatIsThere(t *testing.T) {
	t.Parallel()
	c := manager(t)
	s := &scripted{config: map[string]any{"metadata": map[string]any{"x": "1", "y": "2"}}, other: maps.Clone[map[string]any]}
	s.play(t, c)
	require.NoError(t, c.note(t, map[string]any{"x": "1"}))
	require.NoError(t, c.Note(t.Context(), "S", "d", func(notes map[string]any) map[string]any {
		assert.Equal(t, []string{"x", "y"}, slices.Sorted(maps.Keys(notes)))
		return nil
	}))
	assert.Zero(t, s.wrote)
}
