package natty

import (
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

// The window of a Writer: who is in it, what answers do to them, and who gets none.

// slot is the place of one message in the window.
type slot struct {
	token      uint64 // names slot and message in the reply subject; grows with every message
	state      slotState
	number     uint64 // of the message
	prev, next *slot
	subject    string
	id         string
	ownID      bool
	size       int
	sent       time.Time
	retry      *retry

	// Memory that the next message uses again, unless a retry has taken it.
	data   []byte
	header nats.Header // nil for a message without
	values []string    // what header holds
}

type slotState int

const (
	slotFree     slotState = iota
	slotSent               // its answer is waited for
	slotRetrying           // a retry has it
	slotFailed             // OnError has not been told
)

// fitsLocked reports whether there is room for a message of that size; like the others here, it needs w.mu.
func (w *Writer) fitsLocked(size int) bool {
	return w.pending < w.cfg.MaxPending && w.bytes+size <= w.cfg.MaxPendingBytes
}

// stride is how many slots there may be.
func (w *Writer) stride() uint64 { return uint64(w.cfg.MaxPending) + 1 }

// vacantLocked returns a slot for the next message. There is one more of them than messages in a full window.
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

// receive gets the answer to the message of a token.
func (w *Writer) receive(text string, m *nats.Msg) {
	token, err := strconv.ParseUint(text, 36, 64)
	if err != nil {
		return
	}
	if !isPlainAck(m.Data) {
		_, err = parseAck(m)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	at := int(token % w.stride())
	if at >= len(w.slots) || w.slots[at].token != token {
		return
	}
	s := w.slots[at]
	switch {
	case s.state == slotSent && err != nil:
		w.retryLocked(s, w.publication(s), err)
	case s.state == slotSent, s.state == slotRetrying && err == nil: // late, but there
		w.clock.answered(s.sent)
		w.settleLocked(s)
	case s.state == slotRetrying && !s.retry.busy && errors.Is(s.retry.err, errSilent):
		s.retry.err = err // late too, and says more than silence
	}
}

// fail is told that the messages of a subject, or all for "", get no answer.
func (w *Writer) fail(subject string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := w.first; s != nil; s = s.next {
		if s.state == slotSent && (subject == "" || s.subject == subject) {
			w.retryLocked(s, w.publication(s), err)
		}
	}
}

// settleLocked takes a message with an outcome out of the window.
func (w *Writer) settleLocked(s *slot) {
	w.unlinkLocked(s)
	w.vacateLocked(s)
}

// unlinkLocked takes note that a message has an outcome.
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

// keptHeaders is how many headers a slot may have had to keep the memory for them.
const keptHeaders = 16

// vacateLocked gives a slot back. It keeps no more memory than its share of the window.
func (w *Writer) vacateLocked(s *slot) {
	w.pending--
	w.bytes -= s.size
	s.state, s.subject, s.id = slotFree, "", ""
	if cap(s.data) > w.cfg.MaxPendingBytes/w.cfg.MaxPending {
		s.data = nil
	}
	if len(s.values) > keptHeaders {
		s.header, s.values = nil, nil
	}
	clear(s.header)
	clear(s.values)
	w.free = append(w.free, s)
	// Not for every message: to wake a goroutine costs as much as to send one.
	if w.awaited == 0 || w.pending <= w.cfg.MaxPending*3/4 && w.bytes <= w.cfg.MaxPendingBytes*3/4 {
		w.wakeLocked()
	}
}

// wakeLocked tells the Write that waits if there is room for it.
func (w *Writer) wakeLocked() {
	if w.wanted == 0 || !w.fitsLocked(w.wanted) {
		return
	}
	select {
	case w.space <- struct{}{}:
	default:
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
	c.limit, c.timeout = attemptTimeout.Max/2, cfg.Timeout
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
