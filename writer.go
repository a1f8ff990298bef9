package natty

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// WriterConfig is how a Writer works. The zero value is a good one.
type WriterConfig struct {
	// MaxPending and MaxPendingBytes are the window: how many messages, and how many bytes of them (data, headers and
	// subject), are on their way at once. Default 4096, and 64 MiB. A message that is larger by itself is refused.
	MaxPending, MaxPendingBytes int
	// Timeout is how long a message keeps trying, from when it was first sent. Default one minute: a frozen connection is found
	// out and made again within that, a leader elected, a server restarted.
	Timeout time.Duration
	// AtLeastOnce sends no message ids, which is faster. A message may then be stored twice when the connection is lost, or
	// no answer came for some seconds.
	AtLeastOnce bool
	// OnError is called once for each message that failed, with a *PublishError. The message is a copy that OnError may keep, with
	// the message id it was sent with: to Write it again is safe within the stream's duplicate window. One call follows the
	// other; a panic is logged. Until its call has returned a failed message keeps its place in the window, so that an OnError that
	// is slow, or blocks, makes Write wait, and nothing else: do not Write from within without a deadline, and do
	// not Close.
	OnError func(*nats.Msg, error)
}

const (
	defaultMaxPending      = 4096
	defaultMaxPendingBytes = 64 << 20
	defaultWriterTimeout   = time.Minute
)

// Writer publishes many messages without waiting for each. Its methods may be called from many goroutines. Make
// one with NewWriter, Close it.
//
// Messages are stored in the order of their Writes while nothing fails. One that has to be sent again (its connection was lost,
// its stream has no leader) may be stored behind others that were written up to a window later.
type Writer struct {
	c       *Client
	cfg     WriterConfig
	key     string  // what the reply subjects begin with, after the prefix that all share
	streams streams // what retries have found out about them

	life context.Context //nolint:containedctx // ends when nothing is tried any more
	end  context.CancelFunc

	closing chan struct{} // closed when Close begins
	idle    chan struct{} // closed when nothing runs any more after that

	// turn is held by the one Write that sends, and guards what it uses for every message again.
	turn   chan struct{}
	spare  *slot    // for the next message
	out    nats.Msg // as it is sent
	header nats.Header
	id     [1]string // what header holds
	text   []byte
	space  chan struct{} // tells the one Write that waits that there may be room; buffered

	// mu guards what follows, and what slots hold. It is never held while sending.
	mu       sync.Mutex
	slots    []*slot // by the low part of their token
	free     []*slot
	first    *slot // of those without an outcome, in the order they were written
	last     *slot
	pending  int    // slots that are in use: without an outcome, or their failure not told yet
	awaited  int    // of these, whose answer is waited for
	bytes    int    // of these
	written  uint64 // counts messages
	wanted   int    // size of the message that waits for room, or 0
	closed   bool
	finished bool
	closeErr error
	clock    silence
	retries  []*retry // that wait for a goroutine
	retrying int      // goroutines
	failures failures // that no Flush has returned
	failed   uint64   // messages, of all that were written
	lastErr  error    // of the last of these
	news     error    // the first of them, to be logged
	flushes  map[*flush]struct{}
	reports  []*report // that wait for OnError
	telling  bool      // a goroutine does
}

// NewWriter returns a Writer. The Client's Close closes it.
func (c *Client) NewWriter(cfg WriterConfig) (*Writer, error) {
	for field, n := range map[string]int{"MaxPending": cfg.MaxPending, "MaxPendingBytes": cfg.MaxPendingBytes} {
		if n < 0 {
			return nil, &ConfigError{Field: field, Value: strconv.Itoa(n), Reason: "is negative; give a limit, or 0 for the default"}
		}
	}
	if cfg.Timeout < 0 {
		return nil, &ConfigError{Field: "Timeout", Value: cfg.Timeout.String(), Reason: "is negative; give a duration, or 0 for the default"}
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = defaultMaxPending
	}
	if cfg.MaxPendingBytes == 0 {
		cfg.MaxPendingBytes = defaultMaxPendingBytes
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultWriterTimeout
	}
	w := &Writer{
		c: c, cfg: cfg,
		streams: streams{asking: make(chan struct{}, 1)},
		closing: make(chan struct{}),
		idle:    make(chan struct{}),
		turn:    make(chan struct{}, 1),
		header:  make(nats.Header, 1),
		space:   make(chan struct{}, 1),
		flushes: map[*flush]struct{}{},
	}
	w.spare = w.vacantLocked()
	w.clock.init(cfg, w.tick)
	w.life, w.end = context.WithCancel(context.Background())
	if err := c.openWriter(w); err != nil {
		w.end()
		return nil, err
	}
	return w, nil
}

