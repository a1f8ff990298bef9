// Package turns runs a go-director Looper so that it ends when a ctx does, whether its
// turns are seconds apart, others share it, or it was built by hand. It knows nothing of
// what a turn does.
package turns

import (
	"context"
	"errors"
	"time"

	"github.com/relistan/go-director"
)

const (
	// grace bounds the wait for the end of a Looper of an unknown type, which may
	// wait for ever for a reader of its done channel.
	grace = time.Second
	// longestTick is the longest time until a TimedLooper notices the end of its ctx.
	longestTick = 50 * time.Millisecond
)

// errOver ends a Looper from its function. Quit would not do: it sends to a channel
// that Loopers share which are copies of each other, and that one built by hand does not
// have.
var errOver = errors.New("the turns are over")

// Invalid says what is wrong with a Looper with which go-director would panic; "" if
// nothing is.
func Invalid(l director.Looper) (reason string) {
	switch l := l.(type) {
	case *director.FreeLooper:
		if l == nil {
			return "is a nil *FreeLooper; give one, or no Looper at all"
		}
	case *director.TimedLooper:
		switch {
		case l == nil:
			return "is a nil *TimedLooper; give one, or no Looper at all"
		case l.Interval <= 0:
			return "is a TimedLooper without an Interval; set one, or use a FreeLooper"
		}
	}
	return ""
}

// Run calls turn as l says, until l or ctx ends, and waits for that. A nil l has turns
// back to back. A Looper of an unknown type may not end: Run then returns a second or
// two after ctx has ended.
func Run(ctx context.Context, l director.Looper, turn func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		loop(ctx, l, turn)
	}()
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	if isOurs(l) {
		<-ended
		return
	}
	// Most end after the turn that finds ctx ended. A Quit that is not needed would wait
	// for ever, or end the next use of the Looper.
	if !endsSoon(ended) {
		l.Quit()
		endsSoon(ended)
	}
}

// isOurs reports a Looper that ends by itself when ctx does.
func isOurs(l director.Looper) bool {
	switch l.(type) {
	case nil, *director.FreeLooper, *director.TimedLooper:
		return true
	}
	return false
}

// loop calls turn as l says, until l or ctx ends. Of go-director's own Loopers it runs a
// copy, which shares the quit channel. The copy's done channel has room, since
// go-director blocks at its end until somebody reads that. The end is then passed on to
// the caller's.
func loop(ctx context.Context, l director.Looper, turn func()) {
	each := func() error {
		turn()
		if ctx.Err() != nil {
			return errOver
		}
		return nil
	}
	own := make(chan error, 1)
	switch l := l.(type) {
	case nil:
		for ctx.Err() == nil {
			turn()
		}
	case *director.FreeLooper:
		free := *l
		free.DoneChan = own
		free.Loop(each)
		tellDone(l.DoneChan, <-own)
	case *director.TimedLooper:
		timed := *l
		timed.DoneChan = own
		timed.Interval, each = ticks(ctx, l, turn)
		timed.Count = director.FOREVER // each counts
		timed.Loop(each)
		tellDone(l.DoneChan, <-own)
	default:
		l.Loop(each)
	}
}

// ticks divides the interval of l, so that the end of ctx is noticed between two turns.
// It returns the function for each tick, which calls turn when that is due.
func ticks(ctx context.Context, l *director.TimedLooper, turn func()) (tick time.Duration, each func() error) {
	parts := (l.Interval + longestTick - 1) / longestTick
	tick = l.Interval / parts
	due, left := time.Now().Add(l.Interval), l.Count
	if l.Immediate {
		due = time.Now()
	}
	return tick, func() error {
		if now := time.Now(); ctx.Err() == nil && !now.Before(due.Add(-tick/2)) {
			turn()
			// As a Ticker does, it skips the turns that a long one has missed, but one.
			if due = due.Add(l.Interval); time.Since(due) > l.Interval {
				due = time.Now()
			}
			if l.Count != director.FOREVER {
				left--
			}
			if l.Count != director.FOREVER && left <= 0 {
				return errOver
			}
		}
		if ctx.Err() != nil {
			return errOver
		}
		return nil
	}
}

// tellDone passes the end of a Looper on to whoever reads its done channel, now or
// later.
func tellDone(to chan error, err error) {
	if to == nil {
		return
	}
	if errors.Is(err, errOver) { // as after a Quit
		err = nil
	}
	select {
	case to <- err:
	default:
		go func() { to <- err }()
	}
}

func endsSoon(ended <-chan struct{}) bool {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-timer.C:
		return false
	}
}
