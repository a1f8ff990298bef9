package consumer

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/dispatch"
)

// Batching makes a consumer handle batches of messages.
type Batching struct {
	Size    int
	Wait    time.Duration
	Handler func(ctx context.Context, msgs []*nats.Msg) error
	// Split returns the error of each of n messages, if err has errors of some of them,
	// else nil. all is the error for a batch of which every message failed.
	Split func(err error, n int) (each []error, all error)
}

// workBatches handles the next batch. It returns false when there are no more messages.
func (c *Consumer) workBatches() (more bool) {
	batch, ok := c.queue.NextBatch(c.Batch.Size, c.Batch.Wait)
	if ok {
		c.handleBatch(batch)
	}
	return ok
}

// handleBatch runs the handler with a batch, and settles each message.
func (c *Consumer) handleBatch(batch []*dispatch.Message) {
	start := time.Now()
	var handled []*dispatch.Message
	var msgs []*nats.Msg
	for _, m := range batch {
		if err := c.poisoned(m); err != nil {
			c.follow(c.handlerCtx, m)
			c.settle(m, err, nil, 0)
			continue
		}
		handled, msgs = append(handled, m), append(msgs, m.Msg)
	}
	if len(handled) == 0 {
		return
	}
	var each []error
	callback.Call(func() (err error) {
		ctx, cancel := c.withTimeout(c.follow(c.handlerCtx, handled...))
		defer cancel()
		each, err = c.split(readable(c.Batch.Handler(ctx, msgs)), handled, msgs)
		if each == nil {
			err = c.named(ctx, err)
		}
		return err
	}, func(stack []byte, err error) {
		_, err = c.Batch.Split(readable(err), 0) // after a panic, it is every message's
		took := time.Since(start) / time.Duration(len(handled))
		for i, m := range handled {
			outcome := err
			if each != nil {
				outcome = readable(each[i])
			}
			c.settle(m, outcome, stack, took)
		}
		c.wakeIfRoom()
	})
}

// split returns the errors of the messages that were handled, if err has them, else the
// error of all. The handler may have sorted its slice: the indexes are those of msgs as
// it is now.
func (c *Consumer) split(err error, handled []*dispatch.Message, msgs []*nats.Msg) (each []error, all error) {
	of, all := c.Batch.Split(err, len(msgs))
	if of == nil {
		return nil, all
	}
	by := make(map[*nats.Msg]error, len(msgs))
	for i, m := range msgs {
		by[m] = of[i]
	}
	each = make([]error, len(handled))
	for i, m := range handled {
		err, known := by[m.Msg]
		if !known {
			return nil, fmt.Errorf("the handler put other messages into its batch, so that it is not known "+
				"which ones failed: %w", all)
		}
		each[i] = err
	}
	return each, nil
}
