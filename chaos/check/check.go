// Package check says what a history proves to be wrong. Each checker is a pure function
// of the history.
package check

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/natty-go/natty/chaos/history"
)

// Problem is a promise that was broken.
type Problem struct {
	Check string
	At    int64 // when it shows
	ID    string
	Text  string
}

// Checker looks for one kind of problems.
type Checker struct {
	Name string
	Run  func(h *History) []Problem
}

// All are the checkers of a run.
var All = []Checker{
	{"stored once", Stored},
	{"batch is whole", Batches},
	{"schedule is in time", Schedules},
	{"stored is handled", Handled},
	{"dead letters are complete", Letters},
	{"order of a key", KeyOrder},
	{"order of exclusive", ExclusiveOrder},
	{"one active instance", ExclusiveOwners},
	{"one leader", Leaders},
	{"one lock owner", LockOwners},
	{"fenced writes", Fences},
	{"keys are linearizable", Keys},
	{"locks are linearizable", Locks},
	{"copies equal the bucket", Copies},
	{"nothing is silent", Silence},
	{"trouble is told once", ToldOnce},
	{"requests are bounded", Requests},
	{"goroutines and heap are flat", Flat},
	{"processes end", Endings},
}

// Run runs all checkers. The problems are in the order of time. undecided says what could
// not be checked: it may be right or wrong.
func Run(events []history.Event) (problems []Problem, undecided []string) {
	h := New(events)
	for _, c := range All {
		found := c.Run(h)
		for i := range found {
			found[i].Check = c.Name
		}
		problems = append(problems, found...)
	}
	slices.SortStableFunc(problems, func(a, b Problem) int { return cmp.Compare(a.At, b.At) })
	return problems, h.undecided
}

// life is one life of a process.
type life struct {
	who string
	n   int
}

func lifeOf(e history.Event) life { return life{e.Who, e.Life} }

func (l life) String() string { return fmt.Sprintf("%s#%d", l.who, l.n) }

// History is the events of a run, and what several checkers ask about them.
type History struct {
	undecided []string
	Events    []history.Event // in the order of time
	last      map[life]int64  // the last event of each life
	faults    []history.Event
	phases    map[string]int64
	roles     map[string]bool // that had a worker
}

// New returns the History of events, which are in the order of time.
func New(events []history.Event) *History {
	h := &History{Events: events, last: map[life]int64{}, phases: map[string]int64{}, roles: map[string]bool{}}
	for _, e := range events {
		h.last[lifeOf(e)] = e.At
		switch e.What {
		case history.Started:
			h.roles[roleOf(e.Who)] = true
		case history.Fault:
			h.faults = append(h.faults, e)
		case history.Phase:
			if e.Who == "run" {
				h.phases[e.Text] = e.At
			}
		}
	}
	return h
}

// of returns the events of some kinds.
func (h *History) of(kinds ...history.What) (some []history.Event) {
	for _, e := range h.Events {
		if slices.Contains(kinds, e.What) {
			some = append(some, e)
		}
	}
	return some
}

// span is a time.
type span struct{ from, to int64 }

func (s span) overlaps(other span) bool { return s.from < other.to && other.from < s.to }

// during returns when faults of some kinds were there.
func (h *History) during(target string, kinds ...string) (spans []span) {
	for _, f := range h.faults {
		if slices.Contains(kinds, f.Op) && (target == "" || f.Key == target) {
			spans = append(spans, span{f.From, f.At})
		}
	}
	return spans
}

// killed returns when a process of a role was killed.
func (h *History) killed(role string) (at []int64) {
	for _, f := range h.faults {
		if f.Op == "kill" && roleOf(f.Key) == role {
			at = append(at, f.From)
		}
	}
	return at
}

// roleOf returns the role in the name of a worker.
func roleOf(who string) string {
	for i := range len(who) {
		if who[i] == '-' {
			return who[:i]
		}
	}
	return who
}

const second = int64(1e9)
