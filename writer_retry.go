package natty

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What happens to a message of a Writer that was not acknowledged at once: it becomes a publication, as Publish has them,
// and waits for one of a few goroutines that make one attempt with each, in turn.

// maxRetries bounds these goroutines. That they pause after an attempt that did not do keeps a full window from hammering
// at a server that is in trouble.
const maxRetries = 64

// fullPause is the pause after an attempt that found the stream full.
var fullPause = Backoff{Min: 20 * time.Millisecond, Max: 500 * time.Millisecond}

// leastAttempt is how much time an attempt needs to be of use.
const leastAttempt = 50 * time.Millisecond

// retry is a message on its way through them.
type retry struct {
	s    *slot // has another retry, or none, once the outcome is known
	p    *publication
	err  error // what the first attempt came to, until it is judged
	busy bool  // a goroutine has it, and what is above
}

// publication takes a message out of its slot, memory included: the slot may be another's before the retry has ended.
func (w *Writer) publication(s *slot) *publication {
	msg := &nats.Msg{Subject: s.subject, Data: s.data, Header: s.header}
	if s.ownID && len(s.header) == 0 {
		msg.Header = nats.Header{jetstream.MsgIDHeader: {s.id}}
	}
	if len(msg.Header) == 0 {
		msg.Header = nil
	}
	s.data, s.header, s.values = nil, nil, nil
	return &publication{
		c: w.c, msg: msg, id: s.id, ownID: s.ownID, repeat: w.cfg.AtLeastOnce,
		deadline: s.sent.Add(w.cfg.Timeout), first: s.sent, streams: &w.streams, attempts: 1,
	}
}

// retryLocked hands a message over to a retry, with what its first attempt came to.
func (w *Writer) retryLocked(s *slot, p *publication, err error) {
	r := &retry{s: s, p: p, err: err}
	w.awaited--
	s.state, s.retry = slotRetrying, r
	w.retries = append(w.retries, r)
	if w.retrying < maxRetries {
		w.retrying++
		go w.retry()
	}
}

func (w *Writer) retry() {
	for r := w.nextRetry(); r != nil; r = w.nextRetry() {
		pause, err := r.attempt(w.life)
		if late := w.lateAck(r, pause, err); late {
			pause, err = 0, nil
		}
		if w.conclude(r, pause > 0, err) {
			_ = sleep(w.life, pause) // then it is another's turn
		}
	}
}

// nextRetry returns nil when there is nothing to do any more.
func (w *Writer) nextRetry() *retry {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.retries) > 0 {
		r := w.retries[0]
		w.retries[0] = nil
		w.retries = w.retries[1:]
		if r.s.retry == r {
			r.busy = true
			return r
		}
		r.p.stopWaiting() // the answer to its first attempt came
	}
	w.retries = nil
	w.retrying--
	w.idleLocked()
	return nil
}

