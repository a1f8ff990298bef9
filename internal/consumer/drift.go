package consumer

import (
	"context"
	"fmt"
	"strings"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
)

// A durable is shared property: operators, tools and other instances change it while this
// instance runs. Each look compares it with the last one. What would lose messages is put
// right, or ends the consumer; everything else is respected. Each change is told once.

// heeded is what a look did about changes of somebody else's.
type heeded struct {
	strayed string          // what would lose messages, and was put right unless err says otherwise
	err     error           // why it could not be put right
	from    durable.Durable // as the look found it
	behind  uint64          // up to this sequence nothing was skipped
	rewound bool            // the durable was reset to behind it, so that nothing was skipped at all
	unnoted error           // why it could not be noted which messages this instance returns
}

// heed puts right what would lose messages. It runs in the look's goroutine, and changes
// d to what the server then has.
func (c *Consumer) heed(ctx context.Context, last durable.Durable, d *durable.Durable) heeded {
	h := heeded{strayed: d.Strayed(c.cfg.Spec), from: *d, behind: last.Delivered}
	anew := !d.Created.Equal(last.Created) && d.StreamCreated.Equal(last.StreamCreated)
	if anew {
		h.behind = last.Floor
	}
	if h.strayed != "" || anew {
		h.err = c.client.PutRight(ctx, d, c.cfg.Spec)
	}
	if anew && len(h.from.Lacks(c.cfg.Subjects)) > 0 && !c.cfg.Exclusive { // whose resets are its own
		c.passedOver = &last.Floor
	}
	if h.err == nil && c.passedOver != nil {
		c.rewind(ctx, d, &h)
	}
	if h.err == nil {
		h.unnoted = c.noteForeign(ctx, *d)
	}
	return h
}

// rewind resets a durable that somebody recreated for less than this instance asks for,
// most likely an instance of an older version. It has passed what it did not ask for.
func (c *Consumer) rewind(ctx context.Context, d *durable.Durable, h *heeded) {
	if h.behind = *c.passedOver; d.Delivered > h.behind {
		h.rewound, h.err = c.client.Rewind(ctx, d, h.behind)
	}
	if h.err == nil {
		c.passedOver = nil
	}
}

// noticeChanges tells what somebody else changed since the last look. An error that it
// returns ends the consumer.
func (c *Consumer) noticeChanges(f finding) error {
	last, now, h := c.durable, f.durable, f.heeded
	switch {
	case h.err != nil && !jsapi.Passing(h.err) && !jsapi.Missing(h.err):
		return jsapi.About(fmt.Sprintf("consumer %q no longer fits, somebody has changed it", c.cfg.Durable), h.err)
	case f.gone != nil || !now.StreamCreated.Equal(last.StreamCreated):
		c.beginSequence()
		c.noticeStrayed(h)
		return nil //nolint:nilerr // told, and repaired
	}
	c.noticeStrayed(h)
	c.tell("note", h.unnoted != nil, "note which messages it returns: %w", h.unnoted)
	anew := !now.Created.Equal(last.Created)
	if !c.cfg.Exclusive { // whose resets are its own
		c.noticeRestart(last, now, anew)
	}
	if anew {
		c.report(c.errorf("somebody has deleted and recreated it; it begins at a position of its own, " +
			"so that messages may be redelivered or skipped"))
	}
	if was, is := last.AckWait(), now.AckWait(); was != is {
		c.report(c.errorf("somebody has changed its ack_wait from %v to %v, which is respected", was, is))
		if is < was {
			c.reportProgress() // the next report would come too late
		}
	}
	c.noticeFilters(last, now)
	return nil
}

// noticeStrayed tells what would have lost messages, and was put right or will be.
func (c *Consumer) noticeStrayed(h heeded) {
	switch {
	case h.err != nil && c.told.Open("put right"):
		c.strayedAt = h.behind
		c.report(c.errorf("somebody has changed it (%s), and it cannot be put right yet: %w", h.strayed, h.err))
	case h.err == nil && (h.strayed != "" || h.rewound):
		if c.told.Resolve("put right") {
			h.behind = min(h.behind, c.strayedAt)
		}
		c.report(c.errorf("somebody has changed it, and it was put right: %s%s",
			h.strayed, h.skipped(c.cfg.Subjects)))
	case h.err == nil:
		c.told.Resolve("put right")
	}
}

