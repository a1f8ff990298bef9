package strictjson

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// field is a field of a struct that a file can set.
type field struct {
	name  string
	index []int
	of    reflect.Type
}

// fieldsOf returns the fields of a struct, and of its embedded structs, that have a
// JSON name.
func fieldsOf(t reflect.Type) (all []field) {
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			all = append(all, field{name, f.Index, f.Type})
		}
	}
	return all
}

func names(fields []field) []string {
	all := make([]string, len(fields))
	for i, f := range fields {
		all[i] = f.name
	}
	return all
}

// level is a place where keys may stand, such as consumers[].nats.
type level struct {
	path   string
	fields []field
}

// levelsOf returns the levels of a file of this type, outer ones first.
func levelsOf(t reflect.Type, path string, all []level) []level {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		if t.Kind() == reflect.Slice {
			path += "[]"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return all
	}
	here := level{path, fieldsOf(t)}
	all = append(all, here)
	for _, f := range here.fields {
		all = levelsOf(f.of, strings.TrimPrefix(path+"."+f.name, "."), all)
	}
	return all
}

// suggest says what an unknown key at a level was probably meant to be.
func (d *decoder) suggest(at, key string) string {
	levels := slices.Clone(d.levels)
	// Around the key first, then farther away: as much of the path as possible in common.
	slices.SortStableFunc(levels, func(a, b level) int { return apart(a.path, at) - apart(b.path, at) })
	here := levels[0]
	for _, l := range levels {
		name, hint := l.find(key)
		switch {
		case name == "":
		case l.path == here.path:
			return fmt.Sprintf("did you mean %q%s", name, hint)
		// A slip of the pen here is likelier than a key that stands in a wrong place.
		case strings.HasPrefix(Suggestion(key, names(here.fields)), "did") && !exact(l.fields, key):
		case l.path == "":
			return fmt.Sprintf("did you mean %q%s, which belongs at the top of the file", name, hint)
		default:
			return fmt.Sprintf("did you mean %q%s, which belongs under %s", name, hint, l.path)
		}
	}
	return Suggestion(key, names(here.fields))
}

func exact(fields []field, key string) bool { return slices.Contains(names(fields), key) }

// apart is how many steps lead from one level to another.
func apart(a, b string) int {
	x, y := steps(a), steps(b)
	n := 0
	for n < min(len(x), len(y)) && x[n] == y[n] {
		n++
	}
	return len(x) + len(y) - 2*n
}

func steps(path string) []string {
	if path == "" {
		return nil
	}
	return strings.Split(path, ".")
}

// units are endings of names that give a duration as a number.
var units = []string{
	"ms", "msec", "msecs", "millis", "milliseconds", "s", "sec", "secs", "seconds", "ns", "nanos", "nanoseconds",
	"m", "min", "mins", "minutes",
}

// find returns the level's name for a key that is written in another way, or known
// elsewhere by that name, and what else there is to say.
func (l level) find(key string) (name, hint string) {
	plain := plainly(key)
	for _, f := range l.fields {
		if plainly(f.name) == plain {
			return f.name, ""
		}
	}
	for _, f := range l.fields {
		unit, ok := strings.CutPrefix(plain, plainly(f.name))
		if ok && f.of == durationType && slices.Contains(units, strings.TrimPrefix(unit, "in")) {
			return f.name, `, a duration in quotes such as "10s"`
		}
	}
	for _, name := range synonyms[plain] {
		if exact(l.fields, name) {
			return name, ""
		}
	}
	return "", ""
}

// plainly is a name without what differs between ways to write it: AckWait, ack-wait,
// ack_wait.
func plainly(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
}

// Suggestion proposes the known name that is most like name, or all if none is like it.
func Suggestion(name string, known []string) string {
	nearest, least := "", len(name)/2+1
	for _, k := range known {
		if n := distance(name, k); n < least {
			nearest, least = k, n
		}
	}
	if nearest == "" {
		return "expected " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("did you mean %q", nearest)
}

// distance is the Levenshtein distance: how many bytes to insert, remove or replace to
// turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // distances from the current prefix of a to each prefix of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
