package publish

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/conn"
)

// WriterConfig is how a Writer works; see natty.WriterConfig.
type WriterConfig struct {
	MaxPending, MaxPendingBytes int
	Timeout                     time.Duration
	AtLeastOnce                 bool
	OnError                     func(*nats.Msg, error)
}

// Writer publishes many messages without waiting for each answer.
type Writer struct {
	pub      *Publisher
	cfg      WriterConfig
	onClosed func()
	key      string  // its reply subjects begin with the Mux's prefix and this
	streams  streams // lookups that its retries share

	life context.Context //nolint:containedctx // canceled when Close stops the retries
	end  context.CancelFunc

	closing context.Context //nolint:containedctx // canceled when Close begins
	close   context.CancelFunc
	idle    chan struct{} // closed when, after that, no goroutine of the Writer runs

	// turn holds a token of the one Write that sends. It guards what follows, which
	// each message uses again.
	turn   chan struct{}
	spare  *slot    // for the next message
	out    nats.Msg // as it is sent
	header nats.Header
	id     [1]string // the header's value
	text   []byte
	space  chan struct{} // wakes the one Write that waits for room; buffered

	// mu guards what follows and the slots. It is never held while sending.
	mu        sync.Mutex
	slots     []*slot // by the low part of their tokens
	free      []*slot
	first     *slot // of the messages without an outcome, in the order of their Writes
	last      *slot
	pending   int    // slots in use: no outcome yet, or OnError has not returned yet
	awaited   int    // of these, those that wait for their first answer
	bytes     int    // of the slots in use
	written   uint64 // messages so far; numbers them
	wanted    int    // size of the message that waits for room, or 0
	closed    bool
	finished  bool
	closeErr  error
	clock     silence
	retries   []*retry // that wait for a goroutine
	retrying  int      // goroutines
	failures  failures // that no Flush has returned
	failed    uint64   // messages so far
	lastErr   error    // of the latest of these
	unlogged  error    // of the first of these since a Flush, until it is logged
	flushes   map[*flush]struct{}
	reports   []report // that wait for OnError
	reporting bool     // a goroutine calls OnError
	traced    []traced // that wait for the Tracer
	tracing   int      // goroutines that tell the Tracer
}

// route brings a Writer the answers to its messages.
type route struct{ w *Writer }

func (r route) Receive(token string, m *nats.Msg) { r.w.receive(token, m) }

func (r route) Fail(subject string, err error) { r.w.fail(subject, err) }

// NewWriter returns a Writer, which calls onClosed at the end of Close. It gets no
// answers before Open.
func (pub *Publisher) NewWriter(cfg WriterConfig, onClosed func()) *Writer {
	w := &Writer{
		pub: pub, cfg: cfg, onClosed: onClosed,
		streams: streams{asking: make(chan struct{}, 1)},
		idle:    make(chan struct{}),
		turn:    make(chan struct{}, 1),
		header:  make(nats.Header, 1),
		space:   make(chan struct{}, 1),
		flushes: map[*flush]struct{}{},
	}
	w.spare = w.vacantLocked()
	w.clock.init(cfg, w.retrySilent)
	w.life, w.end = context.WithCancel(context.Background())
	w.closing, w.close = context.WithCancel(context.Background())
	return w
}

// Open lets w get answers.
func (w *Writer) Open() { w.key = w.pub.API.Mux.Attach(route{w}) }

// Write sends msg; see natty.Writer.
func (w *Writer) Write(ctx context.Context, msg *nats.Msg) error {
	var trace context.Context
	if w.pub.Tracer != nil && msg != nil {
		msg = Clone(msg)
		trace = w.pub.Tracer.PublishStart(ctx, msg)
	}
	size, err := w.check(msg)
	if err == nil {
		err = w.write(ctx, trace, msg, size)
	}
	if err == nil {
		return nil
	}
	if err = w.pub.notSent(msg, err); trace != nil {
		w.pub.Tracer.PublishEnd(trace, Result{Err: err})
	}
	return err
}

// check returns how many bytes msg takes of the window.
func (w *Writer) check(msg *nats.Msg) (int, error) {
	if msg == nil {
		return 0, w.pub.Invalid("msg", "", "is nil; give a message", nil)
	}
	if err := w.pub.publishable(msg.Subject); err != nil {
		return 0, err
	}
	size := len(msg.Subject) + len(msg.Data)
	for key, values := range msg.Header {
		for _, v := range values {
			size += len(key) + len(v)
		}
	}
	if size > w.cfg.MaxPendingBytes {
		return 0, fmt.Errorf("%w: %d bytes with headers and subject, and MaxPendingBytes is %d; "+
			"publish less, or raise it", ErrTooLarge, size, w.cfg.MaxPendingBytes)
	}
	return size, nil
}

