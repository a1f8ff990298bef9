package schedule

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/subject"
)

const (
	year = 365 * 24 * time.Hour
	// longestPause is the longest Every.
	longestPause = 10 * year
)

// Validate refuses what no stream can keep.
func (k *Keeper) Validate(s Schedule) error {
	if err := k.validateID("Schedule.ID", s.ID); err != nil {
		return err
	}
	if s.Msg == nil {
		return k.Invalid("Schedule.Msg", "", "is nil; give the message to publish", nil)
	}
	if reason := subject.Unpublishable(s.Msg.Subject); reason != "" {
		return k.Invalid("Schedule.Msg", s.Msg.Subject, "cannot be published to: it "+reason, nil)
	}
	if strings.HasPrefix(s.Msg.Subject, durable.HolderPrefix) {
		return k.Invalid("Schedule.Msg", s.Msg.Subject,
			"is where natty keeps schedules; publish to another subject of the stream", nil)
	}
	if err := k.validateWhen(s); err != nil {
		return err
	}
	switch {
	case s.TTL != 0 && (s.TTL < time.Second || s.TTL%time.Second != 0):
		return k.Invalid("Schedule.TTL", s.TTL.String(), "is not a number of whole seconds", nil)
	case s.TTL > jsapi.LongestTTL:
		return k.Invalid("Schedule.TTL", s.TTL.String(),
			"is above a hundred years, and the server's clock overflows; leave it out for no TTL", nil)
	}
	return nil
}

func (k *Keeper) validateID(field, id string) error {
	if id == "" {
		return k.Invalid(field, "", "is empty; give the name of a schedule", nil)
	}
	if reason := subject.InvalidName(id); reason != "" {
		return k.Invalid(field, id, reason+"; use letters, digits, - and _", nil)
	}
	return nil
}

// validateWhen checks when the message is to be published.
func (k *Keeper) validateWhen(s Schedule) error {
	set := 0
	for _, is := range []bool{!s.At.IsZero(), s.Every != 0, s.Cron != ""} {
		if is {
			set++
		}
	}
	switch at := s.At.UTC().Year(); {
	case set == 0:
		return k.Invalid("Schedule", "", "has none of At, Every and Cron; set one", nil)
	case set > 1:
		return k.Invalid("Schedule", "", fmt.Sprintf("has %d of At, Every and Cron; set one alone", set), nil)
	case !s.At.IsZero() && (at < 1970 || at > 2200):
		return k.Invalid("Schedule.At", s.At.String(),
			"is not in the years 1970 to 2200, which is what the server can", nil)
	case s.Every != 0 && s.Every < time.Second:
		return k.Invalid("Schedule.Every", s.Every.String(), "is below one second, the least the server can", nil)
	case s.Every%time.Second != 0:
		return k.Invalid("Schedule.Every", s.Every.String(), "is not a number of whole seconds; the server rounds "+
			"each time it publishes, and would keep another pause", nil)
	case s.Every > longestPause:
		return k.Invalid("Schedule.Every", s.Every.String(), "is above ten years; give a shorter one", nil)
	case s.TimeZone != "" && s.Cron == "":
		return k.Invalid("Schedule.TimeZone", s.TimeZone, "is set without Cron; leave it out", nil)
	}
	return k.validateCron(s)
}

func (k *Keeper) validateCron(s Schedule) error {
	zone := func(reason string, cause error) error {
		return k.Invalid("Schedule.TimeZone", s.TimeZone, reason, cause)
	}
	switch {
	case strings.HasPrefix(s.Cron, "@at"), strings.HasPrefix(s.Cron, "@every"):
		return k.Invalid("Schedule.Cron", s.Cron, "is no cron pattern; use At or Every", nil)
	case strings.ContainsAny(s.Cron, "\r\n"):
		return k.Invalid("Schedule.Cron", s.Cron, "holds a line break", nil)
	case s.TimeZone == "Local":
		return zone("means another zone on each machine; name the zone", nil)
	case s.TimeZone == "":
		return nil
	}
	if _, err := time.LoadLocation(s.TimeZone); err != nil {
		return zone("is not known; expected a name such as Europe/Berlin, "+
			"and the time zone database on this machine (or import time/tzdata)", err)
	}
	if reason := s.lost(time.Now()); reason != "" {
		return k.Invalid("Schedule.Cron", s.Cron, reason, nil)
	}
	return nil
}

