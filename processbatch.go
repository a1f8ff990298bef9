package natty

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// BatchHandler handles several messages at once. Its verdict is that of each of them: as a Handler's, or a
// *PartialError for a verdict of each its own. The slice is the handler's to keep; (*nats.Msg).Metadata says
// what the server says about a message.
type BatchHandler func(ctx context.Context, msgs []*nats.Msg) error

// PartialError is a batch of which some messages failed: Errs holds their errors by index, each a verdict as a
// Handler's. Those that are not in it are accepted.
type PartialError struct{ Errs map[int]error }

func (e *PartialError) Error() string {
	return fmt.Sprintf("%d messages of the batch failed: %v", len(e.Errs), errors.Join(e.Unwrap()...))
}

// Unwrap gives the messages' errors.
func (e *PartialError) Unwrap() []error {
	errs := make([]error, 0, len(e.Errs))
	for _, err := range e.Errs {
		errs = append(errs, err)
	}
	return errs
}

// BatchConfig is a ConsumerConfig for batches. OrderBy and Exclusive have no place in it: of each key, or
// of all, a batch could hold one message.
type BatchConfig struct {
	ConsumerConfig
	// Size is the most messages of a batch. Default 100.
	Size int
	// MaxWait is how long a batch waits to become full, from its first message on. Default 1s.
	MaxWait time.Duration
}

const (
	defaultBatchSize = 100
	defaultBatchWait = time.Second
)

// batching is what an engine knows about batches.
type batching struct {
	size    int
	wait    time.Duration
	handler BatchHandler
}

// ProcessBatch is Process for a handler that takes several messages at once, as a bulk insert does: up to Size, or what
// came within MaxWait. Concurrency counts batches; HandlerTimeout is for a whole one.
func (c *Client) ProcessBatch(ctx context.Context, cfg BatchConfig, h BatchHandler) error {
	if h == nil {
		return &ConfigError{Field: "h", Reason: "is nil; give a function that handles messages"}
	}
	switch {
	case cfg.OrderBy != nil:
		return &ConfigError{Field: "OrderBy", Reason: "has no place in a batch, which could hold one message of each key; use Process"}
	case cfg.Exclusive:
		return &ConfigError{Field: "Exclusive", Reason: "has no place in a batch, since it handles one message at a time; use Process"}
	case cfg.Size < 0:
		return negative("Size", cfg.Size)
	case cfg.MaxWait < 0:
		return negative("MaxWait", cfg.MaxWait)
	}
	if cfg.Size == 0 {
		cfg.Size = defaultBatchSize
	}
	if cfg.MaxWait == 0 {
		cfg.MaxWait = defaultBatchWait
	}
	return c.consume(ctx, cfg.ConsumerConfig, nil, &batching{size: cfg.Size, wait: cfg.MaxWait, handler: h})
}

// workBatches handles batches until there are no more messages.
func (e *engine) workBatches() {
	normal := false
	defer func() {
		if !normal { // as in work
			go e.workBatches()
		}
	}()
	for {
		batch, ok := e.dispatch.nextBatch(e.batch.size, e.batch.wait)
		if !ok {
			normal = true
			return
		}
		e.handleBatch(batch)
	}
}

// handleBatch runs the handler with a batch, and settles each message.
func (e *engine) handleBatch(batch []*held) {
	start := time.Now()
	var handled []*held
	for _, h := range batch {
		if err := e.condemned(h); err != nil {
			e.settleOne(h, err, nil, 0)
			continue
		}
		handled = append(handled, h)
	}
	if len(handled) == 0 {
		return
	}
	msgs := make([]*nats.Msg, len(handled))
	for i, h := range handled {
		msgs[i] = h.msg
	}
	stack, err := []byte(nil), errGoexit
	defer func() {
		took := time.Since(start) / time.Duration(len(handled))
		partial, isPartial := errors.AsType[*PartialError](err)
		for i, h := range handled {
			verdict := err
			if isPartial {
				verdict = readable(partial.Errs[i])
			}
			e.settleOne(h, verdict, stack, took)
		}
		e.more()
	}()
	stack, err = e.callBatch(msgs)
}

// callBatch is call for a batch.
func (e *engine) callBatch(msgs []*nats.Msg) (stack []byte, err error) {
	defer recovered(&stack, &err)
	ctx, cancel := e.timed(e.base)
	defer cancel()
	return nil, readable(e.batch.handler(ctx, msgs))
}

func (e *engine) settleOne(h *held, err error, stack []byte, took time.Duration) {
	byHandler, rests := e.settle(h, err, stack, took)
	if !rests {
		e.leave(h, took, byHandler)
	}
}
