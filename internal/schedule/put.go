package schedule

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/jsapi"
)

// store is Put; header is what the caller gave.
func (k *Keeper) store(ctx context.Context, s Schedule, header nats.Header) error {
	asked := time.Now()
	stream, err := k.Pub.StreamOf(ctx, s.Msg)
	if err != nil {
		return fmt.Errorf("natty: schedule %q for %q: %w", s.ID, s.Msg.Subject, err)
	}
	feature := jsapi.Schedules
	if s.repeats() {
		feature = jsapi.RepeatingSchedules
	}
	if err := feature.MissingFrom(k.API.ServerVersion(stream.Config.Metadata)); err != nil {
		return fmt.Errorf("natty: schedule %q: %w", s.ID, err)
	}
	if err := k.checkStream(ctx, stream.Config); err != nil {
		return err
	}
	if err := k.fits(s, stream.Config); err != nil {
		return err
	}
	p := put{Keeper: k, s: s, header: header, cfg: stream.Config, asked: asked, then: stream.TimeStamp}
	if p.then.IsZero() { // a server that does not tell
		p.then = asked
	}
	if err := k.keeps(s, p.cfg, p.now()); err != nil {
		return err
	}
	if err := p.replace(ctx); err != nil {
		return k.explain(s, err)
	}
	return nil
}

// put is one call of Put.
//
// When a schedule that is due once fires, the server first takes it, then stores its
// message, and with that purges the subject of the holder: a newer holder, too, that was
// stored in between. When one that repeats fires, the server gives a newer holder the
// old one's next time. So put looks once more after whatever it replaced that may have
// been due. What was not due by the time that its replacement was stored can do no harm.
type put struct {
	*Keeper
	s      Schedule
	header nats.Header // of s.Msg, as the caller gave it
	cfg    jetstream.StreamConfig
	asked  time.Time // on this machine's clock
	then   time.Time // on the server's clock, not before asked
	old    *held     // what is replaced, or nil
	next   time.Time // when old is due; zero: unknown
}

// now is the time by the server's clock, or a little later.
func (p *put) now() time.Time { return p.then.Add(time.Since(p.asked)) }

// slack is how much the clocks of a cluster's servers may differ.
const slack = 100 * time.Millisecond

func (p *put) replace(ctx context.Context) error {
	for n := 1; ; n++ {
		switch same, err := p.readOld(ctx); {
		case errors.Is(err, nats.ErrPermissionViolation): // as good as it can be without
			_, err = p.Pub.PublishMsg(ctx, p.s.holder(p.cfg), nil)
			return err
		case err != nil || same:
			return err
		}
		p.putOff()
		stored, err := p.store(ctx, p.oldSequence())
		if conflict(err) { // another instance was faster, or the old one has fired
			if err := jsapi.CreatePause.Wait(ctx, n); err != nil {
				return err
			}
			continue
		}
		if err != nil || !p.mayFire(p.now()) {
			return err
		}
		return p.lookAfter(ctx, stored)
	}
}

// readOld reads what is to be replaced, and reports whether that is the same already.
func (p *put) readOld(ctx context.Context) (same bool, err error) {
	p.old, p.next = nil, time.Time{}
	old, err := p.current(ctx, p.cfg.Name, holderSubject(p.cfg.Name, p.s.ID))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.old, p.next = &old, old.At
	if p.isSame() {
		return true, nil
	}
	if old.repeats() {
		p.next, err = p.nextOf(ctx, old)
	}
	return false, err
}

func (p *put) oldSequence() uint64 {
	if p.old == nil {
		return 0
	}
	return p.old.sequence
}

