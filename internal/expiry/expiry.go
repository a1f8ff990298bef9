// Package expiry tells an owner for how long it may rely on what a server granted. It
// only measures time: it sends nothing, and does not know what was granted.
package expiry

import (
	"sync/atomic"
	"time"
)

// Guard says for how long a process may take itself for the one that the server has
// chosen: the active instance of an Exclusive consumer, or the owner of a lease. The
// server's clock starts when the owner's request arrives. So it is safe to count from
// when the request was sent, once it is known to have arrived.
//
// Once over, a Guard is never resumed: the server may already have given ownership
// away. If that next owner is gone too, the server still accepts a former owner's
// requests for a while.
type Guard struct {
	From  atomic.Pointer[time.Time] // when the request was sent that counts
	Ended atomic.Bool
	span  time.Duration
	lapse func()
	timer *time.Timer
}

// checkInterval is how soon a Guard notices that a clock was set, or that the machine
// was suspended.
const checkInterval = time.Second

// Begin starts a Guard that lasts for span from a time on. It calls lapse when that is
// over, unless End was called before. Every later Renew calls lapse too.
func (g *Guard) Begin(from time.Time, span time.Duration, lapse func()) {
	g.span, g.lapse = span, lapse
	g.From.Store(&from)
	g.timer = time.AfterFunc(time.Hour, g.check)
	g.timer.Reset(min(g.Left(time.Now()), checkInterval))
}

// Renew is called when a request is known to have arrived. It counts from when that
// request was sent, unless the Guard is over: then it calls lapse.
func (g *Guard) Renew(sent time.Time) {
	if g.Holds(time.Now()) {
		g.From.Store(&sent)
	} else {
		g.lapse()
	}
}

// Holds reports whether the process may still rely on the grant.
func (g *Guard) Holds(now time.Time) bool { return !g.Ended.Load() && g.Left(now) > 0 }

// Left returns how long the Guard still lasts; zero or less once it is over.
func (g *Guard) Left(now time.Time) time.Duration { return g.span - between(*g.From.Load(), now) }

// End ends the Guard for good.
func (g *Guard) End() {
	g.Ended.Store(true)
	g.timer.Stop()
}

func (g *Guard) check() {
	if left := g.Left(time.Now()); left > 0 {
		g.timer.Reset(min(left, checkInterval))
	} else if !g.Ended.Load() {
		g.lapse()
	}
}

// Elapsed returns the time since t by the clock that shows more.
func Elapsed(t time.Time) time.Duration { return between(t, time.Now()) }

// between measures with both clocks and returns the larger result: the monotonic clock
// stands still while a machine is suspended, and the wall clock can be set.
func between(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}
