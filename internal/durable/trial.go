package durable

import (
	"context"
	"slices"
	"strconv"
	"strings"
)

const (
	// metaTried lists the messages that were tried alone last: the stream sequence, and
	// behind an @ the delivery at which the handler returned. Without that the process
	// may have died.
	metaTried = "natty-tried"
	maxTried  = 200
)

// Trial is what is known of a message that ran alone before.
type Trial struct {
	Died     bool // its handler has not returned
	Returned int  // the last delivery at which it has; 0 if that is not known
}

// RecordTrial notes that a message runs alone, and returns what was known before. It
// notes nothing if the handler has returned from the message at delivery atLeast or
// later: it does not kill its process.
func (c *Manager) RecordTrial(
	ctx context.Context, stream, name string, message uint64, atLeast int,
) (before Trial, err error) {
	noted := false
	err = c.Note(ctx, stream, name, func(notes map[string]any) map[string]any {
		if noted { // to see whether another writer has undone it
			return withTrial(notes, message, 0)
		}
		before = trialOf(notes, message)
		if before.Died || before.Returned > 0 && before.Returned >= atLeast {
			return nil
		}
		noted = true
		return withTrial(notes, message, 0)
	})
	return before, err
}

// RecordReturn notes that the handler of a message that ran alone has returned.
func (c *Manager) RecordReturn(ctx context.Context, stream, name string, message uint64, delivery int) error {
	return c.Note(ctx, stream, name, func(notes map[string]any) map[string]any {
		return withTrial(notes, message, delivery)
	})
}

func triedIn(notes map[string]any) []string {
	list, _ := notes[metaTried].(string)
	return strings.Fields(list)
}

func trialOf(notes map[string]any, message uint64) (t Trial) {
	sequence := strconv.FormatUint(message, 10)
	for _, entry := range triedIn(notes) {
		tried, returned, has := strings.Cut(entry, "@")
		if tried != sequence {
			continue
		}
		n, err := strconv.Atoi(returned)
		t.Returned = max(t.Returned, n)
		t.Died = t.Died || !has || err != nil
	}
	return t
}

// withTrial returns the notes with the entry of a message. If that is there, it returns
// nil: there is nothing to write.
func withTrial(notes map[string]any, message uint64, returned int) map[string]any {
	sequence := strconv.FormatUint(message, 10)
	entry := sequence
	if returned > 0 {
		entry += "@" + strconv.Itoa(returned)
	}
	tried := triedIn(notes)
	if slices.Contains(tried, entry) {
		return nil
	}
	tried = slices.DeleteFunc(tried, func(e string) bool {
		before, _, _ := strings.Cut(e, "@")
		return before == sequence
	})
	tried = append(tried[max(0, len(tried)+1-maxTried):], entry)
	return map[string]any{metaTried: strings.Join(tried, " ")}
}
