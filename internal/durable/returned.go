package durable

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natty-go/natty/internal/subject"
)

// metaReturned notes which messages some instance of the group returns: those of
// filters that it did not ask for. The server counts these deliveries like all others,
// so that its count says nothing about failures. The note begins with the time at which
// it was written; filters follow.
const metaReturned = "natty-returned"

const (
	// returnedFor is how long a note counts. An instance that still returns messages
	// renews it long before.
	returnedFor   = 24 * time.Hour
	returnedRenew = time.Hour
)

// Returned returns the filters of messages whose deliveries are no measure of failures.
func (d Durable) Returned() []string {
	_, filters := readReturned(d.Config.Metadata[metaReturned])
	return filters
}

func readReturned(note string) (at time.Time, filters []string) {
	fields := strings.Fields(note)
	if len(fields) == 0 {
		return at, nil
	}
	seconds, err := strconv.ParseInt(fields[0], 10, 64)
	at = time.Unix(seconds, 0)
	if err != nil || time.Since(at) > returnedFor {
		return time.Time{}, nil
	}
	return at, fields[1:]
}

// NoteReturned notes that an instance is about to return messages of filters.
func (c *Manager) NoteReturned(ctx context.Context, d Durable, filters []string) error {
	if at, noted := readReturned(d.Config.Metadata[metaReturned]); time.Since(at) < returnedRenew &&
		len(uncovered(filters, noted)) == 0 {
		return nil
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	return c.Note(ctx, d.Stream, d.Name, func(notes map[string]any) map[string]any {
		note, _ := notes[metaReturned].(string)
		_, noted := readReturned(note)
		all := append(uncovered(noted, filters), filters...)
		// What is no longer received is not returned.
		if received := d.Filters(); len(received) > 0 {
			all = slices.DeleteFunc(all, func(f string) bool { return !subject.OverlapAny([]string{f}, received) })
		}
		slices.Sort(all)
		return map[string]any{metaReturned: now + " " + strings.Join(slices.Compact(all), " ")}
	})
}

// ReturnedNow is Returned of a durable as it is now.
func (c *Manager) ReturnedNow(ctx context.Context, stream, name string) ([]string, error) {
	info, err := c.API.ConsumerInfo(ctx, stream, name)
	if err != nil {
		return nil, err
	}
	return Durable{Config: info.Config}.Returned(), nil
}
