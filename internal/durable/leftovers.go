package durable

import (
	"context"
	"slices"
	"strings"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/subject"
)

// leftovers returns filters for the messages that a stream with schedules still has of
// subjects that it has lost. all is what it stores now. A consumer without filters
// receives such messages, so that one whose filters leave out the schedules must too.
func (c *Manager) leftovers(ctx context.Context, stream string, all []string) (left []string, err error) {
	if !slices.Contains(all, Holders(stream)) {
		return nil, nil
	}
	err = c.API.EachSubject(ctx, stream, ">", func(_ *jsapi.SubjectPage, s string) {
		if !subject.AnyCovers(all, s) && !subject.AnyCovers(left, s) {
			left = append(left, beside(s, all))
		}
	})
	if err != nil {
		return nil, err
	}
	return left, nil
}

// beside returns a filter for a subject and those like it that overlaps with none of
// all. A lost subject such as orders.* may have left a million.
func beside(s string, all []string) string {
	first, _, more := strings.Cut(s, ".")
	if wide := first + ".>"; more && !subject.OverlapAny([]string{wide}, all) {
		return wide
	}
	return s
}

// disjoint returns filters that receive all that the given ones do, and of which no two
// overlap: the server refuses them in one consumer. Behind a subject transform two
// subjects of a stream may overlap. Filters that only a wider one could join stay as
// they are if that would receive holders as well.
func disjoint(filters []string, own string) []string {
	for i := 0; i < len(filters); i++ {
		for j := i + 1; j < len(filters); j++ {
			a, b := filters[i], filters[j]
			if !subject.Overlap(a, b) {
				continue
			}
			joined := widened(a, b)
			if subject.Overlap(joined, own) {
				continue
			}
			filters = slices.Delete(slices.Clone(filters), j, j+1)
			filters[i] = joined
			return disjoint(filters, own)
		}
	}
	return filters
}

// widened returns the narrowest filter that receives what two filters receive.
func widened(a, b string) string {
	if subject.Covers(a, b) {
		return a
	}
	if subject.Covers(b, a) {
		return b
	}
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	var tokens []string
	for i := range max(len(x), len(y)) {
		switch {
		case i >= len(x) || i >= len(y) || x[i] == ">" || y[i] == ">":
			return strings.Join(append(tokens, ">"), ".")
		case x[i] == y[i]:
			tokens = append(tokens, x[i])
		default:
			tokens = append(tokens, "*")
		}
	}
	return strings.Join(tokens, ".")
}

// storedBy is stored for a configuration as the server sends it.
func storedBy(config map[string]any) ([]string, error) {
	cfg, err := jsapi.StreamConfigOf(config)
	return stored(cfg), err
}
