package jsapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
)

// Difference is one setting that is not as asked for.
type Difference struct {
	Field string // its JSON name
	Have  string // what the server has, as JSON
	Want  string // what was asked for, as JSON
}

// Resource is a stream, bucket or consumer that is to exist with certain settings.
type Resource struct {
	// Kind is "stream", "bucket" or "consumer", and stands in errors. Without a Kind,
	// errors are returned as the server sent them.
	Kind, Name   string
	Want         map[string]any // the settings asked for, by JSON name
	Info, Update string         // endpoints of the API
	// Request returns the endpoint and the body of a change, where that is not Update and
	// merged itself. It may change merged.
	Request func(merged map[string]any) (endpoint string, body any)
	Fixed   []string // settings that natty does not change, even if the server would
	Create  func(ctx context.Context) error
	// Accept may refuse what exists, or write it in the form of Want before the two are
	// compared.
	Accept func(have map[string]any) error
}

// Converge makes r if it is missing, and else changes what differs. It works on raw
// JSON: settings that nats.go's types do not know must survive being read and written
// (in nats.ex#162 an update wiped newer settings).
func (a *Client) Converge(ctx context.Context, r Resource) error {
	for n := 1; ; n++ {
		have, err := a.ReadOrMake(ctx, r)
		if err != nil || have == nil {
			return Named(r, err)
		}
		if r.Accept != nil {
			if err := r.Accept(have); err != nil {
				return err
			}
		}
		// Somebody may have deleted it meanwhile: then it is made.
		if err = a.Update(ctx, r, have); !Missing(err) || CreatePause.Wait(ctx, n) != nil {
			return err
		}
	}
}

// ReadOrMake returns the configuration that r has, or makes r if it is missing; then
// have is nil.
func (a *Client) ReadOrMake(ctx context.Context, r Resource) (have map[string]any, err error) {
	for n := 1; ; n++ {
		if have, err = a.CurrentConfig(ctx, r.Info); !Missing(err) {
			return have, err
		}
		err = a.Persist(ctx, r.Create)
		if err == nil {
			a.logMade(r)
		}
		if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) && Code(err) != CodeConsumerExists {
			return nil, a.explainOverlap(ctx, r, err)
		}
		// Another instance was faster: read what it made, as soon as the server knows
		// it.
		if err := CreatePause.Wait(ctx, n); err != nil {
			return nil, err
		}
	}
}

// CreatePause is how long to wait before a look at what was just made is repeated.
var CreatePause = backoff.Exp{Min: time.Millisecond, Max: 250 * time.Millisecond}

// UntilKnown repeats call while it fails with missing. A cluster may say for a moment
// that it does not know what was just made.
func UntilKnown(ctx context.Context, missing error, call func() error) error {
	for n := 1; ; n++ {
		err := call()
		if !errors.Is(err, missing) || CreatePause.Wait(ctx, n) != nil {
			return err
		}
	}
}

// Update changes what differs between have and what r wants. It writes nothing if
// nothing differs.
func (a *Client) Update(ctx context.Context, r Resource, have map[string]any) error {
	r.Want = withinMaxAge(have, r.Want)
	diffs := differences(have, r.Want)
	if len(diffs) == 0 {
		return nil
	}
	metadata, _ := have["metadata"].(map[string]any)
	version, _ := metadata[MetaServerVersion].(string)
	if err := tooOldFor(a.ServerVersion(map[string]string{MetaServerVersion: version}), diffs); err != nil {
		return Named(r, err)
	}
	changeable := func(d Difference) bool { return !slices.Contains(r.Fixed, d.Field) }
	if fixed := slices.DeleteFunc(slices.Clone(diffs), changeable); len(fixed) > 0 {
		return a.Drift(r.Kind, r.Name, fixed, nil)
	}
	merged := Merge(have, r.Want)
	endpoint, body := r.Update, any(merged)
	if r.Request != nil {
		endpoint, body = r.Request(merged)
	}
	err := a.explainOverlap(ctx, r, a.Query(ctx, endpoint, body, &struct{}{}))
	if err == nil {
		a.logChanged(r, diffs)
	}
	// codeConsumerFailed stands for a file that cannot be written, and for settings of a
	// consumer that natty does not change. Every other refused setting has its own code.
	code := Code(err)
	if r.Kind != "" && code != 0 && code != codeConsumerFailed && !Passing(err) && !Missing(err) {
		return a.Drift(r.Kind, r.Name, diffs, err)
	}
	return Named(r, err)
}

