package incident

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTroubleIsNewsOnceUntilItIsOver(t *testing.T) {
	t.Parallel()
	var l Log
	assert.True(t, l.Open("pull"))
	assert.False(t, l.Open("pull"))
	assert.True(t, l.Open("filters"), "another kind is news")
	assert.False(t, l.Open("pull"), "also after another kind")
	assert.True(t, l.Resolve("pull"))
	assert.False(t, l.Resolve("pull"))
	assert.True(t, l.Open("pull"), "it is news again after it was over")
	assert.False(t, l.Open("filters"))
	assert.True(t, l.ResolveAll())
	assert.False(t, l.ResolveAll())
	assert.True(t, l.Open("filters"))
}
