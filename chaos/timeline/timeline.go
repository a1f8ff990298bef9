// Package timeline draws a run as one HTML page that needs nothing else.
package timeline

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"slices"
	"strings"

	"github.com/natty-go/natty/chaos/check"
	"github.com/natty-go/natty/chaos/history"
)

//go:embed page.html
var page string

var pageTemplate = template.Must(template.New("page").Parse(page))

// Measures of the drawing.
const (
	perSecond = 14.0 // pixels
	laneHigh  = 26
	left      = 110 // room for the names of lanes
	top       = 34
)

// bar is a time on a lane.
type bar struct {
	X, W   float64
	Y, H   int
	Class  string
	Text   string
	Inside string
}

// mark is a moment on a lane.
type mark struct {
	X     float64
	Y     int
	Class string
	Text  string
}

// line is a vertical line.
type line struct {
	X    float64
	Text string
	Big  bool
}

type lane struct {
	Name string
	Y    int
}

type row struct{ Time, Kind, Text string }

type drawing struct {
	Title         string
	Width, Height int
	Bottom        int
	Lanes         []lane
	Bars          []bar
	Marks         []mark
	Lines         []line
	Problems      []row
	Faults        []row

	zero   int64
	places map[string]int // the lane of each process
}

// Page returns the page of a run.
func Page(title string, events []history.Event, problems []check.Problem) []byte {
	d := &drawing{Title: title, places: map[string]int{}}
	if len(events) > 0 {
		d.addLanes(events)
		d.addLives(events)
		d.addOwners(events)
		d.addFaults(events)
		d.addMessages(events)
		d.addProblems(events, problems)
		d.addTimes(events)
	}
	var out bytes.Buffer
	if err := pageTemplate.Execute(&out, d); err != nil {
		fmt.Fprintln(&out, template.HTMLEscapeString(err.Error()))
	}
	return out.Bytes()
}

func (d *drawing) x(at int64) float64 { return left + max(0, float64(at-d.zero)/1e9)*perSecond }

func (d *drawing) seconds(at int64) string { return fmt.Sprintf("%.2f s", float64(at-d.zero)/1e9) }

// addLanes makes a lane for the problems, each server and each worker.
func (d *drawing) addLanes(events []history.Event) {
	var workers []string
	for _, e := range events {
		if e.What == history.Started && !slices.Contains(workers, e.Who) {
			workers = append(workers, e.Who)
		}
		if d.zero == 0 && e.What == history.Phase && e.Who == "run" {
			d.zero = e.At
		}
	}
	slices.Sort(workers)
	for i, name := range append([]string{"problems", "server-1", "server-2", "server-3", "stored"}, workers...) {
		d.places[name] = top + i*laneHigh
		d.Lanes = append(d.Lanes, lane{name, top + i*laneHigh})
	}
	d.Bottom = top + len(d.Lanes)*laneHigh
	d.Height = d.Bottom + 10
	end := events[len(events)-1].At
	d.Width = int(d.x(end)) + 60
}

func (d *drawing) bar(who string, from, to int64, class, inside, text string) {
	y, known := d.places[who]
	if !known {
		return
	}
	x := d.x(from)
	if d.x(to)-x < 6*float64(len(inside)) {
		inside = "" // there is no room
	}
	d.Bars = append(d.Bars, bar{
		X: x, W: max(2, d.x(to)-x), Y: y + 3, H: laneHigh - 6, Class: class, Inside: inside,
		Text: fmt.Sprintf("%s: %s, %s to %s", who, text, d.seconds(from), d.seconds(to)),
	})
}

func (d *drawing) mark(who string, at int64, class, text string) {
	if y, known := d.places[who]; known {
		d.Marks = append(d.Marks, mark{X: d.x(at), Y: y + laneHigh/2, Class: class, Text: d.seconds(at) + " " + text})
	}
}

// addLives draws for how long each process ran.
func (d *drawing) addLives(events []history.Event) {
	type life struct {
		who string
		n   int
	}
	first, last := map[life]int64{}, map[life]int64{}
	var lives []life
	for _, e := range events {
		l := life{e.Who, e.Life}
		if _, known := first[l]; !known {
			first[l] = e.At
			lives = append(lives, l)
		}
		last[l] = e.At
	}
	for _, l := range lives {
		if l.n > 0 {
			d.bar(l.who, first[l], last[l], "life", "", fmt.Sprintf("life %d", l.n))
		}
	}
}

