package durable

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/subject"
)

// The filters of a durable are those of its whole group. An instance adds what it asks
// for, and takes nothing off: another instance, of a newer version of the service or of
// another service, asks for that, and the server would skip its messages for good.

// joinFilters puts the filters that a durable is to have into want: those that it has,
// and those that cfg asks for. Only ReplaceSubjects takes some off.
func joinFilters(cfg Spec, have, want map[string]any) error {
	filters := asStrings(have["filter_subjects"])
	meta, _ := have["metadata"].(map[string]any)
	whole := !jsapi.IsZero(meta[metaWholeStream])
	keep := func() {
		delete(want, "filter_subjects")
		delete(want, "metadata")
	}
	switch {
	case whole && cfg.ReplaceSubjects && !receivesAll(cfg.Subjects):
		want["metadata"] = map[string]any{metaWholeStream: ""}
	case whole:
		// KeepUp knows more: there may be messages left of a subject that the stream
		// has lost.
		keep()
	case (cfg.ReplaceSubjects || mutant.ReplacesFilters) && len(cfg.Subjects) > 0:
	case len(filters) == 0 && len(cfg.Subjects) > 0:
		keep() // it receives everything already
	case len(filters) == 0:
	case len(cfg.Subjects) == 0:
		holder := func(f string) bool { return subject.Overlap(f, HolderPrefix+"*.*") }
		if !slices.ContainsFunc(filters, holder) {
			keep()
		}
	default:
		joined, err := join(filters, asStrings(want["filter_subjects"]))
		if err != nil {
			return err
		}
		want["filter_subjects"] = asList(joined)
	}
	return nil
}

// join returns filters that receive what one of two lists receives. The server refuses
// filters of one consumer that overlap, so that one that another covers is left out.
func join(have, asked []string) ([]string, error) {
	all := append(slices.Clone(have), asked...)
	var joined []string
	for i, f := range all {
		covered := false
		for j, other := range all {
			equal := f == other
			covered = covered || equal && j < i || !equal && subject.Covers(other, f)
		}
		if !covered {
			joined = append(joined, f)
		}
	}
	for i, f := range joined {
		for _, other := range joined[:i] {
			if subject.Overlap(f, other) {
				return nil, fmt.Errorf("%q and %q overlap, neither covers the other, and the server refuses both in "+
					"one consumer; ask for subjects that do not overlap, or take filters off with replace_subjects",
					other, f)
			}
		}
	}
	return joined, nil
}

// NotAsked returns the filters of d that receive more than an instance asked for, as a
// text for people. An instance that asked for nothing takes what there is.
func (d Durable) NotAsked(asked []string) []string {
	if len(asked) == 0 || receivesAll(asked) {
		return nil
	}
	filters := d.Filters()
	if len(filters) == 0 {
		if filters = d.stored; len(filters) == 0 {
			filters = []string{">"}
		}
		// Schedules are for nobody, see KeepUp.
		filters = slices.DeleteFunc(slices.Clone(filters), func(f string) bool { return f == Holders(d.Stream) })
	}
	return uncovered(filters, asked)
}

// Lacks returns what an instance asked for and d does not receive.
func (d Durable) Lacks(asked []string) []string {
	if len(d.Filters()) == 0 || d.Follows() {
		return nil
	}
	return uncovered(withoutHolders(d.Stream, d.stored, asked), d.Filters())
}

// Unmatched says which of what an instance asked for the stream does not store any more,
// as a text for people, or "".
func (d Durable) Unmatched(asked []string) string {
	var all []string
	for _, f := range asked {
		if !subject.OverlapAny([]string{f}, d.stored) {
			all = append(all, f)
		}
	}
	if len(all) == 0 {
		return ""
	}
	gone := strings.Join(all, " ")
	return fmt.Sprintf("stream %s has lost the subject %s, of which nothing new comes: it stores %s; give it the "+
		"subject again, or consume the stream that has it now", d.Stream, gone, strings.Join(d.stored, " "))
}

// uncovered returns the filters of which none of by receives everything.
func uncovered(filters, by []string) (left []string) {
	for _, f := range filters {
		if !subject.AnyCovers(by, f) {
			left = append(left, f)
		}
	}
	return left
}

// confirmAfter is how long a writer of a note may take from reading the configuration to
// writing it. Whatever is changed in between, it undoes.
const confirmAfter = 500 * time.Millisecond

// converge writes what a durable is to have, as write does. If that changes the durable,
// it looks again after confirmAfter: the note of a running instance may have undone it.
func (c *Manager) converge(
	ctx context.Context, r jsapi.Resource, have map[string]any,
	wanted func(have map[string]any) (map[string]any, error),
) error {
	changed := false
	watched := func(have map[string]any) (map[string]any, error) {
		want, err := wanted(have)
		changed = changed || err == nil && !jsapi.Holds(have, want)
		return want, err
	}
	if err := c.write(ctx, r, have, watched); err != nil || !changed {
		return err
	}
	if err := backoff.Sleep(ctx, confirmAfter); err != nil {
		return err
	}
	return c.write(ctx, r, nil, wanted)
}

// Strayed says which settings of d somebody else has changed so that messages would be
// lost for an instance with cfg, or so that it could get none. It is a text for people,
// or "".
func (d Durable) Strayed(cfg Spec) string {
	var all []string
	if lost := d.Lacks(cfg.Subjects); len(lost) > 0 {
		all = append(all, "its filters no longer receive "+strings.Join(lost, " "))
	}
	if n := d.Config.MaxDeliver; n > 0 && cfg.MaxDeliver > 0 {
		all = append(all, fmt.Sprintf("max_deliver is %d, at which the server drops a message silently", n))
	}
	if d.Config.HeadersOnly {
		all = append(all, "headers_only is set")
	}
	wanted := jetstream.PriorityPolicyNone
	if cfg.Exclusive {
		wanted = jetstream.PriorityPolicyPinned
	}
	if has := d.Config.PriorityPolicy; has != wanted {
		all = append(all, fmt.Sprintf("priority_policy is %s, which was %s", jsapi.AsJSON(has), jsapi.AsJSON(wanted)))
	}
	return strings.Join(all, ", and ")
}

// PutRight gives a durable what an instance with cfg needs, and changes nothing else. It
// fails for a durable that no longer fits, as EnsureDurable does, and never makes one.
func (c *Manager) PutRight(ctx context.Context, d *Durable, cfg Spec) error {
	cfg.AckWait, cfg.ReplaceSubjects = 0, false
	set, err := c.configured(ctx, d.Stream, cfg)
	if err != nil {
		return err
	}
	r := resource(d.Stream, d.Name)
	err = c.write(ctx, r, nil, func(have map[string]any) (map[string]any, error) {
		return c.wanted(cfg, set, have)
	})
	if err != nil {
		return err
	}
	return c.Refresh(ctx, d)
}
