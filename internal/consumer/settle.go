package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/mutant"
)

// handle runs the handler with a message, and settles it.
func (c *Consumer) handle(m *dispatch.Message) {
	start := time.Now()
	if mutant.AckFirst {
		c.acknowledge(m)
	}
	c.callHandler(m, func(stack []byte, err error) {
		c.settle(m, err, stack, time.Since(start))
		c.wakeIfRoom()
	})
}

// callHandler gives the handler's outcome to then, as an error that can be read. Poison
// is not handled: its outcome is a permanent failure.
func (c *Consumer) callHandler(m *dispatch.Message, then func(stack []byte, err error)) {
	callback.Call(func() error {
		ctx := c.follow(m.Ctx(), m)
		if err := c.poisoned(m); err != nil {
			return err
		}
		ctx, cancel := c.withTimeout(ctx)
		defer cancel()
		return c.named(ctx, readable(c.handler(ctx, m.Msg)))
	}, func(stack []byte, err error) { then(stack, readable(err)) }) // err may be what it panicked with
}

var errHandlerTimeout = errors.New("natty's handler timeout (HandlerTimeout) is over")

// named says that natty has ended the ctx of a handler that failed, which otherwise
// looks like a timeout of whatever the handler waited for.
func (c *Consumer) named(ctx context.Context, err error) error {
	if err == nil || !errors.Is(context.Cause(ctx), errHandlerTimeout) {
		return err
	}
	return fmt.Errorf("%w after %v: %w", errHandlerTimeout, c.cfg.HandlerTimeout, err)
}

func (c *Consumer) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.cfg.HandlerTimeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, c.cfg.HandlerTimeout, errHandlerTimeout)
}

// readable returns err, or another error in its place if its methods panic, as those of
// a nil pointer in an error do, and an Is that takes each error for one of its own type.
// So reading a handler's error never ends the process. The verdict stays if there is one.
func readable(err error) (safe error) {
	if err == nil {
		return nil
	}
	var v *dispatch.VerdictError
	text := ""
	callback.Call(func() error {
		v, _ = dispatch.VerdictOf(err)
		text = err.Error()
		_ = errors.Is(err, errKept)
		return nil
	}, func(_ []byte, panicked error) {
		if safe = err; panicked == nil {
			return
		}
		why := "a nil pointer in an error?"
		if text != "" {
			why = "its Is panics, and its text is: " + text
		}
		safe = fmt.Errorf("the handler returned a %T that cannot be read; %s", err, why)
		if v != nil {
			safe = &dispatch.VerdictError{Err: safe, Permanent: v.Permanent, After: v.After}
		}
	})
	return safe
}

// settle acts on the outcome of a handler, and removes the message from the queue
// unless it is parked for its next attempt.
func (c *Consumer) settle(m *dispatch.Message, err error, stack []byte, took time.Duration) {
	byHandler, parked := false, false // byHandler: the handler had settled it
	switch {
	case m.Epoch != c.epoch.Load(): // its stream is gone, and its sequence another message's
		c.followed(m, dispatch.Abandoned, err, 0)
	case err == nil:
		outcome := dispatch.Acked
		if byHandler = c.acknowledge(m); byHandler {
			c.answered(m, nil)
			outcome = dispatch.Settled
		}
		c.followed(m, outcome, nil, 0)
	default:
		byHandler, parked = c.fail(m, err, stack, took)
	}
	if !parked {
		c.leave(m, took, byHandler)
	}
}

// acknowledge settles a message that was handled, unless the handler settled it.
func (c *Consumer) acknowledge(m *dispatch.Message) (byHandler bool) {
	if m.Settled() {
		return true
	}
	// The message behind a quarantined one may kill this process.
	alone := !c.acks.Enabled() || m.Quarantined
	if alone || c.queue.Finish(m) {
		c.send(m.Reply(), ack)
	} else {
		c.acks.Add(m.Reply())
	}
	c.ackTrouble.sent(m.Delivery.Sequence)
	return false
}

// fail settles a message that was not handled: dead-lettered, or for another attempt.
func (c *Consumer) fail(
	m *dispatch.Message, err error, stack []byte, took time.Duration,
) (byHandler, parked bool) {
	c.answered(m, err)
	final, pause := c.judge(c.failed(m, err), err)
	dead := final
	if final {
		byHandler, err = c.terminate(m, err)
		final = !errors.Is(err, errKept)
	}
	d := m.Delivery // retry changes it
	if !final {
		byHandler, parked = c.retry(m, took, pause)
	}
	outcome := c.failureOf(byHandler, final, dead)
	c.followed(m, outcome, err, pause)
	c.reportFailure(m.Subject(), d, stack, final, outcome, err)
	return byHandler, parked
}

