package consumer

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/incident"
	"github.com/natty-go/natty/internal/jsapi"
)

// finding is the result of a look at the durable.
type finding struct {
	durable durable.Durable
	behind  error  // its filters could not follow its stream
	heeded  heeded // what somebody else changed
	whole   bool   // the stream was asked for as well
	cost    int    // how many requests it took
	gone    error  // it was deleted,
	healed  string // and this was done about it
	err     error
}

// investigate pauses, and looks at the durable because of a failure.
func (s *supervision) investigate(ctx context.Context, kind string, why error) {
	s.report(kind, "looking into", why)
	s.pause()
	s.look(ctx, why)
}

// look asks the server about the durable, and recreates it if it was deleted. It runs
// beside the supervision, which still reports progress. why is the failure that is the
// reason, if any.
func (s *supervision) look(ctx context.Context, why error) {
	if s.checked != nil {
		s.investigating = s.investigating || why != nil
		return
	}
	now := time.Now()
	whole := why != nil || now.Sub(s.sampledStream) >= s.c.pace.stream ||
		s.c.outdated.Swap(false) || s.c.removals.waiting()
	if s.investigating, s.sampled = why != nil, now; whole {
		s.sampledStream = now
	}
	ctx, s.cancelLook = context.WithCancel(ctx)
	checked := make(chan finding, 1)
	s.checked = checked
	f, recounting := finding{durable: s.c.durable, whole: whole}, s.lost.recounting
	last := f.durable
	go func() {
		if recounting {
			s.c.acks.Flush()
			_ = s.c.barrier(ctx) // after an error, the finding says nothing either
		}
		s.c.find(ctx, &f)
		if jsapi.Missing(f.err) {
			s.healing.Store(true)
			f.gone = f.err
			f.durable, f.healed, f.err = s.c.heal(ctx, f.durable)
		} else if f.err == nil && f.whole {
			f.behind = s.c.client.KeepUp(ctx, f.durable)
		}
		// A durable that is gone may have been recreated by somebody else, for less.
		if f.err == nil && (f.gone == nil || f.durable.Strayed(s.c.cfg.Spec) != "") {
			f.heeded = s.c.heed(ctx, last, &f.durable)
		}
		checked <- f
	}()
}

// find reads what the server knows about the durable, and about its stream if f is to be
// whole, or if messages may have been removed.
func (c *Consumer) find(ctx context.Context, f *finding) {
	ctx, cancel := context.WithTimeout(ctx, jsapi.APITimeout)
	defer cancel()
	if !f.whole {
		f.cost, f.err = 1, c.client.Glance(ctx, &f.durable)
		f.whole = f.err == nil && c.removals.suspects(f.durable)
	}
	if f.whole {
		f.cost += 2
		f.err = c.client.Refresh(ctx, &f.durable)
	}
}

// stopLook ends a look that is under way.
func (s *supervision) stopLook() {
	if s.checked != nil {
		s.cancelLook()
		<-s.checked
		s.checked = nil
		s.healing.Store(false)
	}
}

// onFound acts on the result of a look. An error that it returns ends the consumer.
func (s *supervision) onFound(ctx context.Context, f finding) error {
	s.cancelLook()
	c := s.c
	recounted := s.lost.recounting
	s.lost.recounting = false
	s.cost = f.cost
	s.healing.Store(false)
	switch {
	case ctx.Err() != nil:
		return nil //nolint:nilerr // the end of the consumer is no error
	case f.gone != nil && f.err != nil:
		return jsapi.About(fmt.Sprintf("consumer %q on stream %q was deleted, and cannot be recreated",
			c.durable.Name, c.durable.Stream), f.err)
	case f.err != nil:
		s.report(troubleAway, "no answer about it", f.err)
		s.pause()
		return nil //nolint:nilerr // reported, and tried again
	case f.gone != nil:
		c.queue.ExpectRedelivery()
		c.puller.Forget()
		s.reported.Resolve(troubleGone) // who reported that it is gone could not know what was done
		s.report(troubleGone, "it was deleted", fmt.Errorf("%w: %s", f.gone, f.healed))
		s.pause()
	}
	if err := c.noticeChanges(f); err != nil {
		return err
	}
	if !f.durable.StreamCreated.Equal(c.durable.StreamCreated) {
		c.epoch.Add(1)
	}
	s.watchPulls(f.durable)
	c.setDurable(f.durable)
	if f.whole || f.gone != nil {
		s.reportFilters(f.behind)
		c.reportRemovals()
	}
	c.puller.Limit(f.durable.Config)
	if recounted {
		s.onRecount(f)
	}
	return nil
}

