package durable

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/subject"
)

// HolderPrefix begins the subjects of schedules. A schedule is kept in a message, its
// holder, on a subject of its own: <prefix><stream>.<id>. The holder is in the stream,
// and for no consumer: the consumers' filters leave it out.
const HolderPrefix = "$NATTY.schedule."

// metaWholeStream marks a durable that is to receive all of its stream but the
// schedules: its filters follow the stream's subjects.
const metaWholeStream = "natty.whole_stream"

// Holders is the filter for all holders of a stream.
func Holders(stream string) string { return HolderPrefix + stream + ".*" }

// IsHolder reports whether a message holds a schedule, and so is for no handler. Its
// headers say so, not its subject: a stream that sources another one with a subject
// transform has that one's holders on subjects of its own. The server takes these
// headers only for a schedule.
func IsHolder(m *nats.Msg) bool {
	return m.Header.Get(jetstream.ScheduleHeader) != "" && m.Header.Get(jetstream.ScheduleTargetHeader) != ""
}

// IsMarker reports whether a message only says that the last one of its subject was
// removed. The server stores it where the stream has a SubjectDeleteMarkerTTL.
func IsMarker(m *nats.Msg) bool {
	return len(m.Data) == 0 && m.Header.Get(jetstream.MarkerReasonHeader) != ""
}

// KeepsOut reports whether the filters of a durable are to leave out a holder with this
// subject. A durable may receive such holders for a few seconds, if schedules are
// switched on for a stream while its consumers run.
func KeepsOut(stream, holder string) bool { return strings.HasPrefix(holder, HolderPrefix+stream+".") }

// WithHolders adds the subject of the holders to the wanted subjects of a stream that
// keeps schedules. If want gives no subjects, it adds it to those that the stream has.
func WithHolders(stream string, have, want map[string]any) {
	if want["allow_msg_schedules"] != true && have["allow_msg_schedules"] != true {
		return
	}
	subjects, given := want["subjects"].([]any)
	if !given {
		subjects, _ = have["subjects"].([]any)
	}
	own := Holders(stream)
	if !slices.Contains(subjects, any(own)) && (given || want["allow_msg_schedules"] == true) {
		want["subjects"] = append(slices.Clone(subjects), own)
	}
}

// Filters returns the subjects that the durable receives; none means all.
func (d Durable) Filters() []string {
	if d.Config.FilterSubject != "" {
		return []string{d.Config.FilterSubject}
	}
	return d.Config.FilterSubjects
}

// Receives reports whether a durable with a configuration receives a subject of its
// stream.
func Receives(config jetstream.ConsumerConfig, s string) bool {
	filters := Durable{Config: config}.Filters()
	return len(filters) == 0 || subject.AnyCovers(filters, s)
}

func receivesAll(filters []string) bool { return subject.CoverAll(filters, []string{">"}) }

// withoutHolders returns the filters with which a consumer receives what it would with
// filters, but no holder. Its stream stores messages under the subjects that all says,
// which are not those that it listens on if it has a subject transform. No filters mean
// all of the stream.
func withoutHolders(stream string, all, filters []string) []string {
	own := Holders(stream)
	if !slices.Contains(all, own) || !subject.OverlapAny(filters, []string{own}) {
		return filters
	}
	if len(filters) == 0 {
		filters = []string{">"}
	}
	var without []string
	for _, f := range filters {
		if !subject.Overlap(f, own) {
			without = append(without, f)
			continue
		}
		for _, s := range all {
			if s != own && subject.Overlap(f, s) {
				without = append(without, subject.Common(f, s))
			}
		}
	}
	return disjoint(without, own)
}

// follow returns the filters that a durable is to have by now. They change if schedules
// were switched on for its stream, or the subjects of that were changed, while it runs.
// Only the durable and its stream decide, not what an instance was configured with: two
// instances of different versions must not undo what the other one does.
func (d Durable) follow() (filters []string, changed bool) {
	if !d.Follows() {
		filters = withoutHolders(d.Stream, d.stored, d.Filters())
		return filters, len(filters) > 0 && !subject.Same(filters, d.Filters())
	}
	filters = withoutHolders(d.Stream, d.stored, nil)
	if len(filters) == 0 {
		return d.Filters(), false
	}
	for _, f := range d.Filters() { // there may be messages left of a subject that the stream has lost
		if subject.Overlap(f, Holders(d.Stream)) {
			continue
		}
		covered := func(other string) bool { return subject.Covers(f, other) }
		others := slices.DeleteFunc(slices.Clone(filters), covered)
		if len(others) == 0 || !subject.OverlapAny([]string{f}, others) {
			others = append(others, f)
			filters = others
		}
	}
	return filters, !subject.Same(filters, d.Filters())
}

