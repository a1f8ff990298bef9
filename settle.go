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
	finished := false
	defer func() {
		if !finished {
			// runtime.Goexit ran through the handler, as t.FailNow does: nothing was said about the message.
			e.settle(h, errors.New("the handler ended its goroutine"), nil)
		}
		e.dispatch.done(h, time.Since(start))
		e.more()
	}()
	err, stack := e.call(&h.deliveryCtx, h.msg)
	e.settle(h, err, stack)
	finished = true
}

// call runs the handler. A panic becomes an error, with where it happened.
func (e *engine) call(ctx context.Context, msg *nats.Msg) (err error, stack []byte) { //nolint:revive // stack belongs to err
	defer func() {
		if p := recover(); p != nil {
			stack = debug.Stack()
			if cause, ok := p.(error); ok {
				err = fmt.Errorf("panic: %w", cause)
			} else {
				err = fmt.Errorf("panic: %v", p)
			}
		}
	}()
	return e.handler(ctx, msg), nil
}

// settle tells the server the verdict on a message. One that the handler settled itself is left at that.
func (e *engine) settle(h *held, err error, stack []byte) {
	if err == nil {
		e.tell(h.msg.Ack)
		return
	}
	var v *verdict
	explicit := errors.As(err, &v)
	final := explicit && v.permanent
	switch {
	case final:
		e.tell(h.msg.Term)
	case explicit:
		e.retry(h.msg, v.after)
	default:
		e.retry(h.msg, e.cfg.Backoff.delay(h.d.Attempt))
	}
	e.report(&HandlerError{Subject: h.msg.Subject, Delivery: h.d, Stack: stack, Final: final, Err: err})
}

func (e *engine) retry(msg *nats.Msg, after time.Duration) {
	if after <= 0 {
		e.tell(msg.Nak)
		return
	}
	e.tell(func(opts ...nats.AckOpt) error { return msg.NakWithDelay(after, opts...) })
}

// tell sends a verdict. One that finds no connection is kept for the next: forgotten, it would let a message
// that was handled come again.
func (e *engine) tell(verdict func(...nats.AckOpt) error) {
	err := verdict()
	if err == nil || errors.Is(err, nats.ErrMsgAlreadyAckd) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.owed = append(e.owed, verdict)
}

// tellOwed sends the verdicts that were kept, in the order in which they were given.
func (e *engine) tellOwed() {
	e.mu.Lock()
	owed := e.owed
	e.owed = nil
	e.mu.Unlock()
	for _, verdict := range owed {
		e.tell(verdict)
	}
}

var progress = []byte("+WPI")

// reportProgress tells the server that everything held is still being worked on, or waits here for it: AckWait
// starts anew for it.
func (e *engine) reportProgress() {
	for _, reply := range e.dispatch.replies() {
		if e.c.nc.Publish(reply, progress) != nil {
			return // not connected
		}
	}
}
