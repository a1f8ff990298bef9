// Package dispatch decides which message a handler runs next. It holds the messages
// that this process has received and not yet settled, reads what their reply subjects
// say, and batches acknowledgements. It sends nothing itself: it knows no connection
// and no consumer, so its tests need no server.
package dispatch

import (
	"iter"
	"sync"
	"time"
)

// Queue holds the messages that were received and not yet settled. Ready messages run
// in order of arrival. With an order by key, a message also waits while another one of
// its key is ready, running, or parked for its next attempt.
type Queue struct {
	// mu guards everything. Nothing blocks while it is held, and no callback runs.
	mu         sync.Mutex
	wake       sync.Cond // signaled for each ready message, and when closed
	ready      list
	running    list
	parked     list
	quarantine quarantine
	// blocked has an entry for each key of which a message is ready, running or parked.
	// It lists the later messages of that key. nil when messages are not ordered.
	blocked map[string]*list
	n       int           // messages held
	bytes   int           // their size
	perMsg  time.Duration // smoothed time a handler takes; 0 before the first
	begun   time.Time     // when a handler last began a message
	limit   limit
	latest  string // the reply subject of the latest message
	// repeatable is how many of the messages held even a first delivery may repeat.
	repeatable int
	complete   bool // no message comes before a held one is settled
	closed     bool
	returning  int           // calls of Settle whose messages are being returned
	idle       chan struct{} // closed when closed and nothing runs any more
}

// New returns an empty Queue. Messages of one key run one at a time if it is ordered.
func New(ordered bool) *Queue {
	q := &Queue{idle: make(chan struct{})}
	q.wake.L = &q.mu
	if ordered {
		q.blocked = map[string]*list{}
	}
	return q
}

// Arrival is what Push did with a message.
type Arrival int

// The kinds of arrivals.
const (
	Taken    Arrival = iota // the message will run
	Repeated                // it is held already; the caller drops this delivery
	Refused                 // the Queue is closed, or full; the caller returns the message
)

// Push takes a message. A message that is held already does not run twice: the server
// redelivers it when progress reports did not get through, and accepts an
// acknowledgement of the first delivery just as well. The redelivery is kept for the
// case that the handler itself returned the message to the server.
func (q *Queue) Push(m *Message) Arrival {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.Delivery.Attempt > 1 || q.repeatable > 0 {
		if first := q.findLocked(m); first != nil {
			first.redelivery = m
			return Repeated
		}
	}
	if q.closed || q.overLocked() {
		return Refused
	}
	q.takeLocked(m)
	return Taken
}

// Next waits for a message to run. It returns false when the Queue is closed.
func (q *Queue) Next() (*Message, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.runnableLocked() == 0 && !q.closed {
		q.wake.Wait()
	}
	if q.closed {
		return nil, false
	}
	return q.runLocked(), true
}

// Release notes that a message is about to be returned to the server. A later delivery
// of it is a new one.
func (q *Queue) Release(m *Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m.returned = true
}

// Finish notes that a message was handled, before its acknowledgement waits for others.
// A later delivery of it is a new one. If there was one already, it returns true.
func (q *Queue) Finish(m *Message) (repeated bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m.returned = m.redelivery == nil
	return !m.returned
}

// Settle removes a message that ran for took and was settled; byHandler says that the
// handler itself did that. It returns the messages to return to the server now. There
// are some only after Close: those that waited for this one, in the order of their key.
// If there are any, the caller calls Returned when it has returned them.
func (q *Queue) Settle(m *Message, took time.Duration, byHandler bool) (back []*Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopLocked(m, took)
	q.forgetLocked(m)
	again := byHandler && m.redelivery != nil
	if !q.closed {
		q.unblockLocked(m.Key)
		if again {
			q.takeLocked(m.redelivery)
		}
		return nil
	}
	if again {
		back = append(back, m.redelivery)
	}
	if l := q.blocked[m.Key]; l != nil {
		back = q.emptyLocked(back, l)
		delete(q.blocked, m.Key)
	}
	if len(back) > 0 {
		q.returning++
	}
	q.checkIdleLocked()
	return back
}

// Returned ends what Settle began.
func (q *Queue) Returned() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.returning--
	q.checkIdleLocked()
}

// Park keeps a message that failed for its next attempt, ahead of the others of its
// key. It returns false when the Queue is closed.
func (q *Queue) Park(m, next *Message, took, pause time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.stopLocked(m, took)
	next.redelivery = m.redelivery
	q.parked.push(next)
	next.retryTimer = time.AfterFunc(pause, func() { q.unpark(next) })
	return true
}

func (q *Queue) unpark(m *Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.retryTimer == nil {
		return // Close was faster
	}
	m.retryTimer = nil
	q.parked.remove(m)
	q.readyLocked(m)
}