// RetryBackoff fills in what is not set of the pauses before a failed message runs again.
func RetryBackoff(set backoff.Exp) backoff.Exp {
	if set.Min == 0 {
		set.Min = 250 * time.Millisecond
	}
	if set.Max == 0 {
		set.Max = max(time.Minute, set.Min)
	}
	return set
}

// judge reads a handler's error: is it final, or what is the pause before a retry?
func (c *Consumer) judge(d dispatch.Delivery, err error) (final bool, pause time.Duration) {
	pause = c.cfg.Backoff.Delay(d.Attempt)
	v, explicit := dispatch.VerdictOf(err)
	if explicit && !v.Permanent {
		pause = v.After
	}
	return d.Last || explicit && v.Permanent, min(pause, backoff.Longest)
}

var errKept = errors.New("not dead-lettered, it stays on the consumer")

// terminate settles a message for good, after its copy is stored if there is a
// DeadLetter. It returns err, joined with errKept if the copy could not be stored: then
// the message stays.
func (c *Consumer) terminate(m *dispatch.Message, err error) (byHandler bool, _ error) {
	if m.Settled() {
		return true, err
	}
	if c.cfg.DeadLetter != "" && !mutant.DropsLetters {
		if kept := c.storeLetter(m, err); kept != nil {
			return false, errors.Join(err, kept)
		}
	}
	c.send(m.Reply(), term)
	return false, err
}

// retry lets a message run again after a pause: redelivered by the server, or parked
// here when its order must be kept.
func (c *Consumer) retry(m *dispatch.Message, took, pause time.Duration) (byHandler, parked bool) {
	if m.Settled() {
		return true, false
	}
	if c.cfg.OrderBy != nil {
		if c.queue.Park(m, c.nextAttempt(m, m.Delivery.Attempt+1), took, pause) {
			return false, true
		}
		pause = 0 // stopping: behind the others of its key it would be out of order
	}
	c.queue.Release(m)
	c.removals.retried(m.Delivery.Sequence, pause)
	c.send(m.Reply(), nakAfter(pause))
	return false, false
}

// nextAttempt returns a message for another attempt in its place.
func (c *Consumer) nextAttempt(m *dispatch.Message, attempt int) *dispatch.Message {
	d := m.Delivery
	d.Attempt = attempt
	d.Last = c.isLast(d)
	return m.Again(d)
}

// leave removes a settled message from the queue. While stopping, it also returns the
// messages that waited for it.
func (c *Consumer) leave(m *dispatch.Message, took time.Duration, byHandler bool) {
	if m.Quarantined && c.api.Link.Up() {
		// The next one may kill this process, with the verdict still in it.
		_ = c.api.NC.FlushTimeout(EndGrace)
	}
	back := c.queue.Settle(m, took, byHandler)
	if len(back) == 0 {
		return
	}
	c.acks.Flush() // the others come after the one that was handled
	for _, b := range back {
		c.returnNow(b)
	}
	c.queue.Returned()
}

// returnNow returns a message to the server, for another instance.
func (c *Consumer) returnNow(m *dispatch.Message) { c.sendVerdict(unsent{m.Reply(), nak, true}) }

// verdict tells the server what happens to a message.
type verdict []byte

var (
	ack  = verdict("+ACK")
	nak  = verdict("-NAK")
	term = verdict("+TERM")
)

func nakAfter(pause time.Duration) verdict {
	if pause <= 0 {
		return nak
	}
	return fmt.Appendf(nil, `-NAK {"delay": %d}`, pause.Nanoseconds())
}

// unsent is a verdict that found no connection.
type unsent struct {
	reply    string
	verdict  verdict
	handBack bool // no handler has begun the message
}

// send sends a verdict to the reply subject of a message. A verdict that finds no
// connection is kept for the next one. Otherwise a message that was handled would be
// redelivered.
func (c *Consumer) send(reply string, v verdict) { c.sendVerdict(unsent{reply, v, false}) }

func (c *Consumer) sendVerdict(u unsent) {
	err := c.api.NC.Publish(u.reply, u.verdict)
	switch {
	case err == nil:
		return
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubject):
		c.report(c.errorf("an ack or nak could not be sent, and the server redelivers the message: %w", err))
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsentVerdicts = append(c.unsentVerdicts, u)
}

// sendUnsent sends the verdicts that found no connection, in their order.
func (c *Consumer) sendUnsent() {
	c.mu.Lock()
	all := c.unsentVerdicts
	c.unsentVerdicts = nil
	c.mu.Unlock()
	for _, u := range all {
		c.sendVerdict(u)
	}
}

var progress = []byte("+WPI")

// reportProgress restarts AckWait for every message that is held here.
func (c *Consumer) reportProgress() {
	for _, reply := range slices.Concat(c.queue.Replies(c.epoch.Load()), c.intake.replies()) {
		if c.api.NC.Publish(reply, progress) != nil {
			return // not connected
		}
	}
}
