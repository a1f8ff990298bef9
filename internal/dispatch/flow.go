package dispatch

import "time"

// Flow is what decides how many more messages to ask for.
type Flow struct {
	Held         int // all
	Running      int // handlers have them
	Ready        int // free handlers would begin them
	AheadBytes   int // of those that no handler has
	RestingBytes int // of those that no handler could begin: parked, and what waits for others
	// PerMsg is the smoothed time a handler takes; 0 before the first has ended.
	PerMsg time.Duration
	// SinceBegun is how long ago a handler last began a message; 0 if none has any. When
	// all handlers are busy, none of them was faster than that.
	SinceBegun time.Duration
}

// Flow returns what is held now, and how fast it is handled.
func (q *Queue) Flow() Flow {
	q.mu.Lock()
	defer q.mu.Unlock()
	f := Flow{
		Held: q.n, Running: q.running.n, Ready: q.runnableLocked(),
		AheadBytes: q.bytes - q.running.bytes, PerMsg: q.perMsg,
	}
	f.RestingBytes = f.AheadBytes - q.ready.bytes
	if q.running.n > 0 {
		f.SinceBegun = time.Since(q.begun)
	}
	return f
}

// Limit makes Push refuse a message while n messages are held, or while more than bytes
// are held ahead of handlers that are all busy. A Queue that keeps an order ignores it:
// a message that is returned comes again behind the others of its key.
func (q *Queue) Limit(n, bytes, handlers int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit = limit{n, bytes, handlers}
}

type limit struct{ n, bytes, handlers int }

// overLocked reports whether there is no room for another message.
func (q *Queue) overLocked() bool {
	l := q.limit
	if q.blocked != nil || l.n == 0 {
		return false
	}
	return q.n >= l.n || q.n >= l.handlers && q.bytes-q.running.bytes > l.bytes
}

// Excess takes the newest messages that no handler has begun, so that keep of the ready
// ones stay. It returns them, the oldest first, for the caller to return to the server.
// It takes none from a Queue that keeps an order.
func (q *Queue) Excess(keep int) (back []*Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.blocked != nil || q.closed {
		return nil
	}
	m := q.ready.head
	for range keep {
		if m == nil {
			return nil
		}
		m = m.next
	}
	for m != nil {
		next := m.next
		q.ready.remove(m)
		q.forgetLocked(m)
		back = append(back, m)
		m = next
	}
	return back
}
