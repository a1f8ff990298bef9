package consumer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/expiry"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/pull"
)

var (
	errDeposed = errors.New("the server gave the pin to another instance, or to none")
	errRetired = errors.New("there was nothing to do, and the pin was given back")
	errLapsed  = errors.New("the server has been silent for so long " +
		"that another instance may become the active one")
)

// ownership is the time for which this instance has the pin, and so is the active one.
// Three goroutines meet in it: the subscription's brings messages (deliveries), the
// worker handles them, and the supervision says where to begin and when it is over.
type ownership struct {
	c       *Consumer
	durable durable.Durable
	id      string // of the instance
	pin     string
	ctx     context.Context //nolint:containedctx // what handlers' ctx are made of; ends with the pin
	cancel  context.CancelCauseFunc
	trust   expiry.Guard
	acks    cumulativeAck
	signals chan struct{} // wakes the worker
	idle    chan struct{} // closed when the worker has ended

	puller   atomic.Pointer[pull.Puller]
	stopping atomic.Bool // the worker begins nothing more
	// busy means that the worker has a batch, may be in the handler, and owns handled.
	busy         atomic.Bool
	done         atomic.Int64  // how many messages of the batch are handled
	reached      atomic.Uint64 // the latest consumer sequence that it came to since the last reset
	resetByOther atomic.Bool   // somebody else has reset the durable
	perMsg       atomic.Int64  // smoothed time a handler takes; 0 before the first
	acting       atomic.Bool   // it may handle messages: no former owner can any more
	handling     atomic.Int64  // when the handler was called, in Unix nanoseconds; 0 while none runs
	epoch        atomic.Uint64 // grows when everything held is dropped; written with mu held

	// mu guards what follows. The worker alone writes batch and batchEpoch, and so
	// reads them without mu.
	mu         sync.Mutex
	queue      []*dispatch.Message // received, and not taken by the worker
	queueBytes int
	asleep     bool                // the worker waits for a signal,
	since      time.Time           // from then on
	batch      []*dispatch.Message // what the worker took last
	batchBytes int
	batchEpoch uint64

	// The supervision's alone.
	granted time.Time // when the pin came
	cleared bool      // no former owner can be active, from due on
	due     time.Time

	// The worker's, and the supervision's while the worker is not busy.
	resumed bool   // there was a reset before
	floor   uint64 // the ack floor at the last reset
	handled uint64 // the highest stream sequence that was handled in this ownership

	// The worker's alone.
	began   time.Time // when the handler was called; zero once that is measured
	counted bool      // the takeover is counted, or need not be
	careful int       // how many messages are still acknowledged one by one
	failing failing
}

// failing is a message that failed, and that all others wait for.
type failing struct {
	sequence uint64
	attempt  int       // the last one
	due      time.Time // when the next one is
}

// newOwnership begins an ownership. It handles nothing before the first reset, whose
// answer says since when the pin can be trusted.
func newOwnership(c *Consumer, id, pin string, span time.Duration) *ownership {
	o := &ownership{
		c: c, durable: c.durable, id: id, pin: pin,
		signals: make(chan struct{}, 1), idle: make(chan struct{}),
	}
	o.ctx, o.cancel = context.WithCancelCause(c.handlerCtx)
	o.acks.begin(o)
	o.granted = time.Now()
	o.trust.Begin(o.granted, span, func() { o.lose(errLapsed) })
	return o
}

// lose ends the ownership: the handler's ctx ends, nothing begins or is acknowledged.
func (o *ownership) lose(why error) {
	o.trust.End()
	o.cancel(why)
	signal(o.signals)
	o.c.wake()
}

func (o *ownership) lost() bool { return o.trust.Ended.Load() }

// stop lets the worker end after the message in hand.
func (o *ownership) stop() {
	o.stopping.Store(true)
	signal(o.signals)
}

func (o *ownership) over() bool { return o.stopping.Load() || o.lost() }

