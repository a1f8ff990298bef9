package nemesis

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var cast = Cast{
	Servers: []string{"server-1", "server-2", "server-3"}, Workers: []string{"pub-1", "plain-1"}, Durables: []string{"plain"},
	Streams: []string{"FULL"},
}

func TestSameSeedGivesTheSamePlan(t *testing.T) {
	t.Parallel()
	plan := New(7, time.Minute, cast)
	assert.Equal(t, plan, New(7, time.Minute, cast))
	assert.NotEqual(t, plan, New(8, time.Minute, cast))
}

func TestPlanEndsInTime(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		for i, f := range New(seed, time.Minute, cast) {
			assert.Equal(t, i+1, f.N)
			assert.LessOrEqual(t, f.At+f.For, time.Minute)
			assert.NotEmpty(t, f.Target)
		}
	}
}

func TestLongPlanHasFaultsOfAllKinds(t *testing.T) {
	t.Parallel()
	cast := cast
	for _, old := range []bool{false, true} {
		cast.Old = old
		found := map[Kind]bool{}
		for _, f := range New(1, time.Hour, cast) {
			found[f.Kind] = true
		}
		assert.Equal(t, old, found[Downgrade], "there is an older program")
		delete(found, Downgrade)
		assert.Len(t, found, len(ofServers)+len(ofWorkers)+len(ofData)+len(ofStreams))
	}
}

func TestPlanOfSomeKinds(t *testing.T) {
	t.Parallel()
	plan := New(1, time.Minute, cast, "kill", "pause-two")
	require.NotEmpty(t, plan)
	for _, f := range plan {
		assert.Contains(t, []Kind{Kill, PauseTwo}, f.Kind)
	}
}

func TestOnlySomeFaultsOfAPlan(t *testing.T) {
	t.Parallel()
	plan := New(1, time.Minute, cast)
	assert.Equal(t, plan, Only(plan, nil))
	assert.Empty(t, Only(plan, []int{}))
	assert.Equal(t, "2,3", Numbers(Only(plan, []int{3, 2})))
}
