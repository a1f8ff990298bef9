package natty

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// RemovedError reports messages that the stream's own limits (age, count, size), or a purge, removed before the consumer had
// handled them. It goes to ConsumerConfig.OnError and to the log.
type RemovedError struct {
	Stream, Durable string
	// First is the first sequence that the stream still has.
	First uint64
	// Count is how many messages were removed: at least, since the server does not count them, and what it does count cannot
	// tell them from new ones. 0: the stream's beginning has overtaken the consumer, and what was between them may
	// have been the consumer's or not.
	Count uint64
	// Failed says that they had been handled and had failed, and waited for their next attempt.
	Failed bool
}

func (e *RemovedError) Error() string {
	count := fmt.Sprintf("at least %d messages", e.Count)
	if e.Count == 0 {
		count = "messages, perhaps some of this consumer's,"
	}
	before := "before they were delivered"
	if e.Failed {
		before = "that had failed before their next attempt"
	}
	return fmt.Sprintf("natty: consumer %q: the limits of stream %q, or a purge, removed %s %s: it now begins at sequence %d; raise the limits, or add instances",
		e.Durable, e.Stream, count, before, e.First)
}

// removals finds what the stream removed before it was handled. The server tells nobody: this compares what it says about the
// durable from one look to the next.
type removals struct {
	last     durable // at the last look
	upTo     uint64  // every sequence up to this one was delivered or is accounted for
	overtook bool    // reported with no count, and still so

	// mu guards what follows.
	mu      sync.Mutex
	retries map[uint64]time.Time // the messages that are to come again, and when
}

// begin takes a durable as it is for what was before.
func (r *removals) begin(d durable) { r.last, r.upTo = d, d.delivered }

// look compares d with the last look, and returns what was removed since, nil for nothing.
func (r *removals) look(d durable) []*RemovedError {
	last, upTo := r.last, r.upTo
	failed := r.failedBefore(d.first)
	if !d.created.Equal(last.created) || d.deliveries < last.deliveries { // made again, or set back
		r.begin(d)
		if d.streamCreated.Equal(last.streamCreated) {
			r.upTo = max(r.upTo, upTo)
		}
		return failed
	}
	r.last, r.upTo = d, max(upTo, d.delivered, max(d.first, 1)-1)
	behind := d.first > d.delivered+1
	r.overtook = r.overtook && behind
	if !d.comparable(last) {
		return failed
	}
	delivered := d.deliveries - last.deliveries // with repetitions: more than there are messages
	switch passed := r.upTo - upTo; {
	case d.first <= upTo+1:
	case d.whole && passed > delivered:
		return append(failed, r.report(passed-delivered))
	case d.whole:
	case last.waiting > delivered+d.waiting:
		return append(failed, r.report(min(passed, last.waiting-delivered-d.waiting)))
	case behind && last.waiting > 0 && d.waiting > 0 && !r.overtook:
		r.overtook = true
		return append(failed, r.report(0))
	}
	return failed
}

// comparable reports whether what waits says something about what was removed since an earlier look: not if messages are skipped on
// purpose, nor if other filters let other messages through.
func (d durable) comparable(last durable) bool {
	return d.config.DeliverPolicy != jetstream.DeliverLastPerSubjectPolicy && sameFilters(d.filters(), last.filters())
}

func (r *removals) report(n uint64) *RemovedError {
	return &RemovedError{Stream: r.last.stream, Durable: r.last.name, First: r.last.first, Count: n}
}

// reportRemovals reports what the stream removed since the last look at the durable.
func (e *engine) reportRemovals() {
	for _, err := range e.removals.look(e.durable) {
		e.mu.Lock()
		e.health.Removed += err.Count
		e.mu.Unlock()
		e.report(err)
	}
}

// retried is told that a message that failed is to come again after a while.
func (r *removals) retried(sequence uint64, after time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.retries == nil {
		r.retries = map[uint64]time.Time{}
	}
	r.retries[sequence] = time.Now().Add(after)
}

// came is told that a message came again.
func (r *removals) came(sequence uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.retries, sequence)
}

// failedBefore reports the messages that are no longer in the stream, which begins with first, and were still to come again.
// Those whose time has come may be with another instance.
func (r *removals) failedBefore(first uint64) []*RemovedError {
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
	return []*RemovedError{{Stream: r.last.stream, Durable: r.last.name, First: first, Count: n, Failed: true}}
}

// receivesAll reports whether filters let through everything that a stream of these subjects holds.
func receivesAll(filters, subjects []string) bool {
	if len(filters) == 0 {
		return true
	}
	return len(subjects) > 0 && !slices.ContainsFunc(subjects, func(subject string) bool {
		return !slices.ContainsFunc(filters, func(f string) bool { return covers(f, subject) })
	})
}
