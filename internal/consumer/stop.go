package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/dispatch"

	"github.com/natty-go/natty/internal/pull"
)

// stop ends the consumer in phases: no more pulling, return what no handler has begun,
// wait for handlers, flush. See natty.Client.Process.
func (m *shared) stop() error {
	c := m.c
	ordered := c.cfg.OrderBy != nil
	stopReports := repeat(m.tick(), func() {
		c.reportProgress()
		c.sendUnsent()
	})
	if ordered && c.puller.Brief() && !c.awaitPullEnd() {
		m.lose()
	}
	drained := c.puller.Stop(c.api.Link.Up())
	if ordered {
		c.dropRequests()
		// A message on its way must be here before the messages behind it are returned.
		select {
		case <-drained:
		case <-time.After(EndGrace):
		}
		c.awaitIntake()
	}
	back := c.queue.Close()
	for _, h := range back {
		c.returnNow(h)
	}
	c.logDrain(c.queue.Running(), len(back))
	left := c.drain(c.queue.Idle(), drained, c.queue.Running)
	stopReports()
	err := c.flush()
	if ordered {
		m.passOn(len(back))
	}
	return errors.Join(c.drainTimeout(left), err)
}

// repeat calls f every d until stop, which waits for the last call.
func repeat(d time.Duration, f func()) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

// awaitPullEnd waits until the brief request under way has ended, which takes at most
// pull.MaxBrief. A message that is delivered to a request when nobody listens any
// more goes back to the server's queue at once, ahead of the older messages of its key
// that are returned later. It reports false if the server has not ended the request.
func (c *Consumer) awaitPullEnd() bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(pull.MaxBrief + EndGrace)
	for !c.puller.Idle() && c.api.Link.Up() && time.Now().Before(end) {
		<-tick.C
	}
	return c.puller.Idle() || !c.api.Link.Up()
}

// awaitIntake waits until OrderBy has had all messages, but not for one that hangs.
func (c *Consumer) awaitIntake() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(EndGrace); time.Now().Before(end); <-tick.C {
		if _, done := c.intake.load(); done {
			return
		}
	}
}

// dropRequests makes the server drop a pull request without a listener, so that
// returned messages keep their order: the server puts the first message that it would
// deliver to such a request at the end of its queue (nats-server 2.15.2,
// loopAndGatherMsgs). It looks through its requests when it is asked about the
// consumer. An error means that there is no connection, and so nothing to return in
// order.
func (c *Consumer) dropRequests() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.handlerCtx), EndGrace)
	defer cancel()
	d := c.durable
	_ = c.client.Refresh(ctx, &d)
}

// drain waits until idle says that all handlers have ended, and drained that no message
// is on its way; nil means that there is nothing to wait for. After DrainTimeout it
// ends the handlers' ctx, and returns how many handlers were running then. What is on
// its way gets EndGrace, however short DrainTimeout is: it is to be returned.
func (c *Consumer) drain(idle, drained <-chan struct{}, running func() int) (left int) {
	deadline, arrival := time.NewTimer(c.cfg.DrainTimeout), time.NewTimer(EndGrace)
	defer deadline.Stop()
	defer arrival.Stop()
	for idle != nil || drained != nil {
		select {
		case <-drained:
			drained = nil
		case <-arrival.C:
			drained = nil // a dead connection brings nothing
		case <-idle:
			idle = nil
		case <-deadline.C:
			switch {
			case idle == nil:
			case left > 0:
				idle = nil
			default:
				if left = running(); left == 0 {
					idle = nil
					continue
				}
				c.endHandlers(ErrDrainTimeout)
				deadline.Reset(EndGrace)
			}
		}
	}
	return left
}

// drainTimeout is the error of stop when handlers were left.
func (c *Consumer) drainTimeout(left int) error {
	if left == 0 {
		return nil
	}
	return c.errorf("%d handlers: %w (%v)", left, ErrDrainTimeout, c.cfg.DrainTimeout)
}

// flush waits until the last verdicts have taken effect, so that the next instance does
// not get their messages. Its error says which verdicts did not.
func (c *Consumer) flush() error {
	c.acks.Flush()
	c.sendUnsent()
	c.mu.Lock()
	unsent := 0
	for _, u := range c.unsentVerdicts {
		if !u.handBack {
			unsent++
		}
	}
	c.mu.Unlock()
	if unsent > 0 {
		return c.errorf("%d verdicts found no connection, and their messages are redelivered "+
			"after AckWait: %w", unsent, nats.ErrDisconnected)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.handlerCtx),
		min(answerTimeout, max(c.cfg.DrainTimeout, EndGrace)))
	defer cancel()
	if err := c.barrier(ctx); err != nil {
		return c.errorf("the last acks and naks may not have reached the server, "+
			"which then redelivers their messages: %w", err)
	}
	return nil
}

// answerTimeout bounds the wait for the answer to a barrier.
const answerTimeout = 5 * time.Second

// barrier waits until the server has acted on all verdicts: its answer to a progress
// report comes behind them.
func (c *Consumer) barrier(ctx context.Context) error {
	reply := c.queue.Latest()
	if reply == "" || !c.api.Link.Up() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	err := c.api.Ask(ctx, dispatch.NoMessage(reply), progress)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil // the durable is gone, and with it what the verdicts were about
	}
	return err
}