// noticeRestart tells that the durable's position went back, and makes sure that none of
// the messages that are held here runs a second time beside the first.
func (c *Consumer) noticeRestart(last, now durable.Durable, anew bool) {
	if !anew && now.Deliveries >= last.Deliveries && !c.wentBack.Load() {
		return
	}
	c.beginSequence()
	c.queue.ExpectRedelivery()
	if !anew && now.Leader == last.Leader { // another leader may know less for a moment
		c.report(c.errorf("its position went back, from sequence %d to %d: somebody has reset it, or its server "+
			"has lost the last state; the server redelivers messages", last.Delivered, now.Delivered))
	}
}

// noticeSequence notes the consumer sequence of a delivery. Where it goes back, the
// durable was recreated or reset, and what is held here may come a second time.
func (c *Consumer) noticeSequence(n uint64) {
	if n <= c.lastSeq.Swap(n) {
		c.queue.ExpectRedelivery()
		c.wentBack.Store(true)
		c.ackTrouble.forget() // what was acked may rightly come again
	}
}

// beginSequence begins anew with a durable whose sequence is known to have gone back.
func (c *Consumer) beginSequence() {
	c.lastSeq.Store(0)
	c.wentBack.Store(false)
}

// noticeFilters tells of filters that were changed, where nothing else tells of them:
// neither asked for here, nor put right, nor those that follow the stream.
func (c *Consumer) noticeFilters(last, now durable.Durable) {
	if len(c.cfg.Subjects) > 0 || now.Follows() || now.Comparable(last) {
		return
	}
	c.report(c.errorf("somebody has changed its filters from %q to %q; what the new ones match and was stored "+
		"before sequence %d is skipped", last.Filters(), now.Filters(), now.Delivered))
}

// skipped says which messages may have been skipped while filters were missing, or "".
// They are behind the last sequence that was delivered while all was well.
func (h heeded) skipped(asked []string) string {
	missing := h.from.Lacks(asked)
	switch {
	case h.rewound:
		return fmt.Sprintf("; it was reset to behind sequence %d, so that nothing is skipped", h.behind)
	case len(missing) == 0:
		return ""
	case h.from.Delivered <= h.behind:
		return "; nothing was delivered meanwhile behind which messages could have been skipped"
	}
	return fmt.Sprintf("; messages of %s between the sequences %d and %d may have been skipped",
		strings.Join(missing, " "), h.behind, h.from.Delivered)
}

// durableWarning returns what Health warns of because of the durable, and tells of what
// is new.
func (c *Consumer) durableWarning(d durable.Durable) string {
	kind, warning := d.Warning()
	var all []string
	for _, w := range []struct{ kind, text string }{
		{durable.Paused, warning}, {durable.NearlyFull, warning}, {"foreign", c.setForeign(d)},
		{"unmatched", d.Unmatched(c.cfg.Subjects)},
	} {
		if w.text == "" || warning == w.text && w.kind != kind {
			c.told.Resolve(w.kind)
			continue
		}
		all = append(all, w.text)
		if c.told.Open(w.kind) {
			c.report(c.errorf("%s", w.text))
		}
	}
	c.tell("max_deliver", d.Config.MaxDeliver > 0, "the durable's own max_deliver of %v makes the server drop "+
		"a message silently after as many deliveries; set it to -1, or set MaxDeliver and DeadLetter here",
		d.Config.MaxDeliver)
	wait := c.cfg.AckWait
	c.tell("backoff", wait > 0 && len(d.Config.BackOff) > 0 && d.AckWait() != wait, "the durable's own backoff of %v "+
		"overrides AckWait (%v): the server redelivers a message after these times without a sign of life; "+
		"take backoff off the durable, or leave AckWait out", d.Config.BackOff, wait)
	c.tell("inactive_threshold", d.Config.InactiveThreshold > 0, "the durable's own inactive_threshold of %v makes "+
		"the server delete it, with its position, when no instance has pulled for so long; set it to 0 to keep it",
		d.Config.InactiveThreshold)
	return strings.Join(all, "; ")
}

// tell reports something once, until it is over.
func (c *Consumer) tell(kind string, on bool, text string, args ...any) {
	if !on {
		c.told.Resolve(kind)
	} else if c.told.Open(kind) {
		c.report(c.errorf(text, args...))
	}
}
