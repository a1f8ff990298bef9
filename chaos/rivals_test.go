package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/chaos/rivals"
)

func TestRivalsAreChosenByName(t *testing.T) {
	t.Parallel()
	all, err := chooseRivals(nil)
	require.NoError(t, err)
	assert.Len(t, all, len(rivals.All))
	some, err := chooseRivals([]string{"nats.go", "natty"})
	require.NoError(t, err)
	require.Len(t, some, 2)
	assert.Equal(t, "nats.go", some[0].Name)
	_, err = chooseRivals([]string{"nats"})
	assert.ErrorContains(t, err, `no rival "nats"`)
}
