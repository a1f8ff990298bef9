package consumer

import (
	"context"
	"fmt"
	"time"

	"github.com/natty-go/natty/internal/expiry"
)

// heldPin is a pin to give back, and from when its trust counts; zero if the pin has
// just come, and a reset is to say that.
type heldPin struct {
	pin  string
	from time.Time
}

// stop ends the consumer; see natty.Client.Process. A standby takes over at once, if
// the handler has ended.
func (x *exclusive) stop() error {
	c, o, left := x.c, x.owner.Load(), 0
	var had heldPin // zero if the pin is lost
	held, running := x.load()
	c.logDrain(running, held-running)
	if o == nil {
		had = x.stopStandby()
	} else {
		o.stop()
		stopTouching := repeat(max(x.times.touch/2, 10*time.Millisecond), func() {
			if c.api.Link.Up() && !o.lost() {
				x.touch() // the handler needs the pin
			}
		})
		left = c.drain(o.idle, nil, func() int { return 1 })
		stopTouching()
		x.unsubscribe()
		select {
		case <-o.idle:
			if !o.lost() {
				had = o.held()
			}
		default: // the handler still runs. No other instance may run before the pin lapses
		}
	}
	if had.pin != "" && c.api.Link.Up() {
		if err := x.handOver(o, had); err != nil {
			c.report(c.errorf("the next active instance has to wait: %w", err))
		}
	}
	if o != nil {
		o.lose(context.Canceled)
	}
	return c.drainTimeout(left)
}

// stopStandby ends standing by, and returns the pin if it has just come.
func (x *exclusive) stopStandby() heldPin {
	select {
	case <-x.c.puller.Stop(x.c.api.Link.Up()):
	case <-time.After(EndGrace): // a dead connection
	}
	select {
	case g := <-x.grants:
		return heldPin{pin: g.pin}
	default:
		return heldPin{}
	}
}

// held returns the pin of an ownership whose worker has ended.
func (o *ownership) held() heldPin {
	if !o.resumed {
		return heldPin{pin: o.pin}
	}
	return heldPin{o.pin, *o.trust.From.Load()}
}

// handOver returns the pin. Before that it resets the durable: otherwise the server
// would redeliver only after AckWait what this instance got and did not handle. The
// answer says who has the pin, which matters because the server unpins whoever has it.
func (x *exclusive) handOver(o *ownership, had heldPin) error {
	left := x.times.trust
	if !had.from.IsZero() {
		left -= expiry.Elapsed(had.from)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.c.handlerCtx), min(left, x.times.trust/2))
	defer cancel()
	if o != nil {
		if err := o.acks.sync(ctx); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
	}
	sent := time.Now()
	_, is, err := x.c.client.ResetDurable(ctx, x.c.durable)
	if had.from.IsZero() {
		had.from = sent.Add(-is.Age)
	}
	switch {
	case err != nil:
		return err
	case is.Pin != had.pin:
		return errDeposed
	case expiry.Elapsed(had.from) >= x.times.trust: // the answer may have taken long
		return errLapsed
	}
	return x.c.client.Unpin(ctx, x.c.durable)
}
