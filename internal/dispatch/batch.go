package dispatch

import "time"

// NextBatch waits for a first message, and then until there are size of them, wait is
// over, or no more can come (see ExpectMore). It returns false when the Queue is closed.
// A quarantined message is a batch of its own. The batch is empty if another worker was
// faster.
func (q *Queue) NextBatch(size int, wait time.Duration) ([]*Message, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.runnableLocked() == 0 && !q.closed {
		q.wake.Wait()
	}
	over := false
	full := func() bool { return q.ready.n >= size || q.complete || over || q.closed || q.trialLocked() }
	if !full() {
		timer := time.AfterFunc(wait, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			over = true
			q.wake.Broadcast()
		})
		defer timer.Stop()
		for !full() {
			q.wake.Wait()
		}
	}
	switch {
	case q.closed:
		return nil, false
	case q.trialLocked():
		return []*Message{q.runLocked()}, true
	}
	batch := make([]*Message, min(size, q.ready.n))
	for i := range batch {
		batch[i] = q.runLocked()
	}
	return batch, true
}

// ExpectMore says whether messages may come before one of those that are held is
// settled. While none may come, a batch does not wait for more.
func (q *Queue) ExpectMore(more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.complete = !more; q.complete {
		q.wake.Broadcast()
	}
}