// Named adds what r is to an error.
func Named(r Resource, err error) error {
	if err == nil || r.Kind == "" {
		return err
	}
	return fmt.Errorf("natty: %s %q: %w", r.Kind, r.Name, err)
}

// CurrentConfig returns the whole configuration that the server has. Numbers stay as
// they are written, so that large ones are not rounded.
func (a *Client) CurrentConfig(ctx context.Context, endpoint string) (map[string]any, error) {
	var raw struct {
		Config json.RawMessage `json:"config"`
	}
	if err := a.Query(ctx, endpoint, nil, &raw); err != nil {
		return nil, err
	}
	return decodeObject(raw.Config)
}

func decodeObject(data []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var m map[string]any
	err := dec.Decode(&m)
	return m, err
}

// Settings returns what a configuration of nats.go sets: what is not zero, and the
// kinds, whose zero means something.
func Settings(cfg any, kinds ...string) (map[string]any, error) {
	data, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("natty: encode configuration: %w", err)
	}
	all, err := decodeObject(data)
	if err != nil {
		return nil, fmt.Errorf("natty: encode configuration: %w", err)
	}
	maps.DeleteFunc(all, func(name string, v any) bool { return IsZero(v) && !slices.Contains(kinds, name) })
	return all, nil
}

// IsZero reports whether a JSON value counts as not set.
func IsZero(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case json.Number:
		return v == "0"
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// unordered are the lists whose order does not matter.
var unordered = []string{"subjects", "filter_subjects"}

// Holds reports whether a configuration has all settings of want.
func Holds(have, want map[string]any) bool { return len(differences(have, want)) == 0 }

// differences lists the settings of want that have does not hold, sorted by name.
func differences(have, want map[string]any) []Difference {
	var diffs []Difference
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if h := have[name]; !holds(h, want[name], slices.Contains(unordered, name)) {
			diffs = append(diffs, Difference{Field: name, Have: AsJSON(h), Want: AsJSON(want[name])})
		}
	}
	return diffs
}

// holds reports whether have is what want asks for. Of an object only the keys of want
// count, since the server adds defaults.
func holds(have, want any, asSet bool) bool {
	switch want := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		if !ok && have != nil {
			return false
		}
		for k, w := range want {
			if !holds(h[k], w, false) {
				return false
			}
		}
		return true
	case []any:
		h, ok := have.([]any)
		return (ok || have == nil) && HoldsList(h, want, asSet)
	}
	return reflect.DeepEqual(have, want) || IsZero(have) && IsZero(want) || sameTime(have, want)
}

// HoldsList is holds for the elements of two lists, in any order if they are sets.
func HoldsList(have, want []any, asSet bool) bool {
	if asSet {
		have, want = sorted(have), sorted(want)
	}
	return slices.EqualFunc(have, want, func(h, w any) bool { return holds(h, w, false) })
}

// sameTime reports whether two values are the same point in time. The server keeps the
// zone in which a time was written.
func sameTime(a, b any) bool {
	s, isA := a.(string)
	r, isB := b.(string)
	if !isA || !isB {
		return false
	}
	t, errA := time.Parse(time.RFC3339Nano, s)
	u, errB := time.Parse(time.RFC3339Nano, r)
	return errA == nil && errB == nil && t.Equal(u)
}

func sorted(list []any) []any {
	byJSON := func(a, b any) int { return strings.Compare(AsJSON(a), AsJSON(b)) }
	return slices.SortedFunc(slices.Values(list), byJSON)
}

// AsJSON returns v as it stands in a Difference.
func AsJSON(v any) string {
	if v == nil {
		return "not set"
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // it would write s.> as "s.\u003e"
	if enc.Encode(v) != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Merge returns have with the settings of want in it. Objects, such as metadata, are
// merged key by key.
func Merge(have, want map[string]any) map[string]any {
	merged := maps.Clone(have)
	for k, w := range want {
		wm, isObject := w.(map[string]any)
		hm, has := merged[k].(map[string]any)
		if isObject && has {
			merged[k] = Merge(hm, wm)
		} else {
			merged[k] = w
		}
	}
	return merged
}
