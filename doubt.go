package natty

import "time"

// A process that dies adds a delivery to the count of each message that it held: of the one that killed it, of those that were
// handled beside that, and of all that waited in the buffer. They come again together, AckWait later, so that at the limit for
// messages that kill processes the count alone does not tell them apart. Before that a message is doubtful, and tried apart
// from other such ones: one at a time, in the order of their arrival and the reverse of it by turns. When a process dies of
// one, those before it have been settled; after a turn each way only those are left that kill, and what is between them.

const (
	// doubtfulFor is for how many deliveries, the last before the limit, a message is doubtful.
	doubtfulFor = 3
	// doubtPause lets those come that are delivered together with the first one.
	doubtPause = 100 * time.Millisecond
)

// deliveryLimit is how often a message is delivered at most that nobody says anything about.
func deliveryLimit(maxDeliver int) int { return 2*maxDeliver + 5 }

// doubtful reports whether a message may soon be given up for its deliveries.
func (e *engine) doubtful(d Delivery) bool {
	return e.cfg.MaxDeliver > 0 && d.Attempt > deliveryLimit(e.cfg.MaxDeliver)-doubtfulFor
}

// doubt holds doubtful messages until they are tried.
type doubt struct {
	waiting heldList
	trial   bool        // one of them is ready, or with a handler
	pause   *time.Timer // runs while more may be coming; else nil
}

// readyLocked lets a handler have h; a doubtful message when it is its turn. d.mu must be held.
func (d *dispatch) readyLocked(h *held) {
	if !h.doubtful {
		d.ready.push(h)
		d.wake.Signal()
		return
	}
	d.doubt.waiting.push(h)
	if d.doubt.pause == nil && !d.doubt.trial {
		d.doubt.pause = time.AfterFunc(doubtPause, d.doubtPaused)
	}
}

func (d *dispatch) doubtPaused() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doubt.pause = nil
	d.tryLocked()
}

// tryLocked lets the next doubtful message run, behind what is ready. d.mu must be held.
func (d *dispatch) tryLocked() {
	waiting := &d.doubt.waiting
	if d.closed || d.doubt.trial || d.doubt.pause != nil || waiting.n == 0 {
		return
	}
	h := waiting.head
	if h.d.Attempt%2 == 0 {
		h = waiting.tail
	}
	waiting.remove(h)
	d.doubt.trial = true
	d.ready.push(h)
	d.wake.Signal()
}

// triedLocked ends the trial of h, if it was one. d.mu must be held.
func (d *dispatch) triedLocked(h *held) {
	if h.doubtful {
		d.doubt.trial = false
		d.tryLocked()
	}
}

// batchLocked returns how many messages the next batch of up to size has, and whether it is not to wait for more: a
// doubtful message is tried alone. d.mu must be held.
func (d *dispatch) batchLocked(size int) (n int, complete bool) {
	if !d.doubt.trial {
		return min(size, d.ready.n), d.ready.n >= size
	}
	for h := d.ready.head; h != nil && n < size; h = h.next {
		if h.doubtful {
			return max(n, 1), true
		}
		n++
	}
	return n, n == size
}
