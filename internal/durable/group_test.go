package durable

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFiltersOfAGroupGrowAndAreReplacedOnDemandOnly(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		have    []any
		whole   bool
		asked   []string
		replace bool
		want    []any // nil: they stay
	}{
		"more":                        {[]any{"s.a"}, false, []string{"s.a", "s.b"}, false, []any{"s.a", "s.b"}},
		"fewer":                       {[]any{"s.a", "s.b"}, false, []string{"s.a"}, false, []any{"s.a", "s.b"}},
		"others":                      {[]any{"s.a"}, false, []string{"s.b"}, false, []any{"s.a", "s.b"}},
		"wider":                       {[]any{"s.a", "t"}, false, []string{"s.*"}, false, []any{"t", "s.*"}},
		"narrower":                    {[]any{"s.*"}, false, []string{"s.a"}, false, []any{"s.*"}},
		"none asked for":              {[]any{"s.a"}, false, nil, false, nil},
		"the durable has all":         {nil, false, []string{"s.a"}, false, nil},
		"it follows the stream":       {[]any{"s.>"}, true, []string{"s.a"}, false, nil},
		"everything, whole":           {[]any{"s.>"}, true, []string{">"}, true, nil},
		"replaced":                    {[]any{"s.a", "s.b"}, false, []string{"s.a"}, true, []any{"s.a"}},
		"replaced, followed before":   {[]any{"s.>"}, true, []string{"s.a"}, true, []any{"s.a"}},
		"replaced, all before":        {nil, false, []string{"s.a"}, true, []any{"s.a"}},
		"the same in another order":   {[]any{"s.b", "s.a"}, false, []string{"s.a", "s.b"}, false, []any{"s.b", "s.a"}},
		"replaced, none asked for":    {[]any{"s.a"}, false, nil, true, nil},
		"everything, some had before": {[]any{"s.a"}, false, []string{">"}, false, []any{">"}},
	} {
		have, want := map[string]any{}, map[string]any{}
		if test.have != nil {
			have["filter_subjects"] = test.have
		}
		if test.whole {
			have["metadata"] = map[string]any{metaWholeStream: "true"}
		}
		if test.asked != nil {
			want["filter_subjects"] = asList(test.asked)
		}
		cfg := Spec{Subjects: test.asked, ReplaceSubjects: test.replace}
		require.NoError(t, joinFilters(cfg, have, want), name)
		got, _ := want["filter_subjects"].([]any)
		assert.Equal(t, test.want, got, name)
		followed := test.whole && test.want != nil
		_, ended := want["metadata"]
		assert.Equal(t, followed, ended, "%s: it no longer follows its stream", name)
	}
}

func TestFiltersThatOverlapInPartAreRefused(t *testing.T) {
	t.Parallel()
	c := manager(t)
	c.stream(t, Spec{Subjects: []string{"s.a.*"}})
	_, err := c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"s.*.b"}})
	require.ErrorContains(t, err, `"s.a.*" and "s.*.b" overlap`)
	require.ErrorContains(t, err, "differs")
}

// An instance that restarts with fewer subjects must not make the others skip messages.
func TestDurableKeepsTheFiltersOfOtherInstances(t *testing.T) {
	t.Parallel()
	c := manager(t)
	c.stream(t, Spec{Subjects: []string{"s.a", "s.b"}})
	d, err := c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"s.a"}})
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"s.a", "s.b"}, d.Filters())
	assert.Equal(t, []string{"s.b"}, d.NotAsked([]string{"s.a"}))
	assert.Empty(t, d.NotAsked(nil))
	assert.Empty(t, d.NotAsked([]string{"s.>"}))
	assert.Empty(t, d.Lacks([]string{"s.a"}))
	assert.Equal(t, []string{"s.>"}, d.Lacks([]string{"s.>"}))

	d, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"s.a"}, ReplaceSubjects: true})
	require.NoError(t, err)
	assert.Equal(t, []string{"s.a"}, d.Filters())
}