// drop forgets the messages that no handler has begun, and the acknowledgements that
// were not sent. It begins a new epoch, and returns that.
func (o *ownership) drop() uint64 {
	o.mu.Lock()
	epoch := o.epoch.Add(1)
	clear(o.queue)
	o.queue, o.queueBytes = o.queue[:0], 0
	o.mu.Unlock()
	o.acks.drop()
	signal(o.signals)
	return epoch
}

// begin goes on after a reset to floor, whose answer says since when this instance has
// the pin at least. It returns false if that is too long ago.
func (o *ownership) begin(since time.Time, floor uint64) bool {
	if o.trust.From.Load().Equal(o.granted) { // no answer to another request says more
		o.trust.From.Store(&since)
	}
	if !o.trust.Holds(time.Now()) {
		o.lose(errLapsed)
		return false
	}
	o.resume(floor)
	o.acting.Store(true)
	return true
}

// resume goes on after a reset to floor; the worker must not be busy. A message that
// was handled under this pin and is redelivered, because its acknowledgement was lost,
// does not run again, unless somebody else has reset the durable to have that.
func (o *ownership) resume(floor uint64) {
	if floor < o.floor || o.resetByOther.Swap(false) {
		o.handled = 0
	}
	o.floor, o.resumed = floor, true
	o.reached.Store(0)
}

// load returns how many messages are held, their bytes, and how many are being handled.
func (o *ownership) load() (n, bytes, handling int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, bytes = len(o.queue), o.queueBytes
	if o.batchEpoch == o.epoch.Load() {
		n, bytes = n+len(o.batch)-int(o.done.Load()), bytes+o.batchBytes
	}
	if o.busy.Load() {
		handling = 1
	}
	return n, bytes, handling
}

// push takes a message of an epoch, unless that is over.
func (o *ownership) push(epoch uint64, m *dispatch.Message) {
	o.mu.Lock()
	if epoch != o.epoch.Load() {
		o.mu.Unlock()
		return
	}
	o.queue = append(o.queue, m)
	o.queueBytes += m.Size
	wake := o.asleep
	o.asleep = false
	o.mu.Unlock()
	if wake {
		signal(o.signals)
	}
}

// work handles messages until the ownership is over.
func (o *ownership) work() {
	callback.Loop(func() bool {
		if m := o.next(); m != nil {
			o.c.callHandler(m, func(stack []byte, err error) { o.settle(m, err, stack) })
			return true
		}
		o.busy.Store(false)
		close(o.idle)
		o.c.wake()
		return false
	})
}

// next returns the message to handle now, or nil when the ownership is over.
func (o *ownership) next() *dispatch.Message {
	for !o.over() {
		done := int(o.done.Load())
		if done == len(o.batch) || o.epoch.Load() != o.batchEpoch {
			o.take()
			continue
		}
		m := o.batch[done]
		o.reached.Store(m.ConsumerSeq)
		now := time.Now()
		o.measure(now)
		switch {
		case m.Delivery.Sequence <= o.handled, m.Others:
			o.accept(m)
		case o.c.isForeign(m.Msg.Subject):
			o.c.noteLeft(m.Subject())
			o.c.foreign.seen.Store(true)
			o.stop() // the supervision gives the pin to another instance
		case !o.trust.Holds(now):
			o.lose(errLapsed)
		case !o.counted:
			o.counted = o.countTakeover(m)
		case m.Delivery.Sequence != o.failing.sequence:
			o.start(now)
			return m
		case o.failing.due.After(now):
			o.rest(o.failing.due.Sub(now))
		default:
			o.start(now)
			return o.c.nextAttempt(m, o.failing.attempt+1)
		}
	}
	return nil
}

// start takes note of when a handler is called.
func (o *ownership) start(now time.Time) {
	o.began = now
	o.handling.Store(now.UnixNano())
}

// measure takes note of how long the last handler took.
func (o *ownership) measure(now time.Time) {
	if o.began.IsZero() {
		return
	}
	o.perMsg.Store(int64(dispatch.Smooth(time.Duration(o.perMsg.Load()), now.Sub(o.began))))
	o.began = time.Time{}
	o.handling.Store(0)
}

