package natty

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// How the messages of a Writer end: the failures, and those who wait for the outcome.

// failLocked takes note that a message failed.
func (w *Writer) failLocked(s *slot, p *publication, err error) {
	if w.failures.n == 0 {
		w.news = err
	}
	w.failures.add(err)
	w.failed++
	w.lastErr = err
	if w.cfg.OnError == nil {
		w.settleLocked(s)
		return
	}
	// A copy: an attempt that is stuck in a write may still have the message.
	msg := &nats.Msg{Subject: p.msg.Subject, Data: slices.Clone(p.msg.Data), Header: maps.Clone(p.msg.Header)}
	w.reports = append(w.reports, &report{s: s, msg: msg, err: err})
	if !w.telling {
		w.telling = true
		go w.tell()
	}
	w.unlinkLocked(s)
	s.state = slotFailed
}

// logNews logs the first failure since a Flush. Not under w.mu: a log may be written with a Writer.
func (w *Writer) logNews() {
	w.mu.Lock()
	err := w.news
	w.news = nil
	w.mu.Unlock()
	if err != nil {
		w.c.log.Warn("natty: a Writer's message failed; more that fail before the next Flush are not logged", "error", err)
	}
}

// report is a failure that OnError is to be told.
type report struct {
	s   *slot
	msg *nats.Msg
	err error
}

// tell calls OnError for all that failed.
func (w *Writer) tell() {
	ended := false
	defer func() {
		if !ended { // OnError ended its goroutine
			go w.tell()
		}
	}()
	for {
		w.mu.Lock()
		if len(w.reports) == 0 {
			w.reports, w.telling, ended = nil, false, true
			w.idleLocked()
			w.mu.Unlock()
			return
		}
		r := w.reports[0]
		w.reports[0] = nil
		w.reports = w.reports[1:]
		w.mu.Unlock()
		w.tellOne(r)
	}
}

func (w *Writer) tellOne(r *report) {
	defer func() {
		if p := recover(); p != nil {
			w.c.log.Error("natty: OnError of a Writer panicked", "panic", p, "stack", string(debug.Stack()))
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.vacateLocked(r.s)
		w.wakeLocked()
	}()
	w.cfg.OnError(r.msg, r.err)
}

// keptFailures is how many errors a Flush returns at most. Those beyond are counted.
const keptFailures = 20

// failures are errors, the first of them and how many.
type failures struct {
	kept []error
	n    int
}

func (f *failures) add(errs ...error) {
	f.n += len(errs)
	f.kept = append(f.kept, errs[:min(len(errs), keptFailures-len(f.kept))]...)
}

func (f *failures) merge(g failures) {
	n := f.n + g.n
	f.add(g.kept...)
	f.n = n
}

func (f *failures) err() error {
	errs := slices.Clone(f.kept)
	if more := f.n - len(f.kept); more > 0 {
		errs = append(errs, fmt.Errorf("natty: and %d more messages failed", more))
	}
	return errors.Join(errs...)
}

// flush is a Flush that waits.
type flush struct {
	upTo     uint64 // number of a message
	done     chan struct{}
	ended    bool
	failures failures // that another Flush has returned meanwhile
}

// advance is told the first message without an outcome; nil for none.
func (f *flush) advance(first *slot) {
	if !f.ended && (first == nil || first.number > f.upTo) {
		f.ended = true
		close(f.done)
	}
}

// Flush waits until every message written before has an outcome, whatever others write meanwhile. It returns the failures since
// the last Flush, joined: the first twenty, and how many more there were. nil means that all are stored. Of several Flushes at
// once each returns what failed while it waited. OnError may be told a little later.
//
// When ctx ends first the error says how many are still on their way, and the failures are left for the next Flush.
func (w *Writer) Flush(ctx context.Context) error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return fmt.Errorf("natty: flush: %w", w.closedError())
	}
	f := w.flushLocked()
	w.mu.Unlock()
	if err := w.settled(ctx, f); err != nil {
		return fmt.Errorf("natty: flush: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.takeFailuresLocked(f)
}

func (w *Writer) flushLocked() *flush {
	f := &flush{upTo: w.written, done: make(chan struct{})}
	w.flushes[f] = struct{}{}
	f.advance(w.first)
	return f
}

// settled waits until the messages of f have an outcome. When ctx ends first, f is over.
func (w *Writer) settled(ctx context.Context, f *flush) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.ended {
		return nil
	}
	n := 0
	for s := w.first; s != nil && s.number <= f.upTo; s = s.next {
		n++
	}
	w.failures.merge(f.failures) // so that they are not lost; whoever got them gets them twice
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

// Close ends the Writer: Write returns ErrClosed from now on, and what was written gets its outcome, as in Flush; then OnError
// is waited for. When ctx ends first, what has no outcome fails with ctx's error, unknown unless it is known not to be stored, and
// is told to OnError too. Close returns the failures that no Flush has returned. It may be called again, and then returns the
// same.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.closing)
		w.idleLocked()
	}
	f := w.flushLocked()
	w.mu.Unlock()
	if err := w.settled(ctx, f); err != nil {
		w.abandon(err)
		w.logNews()
	}
	w.end() // what is tried still has its outcome
	var busy error
	select {
	case <-w.idle:
	case <-ctx.Done():
		select { // a moment for OnError, and for what was tried to end
		case <-w.idle:
		case <-time.After(endGrace):
			busy = fmt.Errorf("natty: close: OnError, or a write to the network, is still running: %w", ctx.Err())
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.flushes, f)
	if !w.finished {
		w.finished = true
		w.clock.stop()
		w.c.acks.leave(w)
		w.failures.merge(f.failures)
		w.closeErr = errors.Join(w.failures.err(), busy)
		w.slots, w.free = nil, nil // a Writer may be kept for long after
	}
	return w.closeErr
}

// abandon fails what has no outcome.
func (w *Writer) abandon(reason error) {
	w.end()
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := w.first; s != nil; s = w.first {
		r := s.retry
		if r == nil {
			r = &retry{p: w.publication(s), err: errSilent}
		}
		p := r.p
		unknown := r.busy || p.unknown || r.err != nil && errorCode(r.err) == 0 && !errors.Is(r.err, nats.ErrNoResponders)
		w.failLocked(s, p, &PublishError{
			Subject: s.subject, MsgID: s.id, Unknown: unknown, Err: fmt.Errorf("the Writer was closed: %w", reason),
		})
	}
}

// idleLocked tells Close when nothing runs any more.
func (w *Writer) idleLocked() {
	if !w.closed || w.first != nil || w.retrying > 0 || w.telling {
		return
	}
	select {
	case <-w.idle:
	default:
		close(w.idle)
	}
}
