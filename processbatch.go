package natty

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/dispatch"
)

// BatchHandler handles several messages at once. nil or a plain error applies to every
// message, as if a Handler had returned it; return a *PartialError to fail only some.
// The handler may keep the slice. (*nats.Msg).Metadata says more about a delivery.
type BatchHandler func(ctx context.Context, msgs []*nats.Msg) error

// PartialError fails some messages of a batch. All others are acknowledged.
//
// It may be wrapped. Joined with other errors (errors.Join), each part counts: a plain
// error beside it applies to every message. An index that the batch does not have, or a
// panic with a PartialError, fails the whole batch, since nobody knows what was meant.
type PartialError struct {
	// Errs holds the error of each message that failed, by its index in the slice that
	// the handler got, in the order in which the handler left it. Each has the meaning of
	// a Handler's error.
	Errs map[int]error
}

func (e *PartialError) Error() string {
	return fmt.Sprintf("%d messages of the batch failed: %v", len(e.Errs), errors.Join(e.Unwrap()...))
}

// Unwrap returns the errors of the messages, in their order.
func (e *PartialError) Unwrap() []error {
	errs := make([]error, 0, len(e.Errs))
	for _, i := range slices.Sorted(maps.Keys(e.Errs)) {
		errs = append(errs, e.Errs[i])
	}
	return errs
}

// BatchConfig is a ConsumerConfig for batches. ProcessBatch rejects OrderBy and
// Exclusive, with which a batch could hold only one message of each key, or one at all.
type BatchConfig struct {
	// ConsumerConfig says what to consume, and how.
	ConsumerConfig
	// Size is the most messages in a batch. Default 100. What the server has in flight
	// bounds it too: max_ack_pending, 20,000 for a durable that is made here.
	Size int
	// MaxWait is how long a batch waits for more after its first message. Default 1s. It
	// does not wait once no more can come: the buffer is full (MaxPollRecords, 16 MiB),
	// or the server's max_ack_pending is reached.
	MaxWait time.Duration
}

const (
	defaultBatchSize = 100
	defaultBatchWait = time.Second
)

// ProcessBatch is Process for a handler that takes several messages at once, as a bulk
// insert does. A batch has up to Size messages, or those that came within MaxWait.
// Concurrency counts batches, and HandlerTimeout is for a whole batch.
func (c *Client) ProcessBatch(ctx context.Context, cfg BatchConfig, h BatchHandler) error {
	switch {
	case h == nil:
		return invalid("h", "", "is nil; give a function that handles messages", nil)
	case cfg.OrderBy != nil:
		return invalid("OrderBy", "",
			"has no place in a batch, which could hold one message of each key; use Process", nil)
	case cfg.Exclusive:
		return invalid("Exclusive", "",
			"has no place in a batch, since it handles one message at a time; use Process", nil)
	case cfg.Size < 0:
		return negative("Size", cfg.Size)
	case cfg.MaxWait < 0:
		return negative("MaxWait", cfg.MaxWait)
	}
	return c.consume(ctx, cfg.ConsumerConfig, nil, &consumer.Batching{
		Size: cmp.Or(cfg.Size, defaultBatchSize), Wait: cmp.Or(cfg.MaxWait, defaultBatchWait),
		Handler: h, Split: split,
	})
}

// splitting reads what a batch handler's error says about each message.
type splitting struct {
	each    []error
	plain   []error                // errors of every message
	verdict *dispatch.VerdictError // around the PartialError
	outside []int                  // indexes that the batch does not have
}

// split returns the error of each of n messages if err holds a PartialError, else nil.
// all is the error for every message of the batch: err, without the meaning for single
// messages that errors within it have.
func split(err error, n int) (each []error, all error) {
	if !holdsPartial(err) {
		return nil, err
	}
	s := splitting{each: make([]error, n)}
	s.read(err)
	if len(s.outside) > 0 {
		return nil, &wholeError{fmt.Errorf("a PartialError has the index %d, and the batch %d messages (from 0 on), "+
			"so that all of them fail: %w", slices.Min(s.outside), n, err)}
	}
	for i := range s.each {
		s.each[i] = join(append([]error{s.each[i]}, s.plain...)...)
	}
	return s.each, &wholeError{err}
}

func holdsPartial(err error) bool {
	_, ok := errors.AsType[*PartialError](err)
	return ok
}

// read reads an error that holds a PartialError.
func (s *splitting) read(err error) {
	switch e := err.(type) { //nolint:errorlint // it is unwrapped here, step by step
	case *PartialError:
		for i, one := range e.Errs {
			switch {
			case one == nil:
			case i < 0 || i >= len(s.each):
				s.outside = append(s.outside, i)
			default:
				s.each[i] = join(s.each[i], s.marked(one))
			}
		}
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			switch {
			case holdsPartial(part):
				s.read(part)
			case part != nil:
				s.plain = append(s.plain, s.marked(part))
			}
		}
	case interface{ Unwrap() error }:
		outer := s.verdict
		if v, ok := err.(*dispatch.VerdictError); ok { //nolint:errorlint // this one
			s.verdict = v
		}
		s.read(e.Unwrap())
		s.verdict = outer
	default: // its As method makes a PartialError of it
		s.plain = append(s.plain, &wholeError{err})
	}
}

// marked gives an error the verdict around it, as in Permanent(&PartialError{…}), unless
// it has one of its own.
func (s *splitting) marked(err error) error {
	if _, own := dispatch.VerdictOf(err); own || s.verdict == nil {
		return err
	}
	return &dispatch.VerdictError{Err: err, Permanent: s.verdict.Permanent, After: s.verdict.After}
}

// join is errors.Join that leaves a single error as it is.
func join(errs ...error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// wholeError is an error of every message of a batch. Permanent or RetryAfter for a
// single message within it does not count, so errors.As finds nothing in it.
type wholeError struct{ err error }

func (e *wholeError) Error() string        { return e.err.Error() }
func (e *wholeError) Is(target error) bool { return errors.Is(e.err, target) }
