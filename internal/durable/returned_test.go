package durable

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReturnedMessagesAreNotedForADay(t *testing.T) {
	t.Parallel()
	c := manager(t)
	_, d := c.stream(t, Spec{Subjects: []string{"s.a", "s.b"}})
	assert.Empty(t, d.Returned())
	require.NoError(t, c.NoteReturned(t.Context(), d, []string{"s.b"}))
	writes := c.writes(t)
	require.NoError(t, c.Refresh(t.Context(), &d))
	assert.Equal(t, []string{"s.b"}, d.Returned())
	require.NoError(t, c.NoteReturned(t.Context(), d, []string{"s.b"}))
	assert.Zero(t, writes(), "it is noted")
	require.NoError(t, c.NoteReturned(t.Context(), d, []string{"s.a"}))
	now, err := c.ReturnedNow(t.Context(), "S", "d")
	require.NoError(t, err)
	assert.Equal(t, []string{"s.a", "s.b"}, now, "another instance returns others")

	for note, want := range map[string][]string{
		"": nil, "x s.a": nil,
		fmt.Sprint(time.Now().Add(-23*time.Hour).Unix(), " s.a"): {"s.a"},
		fmt.Sprint(time.Now().Add(-25*time.Hour).Unix(), " s.a"): nil,
	} {
		d.Config.Metadata[metaReturned] = note
		assert.Equal(t, want, d.Returned(), "%q", note)
	}
}
