package consumer

import (
	"errors"

	"github.com/natty-go/natty/internal/dispatch"
)

// The server counts deliveries. They are more than the failures where other instances
// return messages that they did not ask for. There a message is judged by its failures
// at this instance.

// isLastOf reports whether a failure of this delivery is final, as far as this instance
// knows.
func (c *Consumer) isLastOf(m *dispatch.Message) bool {
	d := m.Delivery
	last := c.isLast(d)
	if last && c.isReturned(d.Subject) {
		d.Attempt = c.answers.of(m).failures + 1
		last = c.isLast(d)
	}
	return last
}

// failed counts a failure, and returns the delivery by which it is judged. Its attempts
// are those that failed here, if other instances returned the message.
func (c *Consumer) failed(m *dispatch.Message, err error) dispatch.Delivery {
	d := m.Delivery
	if _, unhandled := errors.AsType[poisonError](err); unhandled || c.cfg.MaxDeliver == 0 {
		return d
	}
	n := c.answers.fail(m)
	returned := false
	switch {
	case n >= d.Attempt: // all of them failed here
	case d.Last:
		returned = c.isReturnedNow(d, d.Subject)
	default:
		returned = c.isReturned(d.Subject)
	}
	if returned {
		d.Attempt = n
		d.Last = c.isLast(d)
	}
	return d
}
