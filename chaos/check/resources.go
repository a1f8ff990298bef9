package check

import (
	"fmt"
	"strings"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// Bounds of what a worker may send: so many messages a second, and so many for each
// event in its history.
const (
	sentEachSecond = 100
	sentEachEvent  = 10
	// A Writer sends its window again after an outage, and that copy may be lost, too.
	sentByWindow = 2 * work.WriterWindow
)

// Requests finds workers that send more than their work explains.
func Requests(h *History) (problems []Problem) {
	last, events := map[life]history.Event{}, map[life]int64{}
	for _, e := range h.Events {
		l := lifeOf(e)
		events[l]++
		if e.What != history.Sampled || e.Sample == nil {
			continue
		}
		before, is := last[l]
		if is && e.Out > before.Out {
			sent, allowed := int64(e.Out-before.Out), sentEachSecond*((e.At-before.At)/second+1)+sentEachEvent*events[l]
			if strings.HasPrefix(roleOf(e.Who), "writer") {
				allowed += sentByWindow
			}
			if sent > allowed {
				text := fmt.Sprintf("%s sent %d messages within %.1f s, with %d events",
					l, sent, float64(e.At-before.At)/1e9, events[l])
				problems = append(problems, Problem{At: e.At, Text: text})
			}
		}
		last[l], events[l] = e, 0
	}
	return problems
}

// Flat finds processes that have many more goroutines, or much more heap, when all is
// quiet than at their beginning.
func Flat(h *History) (problems []Problem) {
	quiet, ran := h.phases[history.Quiet]
	if !ran {
		return nil
	}
	first, final := map[life]history.Event{}, map[life]history.Event{}
	for _, e := range h.of(history.Sampled) {
		if e.Sample == nil {
			continue
		}
		l := lifeOf(e)
		if b, is := first[l]; !is || e.At-b.At < 5*second && e.Goroutines > b.Goroutines {
			if !is {
				first[l] = e
			} else {
				b.Sample = e.Sample
				first[l] = b
			}
		}
		if e.At > quiet {
			final[l] = e
		}
	}
	for l, e := range final {
		b := first[l]
		text := ""
		switch {
		case e.Goroutines > 2*b.Goroutines+20:
			text = fmt.Sprintf("%s began with %d goroutines and ends with %d", l, b.Goroutines, e.Goroutines)
		case e.Heap > 3*b.Heap+32<<20:
			text = fmt.Sprintf("%s began with %d MiB of heap and ends with %d", l, b.Heap>>20, e.Heap>>20)
		}
		if text != "" {
			problems = append(problems, Problem{At: e.At, Text: text})
		}
	}
	return problems
}