// attempt does what is next for a message. It returns the pause before it is to be tried again, or 0 and the outcome.
func (r *retry) attempt(ctx context.Context) (pause time.Duration, err error) {
	p := r.p
	first := r.err
	r.err = nil
	if first != nil {
		_, err = p.judge(ctx, first)
		if again, ok := errors.AsType[*againError](err); ok {
			p.last = again.reason
		}
	}
	// A lost connection needs no pause.
	lost := errors.Is(first, errSilent) || errors.Is(first, nats.ErrDisconnected)
	if first == nil || lost && time.Until(p.deadline) > leastAttempt {
		_, err = p.try(ctx)
	}
	if _, again := errors.AsType[*againError](err); again {
		pause, err = retryPause.delay(p.attempts), p.last
	} else if errors.Is(err, ErrStreamFull) {
		pause = fullPause.delay(p.attempts)
	}
	// With less time left the next attempt would only make unknown what is known.
	if pause > 0 && time.Until(p.deadline) < pause+leastAttempt {
		return 0, fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return pause, err
}

// lateAck gives up waiting for the answers to a message that is through, and reports whether a good one came meanwhile.
func (w *Writer) lateAck(r *retry, pause time.Duration, err error) bool {
	return pause == 0 && r.p.stopWaiting() != nil && err != nil
}

// conclude puts a message back that is to be tried again, or takes note of its outcome. It reports whether it was put back.
func (w *Writer) conclude(r *retry, again bool, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.busy = false
	switch {
	case r.s.retry != r: // decided elsewhere
		if again {
			r.p.stopWaiting()
		}
		return false
	case again:
		w.retries = append(w.retries, r)
		return true
	case err == nil:
		w.settleLocked(r.s)
	default:
		w.failLocked(r.s, r.p, r.p.failed(err))
	}
	return false
}

// failLocked takes note that a message failed.
func (w *Writer) failLocked(s *slot, p *publication, err error) {
	if w.failures.n == 0 {
		w.c.log.Warn("natty: a Writer's message failed; others that fail before the next Flush are not logged", "error", err)
	}
	w.failures.add(err)
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
		w.slots, w.free = nil, nil
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

// silence finds the messages that get no answer. One timer does for all of them, and runs only while there are any.
type silence struct {
	limit    time.Duration // without an answer
	timeout  time.Duration // of a message
	every    time.Duration
	timer    *time.Timer
	running  bool
	ticked   time.Time
	progress time.Time // when answers were last seen to come
	newest   time.Time // when the message was sent that was answered and sent last
	answers  int       // since ticked
}

func (c *silence) init(cfg WriterConfig, tick func()) {
	c.limit, c.timeout = 2*attemptTimeout.Min, cfg.Timeout
	if cfg.AtLeastOnce {
		c.limit = attemptTimeout.Max
	}
	c.every = max(min(c.limit/4, c.timeout/4), 5*time.Millisecond)
	c.timer = time.AfterFunc(time.Hour, tick)
	c.timer.Stop()
}

func (c *silence) start() {
	if !c.running {
		c.running, c.ticked = true, time.Now()
		c.timer.Reset(c.every)
	}
}

func (c *silence) stop() { c.timer.Stop() }

func (c *silence) answered(sent time.Time) {
	c.answers++
	if sent.After(c.newest) {
		c.newest = sent
	}
}

// look takes note of the time.
func (c *silence) look(now time.Time) {
	// When this process itself was late, answers may wait to be read.
	if c.answers > 0 || now.Sub(c.ticked) > 2*c.every+c.limit/4 {
		c.progress = now
	}
	c.answers, c.ticked = 0, now
}

// silent reports whether the message sent at that time should have been answered: nothing was for long, or something that was
// sent long after it. A slow network alone is no reason to send everything again.
func (c *silence) silent(sent, now time.Time) bool {
	since := sent
	if c.progress.After(since) {
		since = c.progress
	}
	return now.Sub(since) >= c.limit || c.newest.Sub(sent) >= c.limit || now.Sub(sent) >= c.timeout
}

// tick hands over to retries what has had no answer for too long.
func (w *Writer) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.clock.look(now)
	for s := w.first; s != nil; s = s.next {
		if s.state != slotSent {
			continue
		}
		if !w.clock.silent(s.sent, now) {
			break // the others were sent later
		}
		w.retryLocked(s, w.publication(s), errSilent)
	}
	w.wakeLocked()
	w.clock.running = false
	if !w.finished && (w.first != nil || w.wanted > 0) {
		w.clock.start()
	}
}

// streams are what was looked up about streams a moment ago: after a lost connection thousands of messages ask for the same.
type streams struct {
	asking chan struct{} // held by the one who asks

	mu    sync.Mutex // guards known
	known []knownStream
}

type knownStream struct {
	info *jetstream.StreamInfo
	at   time.Time
}

// streamIsKnown is how long an answer is used again.
const streamIsKnown = time.Second

// find looks up the stream of p, or takes what was found just now.
func (k *streams) find(ctx context.Context, p *publication) error {
	if k.recall(p) {
		return nil
	}
	bounded, cancel := p.within(ctx)
	defer cancel()
	select {
	case k.asking <- struct{}{}:
	case <-bounded.Done():
		return bounded.Err()
	}
	defer func() { <-k.asking }()
	if k.recall(p) {
		return nil
	}
	if err := p.lookUp(ctx); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = append(k.known, knownStream{p.stream, time.Now()})
	return nil
}

func (k *streams) recall(p *publication) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = slices.DeleteFunc(k.known, func(s knownStream) bool { return time.Since(s.at) > streamIsKnown })
	for _, s := range k.known {
		// How full a subject is was asked for one subject only.
		if config := &s.info.Config; !config.DiscardNewPerSubject &&
			slices.ContainsFunc(config.Subjects, func(f string) bool { return covers(f, p.msg.Subject) }) {
			p.stream = s.info
			return true
		}
	}
	return false
}
