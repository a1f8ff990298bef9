// Package schedule keeps messages that the server publishes later. A schedule is a
// message in the stream, its holder, on a subject of its own. This room owns what a
// holder looks like, which schedules a stream can keep, and how a schedule is replaced
// and listed. That consumers receive no holder is durable's.
//
//   - schedule.go: a schedule, and the message that holds it
//   - check.go: which schedules are refused
//   - keep.go: which schedules a stream keeps, and what a change of it would remove
//   - put.go: making and replacing one
//   - trace.go: who follows schedules on their way out
//   - list.go: listing and ending them
//   - bulk.go: reading many at once
package schedule

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/deadletter"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/publish"
)

// Schedule is the root's Schedule.
type Schedule struct {
	ID             string
	At             time.Time
	Every          time.Duration
	Cron, TimeZone string
	TTL            time.Duration
	Msg            *nats.Msg
}

// Keeper keeps schedules in streams.
type Keeper struct {
	API *jsapi.Client
	Pub *publish.Publisher // without a Tracer
	// Tracer follows each schedule; or nil.
	Tracer publish.Tracer
	// Overlapping describes the consumers of a stream that receive subjects of a spec.
	Overlapping func(ctx context.Context, stream string, spec durable.Spec) ([]string, error)
	// Invalid makes the error for an argument that can never work.
	Invalid func(field, value, reason string, cause error) error
	// Pause is how long the keeper looks after a schedule that replaced one which was
	// just due; 0: a second.
	Pause time.Duration
}

// never is the TTL of a message that MaxAge does not remove.
const never = "never"

// holderSubject is where a stream keeps the schedule of an ID.
func holderSubject(stream, id string) string { return durable.HolderPrefix + stream + "." + id }

func (s Schedule) repeats() bool { return s.At.IsZero() }

// pattern says when the message is published, in the server's form.
func (s Schedule) pattern() string {
	switch {
	case !s.At.IsZero():
		if mutant.Early {
			s.At = s.At.Add(-3 * time.Second)
		}
		// jetstream.WithScheduleAt cuts to whole seconds, and so is early.
		return "@at " + s.At.UTC().Format(time.RFC3339Nano)
	case s.Every != 0:
		return "@every " + s.Every.String()
	}
	return s.Cron
}

// holder makes the message that holds the schedule.
func (s Schedule) holder(cfg jetstream.StreamConfig) *nats.Msg {
	h := usersHeader(s.Msg.Header)
	h[jetstream.ScheduleHeader] = []string{publish.AsSent(s.pattern())}
	h[jetstream.ScheduleTargetHeader] = []string{s.Msg.Subject}
	if s.TimeZone != "" {
		h[jetstream.ScheduleTimeZoneHeader] = []string{s.TimeZone}
	}
	if s.TTL > 0 {
		h[jetstream.ScheduleTTLHeader] = []string{s.TTL.String()}
	}
	if cfg.AllowMsgTTL { // MaxAge may be given later
		h[jetstream.MsgTTLHeader] = []string{never}
	}
	return &nats.Msg{Subject: holderSubject(cfg.Name, s.ID), Header: h, Data: s.Msg.Data}
}

// fired returns the headers with which the server publishes the message.
func (s Schedule) fired(stream string) nats.Header {
	h := usersHeader(s.Msg.Header)
	h[jetstream.SchedulerHeader] = []string{holderSubject(stream, s.ID)}
	next := "purge"
	if s.repeats() {
		next = "2006-01-02T15:04:05.999999999+07:00" // at its longest
	}
	h[jetstream.ScheduleNextHeader] = []string{next}
	if s.TTL > 0 {
		h[jetstream.MsgTTLHeader] = []string{s.TTL.String()}
	}
	return h
}

// usersHeader copies the headers that do not belong to the server, as a stream gets
// them: only so are they the same as those of a schedule that it has.
func usersHeader(from nats.Header) nats.Header {
	h := nats.Header{}
	for name, values := range from {
		if deadletter.IsServerHeader(name) {
			continue
		}
		for _, v := range values {
			h[name] = append(h[name], publish.AsSent(v))
		}
	}
	return h
}

// held is a schedule as a stream keeps it.
type held struct {
	Schedule
	header   nats.Header // of the holder
	sequence uint64
	made     time.Time
}

// read reads a schedule from the message that holds it.
func read(stream string, m *jsapi.StoredMsg) (held, error) {
	h, err := nats.DecodeHeadersMsg(m.Header)
	s := parse(stream, m, h)
	if err != nil {
		return s, fmt.Errorf("headers of schedule %q: %w", s.ID, err)
	}
	return s, nil
}

// parse is read with the headers of m.
func parse(stream string, m *jsapi.StoredMsg, h nats.Header) held {
	s := held{sequence: m.Sequence, made: m.Time, header: h}
	s.ID = strings.TrimPrefix(m.Subject, durable.HolderPrefix+stream+".")
	s.Msg = &nats.Msg{Subject: h.Get(jetstream.ScheduleTargetHeader), Header: usersHeader(h), Data: m.Data}
	s.TimeZone = h.Get(jetstream.ScheduleTimeZoneHeader)
	// A value that cannot be parsed stays zero: another program wrote it, and the rest
	// can be read.
	s.TTL, _ = time.ParseDuration(h.Get(jetstream.ScheduleTTLHeader))
	pattern := h.Get(jetstream.ScheduleHeader)
	if at, ok := strings.CutPrefix(pattern, "@at "); ok {
		s.At, _ = time.Parse(time.RFC3339Nano, at)
	} else if every, ok := strings.CutPrefix(pattern, "@every "); ok {
		s.Every, _ = time.ParseDuration(every)
	} else {
		s.Cron = pattern
	}
	return s
}