// watchPulls warns when messages wait, and nobody has pulled from one look to the next.
func (s *supervision) watchPulls(d durable.Durable) {
	c := s.c
	stuck := d.Waiting > 0 && d.Requests == 0 && d.Deliveries == c.durable.Deliveries && d.Unacked == 0
	if !stuck {
		s.idlePulls = 0
		c.warn(warnPulls, "")
		return
	}
	if s.idlePulls++; s.idlePulls > 1 {
		c.warn(warnPulls, fmt.Sprintf("%d messages are pending, and no instance pulls: this one %s",
			d.Waiting, s.whyNoPull()))
	}
}

// whyNoPull says why this instance does not pull.
func (s *supervision) whyNoPull() string {
	switch held, handling := s.c.mode.load(); {
	case s.lost.suspected:
		return "waits for messages that may have got lost"
	case s.failures > 0:
		return "pauses after a failure"
	case held > 0:
		return fmt.Sprintf("holds %d messages, %d of them in handlers", held, handling)
	case !s.c.puller.Idle():
		return "has sent a request that the server does not know"
	}
	return "is about to"
}

// reportFilters reports once that the durable's filters cannot follow its stream. Every
// look tries it again.
func (s *supervision) reportFilters(err error) {
	if err == nil || jsapi.Passing(err) {
		s.filters.ResolveAll()
	} else if s.filters.Open(err.Error()) {
		s.c.report(s.c.errorf("its filters cannot follow the subjects of the stream: %w", err))
	}
}

var retryHeal = backoff.Exp{Min: 50 * time.Millisecond, Max: 4 * time.Second}

// heal recreates a deleted durable at its group's last known ack floor, so that no
// message is skipped. It waits for a stream that was deleted, and begins anew with a
// new stream. It returns what it did, for the report.
func (c *Consumer) heal(ctx context.Context, lost durable.Durable) (durable.Durable, string, error) {
	var reported incident.Log
	begun := false // this instance may have made it already
	defer c.warn(warnGone, "")
	for n := 1; ; n++ {
		d, did, err := c.healOnce(ctx, lost, &begun)
		if err == nil || !jsapi.Missing(err) && !jsapi.Passing(err) && !jsapi.ServerFault(err) {
			return d, did, err
		}
		what, kind := "its durable was deleted, and cannot be recreated yet", "durable"
		if jsapi.Code(err) == jetstream.JSErrCodeStreamNotFound {
			what, kind = "its stream was deleted; it waits for a stream of that name", "stream"
		}
		c.warn(warnGone, what+": "+err.Error())
		// The first attempt may meet what is still being removed.
		if n > 1 && reported.Open(kind) {
			c.report(c.errorf("%s: %w", what, err))
		}
		if retryHeal.Wait(ctx, n) != nil {
			return d, "", err
		}
	}
}

func (c *Consumer) healOnce(
	ctx context.Context, lost durable.Durable, begun *bool,
) (_ durable.Durable, did string, _ error) {
	info, err := c.api.StreamInfo(ctx, lost.Stream, "")
	if err != nil {
		return lost, "", err
	}
	if !info.Created.Equal(lost.StreamCreated) {
		cfg := c.cfg.Spec
		cfg.DeliverPolicy = jetstream.DeliverAllPolicy // nor may it miss what came while there was no durable
		d, err := c.client.EnsureDurable(ctx, lost.Stream, cfg)
		return d, "the stream was made anew, begun anew", err
	}
	did = fmt.Sprintf("recreated behind sequence %d", lost.Floor)
	if info.Config.Retention == jetstream.InterestPolicy {
		did += "; an Interest stream drops what its last consumer had not acknowledged"
	}
	made, err := c.client.RecreateDurable(ctx, lost, info.Config, *begun)
	if *begun = *begun || made; err != nil {
		return lost, "", err
	}
	d, read := durable.Durable{Stream: lost.Stream, Name: lost.Name}, c.client.Refresh
	if !made {
		did, read = "another instance recreated it", c.client.AwaitResume
	}
	if err = read(ctx, &d); d.BeginsBehind(lost.Floor) {
		did += "; it begins at a position of its own, so that messages may be skipped"
	}
	return d, did, err
}
