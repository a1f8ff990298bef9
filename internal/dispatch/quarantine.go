package dispatch

import "time"

// quarantine holds messages that may kill the process that handles them. They are tried
// one at a time. Who starts a trial notes it on the server first: if the process dies
// then, that message is to blame. So no other message that may be to blame runs beside
// it, neither a quarantined nor a doubtful one. All others do: a free handler does not
// wait for the end of a trial, nor a trial for the end of a long handler.
type quarantine struct {
	waiting  list
	running  bool // a handler has one of them
	doubtful list // ready ones, while there is any quarantined message
	beside   int  // how many doubtful messages handlers have
}

// readyLocked makes m ready to run.
func (q *Queue) readyLocked(m *Message) {
	z := &q.quarantine
	switch {
	case m.Quarantined:
		z.waiting.push(m)
		move(&q.ready, &z.doubtful, func(m *Message) bool { return m.Doubtful })
	case m.Doubtful && (z.running || z.waiting.n > 0):
		z.doubtful.push(m)
	default:
		q.ready.push(m)
	}
	q.wake.Signal()
}

// ranLocked notes that m no longer runs.
func (q *Queue) ranLocked(m *Message) {
	z := &q.quarantine
	switch {
	case m.Quarantined:
		z.running = false
	case m.Doubtful:
		z.beside--
	default:
		return
	}
	if !z.running && z.waiting.n == 0 {
		move(&z.doubtful, &q.ready, func(*Message) bool { return true })
	}
	q.wake.Broadcast()
}

// move moves messages from one list to the end of another.
func move(from, to *list, which func(*Message) bool) {
	for m := from.head; m != nil; {
		next := m.next
		if which(m) {
			from.remove(m)
			to.push(m)
		}
		m = next
	}
}

// trialLocked reports whether the next message to run is a quarantined one.
func (q *Queue) trialLocked() bool {
	z := &q.quarantine
	return z.waiting.n > 0 && !z.running && z.beside == 0
}

// runnableLocked returns how many messages may begin now.
func (q *Queue) runnableLocked() int {
	if q.trialLocked() {
		return q.ready.n + 1
	}
	return q.ready.n
}

// runLocked gives the next message to a handler; one must be runnable.
func (q *Queue) runLocked() *Message {
	from := &q.ready
	if q.trialLocked() {
		from, q.quarantine.running = &q.quarantine.waiting, true
	}
	m := from.head
	from.remove(m)
	if m.Doubtful && !m.Quarantined {
		q.quarantine.beside++
	}
	m.Begun = time.Now()
	q.begun = m.Begun
	q.running.push(m)
	return m
}
