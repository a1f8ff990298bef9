package natty

import (
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// reports brings values to a callback of the user's from a goroutine of its own, one after the other, so that one that blocks
// or panics holds up nothing. nil has no callback.
type reports[T any] struct {
	name  string // of the callback, for the log
	tell  func(T)
	log   *slog.Logger
	queue chan T
	quit  chan struct{}
	done  chan struct{}
	// dropped counts what found no room, behind it is whether that was so since the queue was last empty.
	dropped atomic.Uint64
	behind  atomic.Bool
}

// reportsQueue is how much waits for a slow callback.
const reportsQueue = 256

func newReports[T any](name string, tell func(T), log *slog.Logger) *reports[T] {
	if tell == nil {
		return nil
	}
	r := &reports[T]{
		name: name, tell: tell, log: log,
		queue: make(chan T, reportsQueue), quit: make(chan struct{}), done: make(chan struct{}),
	}
	go r.run()
	return r
}

// run delivers until close, and then what is queued.
func (r *reports[T]) run() {
	ended := false
	defer func() {
		if ended {
			close(r.done)
		} else { // the callback ended its goroutine
			go r.run()
		}
	}()
	for {
		select {
		case v := <-r.queue:
			r.deliver(v)
			continue
		default:
			r.behind.Store(false)
		}
		select {
		case v := <-r.queue:
			r.deliver(v)
		case <-r.quit:
			if len(r.queue) == 0 {
				ended = true
				return
			}
		}
	}
}

func (r *reports[T]) deliver(v T) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("natty: a callback panicked", "callback", r.name, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	r.tell(v)
}

// add never blocks. What finds no room is dropped, of which the first is logged.
func (r *reports[T]) add(v T) {
	if r == nil {
		return
	}
	select {
	case r.queue <- v:
	default:
		n := r.dropped.Add(1)
		if !r.behind.Swap(true) {
			r.log.Warn("natty: a callback is too slow, and is not told everything", "callback", r.name, "dropped", n)
		}
	}
}

// count is how many were dropped.
func (r *reports[T]) count() uint64 {
	if r == nil {
		return 0
	}
	return r.dropped.Load()
}

// close delivers what is queued, and waits for that as long as a callback that returns can need.
func (r *reports[T]) close() {
	if r == nil {
		return
	}
	close(r.quit)
	select {
	case <-r.done:
	case <-time.After(endGrace):
	}
}
