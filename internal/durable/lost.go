package durable

import (
	"context"
	"strconv"
	"time"
)

// metaLost notes until when messages may come again that got lost on their way to an
// instance that keeps the order of keys, and has stopped. It is a time of the server's,
// in Unix milliseconds: the clocks of the instances may differ.
const metaLost = "natty-lost-until"

// LostFor returns for how long, from when d was read, lost messages may come again that
// an instance knew of that has stopped; 0: none.
func (d Durable) LostFor() time.Duration {
	return max(lostUntil(d.Config.Metadata[metaLost]).Sub(d.Read), 0)
}

func lostUntil(note string) time.Time {
	ms, err := strconv.ParseInt(note, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// NoteLost notes that lost messages may come again until wait after d was read.
func (c *Manager) NoteLost(ctx context.Context, d Durable, wait time.Duration) error {
	until := d.Read.Add(wait)
	return c.Note(ctx, d.Stream, d.Name, func(notes map[string]any) map[string]any {
		note, _ := notes[metaLost].(string)
		if !until.Truncate(time.Millisecond).After(lostUntil(note)) {
			return nil
		}
		return map[string]any{metaLost: strconv.FormatInt(until.UnixMilli(), 10)}
	})
}
