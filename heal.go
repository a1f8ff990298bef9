package natty

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// healPause is the time a durable that is made again may stay paused: if whoever makes it dies in between, it begins
// by itself, from the first message on.
const healPause = time.Minute

var retryHeal = Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second}

// heal makes a durable again that was deleted, where its group had got to: nothing unhandled is skipped. It waits for a
// stream that is gone. A stream made anew is begun anew. It returns what it did, for the report.
func (e *engine) heal(ctx context.Context, lost durable) (durable, string, error) {
	told := ""
	for n := 1; ; n++ {
		d, done, err := e.healOnce(ctx, lost)
		switch {
		case err == nil, !missing(err) && !passing(err) && !serverFault(err):
			return d, done, err
		case serverFault(err) && told != err.Error():
			told = err.Error()
			e.report(fmt.Errorf("natty: consumer %q was deleted, and could not be made again yet: %w", lost.name, err))
		}
		if sleep(ctx, retryHeal.delay(n)) != nil {
			return d, "", err
		}
	}
}

func (e *engine) healOnce(ctx context.Context, lost durable) (durable, string, error) {
	var info streamInfo
	if err := e.c.query(ctx, "STREAM.INFO."+lost.stream, nil, &info); err != nil {
		return lost, "", err
	}
	if !info.Created.Equal(lost.streamCreated) {
		cfg := e.cfg
		cfg.DeliverPolicy = jetstream.DeliverAllPolicy // what came while there was no durable must not be missed
		d, err := e.c.ensureDurable(ctx, lost.stream, cfg)
		return d, "the stream was made anew, begun anew", err
	}
	did := fmt.Sprintf("made again behind sequence %d", lost.floor)
	if info.Config.Retention == jetstream.InterestPolicy {
		did += "; an Interest stream drops what its last consumer had not acknowledged"
	}
	made, err := e.c.recreateDurable(ctx, lost, info.Config)
	if err != nil {
		return lost, "", err
	}
	if !made {
		did = "another instance made it again"
	}
	d := durable{stream: lost.stream, name: lost.name}
	return d, did, e.c.refresh(ctx, &d)
}

// recreateDurable makes lost again as it was, behind its floor; false if another instance was faster. It is paused until
// it stands where it should: one that is made to begin at a sequence would have another configuration than before.
//
// Where the server has no resets it gets that other configuration. A WorkQueue stream refuses it, and has nothing that was handled.
func (c *Client) recreateDurable(ctx context.Context, lost durable, stream jetstream.StreamConfig) (made bool, err error) {
	fresh := lost.config
	fresh.DeliverPolicy, fresh.OptStartSeq, fresh.OptStartTime = jetstream.DeliverAllPolicy, 0, nil
	maps.DeleteFunc(fresh.Metadata, func(k, _ string) bool { return strings.HasPrefix(k, "_nats.") }) // the server's own
	fresh.PauseUntil = nil
	resets := consumerResets.missingFrom(c.serverVersion(stream.Metadata)) == nil
	switch {
	case lost.floor == 0:
	case resets:
		until := time.Now().Add(healPause)
		fresh.PauseUntil = &until
	case stream.Retention != jetstream.WorkQueuePolicy:
		fresh.DeliverPolicy, fresh.OptStartSeq = jetstream.DeliverByStartSequencePolicy, lost.floor+1
	}
	err = c.persist(ctx, func(ctx context.Context) error {
		_, err := c.js.CreateConsumer(ctx, lost.stream, fresh)
		return err
	})
	if errorCode(err) == codeConsumerExists || errors.Is(err, jetstream.ErrConsumerExists) {
		return false, nil
	}
	if err != nil || lost.floor == 0 || !resets {
		return err == nil, err
	}
	err = c.beginBehind(ctx, lost)
	if serverFault(err) {
		// The removal of the one before took this one's files along. It cannot be mended, and nobody has had anything of it.
		_ = c.js.DeleteConsumer(ctx, lost.stream, lost.name)
	}
	return true, err
}

// beginBehind sets a paused durable to what follows lost's floor, and lets it run.
func (c *Client) beginBehind(ctx context.Context, lost durable) error {
	err := c.persist(ctx, func(ctx context.Context) error {
		_, err := c.js.ResetConsumerToSequence(ctx, lost.stream, lost.name, lost.floor+1)
		return err
	})
	if err != nil {
		return fmt.Errorf("reset to sequence %d: %w", lost.floor+1, err)
	}
	return c.persist(ctx, func(ctx context.Context) error {
		_, err := c.js.ResumeConsumer(ctx, lost.stream, lost.name)
		return err
	})
}
