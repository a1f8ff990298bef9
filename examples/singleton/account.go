package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// work is a step of the job, as the instance that did it says. All processes read the same clock.
type work struct {
	name       string
	token      uint64
	began, end time.Time
}

// account is kept of what the instances say that they have done.
type account struct {
	out   io.Writer
	ready int // instances that stand by, or lead

	steps  []work
	leader string         // who did the last of them
	terms  map[uint64]int // how many were done under a token

	ended     string // the leader that was stopped or killed last
	endedAt   time.Time
	handOvers []time.Duration
}

// note takes note of a line of an instance.
func (a *account) note(name, what string) {
	if what == "ready" {
		a.ready++
		return
	}
	var began, end int64
	w := work{name: name}
	if _, err := fmt.Sscanf(what, "worked %d %d %d", &w.token, &began, &end); err != nil {
		fmt.Fprintf(a.out, "%s says %q\n", name, what)
		return
	}
	w.began, w.end = time.Unix(0, began), time.Unix(0, end)
	if a.terms[w.token] == 0 {
		fmt.Fprintf(a.out, "%s leads, with token %d\n", name, w.token)
	}
	if a.ended != "" && name != a.ended {
		// What a leader that is stopped does until it learns of that is part of the hand-over.
		a.handOvers = append(a.handOvers, w.began.Sub(a.endedAt))
		fmt.Fprintf(a.out, "   %d ms after that\n", w.began.Sub(a.endedAt).Milliseconds())
		a.ended = ""
	}
	a.steps = append(a.steps, w)
	a.leader = name
	a.terms[w.token]++
}

// worked reports whether whoever leads now has done enough.
func (a *account) worked() bool {
	return a.ended == "" && len(a.steps) > 0 && a.terms[a.steps[len(a.steps)-1].token] >= enough
}

// print writes the account. Its error says how often two worked at the same time.
func (a *account) print() error {
	slices.SortFunc(a.steps, func(x, y work) int { return x.began.Compare(y.began) })
	overlaps, smaller := 0, 0
	by := map[string]int{}
	var until time.Time
	var token uint64
	for _, w := range a.steps {
		if w.began.Before(until) {
			overlaps++
		}
		if w.token < token {
			smaller++
		}
		if w.end.After(until) {
			until = w.end
		}
		token = max(token, w.token)
		by[w.name]++
	}
	fmt.Fprintln(a.out)
	for _, name := range names {
		fmt.Fprintf(a.out, "steps of %-16s %5d\n", name, by[name])
	}
	for i, took := range a.handOvers {
		fmt.Fprintf(a.out, "%-25s %5d\n", fmt.Sprintf("hand-over %d, in ms", i+1), took.Milliseconds())
	}
	fmt.Fprintf(a.out, "%-25s %5d\n%-25s %5d\n", "at the same time", overlaps, "under a smaller token", smaller)
	var err error
	if overlaps > 0 {
		err = fmt.Errorf("%d steps were done while another one was", overlaps)
	}
	if smaller > 0 {
		err = errors.Join(err, fmt.Errorf("%d steps were done under a smaller token than one before", smaller))
	}
	return err
}
