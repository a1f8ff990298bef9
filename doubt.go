package natty

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// A process that dies adds a delivery to the count of each message that it held: of the one that killed it, of those that were
// handled beside that, and of all that waited in the buffer. They come again together, AckWait later, so that the count
// alone does not tell them apart. So a message beyond the limit is doubtful, and tried once more: alone, when all handlers
// have ended, and with a note in the durable's metadata that it is being tried. What comes again after that has killed its process.

const (
	metaTried = "natty-tried" // the stream sequences of the messages that were tried last
	maxTried  = 200
)

// doubtful reports whether a message was delivered more often than one is that does not kill its process.
func (e *engine) doubtful(d Delivery) bool {
	return e.cfg.MaxDeliver > 0 && d.Attempt > 2*e.cfg.MaxDeliver+5
}

// condemned gives up a message that has been delivered so often, without anybody's saying that it failed, that it
// must be what kills the processes that handle it.
func (e *engine) condemned(h *held) error {
	switch {
	case e.exclusive != nil: // where deliveries are takeovers, counted for the message that was begun
		if !e.doubtful(h.d) {
			return nil
		}
	case !h.doubtful || !e.tried(h.d):
		return nil
	}
	return Permanent(fmt.Errorf("delivered %d times and never settled: it may kill the process that handles it", h.d.Attempt-1))
}

// tried reports whether a message was tried once more already, and notes that it is now. When the server does not let it note
// anything the count has to do.
func (e *engine) tried(d Delivery) bool {
	e.burst.flush() // it may kill this process
	before, err := e.noteTrial(d)
	if err == nil {
		return before
	}
	e.report(fmt.Errorf("natty: consumer %q: note that message %d is tried once more: %w", e.cfg.Durable, d.Sequence, err))
	return errors.Is(err, nats.ErrPermissionViolation) || errorCode(err) != 0 && !passing(err)
}

// noteTrial notes that a message is being tried, and reports whether it was before.
func (e *engine) noteTrial(d Delivery) (before bool, err error) {
	ctx, cancel := context.WithTimeout(e.base, apiTimeout)
	defer cancel()
	have, err := e.c.currentConfig(ctx, "CONSUMER.INFO."+d.Stream+"."+d.Durable)
	if err != nil {
		return false, err
	}
	metadata, _ := have["metadata"].(map[string]any)
	list, _ := metadata[metaTried].(string)
	tried, sequence := strings.Fields(list), strconv.FormatUint(d.Sequence, 10)
	if slices.Contains(tried, sequence) {
		return true, nil
	}
	tried = append(tried[max(0, len(tried)+1-maxTried):], sequence)
	return false, e.c.noteOn(ctx, d.Stream, d.Durable, have, map[string]any{metaTried: strings.Join(tried, " ")})
}

// noteOn writes metadata of a durable, whose configuration is at hand.
func (c *Client) noteOn(ctx context.Context, stream, name string, have, metadata map[string]any) error {
	config := merge(have, map[string]any{"metadata": metadata})
	request := map[string]any{"stream_name": stream, "config": config, "action": "update"}
	return c.query(ctx, "CONSUMER.CREATE."+stream+"."+name, request, &struct{}{})
}

// doubt holds doubtful messages until they are tried.
type doubt struct {
	waiting heldList
	trial   bool // a handler has one of them
}

// readyLocked lets a handler have h when it is its turn. d.mu must be held.
func (d *dispatch) readyLocked(h *held) {
	if h.doubtful {
		d.doubt.waiting.push(h)
	} else {
		d.ready.push(h)
	}
	d.wake.Signal()
}

// beginnableLocked returns how many messages may be begun now: beside a trial none, and none before one, so that what runs ends.
// d.mu must be held.
func (d *dispatch) beginnableLocked() int {
	switch {
	case d.doubt.trial:
		return 0
	case d.doubt.waiting.n == 0:
		return d.ready.n
	case d.running.n > 0:
		return 0
	}
	return 1
}

// beginLocked gives the next message to a handler, if one is beginnable. d.mu must be held.
func (d *dispatch) beginLocked() *held {
	from := &d.ready
	if d.doubt.waiting.n > 0 {
		from, d.doubt.trial = &d.doubt.waiting, true
	}
	h := from.head
	from.remove(h)
	d.running.push(h)
	return h
}

// triedLocked ends the trial of h, if it was one. d.mu must be held.
func (d *dispatch) triedLocked(h *held) {
	if h.doubtful {
		d.doubt.trial = false
		d.wake.Broadcast()
	}
}
