package publish

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Flush waits for outcomes; see natty.Writer.
func (w *Writer) Flush(ctx context.Context) error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return fmt.Errorf("natty: flush: %w", w.closedError())
	}
	f := w.flushLocked()
	w.mu.Unlock()
	if err := w.await(ctx, f); err != nil {
		return fmt.Errorf("natty: flush: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.takeFailuresLocked(f)
}

// flush is a Flush, or a Close, that waits.
type flush struct {
	upTo     uint64 // number of the latest message that it waits for
	done     chan struct{}
	complete bool     // done is closed
	failures failures // that another Flush has returned meanwhile
}

// advance ends f if first, the first message without an outcome or nil, is none of its
// own.
func (f *flush) advance(first *slot) {
	if !f.complete && (first == nil || first.number > f.upTo) {
		f.complete = true
		close(f.done)
	}
}

func (w *Writer) flushLocked() *flush {
	f := &flush{upTo: w.written, done: make(chan struct{})}
	w.flushes[f] = struct{}{}
	f.advance(w.first)
	return f
}

// await waits until the messages of f have an outcome. If ctx ends first, f is over and
// its failures are left for the next Flush.
func (w *Writer) await(ctx context.Context, f *flush) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.complete {
		return nil
	}
	n := 0
	for s := w.first; s != nil && s.number <= f.upTo; s = s.next {
		n++
	}
	w.failures.merge(f.failures) // returned twice rather than lost
	delete(w.flushes, f)
	return fmt.Errorf("%d messages have no outcome yet: %w", n, ctx.Err())
}

func (w *Writer) takeFailuresLocked(f *flush) error {
	delete(w.flushes, f)
	for other := range w.flushes {
		other.failures.merge(w.failures)
	}
	f.failures.merge(w.failures)
	w.failures = failures{}
	return f.failures.err()
}

// Close ends the Writer; see natty.Writer.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		w.close()
		w.idleLocked()
	}
	f := w.flushLocked()
	w.mu.Unlock()
	if err := w.await(ctx, f); err != nil {
		w.abandon(err)
		w.logFailure()
	}
	w.end() // every message has its outcome
	var busy error
	select {
	case <-w.idle:
	case <-ctx.Done():
		select { // OnError and canceled attempts need a moment to return
		case <-w.idle:
		case <-time.After(time.Second):
			busy = fmt.Errorf("natty: close: OnError, or a write to the network, is still running: %w", ctx.Err())
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.flushes, f)
	if !w.finished {
		w.finished = true
		w.clock.stop()
		w.pub.API.Mux.Detach(w.key)
		w.onClosed()
		w.failures.merge(f.failures)
		w.closeErr = errors.Join(w.failures.err(), busy)
		w.slots, w.free = nil, nil // a Writer may be kept for long after
	}
	return w.closeErr
}

// abandon fails every message without an outcome.
func (w *Writer) abandon(reason error) {
	w.end()
	w.mu.Lock()
	defer w.unlock()
	for s := w.first; s != nil; s = w.first {
		r := s.retry
		if r == nil {
			r = &retry{p: w.publication(s), err: errSilent}
		}
		p := r.p
		unknown := r.busy || p.unknown || r.err != nil && mayBeStored(r.err)
		w.failLocked(s, p, w.pub.Failed(s.subject, s.id, unknown, fmt.Errorf("the Writer was closed: %w", reason)))
	}
}

// mayBeStored reports whether a message whose first attempt ended with err may be in the
// stream.
func mayBeStored(err error) bool {
	is := outcomeOfAnswer(err)
	return is == unknown || is == unresolved
}

// idleLocked lets Close return once no goroutine of a closed Writer runs.
func (w *Writer) idleLocked() {
	if !w.closed || w.first != nil || w.retrying > 0 || w.reporting || w.tracing+len(w.traced) > 0 {
		return
	}
	select {
	case <-w.idle:
	default:
		close(w.idle)
	}
}

// WriterState is a snapshot of a Writer; see natty.WriterHealth.
type WriterState struct {
	Pending         int
	PendingBytes    int
	MaxPending      int
	MaxPendingBytes int
	Failed          uint64
	LastError       string
}

// State returns a snapshot of w.
func (w *Writer) State() WriterState {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := WriterState{
		Pending: w.pending, MaxPending: w.cfg.MaxPending,
		PendingBytes: w.bytes, MaxPendingBytes: w.cfg.MaxPendingBytes,
		Failed: w.failed,
	}
	if w.lastErr != nil {
		s.LastError = w.lastErr.Error()
	}
	return s
}