// KeepUp gives a durable the filters that it is to have by now. What d says decides
// only whether to look; the filters follow from those that the durable has when they
// are written.
func (c *Manager) KeepUp(ctx context.Context, d Durable) error {
	if _, changed := d.follow(); !changed {
		return nil
	}
	if !d.Follows() { // it is about to be narrowed, which must not skip anything
		left, err := c.leftovers(ctx, d.Stream, d.stored)
		if err != nil {
			return err
		}
		d.stored = append(slices.Clone(d.stored), left...)
	}
	return c.write(ctx, resource(d.Stream, d.Name), nil, func(have map[string]any) (map[string]any, error) {
		return d.filtersWanted(have), nil
	})
}

// filtersWanted returns the filters that a durable with the configuration have is to
// get, if they are others than it has.
func (d Durable) filtersWanted(have map[string]any) map[string]any {
	metadata, _ := have["metadata"].(map[string]any)
	whole, _ := metadata[metaWholeStream].(string)
	d.Config = jetstream.ConsumerConfig{
		FilterSubjects: asStrings(have["filter_subjects"]), Metadata: map[string]string{metaWholeStream: whole},
	}
	filters, changed := d.follow()
	if !changed {
		return nil
	}
	want := map[string]any{"filter_subjects": asList(filters)}
	if receivesAll(d.Filters()) {
		want["metadata"] = map[string]any{metaWholeStream: "true"}
	}
	return want
}

// KeepAllUp widens the filters of whole-stream durables before their stream, which
// keeps schedules, gets new subjects or another subject transform. Afterwards is too
// late: a durable that has caught up does not go back for what its filters missed.
func (c *Manager) KeepAllUp(ctx context.Context, stream string, have, want map[string]any) error {
	if have["allow_msg_schedules"] != true {
		return nil
	}
	before, err := storedBy(have)
	if err != nil {
		return err
	}
	after, err := storedBy(jsapi.Merge(have, want))
	if err != nil || subject.Same(before, after) {
		return err
	}
	var durables []Durable
	err = c.API.EachConsumer(ctx, stream, func(name string, config jetstream.ConsumerConfig) {
		d := Durable{Stream: stream, Name: name, Config: config, stored: after}
		if d.Follows() || receivesAll(d.Filters()) { // marked soon
			durables = append(durables, d)
		}
	})
	if err != nil {
		return fmt.Errorf("natty: consumers of stream %q: %w", stream, err)
	}
	for _, d := range durables {
		if err := c.KeepUp(ctx, d); err != nil && !jsapi.Missing(err) {
			return err
		}
	}
	return nil
}

func asStrings(value any) (all []string) {
	list, _ := value.([]any)
	for _, v := range list {
		if s, ok := v.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

func asList(filters []string) []any {
	list := make([]any, len(filters))
	for i, f := range filters {
		list[i] = f
	}
	return list
}

// explainOverlap names the consumers whose filters overlap with those that a WorkQueue
// stream has refused (nats-server#4957). Such a stream gives each message to one
// consumer alone, and the server does not say which one is in the way.
func (c *Manager) explainOverlap(ctx context.Context, stream string, cfg Spec, refused error) error {
	others, err := c.Overlapping(ctx, stream, cfg)
	if err != nil || len(others) == 0 {
		return fmt.Errorf("natty: consumer %q: a WorkQueue stream gives each message to one consumer, "+
			"and another one of %s receives some of these subjects: %w", cfg.Durable, stream, refused)
	}
	return c.Invalid("subjects", strings.Join(cfg.Subjects, " "), fmt.Sprintf(
		"overlaps with %s of the WorkQueue stream %s, which gives each message to one consumer; "+
			"use that durable's name to share its work, or other subjects",
		strings.Join(others, " and "), stream), refused)
}

// Overlapping describes the other consumers of a stream that receive subjects of cfg.
func (c *Manager) Overlapping(ctx context.Context, stream string, cfg Spec) (found []string, err error) {
	err = c.API.EachConsumer(ctx, stream, func(name string, config jetstream.ConsumerConfig) {
		filters := Durable{Config: config}.Filters()
		if name != cfg.Durable && subject.OverlapAny(filters, cfg.Subjects) {
			subjects := cmp.Or(strings.Join(filters, " "), "all subjects")
			found = append(found, fmt.Sprintf("consumer %q (%s)", name, subjects))
		}
	})
	return found, err
}
