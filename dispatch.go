package natty

import (
	"sync"
	"time"
)

// dispatch decides which message runs when. It holds what was received and not yet settled: ready messages
// in order of arrival, those that handlers run with, and with an order by key those that wait: behind another one of
// their key, or for their next attempt.
type dispatch struct {
	// mu guards everything. Nothing blocks while it is held, and no callback runs.
	mu      sync.Mutex
	wake    sync.Cond // signalled for each ready message, and when closed
	ready   heldList
	running heldList
	resting heldList
	doubt   doubt
	// behind holds, for each key of which a message is ready, running or resting, those that come after it. nil
	// when messages are not ordered.
	behind map[string]*heldList
	n      int           // of all that is held
	bytes  int           // and its size
	perMsg time.Duration // smoothed time a handler takes; 0 before the first
	last   string        // the reply subject of the latest message
	// suspicious means that any delivery may be of a message that is held, whatever its count says.
	suspicious bool
	closed     bool
	leaving    int           // calls of done whose messages are being handed back
	idle       chan struct{} // closed when closed and nothing runs any more
}

func newDispatch(ordered bool) *dispatch {
	d := &dispatch{idle: make(chan struct{})}
	d.wake.L = &d.mu
	if ordered {
		d.behind = map[string]*heldList{}
	}
	return d
}

// all calls f for everything that is held, of each key in order.
func (d *dispatch) allLocked(f func(*held) (more bool)) {
	each := func(l *heldList) bool {
		for h := l.head; h != nil; h = h.next {
			if !f(h) {
				return false
			}
		}
		return true
	}
	if !each(&d.running) || !each(&d.resting) || !each(&d.ready) || !each(&d.doubt.waiting) {
		return
	}
	for _, l := range d.behind {
		if !each(l) {
			return
		}
	}
}

// findLocked returns what is held of the same message, unless it was given back.
func (d *dispatch) findLocked(like *held) (found *held) {
	d.allLocked(func(h *held) bool {
		if h.d.Sequence == like.d.Sequence && h.epoch == like.epoch && !h.let {
			found = h
		}
		return found == nil
	})
	return found
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
	if h.d.Attempt > 1 || d.suspicious {
		if first := d.findLocked(h); first != nil {
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

// takeLocked queues h for a handler, behind those of its key. d.mu must be held.
func (d *dispatch) takeLocked(h *held) {
	d.n++
	d.bytes += h.size
	d.last = h.sent.reply
	if d.behind != nil {
		if l, busy := d.behind[h.key]; busy {
			l.push(h)
			return
		}
		d.behind[h.key] = &heldList{}
	}
	d.readyLocked(h)
}

// followLocked lets the next message of a key run, after one has left. d.mu must be held.
func (d *dispatch) followLocked(key string) {
	if d.behind == nil {
		return
	}
	l := d.behind[key]
	if l.n == 0 {
		delete(d.behind, key)
		return
	}
	h := l.head
	l.remove(h)
	d.readyLocked(h)
}

// nextBatch waits for a message, and then until there are size of them or wait is over; false when closed. A doubtful
// message is a batch of its own.
func (d *dispatch) nextBatch(size int, wait time.Duration) ([]*held, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.beginnableLocked() == 0 && !d.closed {
		d.wake.Wait()
	}
	over := d.ready.n >= size || d.doubt.waiting.n > 0
	if !over && !d.closed {
		timer := time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			over = true
			d.wake.Broadcast()
		})
		defer timer.Stop()
		for d.ready.n < size && d.doubt.waiting.n == 0 && !d.closed && !over {
			d.wake.Wait()
		}
	}
	if d.closed {
		return nil, false
	}
	batch := make([]*held, min(size, d.beginnableLocked())) // none, if another worker was faster
	for i := range batch {
		batch[i] = d.beginLocked()
	}
	return batch, true
}

// letGo is called before a message is given back: from then on it can come again.
func (d *dispatch) letGo(h *held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h.let = true
}

// ended is called when a message was handled, before its acknowledgement waits for others: from then on it can come again,
// unless it has done so already.
func (d *dispatch) ended(h *held) (repeated bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h.let = h.again == nil
	return !h.let
}

// next waits for a message to handle; false when closed.
func (d *dispatch) next() (*held, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.beginnableLocked() == 0 && !d.closed {
		d.wake.Wait()
	}
	if d.closed {
		return nil, false
	}
	return d.beginLocked(), true
}

// done takes off a message that was handled in took, and was settled; byHandler if the handler did that. It
// returns what has to be handed back now: at the end, those that had to wait for this one, so that the order of
// their key is kept. After handing anything back the caller calls handedBack.
func (d *dispatch) done(h *held, took time.Duration, byHandler bool) (back []*held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running.remove(h)
	d.offLocked(h)
	d.measureLocked(took)
	d.triedLocked(h)
	again := byHandler && h.again != nil
	if d.closed {
		if again {
			back = append(back, h.again)
		}
		if l := d.behind[h.key]; l != nil {
			back = d.emptyLocked(back, l)
			delete(d.behind, h.key)
		}
		if len(back) > 0 {
			d.leaving++
		}
	} else {
		d.followLocked(h.key)
		if again {
			d.takeLocked(h.again)
		}
	}
	d.checkIdleLocked()
	return back
}

// handedBack ends what done began.
func (d *dispatch) handedBack() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leaving--
	d.checkIdleLocked()
}

