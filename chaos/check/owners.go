package check

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// ownership is a time for which a process trusts that it alone owns something.
type ownership struct {
	span
	life  life
	token uint64
	id    string
}

// wakeUp is how long a process that was paused may take to notice.
const wakeUp = second

// withoutPauses cuts the times out of an ownership for which its process was paused, and
// could not know.
func (h *History) withoutPauses(o ownership) (parts []ownership) {
	parts = []ownership{o}
	for _, p := range h.during(o.life.who, "pause") {
		p.to += wakeUp
		var cut []ownership
		for _, part := range parts {
			if !part.overlaps(p) {
				cut = append(cut, part)
				continue
			}
			if before := part; before.from < p.from {
				before.to = p.from
				cut = append(cut, before)
			}
			if after := part; p.to < after.to {
				after.from = p.to
				cut = append(cut, after)
			}
		}
		parts = cut
	}
	return parts
}

// overlapping finds ownerships that overlap.
func (h *History) overlapping(what string, owners []ownership) (problems []Problem) {
	var parts []ownership
	for _, o := range owners {
		parts = append(parts, h.withoutPauses(o)...)
	}
	slices.SortFunc(parts, func(a, b ownership) int { return cmp.Compare(a.from, b.from) })
	var latest ownership // of those that began before, the one that ends last
	for _, o := range parts {
		if latest.life != (life{}) && latest.overlaps(o.span) && (latest.life != o.life || latest.token != o.token) {
			together := min(latest.to, o.to) - o.from
			text := fmt.Sprintf("%s and %s are both %s for %.3f s (%d and %d)",
				latest.life, o.life, what, float64(together)/1e9, latest.token, o.token)
			problems = append(problems, Problem{At: o.from, ID: o.id, Text: text})
		}
		if o.to > latest.to {
			latest = o
		}
	}
	return problems
}

// owners are the leaderships, or the locks, of a history.
func (h *History) owners(op string) (owners []ownership) {
	ended := map[string]int64{}
	name := func(e history.Event) string { return fmt.Sprint(lifeOf(e), " ", e.Seq) }
	for _, e := range h.of(history.Disow) {
		if e.Op == op {
			ended[name(e)] = e.At
		}
	}
	for _, e := range h.of(history.Own) {
		if e.Op != op {
			continue
		}
		to, did := ended[name(e)]
		if !did {
			to = h.last[lifeOf(e)]
		}
		owners = append(owners, ownership{span: span{e.At, to}, life: lifeOf(e), token: e.Seq})
	}
	return owners
}

// owned finds owners at the same time, and tokens that do not grow.
func (h *History) owned(op, what string) (problems []Problem) {
	owners := h.owners(op)
	problems = h.overlapping(what, owners)
	for i := 1; i < len(owners); i++ {
		if owners[i].token <= owners[i-1].token {
			text := fmt.Sprintf("%s: the token %d of %s follows %d", what, owners[i].token, owners[i].life, owners[i-1].token)
			problems = append(problems, Problem{At: owners[i].from, Text: text})
		}
	}
	return problems
}

// Leaders finds two leaders at once.
func Leaders(h *History) []Problem { return h.owned(work.Leading, "leader") }

// LockOwners finds two owners of a lock at once.
func LockOwners(h *History) []Problem { return h.owned(work.Locking, "owner of the lock") }

// ExclusiveOwners finds handlers of the exclusive durable that run at the same time. A
// handler whose ctx has ended does not count.
func ExclusiveOwners(h *History) []Problem {
	var owners []ownership
	running := map[life]*ownership{}
	end := func(l life, at int64) {
		if o := running[l]; o != nil {
			o.to = at
			owners = append(owners, *o)
			delete(running, l)
		}
	}
	for _, e := range h.of(history.Begun, history.Done, history.Failed, history.Distrust) {
		if work.GroupOf(e.Subject) != "excl" {
			continue
		}
		l := lifeOf(e)
		end(l, e.At)
		if e.What == history.Begun {
			running[l] = &ownership{span: span{from: e.At}, life: l, token: e.Seq, id: e.ID}
		}
	}
	for l := range running {
		end(l, h.last[l])
	}
	return h.overlapping("active", owners)
}

// Fences finds writes of a term that were stored after a later term had written: those
// that a leader was told of, and those that are in the bucket.
func Fences(h *History) (problems []Problem) {
	var token uint64 // the highest that has written
	var at int64     // when that was acknowledged
	for _, e := range h.of(history.Return) {
		if e.Op != work.Leading || e.Text != work.OK {
			continue
		}
		switch {
		case e.Seq > token:
			token, at = e.Seq, e.At
		case e.Seq < token && e.From > at:
			text := fmt.Sprintf("%s writes with token %d after a write with %d", lifeOf(e), e.Seq, token)
			problems = append(problems, Problem{At: e.At, Text: text})
		}
	}
	return append(problems, h.storedLate()...)
}

// storedLate finds writes of a term that are behind those of a later term in the bucket.
func (h *History) storedLate() (problems []Problem) {
	writes := h.of(history.Wrote)
	slices.SortStableFunc(writes, func(a, b history.Event) int { return cmp.Compare(a.Seq, b.Seq) })
	var highest history.Event
	for _, e := range writes {
		if e.N < highest.N {
			text := fmt.Sprintf("revision %d was written with token %d, and revision %d before it with %d",
				e.Seq, e.N, highest.Seq, highest.N)
			problems = append(problems, Problem{At: e.At, Text: text})
			continue
		}
		highest = e
	}
	return problems
}
