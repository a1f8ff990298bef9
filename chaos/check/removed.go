package check

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// toldWhen is how long after a removal it is reported at the latest: a busy consumer
// looks at its durable every 30 s at least.
const toldWhen = 45 * second

// starting is how long around its start a process may not see a removal: it reports
// nothing of what was before, and what the last process had in flight is nobody's for a
// while.
const starting = 10 * second

// removed is a message of the small stream that was acknowledged, is not there any more,
// and was not handled.
type removed struct {
	history.Event       // the acknowledgement
	removedAt     int64 // when as many others were stored behind it as the stream keeps
}

// small compares what the small stream removed before it was handled with what was
// reported as removed. A report says of all sequences below its First that they are gone.
// It also says how many were removed at least: so there are not more reports than
// messages. A redelivery can hide a removal from natty, as
// docs/guarantees.md says, so as many removals as redeliveries may stay untold.
func small(h *History) (problems []Problem) {
	if !h.roles["small"] {
		return nil
	}
	gone, kept := h.removedUnhandled()
	for _, e := range kept {
		text := fmt.Sprintf("%s (%s, sequence %d) is in the small stream and was not handled", e.ID, e.Subject, e.Seq)
		problems = append(problems, Problem{At: e.At, ID: e.ID, Text: text})
	}
	var untold []removed
	for _, m := range gone {
		if !h.toldOf(m) && !h.starts("small", span{m.removedAt - starting, m.removedAt + starting}) {
			untold = append(untold, m)
		}
	}
	if n := h.repeats("small"); len(untold) > n {
		m := untold[len(untold)-1]
		text := fmt.Sprintf("%d messages were removed before they were handled, and nothing was reported; the last is %s, sequence %d",
			len(untold), m.ID, m.Seq)
		problems = append(problems, Problem{At: m.removedAt, ID: m.ID, Text: text})
	}
	return append(problems, h.toldTooMuch()...)
}

// removedUnhandled returns the messages of the small stream that were removed before they
// were handled, and those that are still there. A message that has failed does not count:
// it may be removed between its pause and its next attempt, which nobody sees.
func (h *History) removedUnhandled() (gone []removed, kept []history.Event) {
	handled := map[string]bool{}
	for _, e := range h.of(history.Done, history.Failed) {
		handled[e.ID] = true
	}
	var all []history.Event
	for _, e := range h.of(history.Acked) {
		if isSmall(e) && e.Seq > 0 {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b history.Event) int { return cmp.Compare(a.Seq, b.Seq) })
	for i, e := range all {
		if handled[e.ID] {
			continue
		}
		behind, _ := slices.BinarySearchFunc(all[i:], e.Seq+work.SmallMax,
			func(a history.Event, seq uint64) int { return cmp.Compare(a.Seq, seq) })
		if i+behind < len(all) {
			gone = append(gone, removed{e, all[i+behind].At})
		} else if _, quiet := h.phases[history.Quiet]; quiet {
			kept = append(kept, e)
		}
	}
	return gone, kept
}

// toldOf reports whether a removal was reported, or may yet have been when the run ended.
func (h *History) toldOf(m removed) bool {
	for _, e := range h.of(history.Report) {
		if e.Op == "removed" && e.At > m.At && e.Seq > m.Seq {
			return true
		}
	}
	over, ran := h.phases[history.Over]
	return ran && m.removedAt+toldWhen > over
}

// starts reports whether a process of a role started within a time.
func (h *History) starts(role string, within span) bool {
	return slices.ContainsFunc(h.of(history.Started), func(e history.Event) bool {
		return roleOf(e.Who) == role && within.from < e.At && e.At < within.to
	})
}

// repeats counts the deliveries of a role's messages that were not the first.
func (h *History) repeats(role string) (n int) {
	for _, e := range h.of(history.Begun, history.Failed) {
		if roleOf(e.Who) == role && (e.N > 1 || e.What == history.Failed) {
			n++
		}
	}
	return n
}

// toldTooMuch finds reports of more removals than there can be: what was published, or
// may have been, and was not handled.
func (h *History) toldTooMuch() []Problem {
	handled := map[string]bool{}
	for _, e := range h.of(history.Done) {
		handled[e.ID] = true
	}
	missing := int64(0)
	for _, e := range h.of(history.Sent) {
		if isSmall(e) && !handled[e.ID] {
			missing++
		}
	}
	told, last := int64(0), history.Event{}
	for _, e := range h.of(history.Report) {
		if e.Op == "removed" {
			told, last = told+e.N, e
		}
	}
	if told <= missing {
		return nil
	}
	text := fmt.Sprintf("%d messages were reported as removed, and only %d were not handled", told, missing)
	return []Problem{{At: last.At, Text: text}}
}
