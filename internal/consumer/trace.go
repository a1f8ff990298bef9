package consumer

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/dispatch"
)

// Tracer follows messages through their handlers; see natty.Tracer.
type Tracer interface {
	HandleStart(ctx context.Context, msgs []*nats.Msg, deliveries []dispatch.Delivery) context.Context
	HandleEnd(ctx context.Context, verdicts []dispatch.Verdict)
}

// follow begins to follow a call of the handler with these messages, if there is a
// Tracer. It returns the ctx for the handler.
func (c *Consumer) follow(ctx context.Context, batch ...*dispatch.Message) context.Context {
	if c.client.Tracer == nil {
		return ctx
	}
	h := &dispatch.Handling{Messages: len(batch)}
	msgs, deliveries := make([]*nats.Msg, len(batch)), make([]dispatch.Delivery, len(batch))
	for i, m := range batch {
		msgs[i], deliveries[i], m.Handling = m.Msg, m.Delivery, h
	}
	h.Ctx = c.client.Tracer.HandleStart(ctx, msgs, deliveries)
	return h.Ctx
}

// followed tells the Tracer what became of a message, once that is known of all messages
// that the handler was called with.
func (c *Consumer) followed(m *dispatch.Message, o dispatch.Outcome, err error, delay time.Duration) {
	h := m.Handling
	if h == nil {
		return
	}
	m.Handling = nil
	if h.Add(dispatch.Verdict{Outcome: o, Err: err, Delay: delay}) {
		c.client.Tracer.HandleEnd(h.Ctx, h.Verdicts)
	}
}

// letterCtx is the ctx in which the copy of a message is stored. It has the values of
// the handler's, and does not end with it.
func (c *Consumer) letterCtx(m *dispatch.Message) context.Context {
	if m.Handling == nil {
		return c.handlerCtx
	}
	return valueCtx{c.handlerCtx, m.Handling.Ctx}
}

// valueCtx has the values of another ctx.
type valueCtx struct {
	context.Context //nolint:containedctx // this is a context
	values          context.Context
}

func (c valueCtx) Value(key any) any { return c.values.Value(key) }

// failureOf is the outcome of a delivery that its handler did not accept.
func (c *Consumer) failureOf(byHandler, final, kept bool) dispatch.Outcome {
	switch {
	case byHandler:
		return dispatch.Settled
	case final && c.cfg.DeadLetter != "":
		return dispatch.DeadLettered
	case final:
		return dispatch.Terminated
	case kept:
		return dispatch.Kept
	}
	return dispatch.Retried
}
