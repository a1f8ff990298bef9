// Package backoff has the pauses between attempts: exponential, with jitter, and cut
// short by a context. It knows nothing of what is attempted.
package backoff

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// Longest is what a longer pause, or another duration, counts as. natty and the server
// add it to the time of day in nanoseconds. One that overflows there means at once: a
// retry would follow the other, for ever.
const Longest = 10 * 365 * 24 * time.Hour

// Exp is a pause that doubles from Min to Max.
type Exp struct{ Min, Max time.Duration }

// Wait waits after the nth failure, counted from 1. It returns ctx's error if ctx ends
// first.
func (b Exp) Wait(ctx context.Context, n int) error { return Sleep(ctx, b.Delay(n)) }

// Delay is the pause after the nth failure: Base and up to a quarter more at random.
func (b Exp) Delay(n int) time.Duration {
	d := b.Base(n)
	return d + rand.N(min(d/4, math.MaxInt64-d)+1)
}

// Base is the pause without its random part. It doubles in a loop, because a shift by a
// large delivery count would overflow.
func (b Exp) Base(n int) time.Duration {
	d := b.Min
	for ; n > 1 && d < b.Max; n-- {
		if d > b.Max/2 {
			return b.Max
		}
		d *= 2
	}
	return min(d, b.Max)
}

// Sleep waits for d. It returns ctx's error if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