// Write sends msg and returns without waiting for the acknowledgement: whether it is stored, Flush and Close say, and OnError
// where it is not. While the window is full, or there is no connection, it waits until ctx ends. msg and its headers are
// not written to, and are the caller's again when Write has returned, Data too; its Reply is not sent.
//
// Outcomes that are unknown are resolved as PublishMsg does, with the message id, within WriterConfig.Timeout; and a full
// stream is waited for as long. What PublishMsg says at once, OnError and Flush say.
//
// An error of Write is a *PublishError and means that msg was not sent: ctx's error, ErrClosed, ErrTooLarge, or a *ConfigError
// for no message or a subject that cannot be published to. Such a message is not told to OnError, nor to Flush. ErrTooLarge is
// about the window and the server's limit; a stream's own MaxMsgSize is known to the stream alone, and told to OnError.
func (w *Writer) Write(ctx context.Context, msg *nats.Msg) error {
	size, err := w.check(msg)
	if err == nil {
		err = w.write(ctx, msg, size)
	}
	if err == nil {
		return nil
	}
	failed := &PublishError{Err: err}
	if msg != nil {
		failed.Subject = msg.Subject
	}
	return failed
}

// check returns what msg takes of the window.
func (w *Writer) check(msg *nats.Msg) (int, error) {
	if msg == nil {
		return 0, &ConfigError{Field: "msg", Reason: "is nil; give a message"}
	}
	if err := publishable(msg.Subject); err != nil {
		return 0, err
	}
	size := len(msg.Subject) + len(msg.Data)
	for key, values := range msg.Header {
		for _, v := range values {
			size += len(key) + len(v)
		}
	}
	if size > w.cfg.MaxPendingBytes {
		return 0, fmt.Errorf("%w: %d bytes with headers and subject, and MaxPendingBytes is %d; publish less, or raise it",
			ErrTooLarge, size, w.cfg.MaxPendingBytes)
	}
	return size, nil
}

func (w *Writer) write(ctx context.Context, msg *nats.Msg, size int) error {
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
		case <-w.closing:
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
		if err := w.admit(ctx, s); err != nil {
			return err
		}
		err := w.c.nc.PublishMsg(&w.out)
		if err == nil {
			return nil
		}
		again, err := w.unsent(s, err)
		if !again {
			return err
		}
		// Between two connections; that there is none is known a moment later.
		if ended := sleep(ctx, retryPause.delay(n)); ended != nil {
			return fmt.Errorf("%w: %w", ended, err)
		}
	}
}

func (w *Writer) closedError() error {
	return fmt.Errorf("%w: Close of the Writer was called", ErrClosed)
}

// connected waits for a connection.
func (w *Writer) connected(ctx context.Context) error {
	if w.c.link.up.Load() {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-w.closing:
			cancel(w.closedError())
		case <-ctx.Done():
		}
	}()
	err := w.c.link.wait(ctx, time.Time{})
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrClosed) {
		return cause
	}
	return err
}

// pack copies msg into s and w.out. Nobody else has either.
func (w *Writer) pack(s *slot, msg *nats.Msg, size int) {
	s.subject, s.size = msg.Subject, size
	s.data = append(s.data[:0], msg.Data...)
	clear(s.header)
	s.values = s.values[:0]

	// Message id and reply subject are one string: what is made for each message anew is what it costs.
	s.id, s.ownID = header(msg.Header, jetstream.MsgIDHeader), false
	w.text = w.text[:0]
	if s.id == "" && !w.cfg.AtLeastOnce {
		s.ownID = true
		w.text = w.c.ids.append(w.text)
	}
	n := len(w.text)
	w.text = append(w.text, w.c.acks.prefix...)
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

// packHeader copies the values too: who changes one in place must not change what is sent again.
func (s *slot) packHeader(h nats.Header) {
	if s.header == nil {
		s.header = make(nats.Header, len(h)+1)
	}
	for key, values := range h {
		n := len(s.values)
		s.values = append(s.values, values...)
		s.header[key] = s.values[n:len(s.values):len(s.values)]
	}
	if s.ownID {
		s.values = append(s.values, s.id)
		s.header[jetstream.MsgIDHeader] = s.values[len(s.values)-1:]
	}
}

// admit waits until there is room for s, and makes it the last message of the window.
func (w *Writer) admit(ctx context.Context, s *slot) error {
	s.sent = time.Now()
	w.mu.Lock()
	for !w.closed && !w.fitsLocked(s.size) {
		w.wanted = s.size
		w.clock.start()
		w.mu.Unlock()
		select {
		case <-w.space:
		case <-w.closing:
		case <-ctx.Done():
			w.mu.Lock()
			w.wanted = 0
			err := fmt.Errorf("no room in the window yet, in which %d of %d messages and %d of %d bytes have no answer: %w",
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

// unsent takes s out again if nothing of it was sent. It reports whether to try again, and otherwise returns why that is of
// no use; nil if a retry has it.
func (w *Writer) unsent(s *slot, err error) (again bool, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.state != slotSent { // the loss of the connection was quicker
		return false, nil
	}
	p := w.publication(s)
	cause := p.judgeSend(err)
	if p.unknown {
		w.retryLocked(s, p, &sendError{err})
		return false, nil
	}
	w.settleLocked(s)
	_, again = errors.AsType[*againError](cause)
	return again, cause
}
