package consumer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/respmux"
)

// mayBePoison reports whether a message was delivered so often without an answer of its
// handler's that it may kill its process: any other message would have succeeded or
// failed before. A handler that returns has answered, whatever it says.
func (c *Consumer) mayBePoison(m *dispatch.Message) bool {
	return c.cfg.MaxDeliver > 0 && m.Delivery.Attempt > c.patience() &&
		m.Delivery.Attempt-c.answers.of(m).attempt > c.patience()
}

// patience is how many deliveries without an answer are no reason for suspicion.
func (c *Consumer) patience() int { return 2*min(c.cfg.MaxDeliver, math.MaxInt/4) + 5 }

// poisoned returns a permanent failure for a message that must not run again: it was
// delivered so often without an answer that it must kill its processes.
func (c *Consumer) poisoned(m *dispatch.Message) error {
	switch {
	case !c.cfg.Exclusive && !m.Quarantined, !c.mayBePoison(m):
		return nil
	case !c.cfg.Exclusive && !c.diedBefore(m): // Exclusive: Attempt counts takeovers
		return nil
	}
	last := ""
	if reason := c.answers.of(m).reason; reason != "" {
		last = "; its last error here was: " + reason
	}
	return dispatch.Permanent(poisonError{fmt.Errorf("delivered %d times and never settled: "+
		"it may kill the process that handles it%s", m.Delivery.Attempt-1, last)})
}

// poisonError is the outcome of a message that was not handled.
type poisonError struct{ error }

// diedBefore reports whether the handler of a message that ran alone has not returned,
// and records that it runs alone now. Where the server refuses to record anything, the
// delivery count alone must do.
func (c *Consumer) diedBefore(m *dispatch.Message) bool {
	c.acks.Flush() // this message may kill the process
	ctx, cancel := context.WithTimeout(c.handlerCtx, jsapi.APITimeout)
	defer cancel()
	d := m.Delivery
	before, err := c.recordTrial(ctx, d)
	if err == nil {
		if before.Returned > 0 {
			c.answers.record(m, before.Returned, "")
		}
		m.Tried = !before.Died && before.Returned < d.Attempt-c.patience()
		return before.Died
	}
	c.report(c.errorf("note that message %d is tried once more: %w", d.Sequence, err))
	if errors.Is(err, respmux.ErrInbox) {
		return false // it passes
	}
	return errors.Is(err, nats.ErrPermissionViolation) || jsapi.Code(err) != 0 && !jsapi.Passing(err)
}

// A handler that returns the message to the server itself does so before its instance
// can note that it has returned: whoever finds no such note looks again.
const (
	lookAgain = 4
	lookPause = 250 * time.Millisecond
)

func (c *Consumer) recordTrial(ctx context.Context, d dispatch.Delivery) (before durable.Trial, err error) {
	for n := 0; ; n++ {
		before, err = c.client.RecordTrial(ctx, d.Stream, d.Durable, d.Sequence, d.Attempt-c.patience())
		if err != nil || !before.Died || n == lookAgain {
			return before, err
		}
		select {
		case <-time.After(lookPause):
		case <-ctx.Done():
			return before, nil
		}
	}
}

// answered notes that the handler of a message has returned, with an error unless it
// settled the message itself. The verdict must not have been sent yet if it is natty's.
func (c *Consumer) answered(m *dispatch.Message, err error) {
	d := m.Delivery
	if c.cfg.MaxDeliver == 0 || d.Attempt == 1 {
		return
	}
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	c.answers.record(m, d.Attempt, reason)
	if !m.Tried {
		return
	}
	m.Tried = false
	ctx, cancel := context.WithTimeout(c.handlerCtx, jsapi.APITimeout)
	defer cancel()
	if err := c.client.RecordReturn(ctx, d.Stream, d.Durable, d.Sequence, d.Attempt); err != nil {
		c.report(c.errorf("note that the handler of message %d has returned: %w", d.Sequence, err))
	}
}

// answers are those of the handlers to messages that were delivered more than once.
type answers struct {
	mu sync.Mutex
	// last has a bounded number of messages. One that is forgotten is suspected too
	// early, and so tried alone.
	last map[answerTo]answer
}

type answerTo struct {
	epoch    int64
	sequence uint64
}

type answer struct {
	attempt  int    // the last that was answered
	reason   string // the last error
	failures int    // at this instance
}

const (
	maxAnswers = 1000
	maxReason  = 1024
)

func (a *answers) of(m *dispatch.Message) answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last[answerTo{m.Epoch, m.Delivery.Sequence}]
}

// record notes the answer to a message. Without a reason the one before it stays.
func (a *answers) record(m *dispatch.Message, attempt int, reason string) {
	a.update(m, func(last *answer) {
		last.attempt = attempt
		if reason != "" {
			last.reason = strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "")
		}
	})
}

// fail counts a failure of a message, and returns how many there were.
func (a *answers) fail(m *dispatch.Message) (failures int) {
	a.update(m, func(last *answer) {
		last.failures++
		failures = last.failures
	})
	return failures
}

func (a *answers) update(m *dispatch.Message, change func(*answer)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	to := answerTo{m.Epoch, m.Delivery.Sequence}
	last, known := a.last[to]
	if !known && len(a.last) >= maxAnswers {
		for one := range a.last {
			delete(a.last, one)
			break
		}
	}
	if a.last == nil {
		a.last = map[answerTo]answer{}
	}
	change(&last)
	a.last[to] = last
}
