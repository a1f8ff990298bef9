package durable

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
)

// CheckDeadLetter refuses a dead-letter subject that the consumer itself would receive,
// and one whose letters no stream would keep.
func (c *Manager) CheckDeadLetter(ctx context.Context, cfg Spec, d Durable) error {
	if cfg.DeadLetter == "" {
		return nil
	}
	letters, err := c.CheckLettersKept(ctx, cfg.DeadLetter)
	if err != nil {
		return err
	}
	if letters.Stream == d.Stream && Receives(d.Config, cfg.DeadLetter) {
		return c.Invalid("dead_letter", cfg.DeadLetter, fmt.Sprintf(
			"is received by the consumer itself (filters %q), which would handle its own dead letters; "+
				"take a subject outside of its filters", d.Filters()), nil)
	}
	return nil
}

// Letters is the stream that keeps the dead letters.
type Letters struct {
	Stream   string // "" if it is not known
	Interest bool   // it keeps only what one of its consumers receives
	// Unseen means that this user may not look at the stream.
	Unseen bool
}

// CheckLettersKept refuses a dead-letter subject whose letters no stream would keep.
func (c *Manager) CheckLettersKept(ctx context.Context, deadLetter string) (l Letters, err error) {
	failed := func(err error) (Letters, error) {
		return l, fmt.Errorf("natty: look up the stream of the dead letters %q: %w", deadLetter, err)
	}
	streams, err := c.API.StreamsOf(ctx, deadLetter)
	if err != nil {
		return failed(err)
	}
	if len(streams) == 0 {
		return l, c.Invalid("dead_letter", deadLetter,
			"is in no stream, so that dead letters would be lost; make a stream that holds it", jsapi.ErrNoStream)
	}
	info, err := c.API.StreamInfo(ctx, streams[0], "")
	switch {
	case errors.Is(err, nats.ErrPermissionViolation): // a consumer did without it so far
		return Letters{Stream: streams[0], Unseen: true}, nil
	case err != nil:
		return failed(err)
	}
	l = Letters{Stream: streams[0], Interest: info.Config.Retention == jetstream.InterestPolicy}
	switch {
	case info.Config.NoAck:
		return l, c.Invalid("dead_letter", deadLetter, fmt.Sprintf(
			"is in stream %q, which acknowledges nothing (no_ack), so that nobody knows whether "+
				"a dead letter is stored; take a stream that acknowledges", l.Stream), nil)
	case !l.Interest:
		return l, nil
	}
	kept := false
	err = c.API.EachConsumer(ctx, l.Stream, func(_ string, config jetstream.ConsumerConfig) {
		kept = kept || Receives(config, deadLetter)
	})
	switch {
	case err != nil:
		return failed(err)
	case !kept:
		return l, c.Invalid("dead_letter", deadLetter, fmt.Sprintf(
			"is in the Interest stream %q, which keeps only what one of its consumers receives, and none "+
				"receives this subject, so that dead letters would be lost; take a stream with limits retention",
			l.Stream), nil)
	}
	return l, nil
}
