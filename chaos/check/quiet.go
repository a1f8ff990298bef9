package check

import (
	"fmt"
	"regexp"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// Copies finds differences between the bucket and its copies when all was quiet.
func Copies(h *History) (problems []Problem) {
	quiet, ran := h.phases[history.Quiet]
	if !ran || !h.roles["cache"] {
		return nil
	}
	bucket := map[string]string{}
	for _, e := range h.of(history.Bucket) {
		bucket[e.Key] = e.Text
	}
	copies, whole := map[string]map[string]string{}, map[string]bool{}
	for _, e := range h.of(history.Mirrored) {
		if e.Op == work.Whole {
			whole[e.Text] = true
			continue
		}
		if copies[e.Op] == nil {
			copies[e.Op] = map[string]string{}
		}
		copies[e.Op][e.Key] = e.Text
	}
	for _, name := range []string{work.Cached, work.Watched} {
		if !whole[name] {
			problems = append(problems, Problem{At: quiet, Text: "the " + name + " did not say what it holds"})
			continue
		}
		for key, value := range bucket {
			if have, is := copies[name][key]; !is || have != value {
				text := fmt.Sprintf("the %s has %q for key %s, the bucket %q", name, have, key, value)
				problems = append(problems, Problem{At: quiet, ID: key, Text: text})
			}
		}
		for key := range copies[name] {
			if _, is := bucket[key]; !is {
				text := fmt.Sprintf("the %s has key %s, the bucket has not", name, key)
				problems = append(problems, Problem{At: quiet, ID: key, Text: text})
			}
		}
	}
	return problems
}

var numbers = regexp.MustCompile(`[0-9a-fA-F]*[0-9][0-9a-zA-Z.µ]*`)

// ToldOnce finds kinds of trouble that were told again and again.
func ToldOnce(h *History) (problems []Problem) {
	type kind struct {
		life life
		text string
	}
	times, lost := map[kind][]int64{}, map[life][]int64{}
	for _, e := range h.of(history.Report) {
		if e.Op == "connection" {
			lost[lifeOf(e)] = append(lost[lifeOf(e)], e.At)
		}
		if e.Op != "consumer" && e.Op != "election" && e.Op != "lock" {
			continue
		}
		k := kind{lifeOf(e), numbers.ReplaceAllString(e.Text, "#")}
		times[k] = append(times[k], e.At)
		if how := tooOften(times[k], lost[k.life], h.disturbed(e)); how != "" {
			text := fmt.Sprintf("%s told %s: %s", k.life, how, e.Text)
			problems = append(problems, Problem{At: e.At, Text: text})
			times[k] = nil
		}
	}
	return problems
}

// toldWithin bounds how often one kind of trouble is told within a time, and toldInPeace
// how often while no fault is the reason.
var toldWithin = []struct {
	time int64
	most int
}{{10 * second, 2}, {60 * second, 4}}

const toldInPeace = 2

// tooOften says how a kind of trouble was told too often when it was told last, or "". The
// last fault was at disturbed. Each connection that was lost may be the reason of one more.
func tooOften(times, lost []int64, disturbed int64) string {
	for _, bound := range toldWithin {
		from := times[len(times)-1] - bound.time
		if n := within(times, from); n > bound.most+within(lost, from) {
			return fmt.Sprintf("%d times within %d s", n, bound.time/second)
		}
	}
	if n := within(times, disturbed); n > toldInPeace+within(lost, disturbed) {
		return fmt.Sprintf("%d times with no fault meanwhile", n)
	}
	return ""
}

// disturbed returns when the last fault before a report began or ended that can be the
// reason of trouble: of a server, a stream, a worker of the same role, or its durable.
func (h *History) disturbed(report history.Event) (at int64) {
	role := roleOf(report.Who)
	for _, f := range h.faults {
		// What a fault is about may be a worker, or a durable, which has the name of its role.
		if about := roleOf(f.Key); f.Op == "remake-bucket" || h.roles[about] && about != role {
			continue
		}
		for _, edge := range []int64{f.From, f.At} {
			if edge <= report.At {
				at = max(at, edge)
			}
		}
	}
	return at
}

// within counts the times since from.
func within(times []int64, from int64) (n int) {
	for _, at := range times {
		if at > from {
			n++
		}
	}
	return n
}

// Endings finds processes that did not end when they were told to, and Clients that could
// not be closed in order although all was quiet.
func Endings(h *History) (problems []Problem) {
	over, ran := h.phases[history.Over]
	for _, e := range h.of(history.Report) {
		if e.Who == "nemesis" || e.Who == "run" || e.Op == "ended" || e.Op == "close" && ran && e.At > over {
			problems = append(problems, Problem{At: e.At, Text: e.Who + ": " + e.Text})
		}
	}
	return problems
}
