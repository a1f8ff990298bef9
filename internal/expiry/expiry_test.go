package expiry

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
)

// later returns t after the two clocks have gone on by different times.
func later(t time.Time, monotonic, wall time.Duration) time.Time {
	t = t.Add(monotonic)
	// Package time has no function for this. The wall clock's whole seconds stand above
	// thirty bits of nanoseconds.
	*(*uint64)(unsafe.Pointer(&t)) += uint64((wall-monotonic)/time.Second) << 30
	return t
}

func TestLaterMovesTheTwoClocksApart(t *testing.T) {
	t.Parallel()
	now := time.Now()
	moved := later(now, time.Minute, time.Hour)
	assert.Equal(t, time.Minute, moved.Sub(now))
	assert.Equal(t, time.Hour, time.Duration(moved.UnixNano()-now.UnixNano()))
	moved = later(now, time.Minute, -time.Hour)
	assert.Equal(t, time.Minute, moved.Sub(now))
	assert.Equal(t, -time.Hour, time.Duration(moved.UnixNano()-now.UnixNano()))
}

func TestTrustLastsByTheClockThatIsAhead(t *testing.T) {
	t.Parallel()
	const span = 10 * time.Second
	for name, test := range map[string]struct {
		monotonic, wall, left time.Duration
	}{
		"at once":                           {0, 0, span},
		"both":                              {3 * time.Second, 3 * time.Second, 7 * time.Second},
		"to the end":                        {span, span, 0},
		"machine suspended":                 {time.Second, 8 * time.Second, 2 * time.Second},
		"machine suspended for too long":    {time.Second, time.Minute, -50 * time.Second},
		"clock set ahead":                   {0, time.Hour, span - time.Hour},
		"clock set back":                    {4 * time.Second, -time.Hour, 6 * time.Second},
		"clock set back, and it is too old": {11 * time.Second, 0, -time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := time.Now()
			g := Guard{span: span}
			g.From.Store(&from)
			now := later(from, test.monotonic, test.wall)
			assert.Equal(t, test.left, g.Left(now))
			assert.Equal(t, test.left > 0, g.Holds(now))
		})
	}
}

// trusting runs f with a Guard of 10 s that has just begun, and counts its lapses.
func trusting(t *testing.T, f func(t *testing.T, g *Guard, lapsed *atomic.Int32)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g Guard
		var lapsed atomic.Int32
		g.Begin(time.Now(), 10*time.Second, func() { g.End(); lapsed.Add(1) })
		f(t, &g, &lapsed)
		g.End()
	})
}

// pass lets time go by, and lets due timers run.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestTrustLapsesByItselfAndOnce(t *testing.T) {
	trusting(t, func(t *testing.T, g *Guard, lapsed *atomic.Int32) {
		pass(10*time.Second - 1)
		assert.True(t, g.Holds(time.Now()))
		assert.Zero(t, lapsed.Load())
		pass(1)
		assert.False(t, g.Holds(time.Now()))
		pass(time.Hour)
		assert.EqualValues(t, 1, lapsed.Load())
	})
}

func TestTrustLastsFromWhenTheRequestWasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lapsed := make(chan time.Time, 1)
		var g Guard
		start := time.Now()
		g.Begin(start.Add(-3*time.Second), 8*time.Second, func() { g.End(); lapsed <- time.Now() })
		assert.True(t, g.Holds(time.Now()))
		time.Sleep(4 * time.Second) // fake time
		g.Renew(start.Add(time.Second))
		time.Sleep(2 * time.Second) // fake time
		assert.True(t, g.Holds(time.Now()))
		assert.Equal(t, start.Add(9*time.Second), <-lapsed)
		assert.False(t, g.Holds(time.Now()))
	})
}

func TestTrustOfARequestThatTookLongCountsFromWhenItWasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g Guard
		var lapsed atomic.Int32
		sent := time.Now()
		pass(9 * time.Second)
		g.Begin(sent, 10*time.Second, func() { g.End(); lapsed.Add(1) })
		pass(time.Second)
		assert.EqualValues(t, 1, lapsed.Load())
		g = Guard{} // one that is over before it begins
		g.Begin(sent, 10*time.Second, func() { g.End(); lapsed.Add(1) })
		synctest.Wait()
		assert.EqualValues(t, 2, lapsed.Load())
	})
}

func TestTrustIsProlongedByRenewals(t *testing.T) {
	trusting(t, func(t *testing.T, g *Guard, lapsed *atomic.Int32) {
		for range 100 {
			sent := time.Now()
			pass(time.Second) // the answer
			g.Renew(sent)
			pass(7 * time.Second)
			assert.Equal(t, 2*time.Second, g.Left(time.Now()))
			assert.True(t, g.Holds(time.Now()))
		}
		assert.Zero(t, lapsed.Load())
		pass(2 * time.Second)
		assert.EqualValues(t, 1, lapsed.Load())
	})
}

func TestTrustThatEndedIsNotBegunAgain(t *testing.T) {
	trusting(t, func(t *testing.T, g *Guard, lapsed *atomic.Int32) {
		pass(9 * time.Second)
		sent := time.Now()
		pass(2 * time.Second) // the answer comes too late
		g.Renew(sent)
		assert.False(t, g.Holds(time.Now()))
		pass(time.Hour)
		assert.False(t, g.Holds(time.Now()))
		assert.NotZero(t, lapsed.Load())
	})
}

func TestTrustThatIsOverLapsesWithTheRenewalToo(t *testing.T) {
	t.Parallel()
	lapsed := 0
	g := Guard{span: time.Second, lapse: func() { lapsed++ }}
	from := time.Now().Add(-time.Minute) // a process that was paused, whose timers have not run yet
	g.From.Store(&from)
	g.Renew(time.Now())
	assert.Equal(t, 1, lapsed)
	assert.Equal(t, from, *g.From.Load())
}

func TestElapsedTakesTheClockThatSaysMore(t *testing.T) {
	t.Parallel()
	assert.GreaterOrEqual(t, Elapsed(time.Now().Add(-time.Minute)), time.Minute)
	wall := time.Now().Round(0) // without a monotonic reading
	assert.GreaterOrEqual(t, Elapsed(wall.Add(-time.Minute)), time.Minute)
	suspended := later(time.Now(), -time.Second, -time.Minute)
	assert.GreaterOrEqual(t, Elapsed(suspended), time.Minute)
	setBack := later(time.Now(), -time.Minute, time.Hour)
	assert.GreaterOrEqual(t, Elapsed(setBack), time.Minute)
}

// A synctest bubble has one clock only, so this test takes a real second.
func TestTrustNoticesAClockThatMoved(t *testing.T) {
	t.Parallel()
	var g Guard
	lapsed := make(chan struct{})
	began := time.Now()
	g.Begin(began, time.Hour, func() { g.End(); close(lapsed) })
	ago := later(began, 0, -2*time.Hour) // so that it is two hours later now
	g.From.Store(&ago)
	assert.False(t, g.Holds(time.Now()))
	select {
	case <-lapsed:
	case <-time.After(30 * time.Second):
		assert.Fail(t, "it did not lapse")
	}
}
