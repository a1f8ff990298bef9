package natty

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Schedule is a message that the server publishes later, or again and again. Exactly one of At, Every and Cron says when.
type Schedule struct {
	// ID names the schedule within its stream: letters, digits, - and _ are fine, dots, spaces and wildcards are not.
	ID string
	// At is when the message is published, once. One that lies in the past is published at once.
	At time.Time
	// Every is the pause between two messages, of at least a second. The server counts from full seconds, so that the first
	// may come up to half a second earlier or later.
	Every time.Duration
	// Cron has six fields, of which the first is the second, or is @hourly, @daily, @weekly, @monthly or @yearly. It is read
	// in TimeZone, a name of the IANA database such as "Europe/Berlin"; default UTC.
	Cron, TimeZone string
	// TTL removes each published message after this time: whole seconds, and a stream with AllowMsgTTL. 0: never.
	TTL time.Duration
	// Msg is what is published, on its own subject. Headers that begin with Nats- are the server's, and not kept; nor is
	// Reply. The published message has the server's Nats-Scheduler and Nats-Schedule-Next beside them, and no message id.
	Msg *nats.Msg
}

const (
	headerSchedule         = "Nats-Schedule"
	headerScheduleTarget   = "Nats-Schedule-Target"
	headerScheduleTTL      = "Nats-Schedule-TTL"
	headerScheduleTimeZone = "Nats-Schedule-Time-Zone"
)

// Schedule lets the server publish s.Msg when s says, in the stream that holds its subject. The same ID again replaces the
// schedule, whoever made it, so that any number of instances may say the same. Nothing else has to run: the schedule is
// kept in the stream, and survives restarts of clients and servers. A message is not published before its time, and up to a
// quarter of a second after it, which is how often the server looks (2.15); if it was down then, the message is published
// once when it is back.
//
// The stream needs AllowMsgSchedules, given to EnsureStream, which also gives it the subject that natty keeps schedules on.
// They count as messages of the stream: its limits on messages and bytes may remove them. Its MaxAge may not: natty protects
// them where the stream has AllowMsgTTL, and else refuses schedules that MaxAge would end.
//
// What cannot work is a *ConfigError: a setting of s, a stream without schedules, an Interest or NoAck stream, and a WorkQueue
// stream with a consumer that would receive the schedules themselves. A server before version 2.12, with Every
// and Cron before 2.14, gives ErrUnsupported.
// Other errors are those of PublishMsg; after ErrOutcomeUnknown call it again.
func (c *Client) Schedule(ctx context.Context, s Schedule) error {
	if err := s.validate(); err != nil {
		return err
	}
	ctx, cancel := withDefaultTimeout(ctx, c.cfg.PublishTimeout)
	defer cancel()
	if err := c.link.wait(ctx, time.Time{}); err != nil {
		return fmt.Errorf("natty: schedule %q: %w", s.ID, err)
	}
	p := publication{c: c, msg: s.Msg}
	if err := p.lookUp(ctx); err != nil {
		return fmt.Errorf("natty: schedule %q for %q: %w", s.ID, s.Msg.Subject, err)
	}
	if err := s.feature().missingFrom(c.serverVersion(p.stream.Config.Metadata)); err != nil {
		return fmt.Errorf("natty: schedule %q: %w", s.ID, err)
	}
	if err := c.keepsSchedules(ctx, p.stream.Config); err != nil {
		return err
	}
	holder, err := s.holder(p.stream.Config)
	if err != nil {
		return err
	}
	if _, err = c.publish(ctx, holder, nil); err != nil {
		return s.explain(err)
	}
	return nil
}

// feature is what the server has to have.
func (s Schedule) feature() feature {
	if s.At.IsZero() {
		return repeatingSchedules
	}
	return schedules
}

// explain says which setting the server refused.
func (s Schedule) explain(err error) error {
	switch errorCode(err) {
	case jetstream.JSErrCodeSchedulePatternInvalid:
		return &ConfigError{Field: "Schedule.Cron", Value: s.Cron, Reason: "is refused by the server; expected six fields, each in its range (second minute hour day month weekday) or one such as @hourly", Err: err}
	case codeTimeZoneInvalid:
		return &ConfigError{Field: "Schedule.TimeZone", Value: s.TimeZone, Reason: "is not known to the server; expected a name such as Europe/Berlin", Err: err}
	case jetstream.JSErrCodeScheduleTargetInvalid:
		return &ConfigError{Field: "Schedule.Msg", Value: s.Msg.Subject, Reason: "is no subject of the stream", Err: err}
	}
	return fmt.Errorf("natty: schedule %q for %q: %w", s.ID, s.Msg.Subject, err) // err has the subject of the holder
}

