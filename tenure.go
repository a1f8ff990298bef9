package natty

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

var (
	errDeposed = errors.New("the server gave the pin to another instance, or to none")
	errLapsed  = errors.New("the server has been silent for so long that another instance may become the active one")
)

// tenure is the time for which this instance is the active one: from a pin to its loss. Three goroutines meet in it: the
// subscription's brings messages (feed), work handles them, and the supervision says where to begin and when it is
// over.
type tenure struct {
	e       *engine
	durable durable
	id      string // of the instance
	pin     string
	ctx     context.Context //nolint:containedctx // what handlers' ctx are made of; ends with the pin
	cancel  context.CancelCauseFunc
	trust   trust
	acks    ackRun
	kick    func()        // wakes the supervision
	wake    chan struct{} // wakes work
	idle    chan struct{} // closed when work has ended

	puller   atomic.Pointer[puller]
	stopping atomic.Bool   // work begins nothing more
	busy     atomic.Bool   // work has a batch: it may be in the handler, and handled is its own
	at       atomic.Int64  // how many messages of the batch are done
	reached  atomic.Uint64 // the consumer sequence that had its turn last, since the last reset
	setBack  atomic.Bool   // somebody else has reset the durable
	perMsg   atomic.Int64  // smoothed time a handler takes; 0 before the first
	epoch    atomic.Uint64 // grows when everything held is dropped; written with mu held

	// mu guards what follows.
	mu      sync.Mutex
	queue   []*held // received, and not taken by work
	queued  int     // its bytes
	asleep  bool    // work waits for wake
	batch   []*held // what work took last; written by work alone, which so reads it without mu
	taken   int     // its bytes
	batchOf uint64  // its epoch; as batch

	// work's, and the supervision's while work is not busy.
	resumed bool   // there was a reset before
	floor   uint64 // the acknowledgement floor at the last reset
	handled uint64 // up to this stream sequence everything was handled in this tenure

	// work's alone.
	began    time.Time // when the handler was called; zero when it was not since the last measurement
	met      bool      // the first message was counted
	careful  int       // so many messages are still acknowledged one by one
	failing  failing
	original nats.Msg // the message in hand as it came: a handler may change what it gets
}

// failing is a message that failed, and that all others wait for.
type failing struct {
	sequence uint64
	attempt  int       // the last one
	due      time.Time // when the next one is
}

func newTenure(e *engine, id string, g gained, span time.Duration, kick func()) *tenure {
	t := &tenure{
		e: e, durable: e.durable, id: id, pin: g.pin, kick: kick, met: e.cfg.MaxDeliver == 0,
		wake: make(chan struct{}, 1), idle: make(chan struct{}),
	}
	t.ctx, t.cancel = context.WithCancelCause(e.base)
	t.acks.begin(t)
	t.trust.begin(g.sent, span, func() { t.lose(errLapsed) })
	return t
}

// lose ends the tenure: the handler's ctx ends, nothing more is begun, and nothing acknowledged.
func (t *tenure) lose(why error) {
	t.trust.end()
	t.cancel(why)
	t.wakeUp()
	t.kick()
}

func (t *tenure) lost() bool { return t.trust.ended.Load() }

// stop lets work end after the message in hand.
func (t *tenure) stop() {
	t.stopping.Store(true)
	t.wakeUp()
}

func (t *tenure) over() bool { return t.stopping.Load() || t.lost() }

func (t *tenure) wakeUp() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// drop forgets what is held and no handler has begun, and acknowledgements that were not sent. It begins a new
// epoch, and returns that.
func (t *tenure) drop() uint64 {
	t.mu.Lock()
	epoch := t.epoch.Add(1)
	clear(t.queue)
	t.queue, t.queued = t.queue[:0], 0
	t.mu.Unlock()
	t.acks.drop()
	t.wakeUp()
	return epoch
}

