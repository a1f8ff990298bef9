package check

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// tooLong is how long a lack of progress may stay unexplained.
const tooLong = 30 * second

// Silence finds times without progress that nothing explains. An explanation counts for
// tooLong: trouble that lasts is in Health all the time.
func Silence(h *History) (problems []Problem) {
	for _, group := range slices.Sorted(maps.Keys(work.Durables)) {
		if group != "small" { // what is removed need not be handled
			problems = append(problems, h.silentGroup(group)...)
		}
	}
	for _, role := range slices.Sorted(maps.Keys(h.roles)) {
		if work.Durables[role] == "" && role != "cache" { // a cache has nothing to do
			problems = append(problems, h.silentRole(role)...)
		}
	}
	return problems
}

// silentRole finds times in which workers that always have something to do until the
// faults are over got nothing done, and none of them said why.
func (h *History) silentRole(role string) (problems []Problem) {
	from, began := h.phases[history.Chaos]
	to, ended := h.phases[history.Healed]
	if !began || !ended {
		return nil
	}
	var signs []int64
	for _, e := range h.of(history.Acked, history.Unknown, history.Refused, history.Return, history.Own) {
		if roleOf(e.Who) == role {
			signs = append(signs, e.At)
		}
	}
	return h.silences(role, span{from, to}, signs)
}

// silentGroup finds times in which a group of consumers handled nothing, although there
// was something to handle, and none of them said why.
func (h *History) silentGroup(group string) (problems []Problem) {
	var signs []int64
	settledAt, seenAt := map[string]int64{}, map[string]int64{}
	for _, e := range h.of(history.Begun, history.Done, history.Failed, history.Fatal, history.Letter) {
		at, final := e.At, e.What == history.Done || e.What == history.Fatal
		switch {
		case e.What == history.Letter: // read at the end: it is as old as the last failure
			at, final = cmp.Or(seenAt[e.ID], at), true
		case work.GroupOf(e.Subject) == group:
			signs, seenAt[e.ID] = append(signs, at), at
		}
		if _, known := settledAt[e.ID]; final && !known {
			settledAt[e.ID] = at
		}
	}
	end := h.Events[len(h.Events)-1].At
	if quiet, ran := h.phases[history.Quiet]; ran {
		end = quiet
	}
	for _, w := range h.waitsOf(group, settledAt, end) {
		problems = append(problems, h.silences(group, w, signs)...)
	}
	return problems
}

// waitsOf returns the times in which a group had something to handle.
func (h *History) waitsOf(group string, settledAt map[string]int64, end int64) (waits []span) {
	for _, e := range h.of(history.Stored) { // in the order of time
		if work.GroupOf(e.Subject) != group {
			continue
		}
		wait := span{e.At, end}
		if at, is := settledAt[e.ID]; is {
			wait.to = at
		}
		if n := len(waits); n > 0 && wait.from <= waits[n-1].to {
			waits[n-1].to = max(waits[n-1].to, wait.to)
		} else {
			waits = append(waits, wait)
		}
	}
	return waits
}

// silences finds the parts of a time that are too long without a sign of progress and
// without an explanation.
func (h *History) silences(group string, all span, signs []int64) (problems []Problem) {
	signs = slices.Concat([]int64{all.from, all.to}, signs, h.explanations(group))
	slices.SortFunc(signs, cmp.Compare)
	for i := 1; i < len(signs); i++ {
		gap := span{max(all.from, signs[i-1]), min(all.to, signs[i])}
		if gap.to-gap.from > tooLong && h.ran(group, gap) {
			text := fmt.Sprintf("%s got nothing done for %.0f s, and said nothing", group, float64(gap.to-gap.from)/1e9)
			problems = append(problems, Problem{At: gap.from, Text: text})
		}
	}
	return problems
}

// explanations returns when a worker of a role said what keeps it from its work: to
// OnError, to an Observer, or in Health.
func (h *History) explanations(role string) (at []int64) {
	for _, e := range h.of(history.Report, history.Sampled) {
		if roleOf(e.Who) == role && explains(e, role) {
			at = append(at, e.At)
		}
	}
	return at
}

// explains reports whether an event says why a role does not get on.
func explains(e history.Event, role string) bool {
	switch {
	case e.What == history.Report && work.Durables[role] != "":
		return e.Op == "consumer" || e.Op == "connection" // the role has one consumer
	case e.What == history.Report:
		return e.Op != "removed" && e.Op != "handler"
	case e.Sample == nil:
		return false
	}
	for part := range strings.SplitSeq(e.Health, "\n") {
		durable, ofConsumer := strings.CutPrefix(part, "consumer ")
		// An instance that does not ask for a subject leaves it to one that does.
		if part != "" && (!ofConsumer || strings.HasPrefix(durable, role+":")) && !strings.Contains(part, "does not ask for") {
			return true
		}
	}
	return false
}

// ran reports whether a worker of a role ran in a time: it wrote samples.
func (h *History) ran(role string, in span) bool {
	return slices.ContainsFunc(h.Events, func(e history.Event) bool {
		return e.What == history.Sampled && roleOf(e.Who) == role && in.from <= e.At && e.At <= in.to
	})
}
