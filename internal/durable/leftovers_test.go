package durable

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWholeStreamWithSchedulesFiltersOnStoredSubjects(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		source, destination string
		want                []string
	}{
		"all":                  {"s.>", "t.>", []string{"t.>"}},
		"some":                 {"s.*", "t.$1", []string{"s.>", "t.*"}},
		"into its own subject": {"s.*", "s.x.$1", []string{"s.>"}},
	} {
		c := manager(t)
		_, err := c.API.JS.CreateStream(t.Context(), jetstream.StreamConfig{
			Name: "S", Subjects: []string{"s.>", Holders("S")}, AllowMsgSchedules: true,
			SubjectTransform: &jetstream.SubjectTransformConfig{Source: test.source, Destination: test.destination},
		})
		require.NoError(t, err)
		_, err = c.API.JS.Publish(t.Context(), "s.a", nil)
		require.NoError(t, err)
		d, err := c.EnsureDurable(t.Context(), "S", Spec{Durable: "d"})
		require.NoError(t, err, name)
		assert.ElementsMatch(t, test.want, d.Filters(), name)
		assert.EqualValues(t, 1, d.Waiting, name)
	}
}

// A durable without filters would receive them, too.
func TestWholeStreamWithSchedulesReceivesWhatIsLeftOfLostSubjects(t *testing.T) {
	t.Parallel()
	for name, running := range map[string]bool{"new": false, "running when schedules are switched on": true} {
		c := manager(t)
		js := c.API.JS
		_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"a.>", "b.>", "c"}})
		require.NoError(t, err)
		for _, s := range []string{"a.1", "b.1", "b.2.x", "c"} {
			_, err = js.Publish(t.Context(), s, nil)
			require.NoError(t, err)
		}
		var d Durable
		if running {
			d, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d"})
			require.NoError(t, err)
		}
		_, err = js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"a.>", Holders("S")}, AllowMsgSchedules: true})
		require.NoError(t, err)
		if running {
			require.NoError(t, c.Refresh(t.Context(), &d))
			require.NoError(t, c.KeepUp(t.Context(), d))
			require.NoError(t, c.Refresh(t.Context(), &d))
		} else {
			d, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d"})
			require.NoError(t, err)
		}
		assert.ElementsMatch(t, []string{"a.>", "b.>", "c"}, d.Filters(), name)
		assert.EqualValues(t, 4, d.Waiting, name)
		filters, changed := d.follow()
		assert.False(t, changed, "%s: %v", name, filters)
	}
}

// Whoever has caught up does not go back for what its filters missed.
func TestWholeStreamDurablesFollowATransformBeforeItIsGiven(t *testing.T) {
	t.Parallel()
	c := manager(t)
	_, err := c.API.JS.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.>", Holders("S")}, AllowMsgSchedules: true,
	})
	require.NoError(t, err)
	_, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d"})
	require.NoError(t, err)
	have, err := c.API.CurrentConfig(t.Context(), "STREAM.INFO.S")
	require.NoError(t, err)
	want := map[string]any{"subject_transform": map[string]any{"src": "s.>", "dest": "t.>"}}
	require.NoError(t, c.KeepAllUp(t.Context(), "S", have, want))
	assert.ElementsMatch(t, []string{"s.>", "t.>"}, c.config(t).FilterSubjects)
}

func TestHoldersAreKnownByTheirHeaders(t *testing.T) {
	t.Parallel()
	holder := nats.Header{jetstream.ScheduleHeader: {"@every 1s"}, jetstream.ScheduleTargetHeader: {"s.a"}}
	assert.True(t, IsHolder(&nats.Msg{Subject: HolderPrefix + "S.x", Header: holder}))
	assert.True(t, IsHolder(&nats.Msg{Subject: "copy." + HolderPrefix + "S.x", Header: holder}), "sourced with a transform")
	assert.False(t, IsHolder(&nats.Msg{Subject: "s.a", Header: nats.Header{"Nats-Scheduler": {"x"}, "Nats-Schedule-Next": {"purge"}}}))
	assert.True(t, KeepsOut("S", HolderPrefix+"S.x"))
	assert.False(t, KeepsOut("A", HolderPrefix+"S.x"), "of the stream's origin")
}

func TestFiltersOfOneConsumerDoNotOverlap(t *testing.T) {
	t.Parallel()
	own := Holders("S")
	for _, test := range []struct{ filters, want []string }{
		{[]string{"a", "b.*"}, []string{"a", "b.*"}},
		{[]string{"a.>", "a.b", "c"}, []string{"a.>", "c"}},
		{[]string{"a.*.x", "a.y.*"}, []string{"a.*.*"}},
		{[]string{"a.*.x", "a.y.>", "a.b.x"}, []string{"a.*.>"}},
		{[]string{"*.x", "y.*"}, []string{"*.*"}},
		{[]string{"*.*.*.x", "y.>"}, []string{"*.*.*.x", "y.>"}}, // *.> would receive holders
	} {
		assert.Equal(t, test.want, disjoint(test.filters, own), "%v", test.filters)
	}
}
