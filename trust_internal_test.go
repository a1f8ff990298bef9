package natty

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
)

// later returns t as two clocks would read that have gone on by different times.
func later(t time.Time, monotonic, wall time.Duration) time.Time {
	t = t.Add(monotonic)
	// package time has no way to say this: whole seconds of the wall clock stand above thirty bits of nanoseconds.
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
			tr := trust{span: span}
			tr.from.Store(&from)
			now := later(from, test.monotonic, test.wall)
			assert.Equal(t, test.left, tr.left(now))
			assert.Equal(t, test.left > 0, tr.holds(now))
		})
	}
}

// trusting runs f with a trust of 10 s that began at once, and counts how often it lapsed.
func trusting(t *testing.T, f func(t *testing.T, tr *trust, lapsed *atomic.Int32)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tr trust
		var lapsed atomic.Int32
		tr.begin(time.Now(), 10*time.Second, func() { tr.end(); lapsed.Add(1) })
		f(t, &tr, &lapsed)
		tr.end()
	})
}

// pass lets time go by, and what is due then be done.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestTrustLapsesByItselfAndOnce(t *testing.T) {
	trusting(t, func(t *testing.T, tr *trust, lapsed *atomic.Int32) {
		pass(10*time.Second - 1)
		assert.True(t, tr.holds(time.Now()))
		assert.Zero(t, lapsed.Load())
		pass(1)
		assert.False(t, tr.holds(time.Now()))
		pass(time.Hour)
		assert.EqualValues(t, 1, lapsed.Load())
	})
}

func TestTrustOfARequestThatTookLongCountsFromWhenItWasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tr trust
		var lapsed atomic.Int32
		sent := time.Now()
		pass(9 * time.Second)
		tr.begin(sent, 10*time.Second, func() { tr.end(); lapsed.Add(1) })
		pass(time.Second)
		assert.EqualValues(t, 1, lapsed.Load())
		tr = trust{} // one that is over before it begins
		tr.begin(sent, 10*time.Second, func() { tr.end(); lapsed.Add(1) })
		synctest.Wait()
		assert.EqualValues(t, 2, lapsed.Load())
	})
}

func TestTrustIsProlongedByRenewals(t *testing.T) {
	trusting(t, func(t *testing.T, tr *trust, lapsed *atomic.Int32) {
		for range 100 {
			sent := time.Now()
			pass(time.Second) // the answer
			tr.renew(sent)
			pass(7 * time.Second)
			assert.Equal(t, 2*time.Second, tr.left(time.Now()))
			assert.True(t, tr.holds(time.Now()))
		}
		assert.Zero(t, lapsed.Load())
		pass(2 * time.Second)
		assert.EqualValues(t, 1, lapsed.Load())
	})
}

func TestTrustThatEndedIsNotBegunAgain(t *testing.T) {
	trusting(t, func(t *testing.T, tr *trust, lapsed *atomic.Int32) {
		pass(9 * time.Second)
		sent := time.Now()
		pass(2 * time.Second) // the answer comes too late
		tr.renew(sent)
		assert.False(t, tr.holds(time.Now()))
		pass(time.Hour)
		assert.False(t, tr.holds(time.Now()))
		assert.NotZero(t, lapsed.Load())
	})
}

func TestTrustThatIsOverLapsesWithTheRenewalToo(t *testing.T) {
	t.Parallel()
	lapsed := 0
	tr := trust{span: time.Second, lapse: func() { lapsed++ }}
	from := time.Now().Add(-time.Minute) // a process that was paused, whose timers have not run yet
	tr.from.Store(&from)
	tr.renew(time.Now())
	assert.Equal(t, 1, lapsed)
	assert.Equal(t, from, *tr.from.Load())
}

// A bubble has one clock only, so this one takes its second.
func TestTrustNoticesAClockThatMoved(t *testing.T) {
	t.Parallel()
	var tr trust
	lapsed := make(chan struct{})
	began := time.Now()
	tr.begin(began, time.Hour, func() { tr.end(); close(lapsed) })
	ago := later(began, 0, -2*time.Hour) // so that it is two hours later now
	tr.from.Store(&ago)
	assert.False(t, tr.holds(time.Now()))
	select {
	case <-lapsed:
	case <-time.After(30 * time.Second):
		assert.Fail(t, "it did not lapse")
	}
}
