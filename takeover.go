package natty

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// What the durable's metadata hold, so that a message that kills every instance that handles it is found: no count
// of the server's outlives a reset.
const (
	metaFirst     = "natty-first"     // the stream sequence that the last owner began with
	metaTakeovers = "natty-takeovers" // how many owners in a row began with it
	metaOwner     = "natty-owner"     // the last of them
)

// carefulFor is how many messages are acknowledged one by one, when an owner begins where the last one did. That one may
// have got past the first message: what it handled last and had not acknowledged yet may be what killed it, and
// must then be the first of the next.
const carefulFor = 1000

// pinGroups are the groups of a durable, as the server describes them.
type pinGroups []struct {
	Group string `json:"group"`
	Pin   string `json:"pinned_client_id"`
}

func (g pinGroups) pin() string {
	for _, group := range g {
		if group.Group == pinGroup {
			return group.Pin
		}
	}
	return ""
}

// resetDurable lets a durable deliver everything again that is not acknowledged, in order. It returns the
// acknowledgement floor, and whose pin is valid.
func (c *Client) resetDurable(ctx context.Context, d durable) (floor uint64, pin string, err error) {
	var answer struct {
		Next   uint64    `json:"reset_seq"`
		Groups pinGroups `json:"priority_groups"`
	}
	if err := c.query(ctx, "CONSUMER.RESET."+d.stream+"."+d.name, nil, &answer); err != nil {
		return 0, "", fmt.Errorf("reset the durable: %w", err)
	}
	return max(answer.Next, 1) - 1, answer.Groups.pin(), nil
}

// unpin takes the pin from whoever has it.
func (c *Client) unpin(ctx context.Context, d durable) error {
	err := c.query(ctx, "CONSUMER.UNPIN."+d.stream+"."+d.name, map[string]string{"group": pinGroup}, &struct{}{})
	if err != nil {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}

// meet counts the first message of a tenure, before it is handled. False means to try again.
func (t *tenure) meet(h *held) bool {
	ctx, cancel := context.WithTimeout(t.ctx, apiTimeout)
	defer cancel()
	n, err := t.e.c.countTakeover(ctx, t.durable, h.d.Sequence, t.id)
	switch {
	case err == nil:
	case passing(err):
		t.rest(retryPull.Max)
		return false
	default: // not permitted: what kills its process is not found then
		t.e.report(fmt.Errorf("natty: consumer %q: count this takeover: %w", t.e.cfg.Durable, err))
	}
	if n > 1 {
		t.careful = carefulFor
		h.d.Attempt = n
		h.d.Last = t.e.last(h.d)
	}
	return true
}

// countTakeover notes that an owner begins with a message, and returns how many did in a row. The same owner again does
// not count: it was cut off, and not killed.
func (c *Client) countTakeover(ctx context.Context, d durable, first uint64, owner string) (int, error) {
	have, err := c.currentConfig(ctx, "CONSUMER.INFO."+d.stream+"."+d.name)
	if err != nil {
		return 0, err
	}
	n := 0
	metadata, _ := have["metadata"].(map[string]any)
	if metadata[metaFirst] == strconv.FormatUint(first, 10) {
		n, _ = strconv.Atoi(fmt.Sprint(metadata[metaTakeovers])) // else somebody has written it: begin anew
		if metadata[metaOwner] == owner {
			return n, nil
		}
	}
	n++
	return n, c.noteOn(ctx, d.stream, d.name, have, map[string]any{
		metaFirst: strconv.FormatUint(first, 10), metaTakeovers: strconv.Itoa(n), metaOwner: owner,
	})
}

// stop ends the consumer; see Process. Whoever stands by follows at once, if the handler has ended.
func (x *exclusive) stop() error {
	t, left := x.owner.Load(), 0
	var had gained // if the pin is still there to be given back
	if t == nil {
		had = x.late()
	} else {
		t.stop()
		left = x.drain(t)
		x.quiet()
		select {
		case <-t.idle:
			if !t.lost() {
				had = gained{t.pin, *t.trust.from.Load()}
			}
		default: // the handler still runs: nobody may run beside it, until the pin lapses
		}
	}
	if had.pin != "" && x.e.c.link.up.Load() {
		if err := x.handOver(t, had); err != nil {
			x.e.report(fmt.Errorf("natty: consumer %q: the next active instance has to wait: %w", x.e.cfg.Durable, err))
		}
	}
	if t != nil {
		t.lose(context.Canceled)
	}
	if left == 0 {
		return nil // what was handled is acknowledged, and the server has said so
	}
	x.e.flush()
	return x.e.drainTimeout(left)
}

// drain waits for the handler, keeping the pin for it, and returns 1 if it outlived DrainTimeout.
func (x *exclusive) drain(t *tenure) (left int) {
	tick := time.NewTicker(max(x.times.touch/2, 10*time.Millisecond))
	defer tick.Stop()
	deadline := time.NewTimer(x.e.cfg.DrainTimeout)
	defer deadline.Stop()
	for {
		select {
		case <-t.idle:
			return left
		case <-tick.C:
			if x.e.c.link.up.Load() && !t.lost() {
				x.touch()
			}
		case <-deadline.C:
			if left > 0 {
				return left
			}
			left = 1
			x.e.endBase(ErrDrainTimeout)
			deadline.Reset(endGrace)
		}
	}
}

// late ends standing by, and returns the pin if that came meanwhile.
func (x *exclusive) late() gained {
	select {
	case <-x.e.puller.stop(x.e.c.link.up.Load()):
	case <-time.After(endGrace): // a dead connection
	}
	select {
	case g := <-x.gained:
		return g
	default:
		return gained{}
	}
}

// handOver gives the pin back. Before that the durable is reset: the server would deliver again what this
// instance was sent, and did not handle, only after AckWait. And its answer tells whose pin it is: the server unpins
// whoever has it.
func (x *exclusive) handOver(t *tenure, had gained) error {
	left := x.times.trust - elapsed(had.sent)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.e.base), min(left, x.times.trust/2))
	defer cancel()
	if t != nil {
		if err := t.acks.sync(ctx); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
	}
	_, pin, err := x.e.c.resetDurable(ctx, x.e.durable)
	switch {
	case err != nil:
		return err
	case pin != had.pin:
		return errDeposed
	case elapsed(had.sent) >= x.times.trust: // the answer may have been on its way for long
		return errLapsed
	}
	return x.e.c.unpin(ctx, x.e.durable)
}