// Close ends Next for everybody. It returns the messages to return to the server now:
// all that do not run, of each key in order, except those behind one that still runs.
func (q *Queue) Close() (back []*Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Broadcast()
	for m := q.parked.head; m != nil; m = m.next {
		m.retryTimer.Stop()
		m.retryTimer = nil
	}
	runs := map[string]bool{}
	for m := q.running.head; m != nil; m = m.next {
		runs[m.Key] = true
	}
	back = q.emptyLocked(back, &q.parked)
	back = q.emptyLocked(back, &q.ready)
	back = q.emptyLocked(back, &q.quarantine.doubtful)
	back = q.emptyLocked(back, &q.quarantine.waiting)
	for key, l := range q.blocked {
		if !runs[key] {
			back = q.emptyLocked(back, l)
			delete(q.blocked, key)
		}
	}
	q.checkIdleLocked()
	return back
}

// Idle returns a channel that is closed when the Queue is closed, nothing runs any
// more, and what Settle returned has been returned.
func (q *Queue) Idle() <-chan struct{} { return q.idle }

// Load returns how many messages and bytes are held, and how long a handler takes.
func (q *Queue) Load() (n, bytes int, perMsg time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n, q.bytes, q.perMsg
}

// Running returns how many messages handlers have.
func (q *Queue) Running() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running.n
}

// Blocking returns the key of the parked message that most others wait for.
func (q *Queue) Blocking() (key string, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for m := q.parked.head; m != nil; m = m.next {
		if l := q.blocked[m.Key]; l != nil && l.n >= waiting {
			key, waiting = m.Key, l.n
		}
	}
	return key, waiting
}

// Latest returns the reply subject of the latest message, "" before the first.
func (q *Queue) Latest() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.latest
}

// Replies returns the reply subjects of all messages of this epoch, running ones first.
func (q *Queue) Replies(epoch int64) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make([]string, 0, q.n)
	for m := range q.allLocked() {
		if m.Epoch == epoch {
			all = append(all, m.Reply())
		}
	}
	return all
}

// The methods that follow, and those of quarantine.go, expect q.mu to be held.

// takeLocked queues m for a handler, behind the others of its key.
func (q *Queue) takeLocked(m *Message) {
	q.n++
	q.bytes += m.Size
	q.latest = m.Reply()
	if q.blocked != nil {
		if l, busy := q.blocked[m.Key]; busy {
			l.push(m)
			return
		}
		q.blocked[m.Key] = &list{}
	}
	q.readyLocked(m)
}

// unblockLocked makes the next message of a key ready.
func (q *Queue) unblockLocked(key string) {
	if q.blocked == nil {
		return
	}
	l := q.blocked[key]
	if l.n == 0 {
		delete(q.blocked, key)
		return
	}
	m := l.head
	l.remove(m)
	q.readyLocked(m)
}

// stopLocked notes that m no longer runs.
func (q *Queue) stopLocked(m *Message, took time.Duration) {
	q.running.remove(m)
	q.perMsg = Smooth(q.perMsg, took)
	q.ranLocked(m)
}

// forgetLocked no longer counts m.
func (q *Queue) forgetLocked(m *Message) {
	q.n--
	q.bytes -= m.Size
	if m.repeatable {
		m.repeatable = false
		q.repeatable--
	}
}

// emptyLocked moves the messages of a list that do not run to back.
func (q *Queue) emptyLocked(back []*Message, l *list) []*Message {
	for l.n > 0 {
		m := l.head
		l.remove(m)
		q.forgetLocked(m)
		back = append(back, m)
	}
	return back
}

// checkIdleLocked closes idle when it is time.
func (q *Queue) checkIdleLocked() {
	if !q.closed || q.running.n > 0 || q.returning > 0 {
		return
	}
	select {
	case <-q.idle:
	default:
		close(q.idle)
	}
}

// allLocked iterates over everything that is held, of each key in order.
func (q *Queue) allLocked() iter.Seq[*Message] {
	return func(yield func(*Message) bool) {
		each := func(l *list) bool {
			for m := l.head; m != nil; m = m.next {
				if !yield(m) {
					return false
				}
			}
			return true
		}
		for _, l := range []*list{&q.running, &q.parked, &q.ready, &q.quarantine.doubtful, &q.quarantine.waiting} {
			if !each(l) {
				return
			}
		}
		for _, l := range q.blocked {
			if !each(l) {
				return
			}
		}
	}
}

// Smooth returns the moving average of the times that handlers take, after one more,
// which counts for an eighth. An average of zero means that this is the first.
func Smooth(average, took time.Duration) time.Duration {
	if average == 0 {
		average = took
	}
	return max(average+(took-average)/8, 1)
}
