package subject

import (
	"slices"
	"strings"
)

// Covers reports whether a filter receives a subject, or all that another filter
// receives.
func Covers(filter, other string) bool {
	for filter != "" && other != "" {
		var f, o string
		f, filter, _ = strings.Cut(filter, ".")
		if f == ">" {
			return true
		}
		o, other, _ = strings.Cut(other, ".")
		if o == ">" || f != "*" && f != o {
			return false
		}
	}
	return filter == "" && other == ""
}

// AnyCovers reports whether one of filters covers a subject or a filter.
func AnyCovers(filters []string, other string) bool {
	return slices.ContainsFunc(filters, func(f string) bool { return f == other || Covers(f, other) })
}

// CoverAll reports whether filters receive every message of a stream with these
// subjects. No filters receive every message. A stream without subjects, such as a
// mirror, may hold any.
func CoverAll(filters, subjects []string) bool {
	if len(filters) == 0 {
		return true
	}
	return len(subjects) > 0 && !slices.ContainsFunc(subjects, func(subject string) bool {
		return !AnyCovers(filters, subject)
	})
}

// Overlap reports whether there are subjects that both filters receive.
func Overlap(a, b string) bool {
	for a != "" && b != "" {
		var x, y string
		x, a, _ = strings.Cut(a, ".")
		y, b, _ = strings.Cut(b, ".")
		if x == ">" || y == ">" {
			return true
		}
		if x != "*" && y != "*" && x != y {
			return false
		}
	}
	return a == "" && b == ""
}

// OverlapAny reports whether two lists of filters overlap. An empty list receives every
// subject.
func OverlapAny(a, b []string) bool {
	if len(a) == 0 || len(b) == 0 {
		return true
	}
	return slices.ContainsFunc(a, func(x string) bool {
		return slices.ContainsFunc(b, func(y string) bool { return Overlap(x, y) })
	})
}

// Common returns the filter for the subjects that two filters both receive. The two
// must overlap.
func Common(a, b string) string {
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

// Same reports whether two lists hold the same filters, in whatever order.
func Same(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
