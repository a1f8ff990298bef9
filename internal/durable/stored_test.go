package durable

import (
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFilterThatNothingStoredMatchesIsRefused(t *testing.T) {
	t.Parallel()
	c := manager(t)
	js := c.API.JS
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>", "t"}})
	require.NoError(t, err)
	_, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"s.a", "z.>"}})
	require.ErrorIs(t, err, errNoMatch)
	require.ErrorContains(t, err, "s.> t")
	_, err = js.Consumer(t.Context(), "S", "d")
	require.ErrorIs(t, err, jetstream.ErrConsumerNotFound)

	_, err = js.Publish(t.Context(), "t", nil)
	require.NoError(t, err)
	_, err = js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	require.NoError(t, err)
	_, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"t"}})
	require.NoError(t, err, "there are messages left of a subject that the stream has lost")
}

func TestRefusedPublishedSubjectNamesItsStoredForm(t *testing.T) {
	t.Parallel()
	c := manager(t)
	js := c.API.JS
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.*", "plain"},
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "s.*", Destination: "kept.{{wildcard(1)}}.x"},
	})
	require.NoError(t, err)
	_, err = c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"s.a"}})
	require.ErrorContains(t, err, `"kept.a.x"`)
	_, err = js.Publish(t.Context(), "s.a", nil)
	require.NoError(t, err)
	d, err := c.EnsureDurable(t.Context(), "S", Spec{Durable: "d", Subjects: []string{"kept.a.x", "plain"}})
	require.NoError(t, err)
	assert.EqualValues(t, 1, d.Waiting)
}

// What cannot be known must not be refused.
func TestStoredSubjects(t *testing.T) {
	t.Parallel()
	transform := func(source, destination string) *jetstream.SubjectTransformConfig {
		return &jetstream.SubjectTransformConfig{Source: source, Destination: destination}
	}
	from := func(filter string, transforms ...jetstream.SubjectTransformConfig) *jetstream.StreamSource {
		return &jetstream.StreamSource{Name: "O", FilterSubject: filter, SubjectTransforms: transforms}
	}
	s := []string{"s.>"}
	for name, test := range map[string]struct {
		cfg jetstream.StreamConfig
		yes []string
		no  []string
	}{
		"plain":  {jetstream.StreamConfig{Subjects: s}, []string{"s.a", ">", "*.x"}, []string{"s", "t.>"}},
		"mirror": {jetstream.StreamConfig{Mirror: from("")}, []string{"any"}, nil},
		"mirror of a part": {
			jetstream.StreamConfig{Mirror: from("o.>")}, []string{"o.a"}, []string{"p"},
		},
		"source": {jetstream.StreamConfig{Subjects: s, Sources: []*jetstream.StreamSource{from("")}}, []string{"any"}, nil},
		"source of a part": {
			jetstream.StreamConfig{Subjects: s, Sources: []*jetstream.StreamSource{from("o.>")}},
			[]string{"o.a", "s.a"},
			[]string{"p"},
		},
		"source with transforms": {
			jetstream.StreamConfig{Sources: []*jetstream.StreamSource{from("", *transform("o.*", "x.$1"), *transform("p", ""))}},
			[]string{"x.a", "p"},
			[]string{"o.a", "x.a.b"},
		},
		"source with a transform of everything": {
			jetstream.StreamConfig{Sources: []*jetstream.StreamSource{from("", *transform(">", "x.>"))}},
			[]string{"x.a.b"},
			[]string{"o.a"},
		},
		"transform": {
			jetstream.StreamConfig{Subjects: []string{"s.*"}, SubjectTransform: transform("s.*", "t.$1")},
			[]string{"t.a", "t.>"},
			[]string{"s.a", "t.a.b"},
		},
		"transform of a part": {
			jetstream.StreamConfig{Subjects: s, SubjectTransform: transform("s.*", "t.$1")},
			[]string{"t.a", "s.a.b", "s.>"},
			[]string{"s.a"},
		},
		"transform with partitions": {
			jetstream.StreamConfig{Subjects: []string{"s.*"}, SubjectTransform: transform("s.*", "s.{{partition(8,1)}}")},
			[]string{"s.1"},
			[]string{"s.1.a"},
		},
		"transform into unknown tokens": {
			jetstream.StreamConfig{Subjects: s, SubjectTransform: transform("s.*", "t.{{split(1,-)}}.z")},
			[]string{"t.a.b.z"},
			[]string{"u"},
		},
		"transform of everything": {
			jetstream.StreamConfig{Subjects: s, SubjectTransform: transform(">", "all.>")},
			[]string{"all.s.a"},
			[]string{"s.a", "all.t"},
		},
	} {
		all := stored(test.cfg)
		for _, f := range test.yes {
			assert.True(t, len(all) == 0 || canMatch(test.cfg, all, f), "%s: %s in %v", name, f, all)
		}
		for _, f := range test.no {
			assert.False(t, len(all) == 0 || canMatch(test.cfg, all, f), "%s: %s in %v", name, f, all)
		}
	}
}
