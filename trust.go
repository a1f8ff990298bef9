package natty

import (
	"sync/atomic"
	"time"
)

// trust is how long a process may take itself for the one that the server has chosen: the active instance of an Exclusive
// consumer, or the owner of a lease. The server's clock starts when a request of the owner comes in, so it is safe to count from
// when the request was sent, once it is known to have come in. What ended is not begun again: the server then might have
// given away what was lost, and be without an owner by now, where it takes the requests of a former one for a while as if
// nothing had happened.
type trust struct {
	span  time.Duration
	from  atomic.Pointer[time.Time]
	ended atomic.Bool
	lapse func()
	timer *time.Timer
}

// trustCheck is how often a clock that was moved, or stood still while the machine did, is noticed.
const trustCheck = time.Second

func (t *trust) begin(from time.Time, span time.Duration, lapse func()) {
	t.span, t.lapse = span, lapse
	t.from.Store(&from)
	t.timer = time.AfterFunc(time.Hour, t.check)
	t.timer.Reset(min(t.left(time.Now()), trustCheck))
}

func (t *trust) end() {
	t.ended.Store(true)
	t.timer.Stop()
}

// left is how long it lasts. The greater of the elapsed times counts, by the monotonic clock and by the other one: the
// first stands still while a machine is suspended, the second can be set.
func (t *trust) left(now time.Time) time.Duration {
	from := t.from.Load()
	return t.span - max(now.Sub(*from), time.Duration(now.UnixNano()-from.UnixNano()))
}

func (t *trust) holds(now time.Time) bool { return !t.ended.Load() && t.left(now) > 0 }

// renew is called when a request that was sent at a time is known to have come in.
func (t *trust) renew(sent time.Time) {
	if t.holds(time.Now()) {
		t.from.Store(&sent)
	} else {
		t.lapse()
	}
}

func (t *trust) check() {
	if left := t.left(time.Now()); left > 0 {
		t.timer.Reset(min(left, trustCheck))
	} else if !t.ended.Load() {
		t.lapse()
	}
}
