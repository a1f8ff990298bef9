package durable

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
)

// healPause is how long a recreated durable may stay paused. If the process that makes
// it dies in between, the durable begins by itself, from the first message on.
const healPause = time.Minute

// removalWait bounds awaitRemoval. The server gives up one second after a removal first
// failed, and then counts the consumer until it is restarted.
const removalWait = 5 * time.Second

// RecreateDurable makes a deleted durable again as it was, behind its ack floor, once
// the files of the deleted one are gone. made is false if another instance was faster,
// and with an error, if the durable was surely not made.
//
// The durable is paused until it is reset to the floor: made to begin at a sequence it
// would have another configuration than before. A ctx that ends in between leaves time
// for the rest. again says that an earlier call, which failed, may have made the durable.
//
// If the server has no resets, the durable gets that other configuration. A WorkQueue
// stream refuses it, and has no message left that was acked.
func (c *Manager) RecreateDurable(
	ctx context.Context, lost Durable, stream jetstream.StreamConfig, again bool,
) (made bool, err error) {
	if err := c.awaitRemoval(ctx, lost.Stream); err != nil {
		return false, err
	}
	resets := c.resets(stream)
	config := lost.recreated(stream, resets)
	ctx, cancel := jsapi.Outlast(ctx, finishGrace)
	defer cancel()
	made, err = c.createOnce(ctx, lost, config, again)
	switch {
	case err != nil:
		return jsapi.Passing(err), err
	case !made:
		return false, nil
	case lost.Floor == 0 || !resets:
		return true, nil
	}
	err = c.beginBehind(ctx, lost)
	if jsapi.ServerFault(err) {
		// It would begin at the first message. Nobody has received anything from it.
		_ = c.API.JS.DeleteConsumer(ctx, lost.Stream, lost.Name)
	}
	return true, err
}

// finishGrace is how long the server has to finish a durable when ctx ends meanwhile.
const finishGrace = time.Second

// createOnce makes a durable, unless another instance has. Some servers take a request
// for a durable that is there for a repeated one. Others refuse it even then: the pause
// ends at another time. So what counts is whether anybody has received anything.
func (c *Manager) createOnce(
	ctx context.Context, lost Durable, config jetstream.ConsumerConfig, again bool,
) (made bool, err error) {
	var info *jetstream.ConsumerInfo
	err = c.API.Persist(ctx, func(ctx context.Context) (err error) {
		// With less room than before it goes on, and with none it would end.
		info, err = c.create(ctx, lost.Stream, config, false)
		return err
	})
	if jsapi.Code(err) == jsapi.CodeConsumerExists {
		if !again {
			return false, nil
		}
		info, err = c.API.ConsumerInfo(ctx, lost.Stream, lost.Name)
	}
	if err != nil {
		return false, err
	}
	return info.Delivered.Consumer == 0 && info.Config.DeliverPolicy == config.DeliverPolicy, nil
}

// recreated returns the configuration with which d is made again.
func (d Durable) recreated(stream jetstream.StreamConfig, resets bool) jetstream.ConsumerConfig {
	config := d.Config
	config.DeliverPolicy, config.OptStartSeq, config.OptStartTime = jetstream.DeliverAllPolicy, 0, nil
	config.PauseUntil = nil
	if len(config.FilterSubjects) == 1 {
		config.FilterSubject, config.FilterSubjects = config.FilterSubjects[0], nil
	}
	config.Metadata = maps.Clone(config.Metadata)
	isServers := func(key, _ string) bool { return strings.HasPrefix(key, "_nats.") }
	maps.DeleteFunc(config.Metadata, isServers)
	switch {
	case d.Floor == 0:
	case resets:
		until := time.Now().Add(healPause)
		config.PauseUntil = &until
	case stream.Retention != jetstream.WorkQueuePolicy:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, d.Floor+1
	}
	return config
}