// take waits for messages, and takes them all.
func (o *ownership) take() {
	now := time.Now()
	o.measure(now)
	o.mu.Lock()
	o.since = now
	clear(o.batch)
	spare := o.batch[:0]
	o.batch, o.batchBytes = nil, 0
	o.done.Store(0)
	o.busy.Store(false)
	for len(o.queue) == 0 {
		o.asleep = true
		o.mu.Unlock()
		o.c.wake() // there may be room for more, or a reset to make
		<-o.signals
		if o.over() {
			return
		}
		o.mu.Lock()
		o.asleep = false
	}
	o.batch, o.batchBytes, o.batchEpoch = o.queue, o.queueBytes, o.epoch.Load()
	o.queue, o.queueBytes = spare, 0
	o.busy.Store(true)
	o.mu.Unlock()
	o.wakeIfRoom()
}

// wakeIfRoom wakes the supervision if it can ask for more messages.
func (o *ownership) wakeIfRoom() {
	if p := o.puller.Load(); p != nil && p.Idle() {
		o.c.wake()
	}
}

// rest waits until the failing message is due, or there is something else to do.
func (o *ownership) rest(wait time.Duration) {
	o.busy.Store(false)
	o.c.wake()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-o.signals:
	}
	o.mu.Lock()
	o.busy.Store(o.epoch.Load() == o.batchEpoch)
	o.mu.Unlock()
}

// settle acts on the outcome of the handler.
func (o *ownership) settle(m *dispatch.Message, err error, stack []byte) {
	c, lost := o.c, o.lost()
	switch {
	case err == nil && !lost:
		c.followed(m, dispatch.Acked, nil, 0)
		o.accept(m)
		return
	case err == nil:
		c.followed(m, dispatch.Abandoned, context.Cause(o.ctx), 0)
		c.report(c.errorf("message %d was handled, and the next active instance handles it again: %w",
			m.Delivery.Sequence, context.Cause(o.ctx)))
		return
	}
	c.answered(m, err)
	final, pause := c.judge(m.Delivery, err)
	final = final && !lost
	dead := final
	if final && c.cfg.DeadLetter != "" {
		if kept := c.storeLetter(m, err); kept != nil {
			final, err = false, errors.Join(err, kept)
		}
	}
	outcome := c.failureOf(false, final, dead)
	if lost {
		outcome = dispatch.Abandoned
	}
	c.followed(m, outcome, err, pause)
	if final {
		o.accept(m)
	} else {
		o.failing = failing{m.Delivery.Sequence, m.Delivery.Attempt, time.Now().Add(pause)}
	}
	c.reportFailure(m.Subject(), m.Delivery, stack, final, outcome, err)
}

// accept is done with a message, the next in order.
func (o *ownership) accept(m *dispatch.Message) {
	o.handled = max(o.handled, m.Delivery.Sequence)
	o.done.Add(1)
	o.c.ackTrouble.sent(m.Delivery.Sequence)
	if o.careful > 0 {
		o.careful--
		o.acks.now(m, o.batchEpoch)
	} else {
		o.acks.add(m, o.batchEpoch)
	}
	o.wakeIfRoom()
}

// carefulFor is how many messages are acknowledged one by one when an owner begins
// where the last one did. The last owner may have died of a later message, behind some
// that it had handled and not yet acknowledged. That message must become the first of
// the next owner, where takeovers are counted.
const carefulFor = 1000

// countTakeover counts the first message of an ownership before it is handled. It
// returns false to try again.
func (o *ownership) countTakeover(m *dispatch.Message) bool {
	ctx, cancel := context.WithTimeout(o.ctx, jsapi.APITimeout)
	defer cancel()
	n, err := o.c.client.CountTakeover(ctx, o.durable, m.Delivery.Sequence, o.id)
	switch {
	case err == nil:
	case jsapi.Passing(err):
		o.rest(retryPull.Max)
		return false
	default: // not permitted: then nobody finds what kills its process
		o.c.report(o.c.errorf("count this takeover: %w", err))
	}
	if n > 1 {
		o.careful = carefulFor
		m.Delivery.Attempt = n
		m.Delivery.Last = o.c.isLast(m.Delivery)
	}
	return true
}
