package durable

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/subject"
)

// stored returns filters for all subjects that a stream stores messages under: those of
// its configuration and of its origins, behind their subject transforms. None means that
// there may be any.
func stored(cfg jetstream.StreamConfig) (all []string) {
	if cfg.Mirror != nil {
		return ofOrigin(cfg.Mirror)
	}
	arriving := slices.Clone(cfg.Subjects)
	for _, s := range cfg.Sources {
		from := ofOrigin(s)
		if len(from) == 0 {
			return nil
		}
		arriving = append(arriving, from...)
	}
	if cfg.SubjectTransform == nil {
		return arriving
	}
	for _, s := range arriving {
		all = append(all, transformed(*cfg.SubjectTransform, s, true)...)
	}
	return all
}

// StoredAs returns filters for the subjects under which a stream stores what is published
// on those of a filter.
func StoredAs(cfg jetstream.StreamConfig, filter string) []string {
	if cfg.SubjectTransform == nil {
		return []string{filter}
	}
	all, _ := join(transformed(*cfg.SubjectTransform, filter, true), nil) // an overlap is no matter
	return all
}

// ofOrigin returns filters for what a stream takes from another one; none: anything.
func ofOrigin(s *jetstream.StreamSource) (all []string) {
	for _, t := range s.SubjectTransforms { // what none of them is for is not taken
		all = append(all, transformed(t, orAll(t.Source), false)...)
	}
	if len(all) == 0 && s.FilterSubject != "" {
		all = []string{s.FilterSubject}
	}
	if slices.Contains(all, ">") {
		return nil
	}
	return all
}

func orAll(filter string) string {
	if filter == "" {
		return ">"
	}
	return filter
}

// transformed returns filters for what the subjects of a filter become. With others,
// those that the transform is not for stay as they are.
func transformed(t jetstream.SubjectTransformConfig, filter string, others bool) (all []string) {
	source := orAll(t.Source)
	if others && !subject.Covers(source, filter) {
		all = append(all, filter)
	}
	if !subject.Overlap(source, filter) {
		return all
	}
	if t.Destination == "" {
		return append(all, subject.Common(source, filter))
	}
	return append(all, image(source, t.Destination, subject.Common(source, filter)))
}

// image returns the filter for what the subjects of filter, which source covers, become
// with the destination of a transform.
func image(source, destination, filter string) string {
	wild := wildcards(source, filter)
	var tokens []string
	for token := range strings.SplitSeq(destination, ".") {
		name, args, function := strings.Cut(strings.Trim(token, "{} "), "(")
		switch {
		case token == ">":
			// The rest of the subject, as source's > matched it.
			return strings.Join(append(tokens, rest(source, filter)), ".")
		case strings.HasPrefix(token, "$"):
			tokens = append(tokens, wildcard(wild, token[1:]))
		case !strings.HasPrefix(token, "{{"):
			tokens = append(tokens, token)
		case function && strings.EqualFold(strings.TrimSpace(name), "wildcard"):
			tokens = append(tokens, wildcard(wild, strings.Trim(args, ") ")))
		case function && strings.EqualFold(strings.TrimSpace(name), "partition"):
			tokens = append(tokens, "*")
		default: // another function, which may make several tokens
			return strings.Join(append(tokens, ">"), ".")
		}
	}
	return strings.Join(tokens, ".")
}

// wildcards returns what stands in filter for each * of source.
func wildcards(source, filter string) (all []string) {
	f := strings.Split(filter, ".")
	for i, token := range strings.Split(source, ".") {
		if token == "*" && i < len(f) {
			all = append(all, f[i])
		}
	}
	return all
}

func wildcard(all []string, number string) string {
	n, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || n < 1 || n > len(all) || all[n-1] == ">" {
		return "*"
	}
	return all[n-1]
}

// rest returns what stands in filter for the > at the end of source.
func rest(source, filter string) string {
	if f := strings.Split(filter, "."); strings.Count(source, ".") < len(f) {
		return strings.Join(f[strings.Count(source, "."):], ".")
	}
	return ">"
}

var errNoMatch = errors.New("no stored subject matches")

// checkMatch refuses a filter that no stored subject of a stream can match: the consumer
// would run, and receive nothing for ever.
func (c *Manager) checkMatch(ctx context.Context, cfg jetstream.StreamConfig, filters []string) error {
	all := stored(cfg)
	if len(all) == 0 || len(filters) == 0 {
		return nil
	}
	for _, f := range filters {
		if canMatch(cfg, all, f) {
			continue
		}
		// There may be messages left of a subject that the stream has lost.
		left, err := c.hasMessages(ctx, cfg.Name, f)
		if err != nil {
			return err
		}
		if !left {
			return c.Invalid("subjects", f, unmatched(cfg, all, f), errNoMatch)
		}
	}
	return nil
}

// canMatch reports whether a filter matches something that a stream can store, as all
// says. What its subject transform turns into something else, the stream does not store.
func canMatch(cfg jetstream.StreamConfig, all []string, filter string) bool {
	return slices.ContainsFunc(all, func(s string) bool {
		if !subject.Overlap(filter, s) {
			return false
		}
		t := cfg.SubjectTransform
		return t == nil || !slices.Contains(cfg.Subjects, s) ||
			!subject.Covers(orAll(t.Source), subject.Common(filter, s)) ||
			subject.Covers(s, image(orAll(t.Source), t.Destination, s))
	})
}

// unmatched says why a stream stores nothing that a filter matches, and what it stores.
func unmatched(cfg jetstream.StreamConfig, all []string, filter string) string {
	if t := cfg.SubjectTransform; t != nil && subject.OverlapAny([]string{filter}, cfg.Subjects) {
		stored := image(orAll(t.Source), t.Destination, subject.Common(orAll(t.Source), filter))
		return fmt.Sprintf("is how stream %s gets messages, and it stores them as %q (its subject transform); "+
			"consumers filter on stored subjects: use that, with stream_name", cfg.Name, stored)
	}
	return fmt.Sprintf("matches nothing that stream %s can store, which is %s; correct the subject, "+
		"or stream_name", cfg.Name, strings.Join(all, " "))
}

func (c *Manager) hasMessages(ctx context.Context, stream, filter string) (bool, error) {
	info, err := c.API.StreamInfo(ctx, stream, filter)
	return len(info.State.Subjects) > 0, err
}
