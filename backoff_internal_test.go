package natty

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestBackoffDoublesUpToItsMaximum(t *testing.T) {
	t.Parallel()
	b := Backoff{}.withDefaults()
	for n, want := range map[int]time.Duration{
		0: 250 * time.Millisecond, 1: 250 * time.Millisecond, 2: 500 * time.Millisecond, 3: time.Second,
		8: 32 * time.Second, 9: time.Minute, 10: time.Minute, 1 << 40: time.Minute,
	} {
		assert.Equal(t, want, b.base(n), "attempt %d", n)
	}
}

func TestBackoffIsRandomWithinAQuarter(t *testing.T) {
	t.Parallel()
	b := Backoff{Min: time.Second, Max: time.Minute}
	different := map[time.Duration]bool{}
	for range 1000 {
		d := b.delay(2)
		assert.GreaterOrEqual(t, d, 2*time.Second)
		assert.LessOrEqual(t, d, 2500*time.Millisecond)
		different[d] = true
	}
	assert.Greater(t, len(different), 900)
}

func TestBackoffDoesNotOverflow(t *testing.T) {
	t.Parallel()
	b := Backoff{Min: math.MaxInt64 / 3, Max: math.MaxInt64 / 2}
	for n := range 70 {
		assert.Positive(t, b.delay(n))
	}
}

func TestBackoffKeepsAMinimumAboveTheDefaultMaximum(t *testing.T) {
	t.Parallel()
	assert.Equal(t, Backoff{Min: time.Hour, Max: time.Hour}, Backoff{Min: time.Hour}.withDefaults())
}
