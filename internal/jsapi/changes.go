package jsapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// logMade logs that r was missing and was made. An operator who did not make it should
// find out who did.
func (a *Client) logMade(r Resource) {
	if a.Log == nil {
		return
	}
	keys := r.logKeys()
	if subjects, ok := r.Want["subjects"]; ok {
		keys = append(keys, "subjects", subjects)
	}
	a.Log.Info("natty: made the "+cmp.Or(r.Kind, "resource"), keys...) //nolint:sloglint // one of three
}

// logChanged logs which settings of r were changed, each as "from -> to". Notes, which
// have no Kind, are natty's own business and are logged for debugging only.
func (a *Client) logChanged(r Resource, diffs []Difference) {
	if a.Log == nil {
		return
	}
	changed := make([]any, len(diffs))
	for i, d := range diffs {
		changed[i] = slog.String(d.Field, Readable(d.Field, d.Have)+" -> "+Readable(d.Field, d.Want))
	}
	keys := append(r.logKeys(), slog.Group("changed", changed...))
	if r.Kind == "" {
		a.Log.Debug("natty: noted", keys...)
		return
	}
	a.Log.Info("natty: changed the "+r.Kind, keys...) //nolint:sloglint // one of three
}

// logKeys returns what r is, under the keys of the log. They are in the endpoints:
// CONSUMER.INFO.<stream>.<durable>, STREAM.UPDATE.<stream>.
func (r Resource) logKeys() []any {
	if r.Kind == "bucket" {
		return []any{"bucket", r.Name}
	}
	names := strings.Split(cmp.Or(r.Info, r.Update), ".")[2:]
	keys := []any{"stream", names[0]}
	if len(names) > 1 {
		keys = append(keys, "durable", names[1])
	}
	return keys
}

// durations are the settings that the server counts in nanoseconds.
var durations = []string{
	"ack_wait", "duplicate_window", "inactive_threshold", "max_age", "max_expires", "priority_timeout",
	"subject_delete_marker_ttl",
}

// Readable writes the value of a setting, as it stands in a Difference, for people: a
// duration as such.
func Readable(field, value string) string {
	if ns, err := json.Number(value).Int64(); err == nil && slices.Contains(durations, field) {
		return time.Duration(ns).String()
	}
	return value
}

// explainOverlap names the streams that have the subjects for which the server refused
// r. The server does not say which ones they are.
func (a *Client) explainOverlap(ctx context.Context, r Resource, err error) error {
	if Code(err) != codeSubjectsOverlap {
		return err
	}
	subjects, _ := r.Want["subjects"].([]any)
	if len(subjects) == 0 {
		subjects = []any{r.Name} // the default
	}
	var found []string
	for _, s := range subjects {
		streams, failed := a.StreamsOf(ctx, fmt.Sprint(s))
		if failed != nil {
			return err // names would help, and are not the trouble
		}
		for _, name := range streams {
			if name != r.Name {
				found = append(found, fmt.Sprintf("%v is held by stream %q", s, name))
			}
		}
	}
	if len(found) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s; use other subjects, or that stream", err, strings.Join(found, ", "))
}
