package schedule

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
)

// agesOut reports whether a stream's MaxAge may remove a schedule that was made at a
// time. A holder has the TTL "never", which MaxAge respects while a server runs. When a
// server starts it removes all messages above MaxAge from its files, whatever their TTL
// (2.15), unless the stream has markers for removed subjects.
//
// A schedule that is due within half of MaxAge is kept: the other half is for a server
// that is down when it is due.
func agesOut(cfg jetstream.StreamConfig, s Schedule, made time.Time, safe bool) bool {
	switch {
	case cfg.MaxAge == 0:
		return false
	case safe && (cfg.SubjectDeleteMarkerTTL > 0 || cfg.Storage == jetstream.MemoryStorage):
		return false
	}
	return s.repeats() || s.At.Sub(made) > cfg.MaxAge/2
}

// keeps refuses a schedule that the stream's MaxAge may remove.
func (k *Keeper) keeps(s Schedule, cfg jetstream.StreamConfig, now time.Time) error {
	if !agesOut(cfg, s, now, cfg.AllowMsgTTL) {
		return nil
	}
	return k.Invalid("stream", cfg.Name, fmt.Sprintf("has a max_age of %v, "+
		"which may remove the schedule before it is due. Such a stream takes only one-time "+
		"schedules that are due within half of max_age. Use a stream without MaxAge, and let "+
		"Schedule.TTL remove its messages; or set AllowMsgTTL and SubjectDeleteMarkerTTL, "+
		"with which servers keep schedules when they start", cfg.MaxAge), nil)
}

// CheckChange refuses a change of a stream that would remove schedules which it keeps,
// or move them. have and want are its settings by JSON name, merged is what it is to
// have.
func (k *Keeper) CheckChange(ctx context.Context, have, merged map[string]any) error {
	before, err := jsapi.StreamConfigOf(have)
	if err != nil {
		return err
	}
	after, err := jsapi.StreamConfigOf(merged)
	if err != nil || !after.AllowMsgSchedules {
		return err
	}
	if err := k.CheckTransform(after); err != nil {
		return err
	}
	shorter := after.MaxAge > 0 && (before.MaxAge == 0 || after.MaxAge < before.MaxAge)
	if !before.AllowMsgSchedules || !shorter {
		return nil
	}
	all, err := k.all(ctx, after.Name)
	if err != nil {
		return fmt.Errorf("natty: schedules of stream %q: %w", after.Name, err)
	}
	for _, s := range all {
		safe := s.header.Get(jetstream.MsgTTLHeader) == never
		if !agesOut(after, s.Schedule, s.made, safe) {
			continue
		}
		way := "leave MaxAge out, and remove messages by a TTL of their own"
		if !safe && after.SubjectDeleteMarkerTTL > 0 {
			way = "first set AllowMsgTTL without MaxAge, and make the schedule once more"
		}
		return k.Invalid("MaxAge", after.MaxAge.String(), fmt.Sprintf("would remove the schedule %q of stream %s; "+
			"%s, or end it with Unschedule", s.ID, after.Name, way), nil)
	}
	return nil
}
