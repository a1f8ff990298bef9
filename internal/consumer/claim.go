package consumer

import (
	"context"
	"time"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/expiry"
)

// claim decides when an instance that got the pin may begin.
//
// A server that leads the durable gives the pin to the next instance when the last
// one's trust is over, or when that one gave the pin back. But a new leader, and a
// server that restarted, does not know who has the pin: the last owner, who may not
// know of the change yet, still trusts its own. It proved that pin before the change.
// So it stops one trust after the change at the latest, and who gets a pin from the new
// leader waits as long, and resets nothing before. Nobody need wait,
//   - if nothing was delivered since the last reset: the last owner gave the pin back, or
//     has nothing in hand;
//   - who was the owner, while that trust would last: until then nobody else begins.
type claim struct {
	trust time.Duration
	// former is from when the trust of this instance's last ownership counts.
	former time.Time
	// known is since when the server is known to be the same. It counts where the
	// server does not say since when it leads the durable. Zero: since ever.
	known time.Time
	// unknown means that known is to become when the server first answered since.
	unknown bool
}

// entitled reports whether this instance was the active one, and would still be.
func (c *claim) entitled() bool { return expiry.Elapsed(c.former) < c.trust }

// granted notes a pin, and since when the server has answered.
func (c *claim) granted(g pinGrant) {
	if c.unknown {
		c.known, c.unknown = g.since, false
	}
}

// wait returns how long the last owner may still trust its pin; zero if it does not.
func (c *claim) wait(is durable.Pinned) time.Duration {
	memory := is.Memory
	if !is.Known {
		memory = expiry.Elapsed(c.known)
	}
	return max(0, c.trust-max(0, memory))
}

// reset resets the durable. It first lets a handler that still runs come to its end,
// since the outcome decides where deliveries begin.
func (x *exclusive) reset(ctx context.Context, o *ownership) {
	if o.busy.Load() {
		return // the worker wakes the supervision
	}
	brief, cancel := context.WithTimeout(ctx, x.times.touch)
	defer cancel()
	if o.resumed {
		// A reset would disturb an instance that has become the owner meanwhile.
		is, err := x.c.client.Pinned(brief, x.c.durable)
		if err == nil && is.Pin != o.pin {
			o.lose(errDeposed)
			return
		}
	}
	if !o.cleared {
		x.clear(ctx, brief, o)
		return
	}
	sent := time.Now()
	floor, is, err := x.c.client.ResetDurable(brief, x.c.durable)
	if !x.pinnedAs(ctx, o, is, err) {
		return
	}
	if o.begin(sent.Add(-is.Age), floor) {
		x.deliveries.begun = true
		x.c.setState(x.role())
	}
	x.c.wake()
}

// pinnedAs reports whether an answer of the server's says that this instance has its
// pin. Otherwise it does what is to be done.
func (x *exclusive) pinnedAs(ctx context.Context, o *ownership, is durable.Pinned, err error) bool {
	switch {
	case ctx.Err() != nil:
	case err != nil: // it may be deleted, or the server too old
		x.investigate(ctx, troubleAway, err)
	case is.Pin != o.pin:
		o.lose(errDeposed)
	default:
		x.claim.unknown = false // the server knows this pin
		return true
	}
	return false
}

// clear finds out when no former owner can be active any more.
func (x *exclusive) clear(ctx, brief context.Context, o *ownership) {
	is, err := x.c.client.Pinned(brief, x.c.durable)
	if !x.pinnedAs(ctx, o, is, err) {
		return
	}
	o.cleared = true
	wait := x.claim.wait(is)
	if wait == 0 {
		x.c.wake()
		return
	}
	o.due = time.Now().Add(wait)
	time.AfterFunc(wait, x.c.wake)
	x.c.client.Log.Info("natty: waits until the former active instance has surely ended",
		"stream", o.durable.Stream, "durable", o.durable.Name, "for", wait)
}

// interrupted notes that another server may lead the durable by now, or that it
// restarted. A standby lets the last owner ask first.
func (x *exclusive) interrupted() {
	x.claim.unknown = true
	if x.owner.Load() == nil && !x.claim.entitled() {
		x.askAt = time.Now().Add(x.times.holdBack)
		time.AfterFunc(x.times.holdBack, x.c.wake)
	}
}
