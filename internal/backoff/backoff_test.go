package backoff

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBackoffDoublesUpToItsMaximum(t *testing.T) {
	t.Parallel()
	b := Exp{250 * time.Millisecond, time.Minute}
	for n, want := range map[int]time.Duration{
		0: 250 * time.Millisecond, 1: 250 * time.Millisecond, 2: 500 * time.Millisecond, 3: time.Second,
		8: 32 * time.Second, 9: time.Minute, 10: time.Minute, 1 << 40: time.Minute,
	} {
		assert.Equal(t, want, b.Base(n), "attempt %d", n)
	}
}

func TestBackoffIsRandomWithinAQuarter(t *testing.T) {
	t.Parallel()
	b := Exp{Min: time.Second, Max: time.Minute}
	different := map[time.Duration]bool{}
	for range 1000 {
		d := b.Delay(2)
		assert.GreaterOrEqual(t, d, 2*time.Second)
		assert.LessOrEqual(t, d, 2500*time.Millisecond)
		different[d] = true
	}
	assert.Greater(t, len(different), 900)
}

func TestBackoffDoesNotOverflow(t *testing.T) {
	t.Parallel()
	b := Exp{Min: math.MaxInt64 / 3, Max: math.MaxInt64 / 2}
	for n := range 70 {
		assert.Positive(t, b.Delay(n))
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := Exp{Min: time.Second, Max: time.Minute}
		start := time.Now()
		require.NoError(t, b.Wait(t.Context(), 2))
		assert.WithinRange(t, time.Now(), start.Add(2*time.Second), start.Add(2500*time.Millisecond))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		require.ErrorIs(t, b.Wait(ctx, 9), context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(start))
	})
}
