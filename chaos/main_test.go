package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/chaos/check"
	"github.com/natty-go/natty/chaos/timeline"
)

// TestMain is also what servers and workers run: they are this test's own program.
func TestMain(m *testing.M) {
	if child() {
		return
	}
	os.Exit(m.Run())
}

// TestPromisesHoldWhileEverythingFails is a run with a fixed seed.
func TestPromisesHoldWhileEverythingFails(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute and a half")
	}
	s := settings{seed: 18, duration: time.Minute}
	if raceDetector { // everything is slow
		s.duration = 30 * time.Second
	}
	result, err := once(t.Context(), s, t.Logf)
	require.NoError(t, err)
	err = verdict(s, result, t.Logf)
	if err != nil {
		page := filepath.Join(os.TempDir(), "natty-chaos.html")
		require.NoError(t, os.WriteFile(page, timeline.Page("test", result.events, result.problems), 0o600))
		t.Log("the timeline is in", page)
	}
	assert.NoError(t, err)
}

func TestOptions(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-seed", "7", "-duration", "5m", "-only", "3,5", "-roles", "pub,plain", "-kinds", "kill"}, io.Discard)
	require.NoError(t, err)
	assert.Equal(t, "go run ./chaos -seed 7 -duration 5m0s -roles pub,plain -kinds kill -only 3,5", command(o.settings, nil))
	for _, wrong := range [][]string{{"more"}, {"-duration", "0s"}, {"-only", "x"}, {"-old", "/nobody/has/this"}, {"-old", "main.go", "-rivals"}} {
		_, err := parse(wrong, io.Discard)
		require.Error(t, err)
	}
}

func TestEachCheckCatchesAMutant(t *testing.T) {
	t.Parallel()
	caught := map[string]bool{}
	for _, m := range mutants {
		for _, by := range m.by {
			caught[by] = true
		}
	}
	for _, c := range check.All {
		assert.True(t, caught[c.Name], c.Name)
		delete(caught, c.Name)
	}
	assert.Empty(t, caught, "these checks are not there")
}

func TestReadmeHasEachMutant(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	for _, m := range mutants {
		assert.Contains(t, string(readme), "| `"+m.name+"` |")
	}
}
