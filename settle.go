package natty

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/nats-io/nats.go"
)

// handle runs the handler with a message, and settles it.
func (e *engine) handle(h *held) {
	start := time.Now()
	stack, err := []byte(nil), errGoexit
	defer func() {
		e.settleOne(h, err, stack, time.Since(start))
		e.more()
	}()
	if condemned := e.condemned(h); condemned != nil {
		err = condemned
		return
	}
	stack, err = e.call(&h.deliveryCtx, h.msg)
}

// readable returns err, or one in its place if its methods panic, as those of a nil pointer in an error do: reading
// the verdict must not end the process.
func readable(err error) (safe error) {
	if err == nil {
		return nil
	}
	defer func() {
		if recover() != nil {
			safe = fmt.Errorf("the handler returned a %T that cannot be read; a nil pointer in an error?", err)
		}
	}()
	_ = err.Error()
	_, _ = errors.AsType[*verdict](err)
	return err
}

// leave takes a settled message off, and hands back what cannot follow it here.
func (e *engine) leave(h *held, took time.Duration, byHandler bool) {
	if h.doubtful && e.c.link.up.Load() {
		_ = e.c.nc.FlushTimeout(endGrace) // the next one may kill this process, with the verdict still in it
	}
	back := e.dispatch.done(h, took, byHandler)
	if len(back) == 0 {
		return
	}
	e.burst.flush() // behind the one that was handled
	for _, b := range back {
		e.handBack(b)
	}
	e.dispatch.handedBack()
}

// errGoexit stands until the user's function returns. runtime.Goexit, which t.FailNow calls, ends it without.
var errGoexit = errors.New("the function ended its goroutine (runtime.Goexit)")

// call runs the handler. A panic becomes an error, with where it happened.
func (e *engine) call(ctx context.Context, msg *nats.Msg) (stack []byte, err error) {
	defer recovered(&stack, &err)
	ctx, cancel := e.timed(ctx)
	defer cancel()
	return nil, readable(e.handler(ctx, msg))
}

// recovered is deferred around handlers.
func recovered(stack *[]byte, err *error) {
	p := recover() //nolint:revive // this is the deferred function
	if p == nil {
		return
	}
	*stack = debug.Stack()
	if cause, ok := p.(error); ok {
		*err = fmt.Errorf("panic: %w", cause)
	} else {
		*err = fmt.Errorf("panic: %v", p)
	}
}

// timed bounds ctx by the handler timeout.
func (e *engine) timed(ctx context.Context) (context.Context, context.CancelFunc) {
	if e.cfg.HandlerTimeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, e.cfg.HandlerTimeout, errHandlerTimeout)
}

var errHandlerTimeout = errors.New("the handler timeout is over")

// settle tells the server the verdict on a message. byHandler says that the handler had done that before, rests that the
// message stays here for its next attempt.
func (e *engine) settle(h *held, err error, stack []byte, took time.Duration) (byHandler, rests bool) {
	h.restore()
	switch {
	case h.epoch != e.epoch.Load():
		return false, false // its stream is gone, and its sequence another message's
	case err == nil:
		return e.acknowledge(h), false
	}
	v, explicit := errors.AsType[*verdict](err)
	final := explicit && v.permanent || h.d.Last
	if final {
		byHandler, err = e.giveUp(h, err)
		final = !errors.Is(err, errKept)
	}
	failed := &HandlerError{Subject: h.msg.Subject, Delivery: h.d, Stack: stack, Final: final, Err: err}
	if !final {
		after := e.cfg.Backoff.delay(h.d.Attempt)
		if explicit && !v.permanent {
			after = v.after
		}
		byHandler, rests = e.retry(h, took, after)
	}
	e.report(failed)
	return byHandler, rests
}

// giveUp takes a message off for good, after its copy is stored if there is a dead letter. It returns err, joined with
// errKept if the message stays.
func (e *engine) giveUp(h *held, err error) (byHandler bool, _ error) {
	switch {
	case e.cfg.DeadLetter == "":
		return e.tell(answer{msg: h.msg, kind: term}), err
	case e.settledBy(h):
		return true, err
	}
	byHandler, kept := e.bury(h, err)
	return byHandler, errors.Join(err, kept)
}

var errKept = errors.New("not dead-lettered, it stays on the consumer")

// retry lets a message come again after a while: from the server, or when its order has to be kept, from here.
func (e *engine) retry(h *held, took, after time.Duration) (byHandler, rests bool) {
	if e.cfg.OrderBy != nil {
		if e.settledBy(h) {
			return true, false
		}
		h.d.Attempt++
		h.d.Last = e.last(h.d)
		if e.dispatch.restFor(h, took, after) {
			return false, true
		}
		after = 0 // at the end: later than those of its key, it would come out of order
	}
	e.dispatch.letGo(h)
	e.removals.retried(h.d.Sequence, after)
	return e.tell(answer{msg: h.msg, kind: nak, after: after}), false
}

// settledBy reports whether the handler settled the message itself.
func (e *engine) settledBy(h *held) bool {
	return errors.Is(h.msg.InProgress(), nats.ErrMsgAlreadyAckd)
}

// acknowledge takes a message off that was handled, unless the handler settled it.
func (e *engine) acknowledge(h *held) (byHandler bool) {
	alone := e.burst.most < 2 || h.doubtful // doubtful: the next one may kill this process
	if alone || e.dispatch.ended(h) {
		return e.tell(answer{msg: h.msg, kind: ack})
	}
	m := *h.msg // the handler may have given it to somebody who goes on with it
	e.burst.add(&m)
	return false
}

func (e *engine) last(d Delivery) bool { return e.cfg.MaxDeliver > 0 && d.Attempt >= e.cfg.MaxDeliver }

// handBack gives a message to another instance at once.
func (e *engine) handBack(h *held) { e.tell(answer{msg: h.msg, kind: nak}) }

// answer is a verdict on its way to the server.
type answer struct {
	msg   *nats.Msg
	kind  answerKind
	after time.Duration // for nak; zero or less means at once
}

type answerKind int

const (
	ack answerKind = iota
	nak
	term
)

func (a answer) send() error {
	switch {
	case a.kind == ack:
		return a.msg.Ack()
	case a.kind == term:
		return a.msg.Term()
	case a.after > 0:
		return a.msg.NakWithDelay(a.after)
	}
	return a.msg.Nak()
}

// tell sends a verdict, and reports whether the handler had sent one before. A verdict that finds no connection is
// kept for the next: forgotten, it would let a message that was handled come again.
func (e *engine) tell(a answer) (byHandler bool) {
	err := a.send()
	switch {
	case err == nil, errors.Is(err, nats.ErrMsgAlreadyAckd):
		return err != nil
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrMsgNoReply), errors.Is(err, nats.ErrMsgNotBound):
		e.report(fmt.Errorf("natty: consumer %q: a verdict could not be sent, its message comes again: %w", e.cfg.Durable, err))
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.owed = append(e.owed, a)
	return false
}

// tellOwed sends the verdicts that were kept, in the order in which they were given.
func (e *engine) tellOwed() {
	e.mu.Lock()
	owed := e.owed
	e.owed = nil
	e.mu.Unlock()
	for _, a := range owed {
		e.tell(a)
	}
}

var progress = []byte("+WPI")

// reportProgress tells the server that everything held is still being worked on, or waits here for it: AckWait
// starts anew for it.
func (e *engine) reportProgress() {
	for _, reply := range e.dispatch.replies(e.epoch.Load()) {
		if e.c.nc.Publish(reply, progress) != nil {
			return // not connected
		}
	}
}
