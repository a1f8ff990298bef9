package natty

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
)

// resource is a stream or a consumer that is to be there with certain settings.
type resource struct {
	kind, name   string         // of a "stream", a "bucket" or a "consumer"
	want         map[string]any // the settings asked for, by JSON name
	info, update string         // the API's endpoints
	body         func(merged any) any
	fixed        []string // settings that are not changed, whether or not the server would
	create       func(ctx context.Context) error
	// accept may refuse what is there, or bring it into the form of want, before the two are compared.
	accept func(have map[string]any) error
}

// converge makes r if it is missing, and else changes what differs. It works on raw JSON: what nats.go's
// types do not know must survive being read and written (as in nats.ex#162, where an update
// wiped newer settings).
func (c *Client) converge(ctx context.Context, r resource) error {
	for n := 1; ; n++ {
		have, err := c.currentConfig(ctx, r.info)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound) && r.kind != "consumer", errors.Is(err, jetstream.ErrConsumerNotFound):
			err = c.persist(ctx, r.create)
			if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) || errorCode(err) == codeConsumerExists {
				// Another instance was faster: compare with what it made, as soon as it is there.
				if err = sleep(ctx, createPause.delay(n)); err == nil {
					continue
				}
			}
			return named(r, err)
		case err != nil:
			return named(r, err)
		}
		if r.accept != nil {
			if err := r.accept(have); err != nil {
				return err
			}
		}
		return c.update(ctx, r, have)
	}
}

var createPause = Backoff{Min: time.Millisecond, Max: 250 * time.Millisecond}

// update changes what differs between have and what r wants, or nothing at all.
func (c *Client) update(ctx context.Context, r resource, have map[string]any) error {
	diffs := differences(have, r.want)
	if len(diffs) == 0 {
		return nil
	}
	metadata, _ := have["metadata"].(map[string]any)
	version, _ := metadata[metaServerVersion].(string)
	if err := tooOldFor(c.serverVersion(map[string]string{metaServerVersion: version}), diffs); err != nil {
		return named(r, err)
	}
	changeable := func(d Difference) bool { return !slices.Contains(r.fixed, d.Field) }
	if fixed := slices.DeleteFunc(slices.Clone(diffs), changeable); len(fixed) > 0 {
		return &DriftError{Kind: r.kind, Name: r.name, Differences: fixed}
	}
	err := c.query(ctx, r.update, r.body(merge(have, r.want)), &struct{}{})
	var refused *jetstream.APIError
	if errors.As(err, &refused) && !passing(err) {
		return &DriftError{Kind: r.kind, Name: r.name, Differences: diffs, Err: err}
	}
	return named(r, err)
}

func named(r resource, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("natty: %s %q: %w", r.kind, r.name, err)
}

// currentConfig returns the configuration that the server has, whole. Numbers stay as they are written, so that
// large ones are not rounded.
func (c *Client) currentConfig(ctx context.Context, endpoint string) (map[string]any, error) {
	var raw struct {
		Config json.RawMessage `json:"config"`
	}
	if err := c.query(ctx, endpoint, nil, &raw); err != nil {
		return nil, err
	}
	return decodeObject(raw.Config)
}

func decodeObject(data []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var m map[string]any
	return m, dec.Decode(&m)
}

// settings returns what is set in a configuration of nats.go: what is not zero, and the kinds.
func settings(cfg any, kinds ...string) (map[string]any, error) {
	data, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("natty: encode configuration: %w", err)
	}
	all, err := decodeObject(data)
	if err != nil {
		return nil, fmt.Errorf("natty: encode configuration: %w", err)
	}
	maps.DeleteFunc(all, func(name string, v any) bool { return isZero(v) && !slices.Contains(kinds, name) })
	return all, nil
}

func isZero(v any) bool {
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

// unordered are lists that are sets.
var unordered = []string{"subjects", "filter_subjects"}

// differences lists, sorted by name, the settings of want that have does not hold.
func differences(have, want map[string]any) []Difference {
	var diffs []Difference
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if h := have[name]; !holds(h, want[name], slices.Contains(unordered, name)) {
			diffs = append(diffs, Difference{Field: name, Have: asJSON(h), Want: asJSON(want[name])})
		}
	}
	return diffs
}

// holds reports whether have is what want asks for; of an object only the keys in want count, since the server
// adds defaults.
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
		return (ok || have == nil) && holdsList(h, want, asSet)
	}
	return reflect.DeepEqual(have, want) || isZero(have) && isZero(want) || sameTime(have, want)
}

func holdsList(have, want []any, asSet bool) bool {
	if asSet {
		have, want = sorted(have), sorted(want)
	}
	return slices.EqualFunc(have, want, func(h, w any) bool { return holds(h, w, false) })
}

// sameTime reports whether two values are one point in time: the server keeps the zone that it was told.
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
	return slices.SortedFunc(slices.Values(list), func(a, b any) int { return bytes.Compare([]byte(asJSON(a)), []byte(asJSON(b))) })
}

func asJSON(v any) string {
	if v == nil {
		return "not set"
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // which would make "s.\u003e" of s.>
	if enc.Encode(v) != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// merge returns have with want put over it; objects, such as metadata, key by key.
func merge(have, want map[string]any) map[string]any {
	merged := maps.Clone(have)
	for k, w := range want {
		wm, isObject := w.(map[string]any)
		hm, has := merged[k].(map[string]any)
		if isObject && has {
			merged[k] = merge(hm, wm)
		} else {
			merged[k] = w
		}
	}
	return merged
}
