package natty

import (
	"math"
	"math/rand/v2"
	"time"
)

// Backoff is the pause before a failed message is tried again: after the nth
// failure d = min(Max, Min·2^(n-1)), and the wait is random between d and
// 1.25·d so that messages that failed together do not come back together. The zero
// value means 250ms and one minute.
type Backoff struct {
	Min time.Duration `json:"backoff_min,omitempty"`
	Max time.Duration `json:"backoff_max,omitempty"`
}

const (
	defaultBackoffMin = 250 * time.Millisecond
	defaultBackoffMax = time.Minute
)

func (b Backoff) withDefaults() Backoff {
	if b.Min == 0 {
		b.Min = defaultBackoffMin
	}
	if b.Max == 0 {
		b.Max = max(defaultBackoffMax, b.Min)
	}
	return b
}

// delay is the wait after the nth failure, n counted from 1.
func (b Backoff) delay(n int) time.Duration {
	d := b.base(n)
	return d + rand.N(min(d/4, math.MaxInt64-d-1)+1)
}

// base is the wait without its random part. It doubles step by step instead of
// shifting, because a shift by a large delivery count overflows.
func (b Backoff) base(n int) time.Duration {
	d := b.Min
	for ; n > 1 && d < b.Max; n-- {
		if d > b.Max/2 {
			return b.Max
		}
		d *= 2
	}
	return min(d, b.Max)
}
