package durable

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLostMessagesAreNotedUntilTheyMustHaveComeAgain(t *testing.T) {
	t.Parallel()
	c := manager(t)
	_, d := c.stream(t, Spec{Subjects: []string{"s.a"}})
	require.NoError(t, c.Refresh(t.Context(), &d))
	assert.Zero(t, d.LostFor())
	require.NoError(t, c.NoteLost(t.Context(), d, time.Minute))
	writes, noted := c.writes(t), d.Read
	require.NoError(t, c.NoteLost(t.Context(), d, time.Second))
	assert.Zero(t, writes(), "others come later")
	require.NoError(t, c.Refresh(t.Context(), &d))
	assert.WithinDuration(t, noted.Add(time.Minute), d.Read.Add(d.LostFor()), time.Millisecond)

	d.Read = noted.Add(2 * time.Minute)
	assert.Zero(t, d.LostFor())
	d.Config.Metadata[metaLost] = "x"
	assert.Zero(t, d.LostFor())
}
