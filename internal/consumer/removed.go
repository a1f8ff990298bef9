package consumer

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/mutant"
)

// Removal is messages that were removed before they were handled; see natty.RemovedError.
type Removal struct {
	Stream, Durable string
	First           uint64
	Count           uint64
	Failed          bool
}

// removals finds the messages that the stream removed before they were handled. The
// server does not report that. So each look at the durable is compared with the last.
type removals struct {
	last     durable.Durable // at the last look
	upTo     uint64          // each sequence up to this one was delivered or is accounted for
	overtook bool            // the stream's beginning is ahead, and that was reported without a count
	// recounts means that the durable may have been reset since the last look, and so may
	// have delivered more than the two counts of deliveries say.
	recounts bool

	// mu guards what follows.
	mu      sync.Mutex
	retries map[uint64]time.Time // the messages that failed, and when they are redelivered
}

// begin starts at the durable as it is. Nothing of what was before is reported.
func (r *removals) begin(d durable.Durable) { r.last, r.upTo = d, d.Delivered }

// reportRemovals reports what the stream removed since the last look at the durable.
func (c *Consumer) reportRemovals() {
	for _, r := range c.removals.look(c.durable) {
		c.mu.Lock()
		c.health.Removed += r.Count
		c.mu.Unlock()
		if !mutant.HidesRemovals {
			c.report(c.client.Removed(r))
		}
	}
}

// waiting reports whether failed messages wait for their next attempt.
func (r *removals) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.retries) > 0
}

// suspects reports whether d, at which the stream was not read, is a reason to do that:
// messages are no longer there that were not delivered.
func (r *removals) suspects(d durable.Durable) bool {
	if d.Deliveries < r.last.Deliveries {
		return true
	}
	delivered := d.Deliveries - r.last.Deliveries
	return d.Waiting+delivered < r.last.Waiting || d.Whole && d.Delivered > r.upTo+delivered
}

// look compares d with the last look, and returns what was removed since.
func (r *removals) look(d durable.Durable) []Removal {
	last, upTo := r.last, r.upTo
	failed := r.failedBefore(d.First)
	// Counts that nothing was added to are those of before.
	recounts := r.recounts && (d.Deliveries != last.Deliveries || d.Delivered != last.Delivered)
	r.recounts = false
	if recounts || !d.Created.Equal(last.Created) || d.Deliveries < last.Deliveries { // recreated, or reset
		r.begin(d)
		if d.StreamCreated.Equal(last.StreamCreated) {
			r.upTo = max(r.upTo, upTo)
		}
		return failed
	}
	r.last, r.upTo = d, max(upTo, d.Delivered, max(d.First, 1)-1)
	// In other streams, what all have acknowledged is removed as well.
	limits := d.Retention == jetstream.LimitsPolicy
	behind := limits && d.First > d.Delivered+1
	r.overtook = r.overtook && behind
	if !d.Comparable(last) {
		return failed
	}
	return append(failed, r.compare(d, last, upTo, behind)...)
}

// compare returns what was removed between two looks at a durable that was neither
// recreated nor reset.
func (r *removals) compare(d, last durable.Durable, upTo uint64, behind bool) []Removal {
	delivered := d.Deliveries - last.Deliveries // with redeliveries: more than there are messages
	switch passed := r.upTo - upTo; {
	case d.First <= upTo+1:
	case d.Mirror && last.First <= 1 && last.Deliveries+last.Waiting == 0:
		// It was empty, and begins where its origin does: it never had what was before.
	case d.Whole && passed > delivered:
		return []Removal{r.removal(passed - delivered)}
	case d.Whole:
	case last.Waiting > delivered+d.Waiting:
		return []Removal{r.removal(min(passed, last.Waiting-delivered-d.Waiting))}
	case behind && last.Waiting > 0 && d.Waiting > 0 && !r.overtook:
		r.overtook = true
		return []Removal{r.removal(0)}
	}
	return nil
}

func (r *removals) removal(n uint64) Removal {
	return Removal{Stream: r.last.Stream, Durable: r.last.Name, First: r.last.First, Count: n}
}

// failedBefore returns the messages that failed and waited for their next attempt, and
// that the stream, which begins with first, no longer has. It leaves out those whose
// pause is over: another instance may have them.
func (r *removals) failedBefore(first uint64) []Removal {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, n := time.Now(), uint64(0)
	for sequence, due := range r.retries {
		switch {
		case now.After(due):
			delete(r.retries, sequence)
		case sequence < first:
			delete(r.retries, sequence)
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return []Removal{{Stream: r.last.Stream, Durable: r.last.Name, First: first, Count: n, Failed: true}}
}

// retried notes that a message failed and is redelivered after a pause.
func (r *removals) retried(sequence uint64, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.retries == nil {
		r.retries = map[uint64]time.Time{}
	}
	r.retries[sequence] = time.Now().Add(pause)
}

// redelivered notes that a message came again.
func (r *removals) redelivered(sequence uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.retries, sequence)
}

// noticeResets notes whether the durable may have been reset since the last look: each
// owner does so when it begins, and when it gives the pin back.
func (x *exclusive) noticeResets() {
	o := x.owner.Load()
	if o == nil || o != x.lookOwner || o.epoch.Load() != x.lookEpoch {
		o = nil
	}
	if o == nil || o != x.countOwner || x.lookEpoch != x.countEpoch {
		x.c.removals.recounts = true
	}
	x.countOwner, x.countEpoch = o, x.lookEpoch
}