// isSame reports whether the old schedule does all that the new one is to do.
func (p *put) isSame() bool {
	want := p.s.holder(p.cfg)
	for _, name := range []string{
		jetstream.ScheduleHeader, jetstream.ScheduleTargetHeader, jetstream.ScheduleTimeZoneHeader,
		jetstream.ScheduleTTLHeader, jetstream.MsgTTLHeader,
	} {
		if p.old.header.Get(name) != want.Header.Get(name) {
			return false
		}
	}
	plain := func(h nats.Header) nats.Header { return withoutTrace(usersHeader(h), p.header, p.s.Msg.Header) }
	return bytes.Equal(p.old.Msg.Data, want.Data) && reflect.DeepEqual(plain(p.old.header), plain(want.Header))
}

// nextOf returns when a schedule that repeats is due, if the last message of its subject
// says so. The zero time stands for unknown.
func (p *put) nextOf(ctx context.Context, old held) (time.Time, error) {
	request := map[string]any{"last_by_subj": old.Msg.Subject}
	m, err := p.API.LeaderGet(ctx, p.cfg.Name, request)
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence < old.sequence {
		if old.Every > 0 { // it has not fired yet; the server counts from full seconds
			return old.made.Add(old.Every - time.Second), nil
		}
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	h, _ := nats.DecodeHeadersMsg(m.Header)
	if h.Get(jetstream.SchedulerHeader) != holderSubject(p.cfg.Name, old.ID) {
		return time.Time{}, nil
	}
	next, _ := time.Parse(time.RFC3339Nano, h.Get(jetstream.ScheduleNextHeader))
	return next, nil
}

// mayFire reports whether the old schedule may have been due by a time.
func (p *put) mayFire(by time.Time) bool {
	return p.old != nil && !p.next.After(by.Add(slack))
}

// putOff makes a schedule due a little later if it replaces one that may be firing and
// would be due before put has looked after it. Otherwise nobody could say which of the
// two has removed its holder: its own message, or the old one's.
func (p *put) putOff() {
	if p.s.repeats() || !p.mayFire(p.now()) || p.old.repeats() {
		return
	}
	if soon := p.now().Add(p.pause() + p.pause()/2); p.s.At.Before(soon) {
		p.s.At = soon
	}
}

func (p *put) pause() time.Duration { return cmp.Or(p.Pause, time.Second) }

// store stores the schedule if the last sequence of its holder's subject is still the
// given one.
func (p *put) store(ctx context.Context, last uint64) (sequence uint64, err error) {
	msg := p.s.holder(p.cfg)
	msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(last, 10)}
	ack, err := p.Pub.PublishMsg(ctx, msg, nil)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

func conflict(err error) bool {
	code := jsapi.Code(err)
	return code == jetstream.JSErrCodeStreamWrongLastSequence ||
		code == jetstream.JSErrCodeStreamWrongLastSequenceConstant
}

// lookAfter makes sure that the schedule, which was stored with a sequence, outlives the
// one that it has replaced. The server may take a while to store what it has taken.
func (p *put) lookAfter(ctx context.Context, stored uint64) error {
	begun := time.Now()
	for _, part := range []time.Duration{20, 5, 2, 1} {
		if err := backoff.Sleep(ctx, time.Until(begun.Add(p.pause()/part))); err != nil {
			return fmt.Errorf("it was stored while the one that it replaces was due, and may be removed with it; "+
				"call Schedule again: %w", err)
		}
		now, err := p.current(ctx, p.cfg.Name, holderSubject(p.cfg.Name, p.s.ID))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			if p.old.repeats() && !p.s.repeats() && !p.s.At.After(p.now()) {
				return nil // what repeats removes no holder, so that this one has fired
			}
			return p.again(ctx, 0)
		case err != nil:
			return err
		case now.sequence != stored:
			return nil // somebody has replaced it
		}
	}
	if p.old.repeats() { // it may have the next time of the old one
		return p.again(ctx, stored)
	}
	return nil
}

// again stores the schedule once more, unless somebody else was faster.
func (p *put) again(ctx context.Context, last uint64) error {
	if _, err := p.store(ctx, last); !conflict(err) {
		return err
	}
	return nil
}