// write sends msg. trace is its ctx for the Tracer, or nil.
func (w *Writer) write(ctx, trace context.Context, msg *nats.Msg, size int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case w.turn <- struct{}{}:
	default:
		select {
		case w.turn <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("waiting for other goroutines' Writes: %w", ctx.Err())
		case <-w.closing.Done():
			return w.closedError()
		}
	}
	defer func() { <-w.turn }()
	for n := 1; ; n++ {
		if err := w.connected(ctx); err != nil {
			return err
		}
		s := w.spare
		w.pack(s, msg, size)
		s.trace = trace //nolint:fatcontext // it does not grow
		if err := w.admit(ctx, s); err != nil {
			return err
		}
		err := w.pub.API.NC.PublishMsg(&w.out)
		if err == nil {
			return nil
		}
		again, err := w.unsent(s, err)
		if !again {
			return err
		}
		// The connection is lost, which the Link learns a moment later.
		if ctxErr := retryPause.Wait(ctx, n); ctxErr != nil {
			return fmt.Errorf("%w: %w", ctxErr, err)
		}
	}
}

func (w *Writer) closedError() error {
	return fmt.Errorf("%w: Close of the Writer was called", conn.ErrClosed)
}

// connected waits for a connection, until ctx ends or Close begins. It returns an error
// if no answers can come.
func (w *Writer) connected(ctx context.Context) error {
	if w.pub.API.Link.Up() {
		return w.pub.API.Mux.Err()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(w.closing, func() { cancel(w.closedError()) })()
	err := w.pub.API.Link.Wait(ctx, time.Time{})
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, conn.ErrClosed) {
		return cause
	}
	return err
}

// pack copies msg into s and w.out, which belong to the Write that has the turn.
func (w *Writer) pack(s *slot, msg *nats.Msg, size int) {
	s.subject, s.size = msg.Subject, size
	s.data = append(s.data[:0], msg.Data...)
	clear(s.header)
	s.values = s.values[:0]

	// Id and reply subject share one string: allocations per message dominate the cost
	// of Write.
	s.id, s.ownID = messageID(msg.Header), false
	w.text = w.text[:0]
	if s.id == "" && !w.cfg.AtLeastOnce {
		s.ownID = true
		w.text = w.pub.IDs.append(w.text)
	}
	n := len(w.text)
	w.text = append(w.text, w.pub.API.Mux.Prefix...)
	w.text = append(w.text, w.key...)
	w.text = append(w.text, '-')
	w.text = strconv.AppendUint(w.text, s.token+w.stride(), 36)
	text := string(w.text)
	if s.ownID {
		s.id = text[:n]
	}
	w.out = nats.Msg{Subject: s.subject, Reply: text[n:], Data: s.data}
	switch {
	case len(msg.Header) > 0:
		s.packHeader(msg.Header)
		w.out.Header = s.header
	case s.ownID:
		w.id[0] = s.id
		w.header[jetstream.MsgIDHeader] = w.id[:]
		w.out.Header = w.header
	}
}

// packHeader copies the values too: a caller who then edits one must not change the
// message that is sent again.
func (s *slot) packHeader(h nats.Header) {
	if s.header == nil {
		s.header = make(nats.Header, len(h)+1)
	}
	for key, values := range h {
		if inherited(h, key) {
			continue
		}
		n := len(s.values)
		s.values = append(s.values, values...)
		s.header[key] = s.values[n:len(s.values):len(s.values)]
	}
	if s.ownID {
		s.values = append(s.values, s.id)
		s.header[jetstream.MsgIDHeader] = s.values[len(s.values)-1:]
	}
}

// admit waits until there is room for s, and makes it the window's last message.
func (w *Writer) admit(ctx context.Context, s *slot) error {
	s.sent = time.Now()
	w.mu.Lock()
	for !w.closed && !w.fitsLocked(s.size) {
		w.wanted = s.size
		w.clock.start()
		w.mu.Unlock()
		select {
		case <-w.space:
		case <-w.closing.Done():
		case <-ctx.Done():
			w.mu.Lock()
			w.wanted = 0
			err := fmt.Errorf("no room in the window yet, in which "+
				"%d of %d messages and %d of %d bytes have no answer: %w",
				w.pending, w.cfg.MaxPending, w.bytes, w.cfg.MaxPendingBytes, ctx.Err())
			w.mu.Unlock()
			return err
		}
		s.sent = time.Now()
		w.mu.Lock()
		w.wanted = 0
	}
	defer w.mu.Unlock()
	if w.closed {
		return w.closedError()
	}
	w.pending++
	w.bytes += s.size
	w.written++
	s.token += w.stride()
	w.awaited++
	s.number, s.state = w.written, slotSent
	s.prev = w.last
	if w.last == nil {
		w.first = s
		w.clock.start()
	} else {
		w.last.next = s
	}
	w.last = s
	w.spare = w.vacantLocked()
	return nil
}

// unsent handles an error of sending s. If nothing was sent it removes s from the
// window, and reports whether to try again or returns the final error. If a part may
// have been sent a retry takes s over, and for Write that is no error.
func (w *Writer) unsent(s *slot, err error) (again bool, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.state != slotSent { // fail has seen the lost connection first
		return false, nil
	}
	p := w.publication(s)
	cause := p.classifySend(err)
	if p.unknown {
		w.retryLocked(s, p, &sendError{err})
		return false, nil
	}
	w.settleLocked(s)
	return retryReason(cause) != nil, cause
}
