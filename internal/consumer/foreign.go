package consumer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/subject"
)

// foreign is what this instance knows about messages of its durable that it did not ask
// for: other instances of the group did, of another version or another service. It
// returns them to the server, so that those instances get them. With Exclusive it only
// stands by.
type foreign struct {
	notAsked []string // the durable's filters that bring them; the supervision's alone
	// ready means that the note for the others is written, or cannot be.
	ready atomic.Bool
	// seen means that such a message came and that no look was made since.
	seen atomic.Bool
	// returned are the filters of messages that some instance returns.
	returned atomic.Pointer[[]string]
	noted    atomic.Int64 // Unix nanoseconds: when returned was last read
	// filters are those of notAsked that the durable, or else its stream, has.
	filters atomic.Pointer[[]string]
	// left is the last such message that is none of theirs: the stream has lost its subject.
	left atomic.Pointer[leftover]
}

// leftover is the subject of a message, and when that came.
type leftover struct {
	subject string
	at      time.Time
}

// leftFor is for how long a leftover counts after it came. It comes again every ten
// seconds, but may go to other instances.
const leftFor = 10 * time.Minute

// returnPause is how long a message rests that was returned. It is short at first, since
// an instance that asked for the message may be idle. It grows, since there may be none.
// It doubles with every second delivery only: where many instances return messages and
// few asked for them, those few must get them after some attempts.
var returnPause = backoff.Exp{Min: 100 * time.Millisecond, Max: 10 * time.Second}

// wantsLook reports whether a message came that no look knows of. Looks are no more
// frequent than a message can come again.
func (s *supervision) wantsLook(up bool) bool {
	return up && s.checked == nil && s.c.foreign.seen.Load() && time.Since(s.sampled) > returnPause.Min
}

// unreadyPause is the shortest pause before the note for the others is written.
const unreadyPause = time.Second

// isForeign reports whether a message is one that this instance did not ask for.
func (c *Consumer) isForeign(s string) bool {
	return len(c.cfg.Subjects) > 0 && !subject.AnyCovers(c.cfg.Subjects, s)
}

// returnForeign returns a message to the server, for the instances that asked for it.
func (c *Consumer) returnForeign(msg *nats.Msg, d dispatch.Delivery) {
	pause := returnPause.Delay((d.Attempt + 1) / 2)
	c.noteLeft(msg.Subject)
	if !c.foreign.ready.Load() {
		pause = max(pause, unreadyPause)
		c.foreign.seen.Store(true)
		c.wake()
	}
	c.send(msg.Reply, nakAfter(pause))
}

// noteLeft notes a message that this instance did not ask for, if the stream has lost its
// subject.
func (c *Consumer) noteLeft(s string) {
	if known := c.foreign.filters.Load(); known == nil || !subject.AnyCovers(*known, s) {
		c.foreign.left.Store(&leftover{s, time.Now()})
	}
}

// withLeft adds to filters, which bring what this instance did not ask for, a subject
// that the stream has lost.
func (c *Consumer) withLeft(filters []string) []string {
	left := c.foreign.left.Load()
	if left == nil || time.Since(left.at) > leftFor || subject.AnyCovers(filters, left.subject) {
		return filters
	}
	return append(slices.Clip(filters), left.subject)
}

// noteForeign notes in the durable's metadata that this instance is about to
// return messages. The server's count of deliveries then condemns none of them.
func (c *Consumer) noteForeign(ctx context.Context, d durable.Durable) error {
	filters := c.withLeft(d.NotAsked(c.cfg.Subjects))
	if len(filters) == 0 || c.cfg.Exclusive {
		return nil
	}
	err := c.client.NoteReturned(ctx, d, filters)
	c.foreign.ready.Store(err == nil || !jsapi.Passing(err) && !jsapi.Missing(err))
	return err
}

// setForeign stores what a look found out, and returns what to tell about it, or "".
func (c *Consumer) setForeign(d durable.Durable) string {
	f := &c.foreign
	filters := d.NotAsked(c.cfg.Subjects)
	f.filters.Store(&filters)
	f.notAsked = c.withLeft(filters)
	f.seen.Store(false)
	c.setReturned(d.Returned())
	if len(f.notAsked) == 0 {
		f.ready.Store(false)
		return ""
	}
	does := "it returns them to the server for the instances that do"
	if c.cfg.Exclusive {
		does = "it only stands by, for the instances that do to become the active one"
	}
	return "the durable also receives " + strings.Join(f.notAsked, " ") +
		", which this instance does not ask for (" + strings.Join(c.cfg.Subjects, " ") + "): " + does +
		"; set replace_subjects to take filters off the durable"
}

func (c *Consumer) setReturned(filters []string) {
	c.foreign.returned.Store(&filters)
	c.foreign.noted.Store(time.Now().UnixNano())
}

// isReturned reports whether some instance returns messages of a subject, as far as
// this one knows.
func (c *Consumer) isReturned(s string) bool {
	filters := c.foreign.returned.Load()
	return filters != nil && subject.AnyCovers(*filters, s)
}

// isReturnedNow is isReturned, and asks the server if this instance may not know yet.
func (c *Consumer) isReturnedNow(d dispatch.Delivery, s string) bool {
	known := time.Unix(0, c.foreign.noted.Load())
	if c.isReturned(s) || time.Since(known) < returnPause.Min/2 {
		return c.isReturned(s)
	}
	ctx, cancel := context.WithTimeout(c.handlerCtx, jsapi.APITimeout)
	defer cancel()
	filters, err := c.client.ReturnedNow(ctx, d.Stream, d.Durable)
	if err != nil {
		return false
	}
	c.setReturned(filters)
	return c.isReturned(s)
}

// errNotAsked is why an exclusive instance is no longer the active one.
var errNotAsked = errors.New("the durable receives subjects that this instance does not ask for")

// mustStandAside reports whether the durable receives what this instance did not ask for.
func (x *exclusive) mustStandAside(o *ownership) bool {
	met := o != nil && (x.c.foreign.seen.Load() || o.stopping.Load()) // such a message
	return met || len(x.c.foreign.notAsked) > 0
}

// standAside gives the pin to the instances that asked for everything, and does not ask
// for it again. An ownership ends in order, behind the message in hand.
func (x *exclusive) standAside(ctx context.Context, o *ownership, up bool) error {
	if x.s.wantsLook(up) {
		x.look(ctx, nil)
	}
	if o == nil {
		if up && !x.c.puller.Idle() {
			return x.restart() // its request might bring the pin
		}
		return nil
	}
	o.stop()
	select {
	case <-o.idle:
	default:
		if up {
			x.touch() // the handler needs the pin. The worker wakes the supervision
		}
		return nil
	}
	if up && !o.lost() {
		x.unsubscribe()
		if err := x.handOver(o, o.held()); err != nil {
			x.c.report(x.c.errorf("the next active instance has to wait: %w", err))
		}
	}
	o.lose(errNotAsked)
	return x.endOwnership(o)
}
