package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// isSmall reports whether a message is for the stream that removes messages at its
// limit.
func isSmall(e history.Event) bool { return strings.HasPrefix(e.Subject, "small.") }

// isScheduled reports whether the server publishes a message, without a message id.
func isScheduled(e history.Event) bool {
	return work.GroupOf(e.Subject) != strings.Split(e.Subject+".", ".")[1]
}

// full returns when the full stream may have been full. A server that was away does not
// know at once that there is room again.
func (h *History) full() (spans []span) {
	for _, s := range h.during(work.Full, "fill") {
		spans = append(spans, span{s.from, s.to + 10*second})
	}
	return spans
}

// Stored finds messages that were acknowledged and are not stored, stored twice, or
// stored although they were refused; and those that were refused for a lack of room that
// there was.
func Stored(h *History) (problems []Problem) {
	stored := map[string]int{}
	for _, e := range h.of(history.Stored) {
		stored[e.ID]++
	}
	full := h.full()
	for _, e := range h.of(history.Sent, history.Acked, history.Refused) {
		n, text := stored[e.ID], ""
		there := span{cmp.Or(e.From, e.At), e.At + 1}.overlaps
		switch {
		case isSmall(e), isScheduled(e): // these may be removed, or not be due yet
		case e.What == history.Acked && n == 0:
			text = "was acknowledged and is not stored"
		case e.What == history.Refused && n > 0:
			text = "is stored although it was refused: " + e.Text
		case e.Op == work.NoRoom && !slices.ContainsFunc(full, there):
			text = "was refused although there was room: " + e.Text
		case e.What == history.Sent && n > 1:
			text = fmt.Sprintf("is stored %d times", n)
		}
		if text != "" {
			problems = append(problems, Problem{At: e.At, ID: e.ID, Text: e.ID + " " + text})
		}
	}
	return problems
}

// Batches finds batches of which a part is stored.
func Batches(h *History) (problems []Problem) {
	sent, stored := map[string]int{}, map[string]int{}
	for _, e := range h.of(history.Sent, history.Stored) {
		batch, _, is := strings.Cut(e.ID, "/")
		if !is || isSmall(e) {
			continue
		}
		if e.What == history.Sent {
			sent[batch]++
		} else {
			stored[batch]++
		}
	}
	for _, e := range h.of(history.Sent) {
		batch, place, _ := strings.Cut(e.ID, "/")
		if n := stored[batch]; place == "0" && !isSmall(e) && n != 0 && n != sent[batch] {
			text := fmt.Sprintf("of the %d messages of batch %s %d are stored", sent[batch], batch, n)
			problems = append(problems, Problem{At: e.At, ID: e.ID, Text: text})
		}
	}
	return problems
}

// Schedules finds scheduled messages that were stored before their time, or never.
func Schedules(h *History) (problems []Problem) {
	acked, at := map[string]bool{}, map[string]int64{}
	for _, e := range h.of(history.Acked, history.Stored) {
		if e.What == history.Acked {
			acked[e.ID] = true
		} else if _, twice := at[e.ID]; !twice {
			at[e.ID] = e.At
		}
	}
	for _, e := range h.of(history.Call) {
		if e.Op != "schedule" {
			continue
		}
		switch when, is := at[e.ID]; {
		case !is && acked[e.ID]:
			problems = append(problems, Problem{At: e.N, ID: e.ID, Text: e.ID + " was scheduled and is not stored"})
		case is && when < e.N-second/10: // the wall clock is read twice
			text := fmt.Sprintf("%s was stored %.1f s too early", e.ID, float64(e.N-when)/1e9)
			problems = append(problems, Problem{At: when, ID: e.ID, Text: text})
		}
	}
	return problems
}

// Handled finds stored messages that no handler of their group accepted, and that are no
// dead letters.
func Handled(h *History) (problems []Problem) {
	settled := map[string]bool{}
	for _, e := range h.of(history.Done, history.Letter) {
		settled[e.ID] = true
	}
	for _, e := range h.of(history.Stored) {
		if !settled[e.ID] && h.roles[work.GroupOf(e.Subject)] {
			text := fmt.Sprintf("%s (%s, sequence %d) is stored and was not handled", e.ID, e.Subject, e.Seq)
			problems = append(problems, Problem{At: e.At, ID: e.ID, Text: text})
		}
	}
	return append(problems, small(h)...)
}

// Letters finds messages that failed for good and are no dead letters, dead letters of
// messages that did not, and letters that were put back twice. A message that is accepted
// once it was put back may be either: a crash leaves it in both places.
func Letters(h *History) (problems []Problem) {
	letters, done := map[string]bool{}, map[string]bool{}
	for _, e := range h.of(history.Letter, history.Done) {
		if e.What == history.Done {
			done[e.ID] = true
			continue
		}
		letters[e.ID] = true
		if deadly, _ := work.Deadly(e.ID); !deadly || !work.Buries(work.GroupOf(e.Subject)) {
			text := e.ID + " is a dead letter, and its handler accepts it: " + e.Text
			problems = append(problems, Problem{At: e.At, ID: e.ID, Text: text})
		}
	}
	for _, e := range h.of(history.Stored) {
		deadly, _ := work.Deadly(e.ID)
		mended, group := done[e.ID] && work.Mends(e.ID), work.GroupOf(e.Subject)
		if deadly && work.Buries(group) && h.roles[group] && !letters[e.ID] && !mended {
			problems = append(problems, Problem{At: e.At, ID: e.ID, Text: e.ID + " failed for good and is no dead letter"})
		}
	}
	return append(problems, redrivenTwice(h)...)
}

// duplicateWindow is that of the streams, in which they store a message id once.
const duplicateWindow = 120 * second

// redrivenTwice finds redrives that are stored twice. It is none when what was redriven
// ran again in between, as after a durable that was deleted while no instance ran: then
// its second failure has a letter of its own. That letter has redrives of its own, too: so
// there may be as many of each number as of the one before. Nor is it one when the letter
// could not be deleted, and was redriven again after the duplicate window.
func redrivenTwice(h *History) (problems []Problem) {
	type copied struct {
		id string
		n  int64
	}
	last, copies, began := map[copied]history.Event{}, map[copied]int{}, map[string][]history.Event{}
	for _, e := range h.of(history.Redriven, history.Begun) {
		if e.What == history.Begun {
			began[e.ID] = append(began[e.ID], e)
			continue
		}
		c := copied{e.ID, e.N}
		first := last[c]
		again := func(b history.Event) bool { return b.Seq < first.Seq && first.At < b.At }
		late := e.At-first.At > duplicateWindow
		if !late && copies[c] >= max(1, copies[copied{e.ID, e.N - 1}]) && !slices.ContainsFunc(began[e.ID], again) {
			text := fmt.Sprintf("redrive %d of %s is stored twice", e.N, e.ID)
			problems = append(problems, Problem{At: e.At, ID: e.ID, Text: text})
		}
		last[c] = e
		copies[c]++
	}
	return problems
}
