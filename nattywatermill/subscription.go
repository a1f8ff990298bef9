package nattywatermill

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

var (
	errNotTaken    = errors.New("nattywatermill: the subscription ended before anybody took the message")
	errNotAnswered = errors.New("nattywatermill: neither Ack nor Nack was called in time")
)

// subscription is one call of Subscribe.
type subscription struct {
	s       *Subscriber
	topic   string
	subject string
	durable string
	began   time.Time
	ctx     context.Context //nolint:containedctx // it is how long the subscription lasts
	stop    context.CancelFunc
	out     chan *message.Message
	ended   chan struct{} // closed when Process has returned,
	err     error         // with this
}

func newSubscription(ctx context.Context, s *Subscriber, topic string) *subscription {
	subject := subjectOf(s.cfg.Subject, topic)
	sub := &subscription{
		s: s, topic: topic, subject: subject, durable: durableName(s.cfg.Group, subject), began: time.Now(),
		out:   make(chan *message.Message), // no message waits here that nobody has taken
		ended: make(chan struct{}),
	}
	sub.ctx, sub.stop = context.WithCancel(ctx)
	return sub
}

// run consumes until the subscription ends.
func (sub *subscription) run() {
	defer sub.stop()
	cfg := sub.s.cfg.Consumer
	cfg.Durable, cfg.Subjects = sub.durable, []string{sub.subject}
	cfg.HandlerTimeout = 0 // it begins when the message is taken
	err := sub.s.client.Process(sub.ctx, cfg, sub.handle)
	fields := watermill.LogFields{"topic": sub.topic, "durable": sub.durable}
	switch {
	case errors.Is(err, natty.ErrDrainTimeout):
		sub.s.cfg.Logger.Info("nattywatermill: the subscription ended with messages that were not acknowledged; "+
			"they are redelivered", fields.Add(watermill.LogFields{"reason": err}))
		err = nil
	case err != nil:
		sub.s.cfg.Logger.Error("nattywatermill: the subscription ended", err, fields)
	}
	sub.err = err
	close(sub.ended)
	// A handler that outlives Process does not send: it waits for the answer to a message
	// that was taken.
	close(sub.out)
	sub.s.leave(sub, err)
}

// awaitStart waits until the consumer has begun to pull, or has ended.
func (sub *subscription) awaitStart() error {
	timeout, poll := time.NewTimer(startTimeout), time.NewTicker(startPoll)
	defer timeout.Stop()
	defer poll.Stop()
	for !sub.hasStarted() {
		select {
		case <-sub.ended:
			return sub.err
		case <-sub.ctx.Done():
			return sub.endedWith()
		case <-timeout.C:
			return nil
		case <-poll.C:
		}
	}
	return nil
}

// endedWith returns the error of a subscription that ended by itself, which ends its ctx
// too. It does not wait for one whose ctx the caller ended.
func (sub *subscription) endedWith() error {
	select {
	case <-sub.ended:
		return sub.err
	default:
		return nil
	}
}

// hasStarted reports whether there are consumers of the durable here and none of them is
// about to start. Those that began before the subscription are others' and say nothing of
// its configuration.
func (sub *subscription) hasStarted() bool {
	started := false
	for _, c := range sub.s.client.Health().Consumers {
		if c.Durable != sub.durable || c.Since.Before(sub.began) {
			continue
		}
		switch c.State {
		case natty.ConsumerStarting:
			return false
		case natty.ConsumerStopped: // another one, or this one: its error comes
		default:
			started = true
		}
	}
	return started
}

// handle is natty's handler: it delivers a message, and returns what became of it.
func (sub *subscription) handle(ctx context.Context, m *nats.Msg) error {
	d, _ := natty.DeliveryFrom(ctx)
	msg, err := fromNATS(m, d)
	if err != nil {
		return natty.Permanent(err)
	}
	msgCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	msg.SetContext(msgCtx)
	if taken, err := sub.offer(ctx, m, msg, d.Last); !taken {
		return err
	}
	if timeout := sub.s.cfg.Consumer.HandlerTimeout; timeout > 0 {
		defer time.AfterFunc(timeout, func() { cancel(context.DeadlineExceeded) }).Stop()
	}
	// Somebody works on the message until the answer comes, also when its context has
	// ended. So the next one has to wait. A subscription that ends does not wait for
	// longer than its handlers' ctx. An exclusive one does: otherwise its place would be
	// given to another instance at once.
	end := ctx.Done()
	if sub.s.cfg.Consumer.Exclusive {
		end = sub.ended
	}
	select {
	case <-msg.Acked():
		return nil
	case <-msg.Nacked():
		return sub.s.cfg.OnNack(ctx, msg)
	case <-end:
		return natty.RetryAfter(0, errNotAnswered)
	}
}

// offer waits until somebody takes the message from the channel. Otherwise the error is
// what to tell natty.
func (sub *subscription) offer(
	ctx context.Context, m *nats.Msg, msg *message.Message, last bool,
) (taken bool, _ error) {
	select {
	case sub.out <- msg:
		return true, nil
	case <-sub.ctx.Done():
	case <-ctx.Done():
	}
	select {
	case <-time.After(stopPulling):
	case <-ctx.Done():
	}
	// The message goes back, and that is no failure of its. An error at its last attempt
	// would dead-letter it. One that is settled here is not judged. Where the order
	// matters, natty has to return it itself; it stores no dead letter after the end of
	// the handlers' ctx.
	if c := sub.s.cfg.Consumer; !c.Exclusive && c.OrderBy == nil {
		if err := m.Nak(); err == nil {
			return false, nil
		}
	}
	if last {
		<-ctx.Done()
	}
	return false, natty.RetryAfter(0, errNotTaken)
}

// stopPulling is more than a consumer needs to stop pulling when its ctx has ended.
// What goes back before that may come again to the same consumer.
const stopPulling = 50 * time.Millisecond
