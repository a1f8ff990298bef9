package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// Tally is what a run has shown of a library, in numbers.
type Tally struct {
	Acked  int // messages whose publish was acknowledged
	Failed int // messages whose publish returned errors only: stored or not
	Lost   int // acknowledged and never handled
	Twice  int // messages that are stored more than once
	Again  int // calls of the handler that followed an earlier one for the same message
	// Stuck names who made no progress when all faults were over.
	Stuck []string
	// Together is how often two processes believed at once that they lead, and
	// TogetherFor how long in total. The time of a pause does not count: a paused process
	// believes nothing.
	Together    int
	TogetherFor time.Duration
	// Slowest is the longest time from an acknowledgement to the first call of the
	// handler that ended.
	Slowest time.Duration
	// NotHandling and NoLeader are the longest times without the end of a handler, and
	// without a leader.
	NotHandling, NoLeader time.Duration
}

// stuckFor is how long something makes no progress that is stuck.
const stuckFor = 30 * second

// Count counts what the events of a run show, which are in the order of time. The role
// pub publishes, the role plain handles, and the role lead leads.
func Count(events []history.Event) Tally {
	h := New(events)
	t := Tally{NotHandling: h.notHandling()}
	h.countMessages(&t)
	h.countLeaders(&t)
	t.Stuck = append(h.stuckWorkers(), t.Stuck...)
	return t
}

func (h *History) countMessages(t *Tally) {
	acked, handled, stored := map[string]int64{}, map[string]int{}, map[string]int{}
	for _, e := range h.Events {
		switch e.What {
		case history.Acked:
			acked[e.ID] = e.At
		case history.Unknown:
			t.Failed++
		case history.Done:
			handled[e.ID]++
			if at, is := acked[e.ID]; is && handled[e.ID] == 1 {
				t.Slowest = max(t.Slowest, time.Duration(e.At-at))
			}
		case history.Stored:
			stored[e.ID]++
		}
	}
	t.Acked = len(acked)
	for id := range acked {
		if h.roles["plain"] && handled[id] == 0 {
			t.Lost++
		}
	}
	for _, n := range handled {
		t.Again += n - 1
	}
	for _, n := range stored {
		if n > 1 {
			t.Twice++
		}
	}
}

// notHandling is the longest time without the end of a handler.
func (h *History) notHandling() time.Duration {
	if !h.roles["plain"] {
		return 0
	}
	var times []span
	for _, e := range h.of(history.Done) {
		times = append(times, span{e.At, e.At})
	}
	return h.longestGap(times)
}

// watched is the time from the first fault until publishers are told to stop.
func (h *History) watched() span { return span{h.phases[history.Chaos], h.phases[history.Calm]} }

// longestGap returns the longest part of the watched time that no span covers.
func (h *History) longestGap(spans []span) time.Duration {
	all := h.watched()
	covered, longest := all.from, int64(0)
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for _, s := range spans {
		longest = max(longest, min(s.from, all.to)-covered)
		covered = max(covered, s.to)
	}
	return time.Duration(max(longest, all.to-covered))
}

func (h *History) countLeaders(t *Tally) {
	if !h.roles["lead"] {
		return
	}
	var all []span
	var parts []ownership
	for _, o := range h.owners(work.Leading) {
		all = append(all, o.span)
		parts = append(parts, h.withoutPauses(o)...)
	}
	for i, a := range parts {
		for _, b := range parts[i+1:] {
			if a.life != b.life && a.overlaps(b.span) {
				t.Together++
				t.TogetherFor += time.Duration(min(a.to, b.to) - max(a.from, b.from))
			}
		}
	}
	t.NoLeader = h.longestGap(all)
	end := h.watched().to
	if !slices.ContainsFunc(all, func(s span) bool { return s.overlaps(span{end - stuckFor, end}) }) {
		t.Stuck = append(t.Stuck, "the election: nobody leads")
	}
}

// stuckWorkers finds processes that did nothing in the last seconds of the watched time.
func (h *History) stuckWorkers() (stuck []string) {
	end := h.watched().to
	late := span{end - stuckFor, end}
	active, lives, published := map[string]bool{}, map[string]life{}, false
	for _, e := range h.Events {
		if e.What == history.Started {
			lives[e.Who] = lifeOf(e)
		}
		if e.At < late.from || e.At > late.to {
			continue
		}
		if e.What == history.Acked || e.What == history.Done {
			active[e.Who] = true
			published = published || e.What == history.Acked
		}
	}
	for who, l := range lives {
		switch role := roleOf(who); {
		case active[who], role == "lead", role == "plain" && !published:
		case role == "pub" && h.waits(l):
			stuck = append(stuck, who+": a publish did not return")
		case role == "pub":
			stuck = append(stuck, who+": no publish is acknowledged")
		default:
			stuck = append(stuck, who+": it handles nothing")
		}
	}
	slices.Sort(stuck)
	return stuck
}

// waits reports whether a publish of a life has not returned.
func (h *History) waits(l life) bool {
	open := map[string]bool{}
	for _, e := range h.Events {
		if lifeOf(e) != l || e.At > h.watched().to {
			continue
		}
		switch e.What {
		case history.Sent:
			open[e.ID] = true
		case history.Acked, history.Unknown:
			delete(open, e.ID)
		}
	}
	return len(open) > 0
}

// String is for the terminal.
func (t Tally) String() string {
	return fmt.Sprintf("%d acknowledged, %d failed, %d lost, %d stored twice, %d handled again, slowest message %.1fs, "+
		"%.1fs not handling, %d times two leaders (%.1fs), %.1fs no leader; stuck: %s",
		t.Acked, t.Failed, t.Lost, t.Twice, t.Again, t.Slowest.Seconds(), t.NotHandling.Seconds(),
		t.Together, t.TogetherFor.Seconds(), t.NoLeader.Seconds(), cmp.Or(strings.Join(t.Stuck, ", "), "nobody"))
}
