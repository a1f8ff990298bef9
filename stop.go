package natty

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// stop ends the consumer in phases; see Process.
func (e *engine) stop() error {
	ordered := e.cfg.OrderBy != nil
	if ordered {
		defer e.keepAlive()() // nobody else does before drain
		e.calm()
	}
	drained := e.puller.stop(e.c.link.up.Load())
	if ordered {
		e.forgetRequests()
		// And what is on its way has to be here before anything that comes before it is handed back.
		select {
		case <-drained:
		case <-time.After(endGrace):
		}
	}
	for _, h := range e.dispatch.close() {
		e.handBack(h)
	}
	left := e.drain(drained)
	e.flush()
	if left == 0 {
		return nil
	}
	return e.drainTimeout(left)
}

func (e *engine) drainTimeout(left int) error {
	return fmt.Errorf("natty: consumer %q: %d handlers: %w (%v)", e.cfg.Durable, left, ErrDrainTimeout, e.cfg.DrainTimeout)
}

// keepAlive reports progress until the returned function is called.
func (e *engine) keepAlive() (stop func()) {
	tick := time.NewTicker(e.tick())
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-tick.C:
				e.reportProgress()
			case <-quit:
				return
			}
		}
	}()
	return func() {
		tick.Stop()
		close(quit)
		<-done
	}
}

// calm waits until the request under way has ended: messages that come for it and find nobody any more go back to the server's
// queue at once, ahead of the older ones of their key that are handed back after them. It ends soon, see orderedExpiry.
func (e *engine) calm() {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(orderedExpiry + endGrace)
	for !e.puller.idle() && e.c.link.up.Load() && time.Now().Before(end) {
		<-tick.C
	}
}

// forgetRequests makes the server drop the pull request that was under way, so that what is handed back keeps its order: the first
// message to be delivered to a request without interest is put at the end of the queue (nats-server 2.15.2,
// loopAndGatherMsgs). The server looks through its requests when it is asked about the consumer. An error means that there
// is no connection, and nothing to be handed back in order.
func (e *engine) forgetRequests() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.base), endGrace)
	defer cancel()
	d := e.durable
	_ = e.c.refresh(ctx, &d)
}

// drain waits for what is on its way and for running handlers, whose messages it keeps alive, and returns how many
// handlers outlived DrainTimeout.
func (e *engine) drain(drained <-chan struct{}) (left int) {
	tick := time.NewTicker(e.tick())
	defer tick.Stop()
	deadline := time.NewTimer(e.cfg.DrainTimeout)
	defer deadline.Stop()
	idle := e.dispatch.idle
	for idle != nil || drained != nil {
		select {
		case <-drained:
			drained = nil
		case <-idle:
			idle = nil
			// A connection that is dead brings nothing and says nothing.
			deadline.Reset(min(e.cfg.DrainTimeout, endGrace))
		case <-tick.C:
			e.reportProgress()
			e.tellOwed()
		case <-deadline.C:
			if idle == nil || left > 0 {
				return left
			}
			if left = e.dispatch.inHandlers(); left == 0 {
				return 0
			}
			e.endBase(ErrDrainTimeout)
			deadline.Reset(endGrace)
		}
	}
	return left
}

// flush makes sure that the last verdicts have taken effect, so that whoever comes next finds them.
func (e *engine) flush() {
	e.burst.flush()
	e.tellOwed()
	if err := e.barrier(); err != nil {
		e.report(fmt.Errorf("natty: consumer %q: the last verdicts may not have reached the server, their messages come again: %w", e.cfg.Durable, err))
	}
}

// barrier waits until everything that the consumer was told has taken effect: the answer to a progress report comes
// behind it.
func (e *engine) barrier() error {
	reply := e.dispatch.latest()
	if reply == "" || !e.c.link.up.Load() {
		return nil
	}
	_, err := e.c.nc.Request(reply, progress, min(flushTimeout, max(e.cfg.DrainTimeout, endGrace)))
	if errors.Is(err, nats.ErrNoResponders) {
		return nil // the durable is gone, and what it was told with it
	}
	return err
}