// resume goes on after a reset to floor; work must not be busy. What was handled under this pin, and comes again since
// its acknowledgement did not get through, is not handled twice; unless somebody else has reset the durable, who may want
// to have it handled again.
func (t *tenure) resume(floor uint64) {
	if floor < t.floor || t.setBack.Swap(false) {
		t.handled = 0
	}
	t.floor, t.resumed = floor, true
	t.reached.Store(0)
}

// load returns how many messages are held, their bytes, and how many are being handled.
func (t *tenure) load() (n, bytes, handling int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, bytes = len(t.queue), t.queued
	if t.batchOf == t.epoch.Load() {
		n, bytes = n+len(t.batch)-int(t.at.Load()), bytes+t.taken
	}
	if t.busy.Load() {
		handling = 1
	}
	return n, bytes, handling
}

// feed brings messages to a tenure, from one reset to the next.
type feed struct {
	t      *tenure
	epoch  uint64
	begun  bool        // the durable was reset for it; the supervision's alone
	broken atomic.Bool // something is missing, or not ours

	// The subscription's alone.
	delivered uint64 // the consumer sequence that came last
	last      uint64 // the highest stream sequence that came
}

// receive takes a message. The consumer sequence counts from 1 after a reset: one that is not the next means that
// messages were lost, or that somebody else has reset the durable.
func (f *feed) receive(m *nats.Msg) {
	t, e := f.t, f.t.e
	if f.broken.Load() {
		return
	}
	d, delivered, ok := parseReply(m.Reply)
	if !ok || delivered != f.delivered+1 || pinOf(m) != t.pin {
		t.setBack.Store(delivered <= f.delivered)
		f.broken.Store(true)
		t.kick()
		return
	}
	f.delivered = delivered
	e.lastMessage.Store(t.puller.Load().heard.Load())
	if d.Sequence <= f.last {
		return // AckWait was over. It is held, or was handled: its verdict holds for this delivery too
	}
	f.last = d.Sequence
	if len(m.Header) == 1 { // the pin alone
		m.Header = nil
	} else {
		delete(m.Header, headerPin)
	}
	h := newHeld(m)
	h.delivered = delivered
	h.Context, h.d = t.ctx, d
	h.d.Last = e.last(d)
	t.push(f.epoch, h)
}

func (t *tenure) push(epoch uint64, h *held) {
	t.mu.Lock()
	if epoch != t.epoch.Load() {
		t.mu.Unlock()
		return
	}
	t.queue = append(t.queue, h)
	t.queued += h.size
	wake := t.asleep
	t.asleep = false
	t.mu.Unlock()
	if wake {
		t.wakeUp()
	}
}

// work handles messages until the tenure is over.
func (t *tenure) work() {
	normal := false
	defer func() {
		if !normal { // runtime.Goexit in a handler ends this goroutine, not the work
			go t.work()
			return
		}
		t.busy.Store(false)
		close(t.idle)
		t.kick()
	}()
	for {
		h := t.next()
		if h == nil {
			normal = true
			return
		}
		t.handle(h)
	}
}

// next returns the message to handle now, or nil when the tenure is over.
func (t *tenure) next() *held {
	for !t.over() {
		at := int(t.at.Load())
		if at == len(t.batch) || t.epoch.Load() != t.batchOf {
			t.take()
			continue
		}
		h := t.batch[at]
		t.reached.Store(h.delivered)
		now := time.Now()
		t.measure(now)
		switch {
		case h.d.Sequence <= t.handled, isHolder(h.msg), t.e.forAnother(h.msg):
			t.accept(h)
		case !t.trust.holds(now):
			t.lose(errLapsed)
		case !t.met:
			t.met = t.meet(h)
		case h.d.Sequence == t.failing.sequence:
			if wait := t.failing.due.Sub(now); wait > 0 {
				t.rest(wait)
				continue
			}
			return t.again(h)
		default:
			t.began = now
			t.original = nats.Msg{Subject: h.msg.Subject, Reply: h.sent.reply, Header: h.msg.Header, Data: h.msg.Data, Sub: h.msg.Sub}
			return h
		}
	}
	return nil
}