// addOwners draws who led, who had the lock, and which instance was active.
func (d *drawing) addOwners(events []history.Event) {
	open := map[string]history.Event{}
	last := map[string]int64{}
	name := func(e history.Event) string { return fmt.Sprint(e.Who, " ", e.Life) }
	end := func(key string, at int64) {
		if e, is := open[key]; is {
			d.bar(e.Who, e.At, at, "own", "", fmt.Sprintf("%s, token %d", e.Op, e.Seq))
			delete(open, key)
		}
	}
	active, lastActive := map[string]int64{}, map[string]int64{}
	for _, e := range events {
		key := name(e)
		last[key] = e.At
		switch {
		case e.What == history.Own:
			open[key] = e
		case e.What == history.Disow:
			end(key, e.At)
		case e.What == history.Begun && strings.HasPrefix(e.Subject, "w.excl."):
			if from, is := active[e.Who]; is && e.At-lastActive[e.Who] > 1e9 {
				d.bar(e.Who, from, lastActive[e.Who], "own", "", "active")
				delete(active, e.Who)
			}
			if _, is := active[e.Who]; !is {
				active[e.Who] = e.At
			}
			lastActive[e.Who] = e.At
		}
	}
	for key := range open {
		end(key, last[key])
	}
	for who, from := range active {
		d.bar(who, from, lastActive[who], "own", "", "active")
	}
}

// addFaults draws faults on the lanes of what they are about.
func (d *drawing) addFaults(events []history.Event) {
	for _, e := range events {
		if e.What != history.Fault {
			continue
		}
		d.Faults = append(d.Faults, row{d.seconds(e.From), e.Op, e.Key + ", until " + d.seconds(e.At)})
		targets := []string{e.Key}
		switch e.Op {
		case "kill-all", "rolling", "step-down", "step-aside":
			targets = []string{"server-1", "server-2", "server-3"}
		case "pause-two":
			targets = []string{"server-1", "server-2"}
		case "delete-durable", "reset-durable", "remake-bucket", "fill":
			targets = []string{"stored"}
		}
		for _, target := range targets {
			d.bar(target, e.From, e.At, "fault", e.Op, fmt.Sprintf("fault %s, %s of %s", e.ID, e.Op, e.Key))
		}
	}
}

// addMessages marks what was in doubt, and what was handled a second time.
func (d *drawing) addMessages(events []history.Event) {
	done := map[string]bool{}
	for _, e := range events {
		switch e.What {
		case history.Unknown:
			d.mark(e.Who, e.At, "doubt", e.ID+" is in doubt: "+e.Text)
		case history.Done:
			if done[e.ID] {
				d.mark(e.Who, e.At, "again", e.ID+" was handled again")
			}
			done[e.ID] = true
		case history.Report:
			if e.Op != "handler" {
				d.mark(e.Who, e.At, "report", e.Op+": "+e.Text)
			}
		}
	}
}

// addProblems marks problems on their own lane, and on those of the processes that had
// to do with the message.
func (d *drawing) addProblems(events []history.Event, problems []check.Problem) {
	for _, p := range problems {
		d.Problems = append(d.Problems, row{d.seconds(p.At), p.Check, p.Text})
		d.mark("problems", p.At, "problem", p.Check+": "+p.Text)
		if p.ID == "" {
			continue
		}
		for _, e := range events {
			if e.ID == p.ID && (e.What == history.Sent || e.What == history.Begun || e.What == history.Acked) {
				d.mark(e.Who, e.At, "problem", string(e.What)+" "+e.ID+": "+p.Text)
			}
		}
	}
}

// addTimes draws the scale and the phases.
func (d *drawing) addTimes(events []history.Event) {
	end := events[len(events)-1].At
	for at, n := d.zero, 0; at < end; at, n = at+5e9, n+5 {
		d.Lines = append(d.Lines, line{X: d.x(at), Text: fmt.Sprint(n, " s")})
	}
	for _, e := range events {
		if e.What == history.Phase && e.Who == "run" {
			d.Lines = append(d.Lines, line{X: d.x(e.At), Text: e.Text, Big: true})
		}
	}
}