func (d *dispatch) offLocked(h *held) {
	d.n--
	d.bytes -= h.size
}

func (d *dispatch) measureLocked(took time.Duration) {
	if d.perMsg == 0 {
		d.perMsg = max(took, 1)
	} else {
		d.perMsg = max(d.perMsg+(took-d.perMsg)/8, 1)
	}
}

// restFor keeps a message that failed for its next attempt, ahead of those of its key. It refuses at the end.
func (d *dispatch) restFor(h *held, took, pause time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.running.remove(h)
	d.resting.push(h)
	d.measureLocked(took)
	d.triedLocked(h)
	h.rest = time.AfterFunc(pause, func() { d.rested(h) })
	return true
}

func (d *dispatch) rested(h *held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.rest == nil {
		return // handed back meanwhile
	}
	h.rest = nil
	d.resting.remove(h)
	d.readyLocked(h)
}

// close ends next for everybody, and returns the messages to hand back now: those that no handler has begun, of
// each key in order, except for those behind one that still runs.
func (d *dispatch) close() (back []*held) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.wake.Broadcast()
	for h := d.resting.head; h != nil; h = h.next {
		h.rest.Stop()
		h.rest = nil
	}
	runs := map[string]bool{}
	for h := d.running.head; h != nil; h = h.next {
		runs[h.key] = true
	}
	back = d.emptyLocked(back, &d.resting)
	back = d.emptyLocked(back, &d.ready)
	back = d.emptyLocked(back, &d.doubt.waiting)
	for key, l := range d.behind {
		if !runs[key] {
			back = d.emptyLocked(back, l)
			delete(d.behind, key)
		}
	}
	d.checkIdleLocked()
	return back
}

// emptyLocked moves the members of a list that is not the handlers' to back. d.mu must be held.
func (d *dispatch) emptyLocked(back []*held, l *heldList) []*held {
	for l.n > 0 {
		h := l.head
		l.remove(h)
		d.offLocked(h)
		back = append(back, h)
	}
	return back
}

// checkIdleLocked closes idle when it is time. d.mu must be held.
func (d *dispatch) checkIdleLocked() {
	if !d.closed || d.running.n > 0 || d.leaving > 0 {
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
	return d.n, d.bytes, d.perMsg
}

// inHandlers returns how many handlers run.
func (d *dispatch) inHandlers() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running.n
}

// blocking returns the key of the message that most others wait for while it rests, if there is one.
func (d *dispatch) blocking() (key string, waiting int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for h := d.resting.head; h != nil; h = h.next {
		if l := d.behind[h.key]; l != nil && l.n >= waiting {
			key, waiting = h.key, l.n
		}
	}
	return key, waiting
}

// latest returns the reply subject of the latest message, "" before the first.
func (d *dispatch) latest() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}

// suspect makes every delivery be compared with what is held: after the durable was made again counts begin anew.
func (d *dispatch) suspect() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.suspicious = true
}

// replies returns the reply subjects of all that is held and came in this epoch, running handlers' first.
func (d *dispatch) replies(epoch int64) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]string, 0, d.n)
	d.allLocked(func(h *held) bool {
		if h.epoch == epoch {
			all = append(all, h.sent.reply)
		}
		return true
	})
	return all
}