func TestDurableOfTheWholeStreamStaysOneForAnInstanceThatAsksForLess(t *testing.T) {
	t.Parallel()
	c := manager(t)
	c.stream(t, Spec{})
	d, err := c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"s.a"}})
	require.NoError(t, err)
	assert.Empty(t, d.Filters())
	assert.Equal(t, []string{"s.>"}, d.NotAsked([]string{"s.a"}))
	assert.Empty(t, d.NotAsked([]string{"s.>"}), "all that the stream can store")
	d.stored = append(d.stored, Holders("S"))
	assert.Empty(t, d.NotAsked([]string{"s.>"}), "schedules are for nobody")
}

// The writer of a note has read the configuration before, and writes it back after.
func TestChangeThatANoteHasUndoneIsMadeAgain(t *testing.T) {
	t.Parallel()
	c := manager(t)
	s, d := c.stream(t, Spec{Subjects: []string{"s.a"}})
	undone := make(chan struct{})
	sub, err := c.API.NC.Subscribe("$JS.API.CONSUMER.CREATE.S.d", func(*nats.Msg) {
		go func() {
			defer close(undone)
			<-time.After(confirmAfter / 4) // EnsureDurable has looked once more
			_, err := s.UpdateConsumer(context.Background(), d.Config)
			assert.NoError(t, err)
		}()
	})
	require.NoError(t, err)
	require.NoError(t, sub.AutoUnsubscribe(1))
	d, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"s.a", "s.b"}})
	require.NoError(t, err)
	<-undone
	assert.ElementsMatch(t, []string{"s.a", "s.b"}, d.Filters())
}

// Permissions for one filter are for the subject of the request that ends with it.
func TestDurableWithOneFilterIsChangedWithThePermissionThatMadeIt(t *testing.T) {
	t.Parallel()
	c := manager(t)
	c.stream(t, Spec{Subjects: []string{"s.a.>"}})
	sub, err := c.API.NC.SubscribeSync("$JS.API.CONSUMER.CREATE.S.d.s.a.>")
	require.NoError(t, err)
	_, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"s.a.>"}, AckWait: 7 * time.Second})
	require.NoError(t, err)
	require.NoError(t, c.note(t, map[string]any{"x": "1"}))
	n, _, err := sub.Pending()
	require.NoError(t, err)
	assert.Equal(t, 2, n)
	now := c.config(t)
	assert.Equal(t, 7*time.Second, now.AckWait)
	assert.Equal(t, "s.a.>", now.FilterSubject)
}

func TestSettingsThatLoseMessagesAreRefusedOrPutRight(t *testing.T) {
	t.Parallel()
	c := manager(t)
	spec := Spec{Durable: "d", Subjects: []string{"s.a", "s.b"}, MaxDeliver: 3, AckWait: time.Second}
	s, d := c.stream(t, spec)
	assert.Empty(t, d.Strayed(spec))

	changed := d.Config
	changed.MaxDeliver, changed.FilterSubjects, changed.AckWait = 5, []string{"s.a"}, 2*time.Second
	_, err := s.UpdateConsumer(t.Context(), changed)
	require.NoError(t, err)
	require.NoError(t, c.Refresh(t.Context(), &d))
	assert.Contains(t, d.Strayed(spec), "max_deliver is 5")
	assert.Contains(t, d.Strayed(spec), "no longer receive s.b")
	require.NoError(t, c.PutRight(t.Context(), &d, spec))
	assert.Empty(t, d.Strayed(spec))
	assert.Equal(t, 2*time.Second, d.Config.AckWait, "the rest stays")

	changed = d.Config
	changed.HeadersOnly = true
	_, err = s.UpdateConsumer(t.Context(), changed)
	require.NoError(t, err)
	require.NoError(t, c.Refresh(t.Context(), &d))
	assert.Contains(t, d.Strayed(spec), "headers_only")
	require.ErrorContains(t, c.PutRight(t.Context(), &d, spec), "without their data")
	_, err = c.EnsureDurable(t.Context(), "S", spec)
	require.ErrorContains(t, err, "without their data")

	require.NoError(t, s.DeleteConsumer(t.Context(), "d"))
	require.ErrorIs(t, c.PutRight(t.Context(), &d, spec), jetstream.ErrConsumerNotFound, "it is made elsewhere")
}