func (s Schedule) validate() error {
	wrong := func(field, value, reason string) error {
		return &ConfigError{Field: "Schedule." + field, Value: value, Reason: reason}
	}
	if s.ID == "" {
		return wrong("ID", "", "is empty; give the schedule a name")
	}
	if reason := validName(s.ID); reason != "" {
		return wrong("ID", s.ID, reason+"; use letters, digits, - and _")
	}
	if s.Msg == nil {
		return wrong("Msg", "", "is nil; give the message to publish")
	}
	if err := publishable(s.Msg.Subject); err != nil {
		return &ConfigError{Field: "Schedule.Msg", Value: s.Msg.Subject, Reason: "cannot be published to", Err: err}
	}
	if strings.HasPrefix(s.Msg.Subject, holderPrefix) {
		return wrong("Msg", s.Msg.Subject, "is where natty keeps schedules; publish to another subject of the stream")
	}
	if err := s.validateWhen(); err != nil {
		return err
	}
	if s.TTL != 0 && (s.TTL < time.Second || s.TTL%time.Second != 0) {
		return wrong("TTL", s.TTL.String(), "is not a number of whole seconds")
	}
	return nil
}

// validateWhen checks when the message is to be published.
func (s Schedule) validateWhen() error {
	wrong := func(field, value, reason string) error {
		return &ConfigError{Field: "Schedule." + field, Value: value, Reason: reason}
	}
	set := 0
	for _, is := range []bool{!s.At.IsZero(), s.Every != 0, s.Cron != ""} {
		if is {
			set++
		}
	}
	switch year := s.At.UTC().Year(); {
	case set == 0:
		return &ConfigError{Field: "Schedule", Reason: "has none of At, Every and Cron; set one"}
	case set > 1:
		return &ConfigError{Field: "Schedule", Reason: fmt.Sprintf("has %d of At, Every and Cron; set one alone", set)}
	case !s.At.IsZero() && (year < 1970 || year > 2200):
		return wrong("At", s.At.String(), "is not in the years 1970 to 2200, which is what the server can")
	case s.Every != 0 && s.Every < time.Second:
		return wrong("Every", s.Every.String(), "is below one second, the least the server can")
	case s.TimeZone != "" && s.Cron == "":
		return wrong("TimeZone", s.TimeZone, "is set without Cron; leave it out")
	}
	return s.validateCron()
}

func (s Schedule) validateCron() error {
	switch {
	case strings.HasPrefix(s.Cron, "@at"), strings.HasPrefix(s.Cron, "@every"):
		return &ConfigError{Field: "Schedule.Cron", Value: s.Cron, Reason: "is no cron pattern; use At or Every"}
	case strings.ContainsAny(s.Cron, "\r\n"):
		return &ConfigError{Field: "Schedule.Cron", Value: s.Cron, Reason: "holds a line break"}
	case s.TimeZone == "Local":
		return &ConfigError{Field: "Schedule.TimeZone", Value: s.TimeZone, Reason: "means another zone on each machine; name the zone"}
	case s.TimeZone == "":
		return nil
	}
	if _, err := time.LoadLocation(s.TimeZone); err != nil {
		return &ConfigError{
			Field: "Schedule.TimeZone", Value: s.TimeZone,
			Reason: "is not known; expected a name such as Europe/Berlin, and the time zone database on this machine (or import time/tzdata)", Err: err,
		}
	}
	return nil
}

// keepsSchedules refuses a stream in which schedules would be lost.
func (c *Client) keepsSchedules(ctx context.Context, cfg jetstream.StreamConfig) error {
	wrong := func(reason string) error { return &ConfigError{Field: "stream", Value: cfg.Name, Reason: reason} }
	switch {
	case cfg.NoAck:
		return wrong("acknowledges nothing (NoAck), so that nobody can know whether it has a schedule; set no_ack to false")
	case cfg.Retention == jetstream.InterestPolicy:
		return wrong("has Interest retention, which drops schedules because no consumer is to receive them; use a stream with Limits or WorkQueue retention")
	case !cfg.AllowMsgSchedules, !slices.Contains(cfg.Subjects, holders(cfg.Name)):
		return wrong("keeps no schedules; set AllowMsgSchedules with EnsureStream, which also adds the subject " + holders(cfg.Name))
	case cfg.Retention != jetstream.WorkQueuePolicy:
		return nil
	}
	others, err := c.overlapping(ctx, cfg.Name, ConsumerConfig{Subjects: []string{holders(cfg.Name)}})
	if err != nil {
		return fmt.Errorf("natty: consumers of stream %q: %w", cfg.Name, err)
	}
	if len(others) > 0 {
		return wrong(fmt.Sprintf("is a WorkQueue, whose %s would receive the schedules and end them by an acknowledgement; give it filters without %s (a consumer of natty's that runs does so by itself, within seconds)",
			strings.Join(others, " and "), holders(cfg.Name)))
	}
	return nil
}

