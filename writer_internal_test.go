package natty

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestSilenceIsNotASlowNetwork(t *testing.T) {
	t.Parallel()
	var c silence
	c.init(WriterConfig{Timeout: time.Minute}, func() {})
	start := time.Now()
	at := start.Add
	c.ticked = start
	// Answers keep coming, to messages that were sent ten seconds before.
	now := time.Duration(0)
	for ; now < 10*time.Second; now += c.every {
		c.answered(at(now - 10*time.Second))
		c.look(at(now))
		assert.False(t, c.silent(at(now-9*time.Second), at(now)), "its turn comes")
	}
	// Then none.
	for end := now + c.limit; now < end; now += c.every {
		c.look(at(now))
	}
	assert.True(t, c.silent(at(now-9*time.Second), at(now)))
	assert.False(t, c.silent(at(now-c.limit/2), at(now)), "it was sent just now")
	// Answers again, but to later messages only.
	c.answered(at(now - c.limit/2))
	c.look(at(now))
	assert.True(t, c.silent(at(now-2*c.limit), at(now)))
	assert.False(t, c.silent(at(now-c.limit), at(now)))
	// Nothing waits longer than the timeout.
	assert.True(t, c.silent(at(now-time.Minute), at(now)))
	// A process that was stopped itself has not heard nothing.
	now += time.Hour
	c.newest = time.Time{}
	c.look(at(now))
	assert.False(t, c.silent(at(now-10*time.Second), at(now)))
}
