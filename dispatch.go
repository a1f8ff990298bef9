package natty

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// held is a message that the server counts as ours: waiting for a handler, or with one.
type held struct {
	deliveryCtx // the handler's ctx
	msg         *nats.Msg
	reply       string // msg.Reply, which is the handler's to change
	size        int
	prev, next  *held
	// let means that it was given back: when it comes again, that is a new delivery.
	let bool
	// again is a delivery of the same message that came while the handler had it.
	again *held
}

// heldList is a queue that gives up any of its members in constant time.
type heldList struct {
	head, tail *held
	n          int
}

func (l *heldList) push(h *held) {
	h.prev, h.next = l.tail, nil
	if l.tail == nil {
		l.head = h
	} else {
		l.tail.next = h
	}
	l.tail = h
	l.n++
}

func (l *heldList) remove(h *held) {
	if h.prev == nil {
		l.head = h.next
	} else {
		h.prev.next = h.next
	}
	if h.next == nil {
		l.tail = h.prev
	} else {
		h.next.prev = h.prev
	}
	h.prev, h.next = nil, nil
	l.n--
}

// find returns the member with a sequence, unless it was given back.
func (l *heldList) find(seq uint64) *held {
	for h := l.head; h != nil; h = h.next {
		if h.d.Sequence == seq && !h.let {
			return h
		}
	}
	return nil
}

// dispatch decides which message runs when. It holds what was received and not yet settled: ready messages
// in order of arrival, and those that handlers run with.
type dispatch struct {
	// mu guards everything. Nothing blocks while it is held, and no callback runs.
	mu      sync.Mutex
	wake    sync.Cond // signalled for each ready message, and when closed
	ready   heldList
	running heldList
	bytes   int           // of both
	perMsg  time.Duration // smoothed time a handler takes; 0 before the first
	closed  bool
	idle    chan struct{} // closed when closed and nothing runs any more
}

func newDispatch() *dispatch {
	d := &dispatch{idle: make(chan struct{})}
	d.wake.L = &d.mu
	return d
}

// arrival is what push did with a message.
type arrival int

const (
	taken    arrival = iota
	repeated         // held already: a second delivery of it, to be dropped
	refused          // closed: to be handed back
)

// push takes a message. One that is held already is not handled twice: the server delivers again when progress
// reports did not get through, and accepts a verdict on the first delivery just as well. It is kept for the case that
// the handler itself gave the message back.
func (d *dispatch) push(h *held) arrival {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.d.Attempt > 1 {
		if d.ready.find(h.d.Sequence) != nil {
			return repeated
		}
		if first := d.running.find(h.d.Sequence); first != nil {
			first.again = h
			return repeated
		}
	}
	if d.closed {
		return refused
	}
	d.takeLocked(h)
	return taken
}

// takeLocked queues h for a handler. d.mu must be held.
func (d *dispatch) takeLocked(h *held) {
	d.bytes += h.size
	d.ready.push(h)
	d.wake.Signal()
}

// letGo is called before a message is given back: from then on it can come again.
func (d *dispatch) letGo(h *held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h.let = true
}

// next waits for a message to handle; false when closed.
func (d *dispatch) next() (*held, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.ready.n == 0 && !d.closed {
		d.wake.Wait()
	}
	if d.closed {
		return nil, false
	}
	h := d.ready.head
	d.ready.remove(h)
	d.running.push(h)
	return h, true
}

// done takes off a message that was handled in took, and was settled; byHandler if the handler did that. It
// returns a delivery that has to be handed back, if any.
func (d *dispatch) done(h *held, took time.Duration, byHandler bool) (back *held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running.remove(h)
	d.bytes -= h.size
	if d.perMsg == 0 {
		d.perMsg = max(took, 1)
	} else {
		d.perMsg = max(d.perMsg+(took-d.perMsg)/8, 1)
	}
	if byHandler && h.again != nil {
		if d.closed {
			back = h.again
		} else {
			d.takeLocked(h.again)
		}
	}
	d.checkIdleLocked()
	return back
}

// close ends next for everybody, and returns the messages that no handler has begun.
func (d *dispatch) close() []*held {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.wake.Broadcast()
	var left []*held
	for d.ready.n > 0 {
		h := d.ready.head
		d.ready.remove(h)
		d.bytes -= h.size
		left = append(left, h)
	}
	d.checkIdleLocked()
	return left
}

// checkIdleLocked closes idle when it is time. d.mu must be held.
func (d *dispatch) checkIdleLocked() {
	if !d.closed || d.running.n > 0 {
		return
	}
	select {
	case <-d.idle:
	default:
		close(d.idle)
	}
}

// load returns how many messages and bytes are held, and how long a handler takes.
func (d *dispatch) load() (n, bytes int, perMsg time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ready.n + d.running.n, d.bytes, d.perMsg
}

// inHandlers returns how many handlers run.
func (d *dispatch) inHandlers() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running.n
}

// replies returns the reply subjects of all that is held, running handlers' first.
func (d *dispatch) replies() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]string, 0, d.running.n+d.ready.n)
	for _, l := range []*heldList{&d.running, &d.ready} {
		for h := l.head; h != nil; h = h.next {
			all = append(all, h.reply)
		}
	}
	return all
}