// holder makes the message that holds the schedule.
func (s Schedule) holder(cfg jetstream.StreamConfig) (*nats.Msg, error) {
	h := nats.Header{}
	for name, values := range s.Msg.Header {
		if !isServers(name) {
			h[name] = values
		}
	}
	switch {
	case !s.At.IsZero():
		// jetstream.WithScheduleAt cuts to whole seconds, and so is early.
		h[headerSchedule] = []string{"@at " + s.At.UTC().Format(time.RFC3339Nano)}
	case s.Every != 0:
		h[headerSchedule] = []string{"@every " + s.Every.String()}
	default:
		h[headerSchedule] = []string{s.Cron}
	}
	h[headerScheduleTarget] = []string{s.Msg.Subject}
	if s.TimeZone != "" {
		h[headerScheduleTimeZone] = []string{s.TimeZone}
	}
	if s.TTL > 0 {
		if !cfg.AllowMsgTTL {
			return nil, &ConfigError{Field: "Schedule.TTL", Value: s.TTL.String(), Reason: "needs AllowMsgTTL of stream " + cfg.Name + "; set it with EnsureStream"}
		}
		h[headerScheduleTTL] = []string{s.TTL.String()}
	}
	switch {
	case cfg.MaxAge == 0:
	case cfg.AllowMsgTTL:
		h[jetstream.MsgTTLHeader] = []string{ttlNever}
	case s.At.IsZero() || time.Until(s.At) > cfg.MaxAge-cfg.MaxAge/10:
		return nil, &ConfigError{Field: "stream", Value: cfg.Name, Reason: fmt.Sprintf("would remove the schedule at its max_age of %v; set AllowMsgTTL with EnsureStream, with which schedules are kept longer", cfg.MaxAge)}
	}
	return &nats.Msg{Subject: holderPrefix + cfg.Name + "." + s.ID, Header: h, Data: s.Msg.Data}, nil
}

// Schedules iterates over the schedules that a stream has now, whoever made them, in the order in which they were made, and
// then ends. It reads from the stream's leader. A schedule that has come to its end is not there any more. An error ends it.
func (c *Client) Schedules(ctx context.Context, stream string) iter.Seq2[Schedule, error] {
	return func(yield func(Schedule, error) bool) {
		if err := c.eachSchedule(ctx, stream, func(s Schedule) bool { return yield(s, nil) }); err != nil {
			yield(Schedule{}, fmt.Errorf("natty: schedules of stream %q: %w", stream, err))
		}
	}
}

func (c *Client) eachSchedule(ctx context.Context, stream string, yield func(Schedule) bool) error {
	if err := namesStream(stream); err != nil {
		return err
	}
	var info streamInfo
	if err := c.query(ctx, "STREAM.INFO."+stream, nil, &info); err != nil {
		return err
	}
	for seq := max(info.State.FirstSeq, 1); seq <= info.State.LastSeq; {
		m, err := c.leaderGet(ctx, stream, map[string]any{"seq": seq, "next_by_subj": holders(stream)})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		s, err := readSchedule(stream, *m)
		if err != nil {
			return err
		}
		if !yield(s) {
			return nil
		}
		seq = m.Sequence + 1
	}
	return nil
}

// readSchedule takes a holder apart.
func readSchedule(stream string, m storedMsg) (Schedule, error) {
	s := Schedule{ID: strings.TrimPrefix(m.Subject, holderPrefix+stream+"."), Msg: &nats.Msg{Data: m.Data, Header: nats.Header{}}}
	h, err := nats.DecodeHeadersMsg(m.Header)
	if err != nil {
		return s, fmt.Errorf("headers of schedule %q: %w", s.ID, err)
	}
	s.Msg.Subject, s.TimeZone = header(h, headerScheduleTarget), header(h, headerScheduleTimeZone)
	// What does not parse stays zero: somebody else wrote it, and the rest can be read.
	s.TTL, _ = time.ParseDuration(header(h, headerScheduleTTL))
	pattern := header(h, headerSchedule)
	if at, ok := strings.CutPrefix(pattern, "@at "); ok {
		s.At, _ = time.Parse(time.RFC3339Nano, at)
	} else if every, ok := strings.CutPrefix(pattern, "@every "); ok {
		s.Every, _ = time.ParseDuration(every)
	} else {
		s.Cron = pattern
	}
	for name, values := range h {
		if !isServers(name) {
			s.Msg.Header[name] = values
		}
	}
	return s, nil
}

// Unschedule ends a schedule. What it has published stays. A schedule that is not there is no error.
func (c *Client) Unschedule(ctx context.Context, stream, id string) error {
	if err := namesStream(stream); err != nil {
		return err
	}
	if wrong := validName(id); id == "" || wrong != "" {
		return &ConfigError{Field: "id", Value: id, Reason: "names no schedule; give the ID that it was made with"}
	}
	err := c.query(ctx, "STREAM.PURGE."+stream, map[string]string{"filter": holderPrefix + stream + "." + id}, &struct{}{})
	if err != nil {
		return fmt.Errorf("natty: end schedule %q of stream %q: %w", id, stream, err)
	}
	return nil
}

// namesStream refuses what cannot be a stream's name.
func namesStream(stream string) error {
	if wrong := validName(stream); stream == "" || wrong != "" {
		return &ConfigError{Field: "stream", Value: stream, Reason: "names no stream; give the name of the stream that keeps the schedules"}
	}
	return nil
}