// checkStream refuses a stream in which schedules would be lost.
func (k *Keeper) checkStream(ctx context.Context, cfg jetstream.StreamConfig) error {
	wrong := func(reason string) error { return k.Invalid("stream", cfg.Name, reason, nil) }
	schedules := durable.Holders(cfg.Name)
	switch {
	case cfg.NoAck:
		return wrong("acknowledges nothing (NoAck), so that nobody can know whether it has a schedule; " +
			"set no_ack to false")
	case cfg.Retention == jetstream.InterestPolicy:
		return wrong("has Interest retention, which drops schedules because no consumer is to receive them; " +
			"use a stream with Limits or WorkQueue retention")
	case !cfg.AllowMsgSchedules, !slices.Contains(cfg.Subjects, schedules):
		return wrong("keeps no schedules; set AllowMsgSchedules with EnsureStream, " +
			"which also adds the subject " + schedules)
	}
	if err := k.CheckTransform(cfg); err != nil {
		return err
	}
	if cfg.Retention != jetstream.WorkQueuePolicy {
		return nil
	}
	others, err := k.Overlapping(ctx, cfg.Name, durable.Spec{Subjects: []string{schedules}})
	if err != nil {
		return fmt.Errorf("natty: consumers of stream %q: %w", cfg.Name, err)
	}
	if len(others) > 0 {
		return wrong(fmt.Sprintf("is a WorkQueue, whose %s would receive the schedules and "+
			"end them by an acknowledgement; give it filters without %s "+
			"(a consumer of natty's that runs does so by itself, within seconds)",
			strings.Join(others, " and "), schedules))
	}
	return nil
}

// CheckTransform refuses a subject transform of a stream that takes its schedules to
// other subjects, where nobody replaces, lists or ends them.
func (k *Keeper) CheckTransform(cfg jetstream.StreamConfig) error {
	t, own := cfg.SubjectTransform, durable.Holders(cfg.Name)
	if t == nil || t.Source != "" && !subject.Overlap(t.Source, own) {
		return nil
	}
	return k.Invalid("SubjectTransform", t.Source, "also moves the schedules of stream "+cfg.Name+
		", which are kept on "+own+"; give a source that has no subjects in common with it", nil)
}

// fits refuses a schedule that the stream would keep, and whose message the server
// could not publish as it should. It would say so in its log only.
func (k *Keeper) fits(s Schedule, cfg jetstream.StreamConfig) error {
	ttl := func(reason string) error { return k.Invalid("Schedule.TTL", s.TTL.String(), reason, nil) }
	marker := cfg.SubjectDeleteMarkerTTL
	switch header := s.fired(cfg.Name); {
	case s.TTL > 0 && !cfg.AllowMsgTTL:
		return ttl("needs AllowMsgTTL of stream " + cfg.Name + "; set it with EnsureStream")
	case s.TTL > 0 && s.TTL < marker && cfg.MaxMsgsPerSubject != 1:
		return ttl(fmt.Sprintf("is raised by the server to the %v of SubjectDeleteMarkerTTL of stream %s; "+
			"give at least that, or set MaxMsgsPerSubject to 1", marker, cfg.Name))
	case headerSize(header) > publish.MaxHeader:
		return k.Invalid("Schedule.Msg", s.Msg.Subject, fmt.Sprintf("has %d bytes of headers when the server publishes it, "+
			"and a stream stores %d; send less in its headers, or shorten the ID", headerSize(header), publish.MaxHeader), nil)
	case cfg.MaxMsgSize > 0 && headerSize(header)+len(s.Msg.Data) > int(cfg.MaxMsgSize):
		return k.Invalid("Schedule.Msg", s.Msg.Subject, fmt.Sprintf("has %d bytes when the server publishes it, with the ID in "+
			"its headers, and max_msg_size of stream %s is %d; shorten the ID or the data",
			headerSize(header)+len(s.Msg.Data), cfg.Name, cfg.MaxMsgSize), nil)
	}
	return nil
}

// headerSize is how many bytes headers take on the wire.
func headerSize(h nats.Header) int {
	size := len("NATS/1.0\r\n\r\n")
	for name, values := range h {
		for _, v := range values {
			size += len(name) + len(": \r\n") + len(v)
		}
	}
	return size
}

// explain says which setting the server refused.
func (k *Keeper) explain(s Schedule, err error) error {
	switch jsapi.Code(err) {
	case jetstream.JSErrCodeSchedulePatternInvalid:
		return k.Invalid("Schedule.Cron", s.Cron, "is refused by the server; expected six fields, "+
			"each in its range (second minute hour day month weekday) or one such as @hourly", err)
	case jsapi.CodeTimeZoneInvalid:
		return k.Invalid("Schedule.TimeZone", s.TimeZone,
			"is not known to the server; expected a name such as Europe/Berlin", err)
	case jetstream.JSErrCodeScheduleTargetInvalid:
		return k.Invalid("Schedule.Msg", s.Msg.Subject, "is no subject of the stream", err)
	}
	// err names the subject on which natty keeps the schedule.
	return fmt.Errorf("natty: schedule %q for %q: %w", s.ID, s.Msg.Subject, err)
}
