package natty

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A holder is the message that holds a schedule, on a subject of its own: <prefix><stream>.<id>. It is in the stream, and for no
// consumer. What keeps it from them are their filters.
const holderPrefix = "$NATTY.schedule."

// holders is the filter for all holders of a stream.
func holders(stream string) string { return holderPrefix + stream + ".*" }

// isHolder reports whether a message holds a schedule. Its filters keep them from a durable, but for the few seconds after
// schedules are switched on for a stream under its running consumers.
func isHolder(m *nats.Msg) bool {
	return strings.HasPrefix(m.Subject, holderPrefix) && header(m.Header, headerSchedule) != ""
}

// withHolders adds the subject of the holders to the wanted subjects of a stream that keeps schedules: to those that are
// given, and where none are to those that the stream has.
func withHolders(stream string, have, want map[string]any) {
	if want["allow_msg_schedules"] != true && have["allow_msg_schedules"] != true {
		return
	}
	subjects, given := want["subjects"].([]any)
	if !given {
		subjects, _ = have["subjects"].([]any)
	}
	if own := holders(stream); !slices.Contains(subjects, any(own)) && (given || want["allow_msg_schedules"] == true) {
		want["subjects"] = append(slices.Clone(subjects), own)
	}
}

// withoutHolders returns the filters with which a consumer receives what it would with these, and no holder. subjects are the
// stream's; no filters mean all of it.
func withoutHolders(stream string, subjects, filters []string) []string {
	own := holders(stream)
	if !slices.Contains(subjects, own) || !overlapAny(filters, []string{own}) {
		return filters
	}
	if len(filters) == 0 {
		filters = []string{">"}
	}
	var without []string
	for _, f := range filters {
		if !overlap(f, own) {
			without = append(without, f)
			continue
		}
		for _, s := range subjects {
			if s != own && overlap(f, s) {
				without = append(without, common(f, s))
			}
		}
	}
	return without
}

// common returns the filter for what two filters that overlap both receive.
func common(a, b string) string {
	var tokens []string
	for a != "" && b != "" {
		if a == ">" {
			return strings.Join(append(tokens, b), ".")
		}
		if b == ">" {
			return strings.Join(append(tokens, a), ".")
		}
		var x, y string
		x, a, _ = strings.Cut(a, ".")
		y, b, _ = strings.Cut(b, ".")
		if x == "*" {
			x = y
		}
		tokens = append(tokens, x)
	}
	return strings.Join(tokens, ".")
}

// metaWholeStream marks a durable that is to receive all of its stream but the schedules: its filters follow the stream's
// subjects.
const metaWholeStream = "natty.whole_stream"

// follow returns the filters that a durable is to have by now. They are others than it has when schedules were switched on for
// its stream, or the subjects of that were changed, while it runs. What counts is the durable and its stream, and not what an
// instance was configured with: two of different versions must not undo what the other one does.
func (d durable) follow() (filters []string, changed bool) {
	if d.config.Metadata[metaWholeStream] == "" {
		filters = withoutHolders(d.stream, d.subjects, d.filters())
		return filters, len(filters) > 0 && !sameFilters(filters, d.filters())
	}
	filters = withoutHolders(d.stream, d.subjects, nil)
	if len(filters) == 0 {
		return d.filters(), false
	}
	for _, f := range d.filters() { // of what the stream has lost there may be messages left
		if overlap(f, holders(d.stream)) {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(filters), func(other string) bool { return covers(f, other) })
		if len(others) == 0 || !overlapAny([]string{f}, others) {
			others = append(others, f)
			filters = others
		}
	}
	return filters, !sameFilters(filters, d.filters())
}

func sameFilters(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// keepAllUp does that for the durables of whole streams before a stream with schedules gets the subjects that want gives it: a
// durable that has caught up would not go back to what was published before its filters let it through.
func (c *Client) keepAllUp(ctx context.Context, stream string, have, want map[string]any) error {
	subjects, given := want["subjects"].([]any)
	if before, _ := have["subjects"].([]any); !given || have["allow_msg_schedules"] != true || holdsList(before, subjects, true) {
		return nil
	}
	var coming []string
	for _, s := range subjects {
		if s, ok := s.(string); ok {
			coming = append(coming, s)
		}
	}
	var durables []durable
	err := c.eachConsumer(ctx, stream, func(name string, config jetstream.ConsumerConfig) {
		d := durable{config: config}
		if config.Metadata[metaWholeStream] != "" || receivesAll(d.filters(), []string{">"}) { // soon to be marked
			durables = append(durables, durable{stream: stream, name: name, config: config, subjects: coming})
		}
	})
	if err != nil {
		return fmt.Errorf("natty: consumers of stream %q: %w", stream, err)
	}
	for _, d := range durables {
		if err := c.keepUp(ctx, d); err != nil && !missing(err) {
			return err
		}
	}
	return nil
}

func asList(filters []string) []any {
	list := make([]any, len(filters))
	for i, f := range filters {
		list[i] = f
	}
	return list
}

// keepUp gives a durable the filters that it is to have by now.
func (c *Client) keepUp(ctx context.Context, d durable) error {
	filters, changed := d.follow()
	if !changed {
		return nil
	}
	want := map[string]any{"filter_subjects": asList(filters)}
	if receivesAll(d.filters(), []string{">"}) {
		want["metadata"] = map[string]any{metaWholeStream: "true"}
	}
	r := durableResource(d.stream, d.name, want)
	have, err := c.currentConfig(ctx, r.info)
	if err != nil {
		return named(r, err)
	}
	filtersAsList(have)
	return c.update(ctx, r, have)
}
