package publish

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/respmux"
)

// Attempts send one message as often as their caller wants. It is for callers that find
// out for themselves what became of a message without an answer.
type Attempts struct {
	pub *Publisher
	msg *nats.Msg
	// silent are the attempts that have had no answer yet.
	silent []silentAttempt
}

type silentAttempt struct {
	waiter *respmux.Waiter
	token  uint64
}

// NewAttempts returns Attempts for msg, which the caller must not change any more. The
// caller ends them with Close.
func (pub *Publisher) NewAttempts(msg *nats.Msg) *Attempts { return &Attempts{pub: pub, msg: msg} }

// Msg returns the message.
func (a *Attempts) Msg() *nats.Msg { return a.msg }

// Try sends the message and waits up to timeout for the answer. unknown says that this
// copy may be stored, final that no further attempt can succeed.
func (a *Attempts) Try(ctx context.Context, timeout time.Duration) (
	ack *jetstream.PubAck, unknown, final bool, err error,
) {
	p := publication{pub: a.pub, msg: a.msg}
	if err := p.ready(ctx); err != nil {
		return nil, false, true, err
	}
	ack, err = p.attempt(ctx, timeout)
	if _, unsent := errors.AsType[*sendError](err); p.waiter != nil && !unsent {
		a.silent = append(a.silent, silentAttempt{p.waiter, p.token})
		p.waiter = nil
	}
	p.stopWaiting()
	if err != nil {
		ack, err = p.classify(ctx, err)
	}
	if reason := retryReason(err); reason != nil {
		return nil, p.unknown, false, reason
	}
	return ack, p.unknown, err != nil, err
}

// Late waits up to timeout for answers to attempts that had none. It returns the
// acknowledgement if one of the copies is stored, and how many were refused.
func (a *Attempts) Late(ctx context.Context, timeout time.Duration) (ack *jetstream.PubAck, refused int) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for len(a.silent) > 0 {
		p := publication{pub: a.pub, msg: a.msg, waiter: a.silent[0].waiter, token: a.silent[0].token}
		select {
		case answer := <-p.waiter.Answer:
			a.silent = a.silent[1:]
			one, err := p.receive(answer)
			if err == nil {
				return one, refused
			}
			if _, _ = p.classify(ctx, err); !p.unknown {
				refused++
			}
		case <-timer.C:
			return nil, refused
		case <-ctx.Done():
			return nil, refused
		}
	}
	return nil, refused
}

// Close stops waiting for answers.
func (a *Attempts) Close() {
	for _, s := range a.silent {
		p := publication{pub: a.pub, msg: a.msg, waiter: s.waiter, token: s.token}
		p.stopWaiting()
	}
	a.silent = nil
}
