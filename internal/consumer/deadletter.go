package consumer

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/deadletter"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/subject"
)

// newMessage returns a delivery of msg as a handler gets it: a redriven message as its
// publisher sent it.
func (c *Consumer) newMessage(ctx context.Context, msg *nats.Msg, d dispatch.Delivery) *dispatch.Message {
	redriven, ok := deadletter.Receive(msg, d.Stream)
	d.Last, d.Filter = c.isLast(d), c.filterOf(msg.Subject)
	d.Subject, d.Header, d.Redrives = msg.Subject, msg.Header, redriven.Redrives
	if id := msg.Header[jetstream.MsgIDHeader]; len(id) > 0 {
		d.MsgID = id[0]
	}
	m := dispatch.NewMessage(ctx, msg, d)
	m.First = redriven.Sequence
	if m.Others = durable.IsHolder(msg); m.Others && durable.KeepsOut(d.Stream, msg.Subject) {
		c.outdated.Store(true) // the filters are to leave it out
	}
	if c.schedules.Load() && durable.IsMarker(msg) {
		m.Others = true // to a handler it would be the job once more
	}
	if ok && redriven.For != c.address {
		m.Others = true
		c.log("natty: skipped a message that was redriven for another durable",
			slog.String("subject", msg.Subject), slog.String("for", redriven.For))
	}
	return m
}

// filterOf returns which of the subjects that the consumer was asked for is a message's.
func (c *Consumer) filterOf(s string) string {
	for _, filter := range c.cfg.Subjects {
		if len(c.cfg.Subjects) == 1 || subject.Covers(filter, s) {
			return filter
		}
	}
	return ""
}

// letterStream is what is known of the stream of the dead letters.
type letterStream struct {
	mu      sync.Mutex
	checked time.Time
	unseen  bool // it may not be looked at
}

// letterCheck is how long a look at the stream of the dead letters holds. An Interest
// stream is looked at for every letter: it acknowledges what it does not keep, and its
// consumers may go at any time.
const letterCheck = 10 * time.Second

// check refuses to store a letter that its stream would not keep. If the stream cannot
// be looked at, storing the letter finds out.
func (l *letterStream) check(ctx context.Context, c *Consumer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unseen || time.Since(l.checked) < letterCheck {
		return nil
	}
	letters, err := c.client.CheckLettersKept(ctx, c.cfg.DeadLetter)
	l.unseen = letters.Unseen
	switch {
	case letters.Stream == "": // the server did not say, or there is none
		return nil
	case err == nil && !letters.Interest:
		l.checked = time.Now()
	}
	return err
}

// storeLetter stores the copy of a message on the dead-letter subject.
func (c *Consumer) storeLetter(m *dispatch.Message, reason error) error {
	ctx, cancel := context.WithTimeout(c.letterCtx(m), c.client.Pub.Timeout)
	defer cancel()
	d := m.Delivery
	letter := deadletter.Letter{
		Subject: m.Subject(), Header: m.Header(), Data: m.Data(), Reason: reason.Error(),
		Stream: d.Stream, Sequence: d.Sequence, Durable: d.Durable, Deliveries: d.Attempt, Redrives: d.Redrives,
	}
	if m.First > 0 {
		letter.Sequence = m.First
	}
	if err := c.letters.check(ctx, c); err != nil {
		return fmt.Errorf("%w: %w", errKept, err)
	}
	if _, err := c.client.Pub.PublishMsg(ctx, deadletter.For(c.cfg.DeadLetter, letter, d.Time), nil); err != nil {
		return fmt.Errorf("%w: %w", errKept, err)
	}
	return nil
}