// awaitRemoval waits until the server has removed the files of the consumers that were
// deleted from a stream. To a server that is alone, a deleted consumer is unknown at
// once. Then the server removes the folder of that name, and only then it counts one
// consumer less in the state of the stream. It would remove the files of a durable that
// is recreated in between as well, and a restart would lose that durable.
//
// Who may not list the consumers waits as long as a removal may take.
func (c *Manager) awaitRemoval(ctx context.Context, stream string) error {
	limit, cancel := context.WithTimeout(ctx, removalWait)
	defer cancel()
	for n := 1; ; n++ {
		removed, err := c.removed(ctx, stream)
		switch {
		case errors.Is(err, nats.ErrPermissionViolation):
			<-limit.Done()
			return ctx.Err()
		case removed || err != nil:
			return err
		}
		if jsapi.CreatePause.Wait(limit, n) != nil {
			return ctx.Err()
		}
	}
}

// removed reports whether the server counts no consumer of a stream besides those that
// it lists. It says no if the list changes meanwhile.
func (c *Manager) removed(ctx context.Context, stream string) (bool, error) {
	before, err := c.API.ConsumerNames(ctx, stream)
	if err != nil {
		return false, err
	}
	info, err := c.API.StreamInfo(ctx, stream, "")
	if err != nil {
		return false, err
	}
	after, err := c.API.ConsumerNames(ctx, stream)
	return slices.Equal(before, after) && info.State.Consumers <= len(after), err
}

// resumeWait bounds AwaitResume. A pause that lasts longer is somebody else's, or that
// of an instance that has died.
const resumeWait = 5 * time.Second

// AwaitResume reads a durable that another instance has just recreated, and waits until
// that one has resumed it.
func (c *Manager) AwaitResume(ctx context.Context, d *Durable) error {
	limit, cancel := context.WithTimeout(ctx, resumeWait)
	defer cancel()
	for n := 1; ; n++ {
		err := c.Refresh(ctx, d)
		if kind, _ := d.Warning(); err != nil || kind != Paused || jsapi.CreatePause.Wait(limit, n) != nil {
			return err
		}
	}
}

// resets reports whether the server of a stream can reset a consumer.
func (c *Manager) resets(stream jetstream.StreamConfig) bool {
	return jsapi.ConsumerResets.MissingFrom(c.API.ServerVersion(stream.Metadata)) == nil
}

// Rewind has a durable deliver once more what is behind a floor. It reports false where
// the server, or this user, cannot, and for a durable that did not begin with the first
// message: the server resets such a one to its own floor only.
func (c *Manager) Rewind(ctx context.Context, d *Durable, floor uint64) (bool, error) {
	info, err := c.API.StreamInfo(ctx, d.Stream, "")
	if err != nil {
		return false, err
	}
	resets := c.resets(info.Config)
	if resets {
		err = c.reset(ctx, *d, floor)
	}
	switch {
	case !resets, errors.Is(err, nats.ErrPermissionViolation), jsapi.Code(err) == jsapi.CodeInvalidReset:
		return false, nil
	case err != nil:
		return false, err
	}
	return true, c.Refresh(ctx, d)
}

func (c *Manager) reset(ctx context.Context, d Durable, floor uint64) error {
	err := c.API.Persist(ctx, func(ctx context.Context) error {
		_, err := c.API.Via(ctx).ResetConsumerToSequence(ctx, d.Stream, d.Name, floor+1)
		return err
	})
	if err != nil {
		return fmt.Errorf("reset to sequence %d: %w", floor+1, err)
	}
	return nil
}

// beginBehind sets a paused durable to the message behind lost's floor, and resumes it.
func (c *Manager) beginBehind(ctx context.Context, lost Durable) error {
	if err := c.reset(ctx, lost, lost.Floor); err != nil {
		return err
	}
	return c.API.Persist(ctx, func(ctx context.Context) error {
		_, err := c.API.Via(ctx).ResumeConsumer(ctx, lost.Stream, lost.Name)
		return err
	})
}
