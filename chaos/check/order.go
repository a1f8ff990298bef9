package check

import (
	"fmt"
	"slices"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// turn is one key's messages in one life of an ordered consumer.
type turn struct {
	life life
	key  string
}

// open is a message of a turn that was begun and not accepted.
type open struct {
	seq     uint64
	running bool
}

// KeyOrder finds messages of one key that were handled out of order, or at the same
// time, by one life of a process. A message that has failed and waits is to be handled
// before those behind it.
func KeyOrder(h *History) (problems []Problem) {
	accepted := map[uint64]bool{}
	opens := map[turn]map[uint64]*open{}
	for _, e := range h.of(history.Begun, history.Done, history.Failed) {
		if work.GroupOf(e.Subject) != "order" {
			continue
		}
		t := turn{lifeOf(e), work.KeyOf(e.Subject)}
		if opens[t] == nil {
			opens[t] = map[uint64]*open{}
		}
		switch e.What {
		case history.Begun:
			for _, other := range opens[t] {
				text := ""
				switch {
				case other.seq == e.Seq:
				case other.running:
					text = "runs while"
				case other.seq < e.Seq && !accepted[e.Seq]:
					text = "is begun, and before it had failed"
				}
				if text != "" {
					text = fmt.Sprintf("%s: sequence %d of key %s %s %d", t.life, e.Seq, t.key, text, other.seq)
					problems = append(problems, Problem{At: e.At, ID: e.ID, Text: text})
				}
			}
			opens[t][e.Seq] = &open{e.Seq, true}
		case history.Done:
			accepted[e.Seq] = true
			delete(opens[t], e.Seq)
		default:
			if o := opens[t][e.Seq]; o != nil {
				o.running = false
			}
		}
	}
	return append(problems, overtaken(h)...)
}

// overtaken finds ordered messages that were begun for the first time behind later ones
// of their key. What a killed process held comes late: messages that were stored before
// it was killed, and begun after that.
func overtaken(h *History) (problems []Problem) {
	storedAt := map[uint64]int64{}
	for _, e := range h.of(history.Stored) {
		if work.GroupOf(e.Subject) == "order" {
			storedAt[e.Seq] = e.At
		}
	}
	highest, begun := map[string]uint64{}, map[uint64]bool{}
	kills := h.killed("order")
	for _, e := range h.of(history.Begun) {
		if work.GroupOf(e.Subject) != "order" || begun[e.Seq] {
			continue
		}
		begun[e.Seq] = true
		key := work.KeyOf(e.Subject)
		excused := false
		for _, kill := range kills {
			excused = excused || storedAt[e.Seq] < kill+second && kill < e.At
		}
		if e.Seq < highest[key] && !excused {
			text := fmt.Sprintf("sequence %d of key %s is begun for the first time after %d", e.Seq, key, highest[key])
			problems = append(problems, Problem{At: e.At, ID: e.ID, Text: text})
		}
		highest[key] = max(highest[key], e.Seq)
	}
	return problems
}

// ExclusiveOrder finds messages of the exclusive durable that were begun before one that
// is earlier in the stream was handled.
func ExclusiveOrder(h *History) (problems []Problem) {
	var sequences []uint64
	for _, e := range h.of(history.Stored) {
		if work.GroupOf(e.Subject) == "excl" {
			sequences = append(sequences, e.Seq)
		}
	}
	slices.Sort(sequences)
	next := map[uint64]uint64{} // the sequence before each
	for i, s := range sequences {
		if i > 0 {
			next[s] = sequences[i-1]
		}
	}
	done := map[uint64]bool{}
	for _, e := range h.of(history.Begun, history.Done) {
		if work.GroupOf(e.Subject) != "excl" {
			continue
		}
		before, has := next[e.Seq]
		switch {
		case e.What == history.Done:
			done[e.Seq] = true
		case has && !done[before]:
			text := fmt.Sprintf("%s begins with sequence %d before %d was handled", lifeOf(e), e.Seq, before)
			problems = append(problems, Problem{At: e.At, ID: e.ID, Text: text})
		}
	}
	return problems
}
