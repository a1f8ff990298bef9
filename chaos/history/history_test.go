package history

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLogIsRead(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	log := NewLog(&file, "pub-1", 2)
	log.Add(Event{At: 2, What: Sent, ID: "b"})
	log.Add(Event{At: 1, What: Sampled, Sample: &Sample{Goroutines: 3}})
	file.WriteString(`{"at":3,"who":"pub-1","wh`) // the process was killed
	name := filepath.Join(t.TempDir(), "pub-1.jsonl")
	require.NoError(t, os.WriteFile(name, file.Bytes(), 0o600))
	events, err := Read(name)
	require.NoError(t, err)
	assert.Equal(t, []Event{
		{At: 1, Who: "pub-1", Life: 2, What: Sampled, Sample: &Sample{Goroutines: 3}},
		{At: 2, Who: "pub-1", Life: 2, What: Sent, ID: "b"},
	}, events)
}

func TestTimesOfBothClocksAgree(t *testing.T) {
	t.Parallel()
	before := Now()
	at := FromWall(time.Now())
	assert.InDelta(t, before, at, float64(time.Second))
}
