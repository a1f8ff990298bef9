package publish

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/respmux"
)

// slot is the place of one message in the window.
type slot struct {
	token      uint64 // in the reply subject; new for every message, its low part names the slot
	state      slotState
	number     uint64 // of the message
	prev, next *slot
	subject    string
	id         string
	ownID      bool
	size       int
	sent       time.Time
	retry      *retry
	trace      context.Context //nolint:containedctx // for the Tracer; nil without one

	// The next message uses this memory again, unless a retry has taken it.
	data   []byte
	header nats.Header // nil for a message without headers
	values []string    // of the header
}

type slotState int

const (
	slotFree     slotState = iota
	slotSent               // waits for its first answer
	slotRetrying           // belongs to a retry
	slotFailed             // OnError has not returned yet
)

// fitsLocked reports whether there is room for a message of that size.
func (w *Writer) fitsLocked(size int) bool {
	return w.pending < w.cfg.MaxPending && w.bytes+size <= w.cfg.MaxPendingBytes
}

// stride is how many slots there may be.
func (w *Writer) stride() uint64 { return uint64(w.cfg.MaxPending) + 1 }

// vacantLocked returns a slot for the next message. There is one slot more than
// messages in a full window.
func (w *Writer) vacantLocked() *slot {
	if n := len(w.free) - 1; n >= 0 {
		s := w.free[n]
		w.free = w.free[:n]
		return s
	}
	s := &slot{token: uint64(len(w.slots))}
	w.slots = append(w.slots, s)
	return s
}

// receive takes the answer to the message with a token.
func (w *Writer) receive(text string, m *nats.Msg) {
	token, err := strconv.ParseUint(text, 36, 64)
	if err != nil {
		return
	}
	var a *jetstream.PubAck
	if w.pub.Tracer != nil || !respmux.IsPlainAck(m.Data) {
		a, err = respmux.ParseAck(m)
	}
	w.mu.Lock()
	defer w.unlock()
	at := int(token % w.stride())
	if at >= len(w.slots) || w.slots[at].token != token {
		return
	}
	s := w.slots[at]
	switch {
	case s.state == slotSent && err != nil:
		w.retryLocked(s, w.publication(s), err)
	case s.state == slotSent, s.state == slotRetrying && err == nil: // a late acknowledgement counts
		w.clock.noteAnswer(s.sent)
		w.concludeLocked(s, s.result(a))
		w.settleLocked(s)
	case s.state == slotRetrying && !s.retry.busy && errors.Is(s.retry.err, errSilent):
		s.retry.err = err // a late error says more than silence
	}
}

// fail retries the messages of a subject, or all for "": they will get no answer.
func (w *Writer) fail(subject string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := w.first; s != nil; s = s.next {
		if s.state == slotSent && (subject == "" || s.subject == subject) {
			w.retryLocked(s, w.publication(s), err)
		}
	}
}

// settleLocked removes a message with an outcome from the window.
func (w *Writer) settleLocked(s *slot) {
	w.unlinkLocked(s)
	w.vacateLocked(s)
}

// unlinkLocked removes a message from the list of those without an outcome.
func (w *Writer) unlinkLocked(s *slot) {
	if s.prev == nil {
		w.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		w.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	if s.state == slotSent {
		w.awaited--
	}
	first := s.prev == nil
	s.prev, s.next, s.retry = nil, nil, nil
	if first {
		for f := range w.flushes {
			f.advance(w.first)
		}
	}
	if w.first == nil {
		w.idleLocked()
	}
}

// keptHeaders is how many header values' memory a slot keeps for its next message.
const keptHeaders = 16

// vacateLocked frees a slot, which keeps no more memory than its share of the window.
func (w *Writer) vacateLocked(s *slot) {
	w.pending--
	w.bytes -= s.size
	s.state, s.subject, s.id, s.trace = slotFree, "", "", nil
	if cap(s.data) > w.cfg.MaxPendingBytes/w.cfg.MaxPending {
		s.data = nil
	}
	if len(s.values) > keptHeaders {
		s.header, s.values = nil, nil
	}
	clear(s.header)
	clear(s.values)
	w.free = append(w.free, s)
	// Not for every message: waking a goroutine costs as much as sending one.
	if w.awaited == 0 || w.pending <= w.cfg.MaxPending*3/4 && w.bytes <= w.cfg.MaxPendingBytes*3/4 {
		w.wakeLocked()
	}
}

// wakeLocked wakes the Write that waits if there is room for its message.
func (w *Writer) wakeLocked() {
	if w.wanted == 0 || !w.fitsLocked(w.wanted) {
		return
	}
	select {
	case w.space <- struct{}{}:
	default:
	}
}

// silence decides which messages should have been answered by now. One timer serves all
// of them, and runs only while there are any.
type silence struct {
	limit    time.Duration // without an answer
	timeout  time.Duration // of a message
	every    time.Duration
	timer    *time.Timer
	running  bool
	ticked   time.Time
	progress time.Time // when answers were last arriving
	newest   time.Time // when the latest answered message was sent
	answers  int       // since ticked
}

func (c *silence) init(cfg WriterConfig, tick func()) {
	c.limit, c.timeout = AttemptTimeout.Max/2, cfg.Timeout
	if cfg.AtLeastOnce {
		c.limit = AttemptTimeout.Max
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

// noteAnswer records an answer to a message by the time that it was sent.
func (c *silence) noteAnswer(sent time.Time) {
	c.answers++
	if sent.After(c.newest) {
		c.newest = sent
	}
}

// tick records whether answers have been arriving.
func (c *silence) tick(now time.Time) {
	// If this process itself was delayed, answers may still wait to be read.
	if c.answers > 0 || now.Sub(c.ticked) > 2*c.every+c.limit/4 {
		c.progress = now
	}
	c.answers, c.ticked = 0, now
}

// silent reports whether a message sent at that time should have been answered by now:
// for long nothing was, or a message that was sent long after it was. A slow network
// alone is no reason to send everything again.
func (c *silence) silent(sent, now time.Time) bool {
	since := sent
	if c.progress.After(since) {
		since = c.progress
	}
	return now.Sub(since) >= c.limit || c.newest.Sub(sent) >= c.limit || now.Sub(sent) >= c.timeout
}

// retrySilent retries the messages that have had no answer for too long.
func (w *Writer) retrySilent() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.clock.tick(now)
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
