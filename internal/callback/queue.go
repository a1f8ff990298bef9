package callback

import (
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Queue calls a user's callback for one value after the other, from a goroutine of its
// own: a callback that blocks or panics holds up nobody else. The goroutine runs while
// there are values. A nil Queue drops values silently.
type Queue[T any] struct {
	name string // of the callback, for the log
	call func(T)
	log  *slog.Logger

	// mu guards what follows.
	mu      sync.Mutex
	values  []T
	closed  bool          // nothing more is taken
	running bool          // a goroutine delivers values
	behind  bool          // a drop was logged, and the queue was not empty since
	dropped uint64        // values for which there was no room
	idle    chan struct{} // closed when Close is waiting and nothing is left to deliver
}

const (
	// queueSize is how many values wait for a slow callback.
	queueSize = 256
	// grace is how long Close waits. A callback that returns at all needs less.
	grace = time.Second
)

// New returns a Queue for call, or nil if call is nil. The log shows the callback's
// name.
func New[T any](name string, call func(T), log *slog.Logger) *Queue[T] {
	if call == nil {
		return nil
	}
	return &Queue[T]{name: name, call: call, log: log}
}

// Add queues v, unless the Queue is closed. It never blocks: it drops v if there is no
// room, and logs the first drop since the queue was last empty.
func (q *Queue[T]) Add(v T) {
	if q == nil {
		return
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	full := len(q.values) >= queueSize
	news := full && !q.behind
	start := !full && !q.running
	if full {
		q.behind = true
		q.dropped++
	} else {
		q.values = append(q.values, v)
		q.running = true
	}
	dropped := q.dropped
	q.mu.Unlock()
	if start {
		go Loop(q.step)
	}
	if news {
		q.log.Warn("natty: a callback is too slow, and is not told everything",
			"callback", q.name, "dropped", dropped)
	}
}

// Count returns how many values were dropped.
func (q *Queue[T]) Count() uint64 {
	if q == nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// Close waits until the callback has had the queued values, but not for long: the
// callback may never return.
func (q *Queue[T]) Close() {
	if q == nil {
		return
	}
	q.mu.Lock()
	if q.closed = true; !q.running {
		q.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	q.idle = idle
	q.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(grace):
	}
}

// step delivers a value. It returns false when there is none left.
func (q *Queue[T]) step() (more bool) {
	q.mu.Lock()
	if len(q.values) == 0 {
		q.running, q.behind, q.values = false, false, nil
		if q.idle != nil {
			close(q.idle)
			q.idle = nil
		}
		q.mu.Unlock()
		return false
	}
	v := q.values[0]
	var none T
	q.values[0] = none
	q.values = q.values[1:]
	q.mu.Unlock()
	q.deliver(v)
	return true
}

func (q *Queue[T]) deliver(v T) {
	Call(func() error { q.call(v); return nil }, func(stack []byte, err error) {
		if stack != nil {
			what := strings.TrimPrefix(err.Error(), "panic: ")
			q.log.Error("natty: a callback panicked",
				"callback", q.name, "panic", what, "stack", string(stack))
		}
	})
}