// measure takes note of how long the last handler took.
func (t *tenure) measure(now time.Time) {
	if t.began.IsZero() {
		return
	}
	took, perMsg := int64(now.Sub(t.began)), t.perMsg.Load()
	t.began = time.Time{}
	if perMsg == 0 {
		perMsg = took
	}
	t.perMsg.Store(max(perMsg+(took-perMsg)/8, 1))
}

// take waits for messages, and takes them all.
func (t *tenure) take() {
	t.measure(time.Now())
	t.mu.Lock()
	clear(t.batch)
	spare := t.batch[:0]
	t.batch, t.taken = nil, 0
	t.at.Store(0)
	t.busy.Store(false)
	for len(t.queue) == 0 {
		t.asleep = true
		t.mu.Unlock()
		t.kick() // there may be room for more, or a reset to be made
		<-t.wake
		if t.over() {
			return
		}
		t.mu.Lock()
		t.asleep = false
	}
	t.batch, t.taken, t.batchOf = t.queue, t.queued, t.epoch.Load()
	t.queue, t.queued = spare, 0
	t.busy.Store(true)
	t.mu.Unlock()
	t.more()
}

// more wakes the supervision, if it would have something to do.
func (t *tenure) more() {
	if p := t.puller.Load(); p != nil && p.idle() {
		t.kick()
	}
}

// rest waits until a message may be tried again, or there is something else to do.
func (t *tenure) rest(wait time.Duration) {
	t.busy.Store(false)
	t.kick()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.wake:
	}
	t.mu.Lock()
	t.busy.Store(t.epoch.Load() == t.batchOf)
	t.mu.Unlock()
}

// again returns a message for its next attempt, as it came. What the last one was given is left alone: its handler may
// still read it.
func (t *tenure) again(last *held) *held {
	m := t.original
	m.Reply = last.sent.reply // it may be another delivery
	h := newHeld(&m)
	h.size, h.delivered = last.size, last.delivered
	h.Context, h.d = t.ctx, last.d
	h.d.Attempt = t.failing.attempt + 1
	h.d.Last = t.e.last(h.d)
	t.began = time.Now()
	return h
}

// handle runs the handler with a message.
func (t *tenure) handle(h *held) {
	stack, err := []byte(nil), errGoexit
	defer func() { t.settle(h, err, stack) }()
	if condemned := t.e.condemned(h); condemned != nil {
		err = condemned
		return
	}
	stack, err = t.e.call(&h.deliveryCtx, h.msg)
}

// settle acts on a verdict.
func (t *tenure) settle(h *held, err error, stack []byte) {
	e := t.e
	if err == nil && !t.lost() {
		t.accept(h)
		return
	}
	if err == nil {
		e.report(fmt.Errorf("natty: consumer %q: message %d was handled, and comes again to the next active instance: %w",
			e.cfg.Durable, h.d.Sequence, context.Cause(t.ctx)))
		return
	}
	v, explicit := errors.AsType[*verdict](err)
	final := (explicit && v.permanent || h.d.Last) && !t.lost()
	if final && e.cfg.DeadLetter != "" {
		m := t.original
		h.msg = &m
		if kept := e.storeLetter(h, err); kept != nil {
			final, err = false, errors.Join(err, kept)
		}
	}
	failed := &HandlerError{Subject: t.original.Subject, Delivery: h.d, Stack: stack, Final: final, Err: err}
	if final {
		t.accept(h)
	} else {
		after := e.cfg.Backoff.delay(h.d.Attempt)
		if explicit && !v.permanent {
			after = v.after
		}
		t.failing = failing{sequence: h.d.Sequence, attempt: h.d.Attempt, due: time.Now().Add(after)}
	}
	e.report(failed)
}

// accept is done with a message, the next in order.
func (t *tenure) accept(h *held) {
	t.handled = max(t.handled, h.d.Sequence)
	t.at.Add(1)
	if t.careful > 0 {
		t.careful--
		t.acks.now(h, t.batchOf)
	} else {
		t.acks.add(h, t.batchOf)
	}
	t.more()
}
