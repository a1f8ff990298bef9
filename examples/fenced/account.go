package main

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// account is kept of what the instances say that they have written.
type account struct {
	out    io.Writer
	stored *storage
	inNATS []byte // the state at the end

	leader string // who has said last that it leads
	gaveUp string // who has tried often enough
	ended  string // who has ended last
	nats   place
	other  place

	first, second string    // the one that was paused, and the one that followed
	term          uint64    // of the first, when it was paused
	resumed       time.Time // when it was let go on
	late          int       // its writes that began after that and were not refused
}

// place is one of the two that are written to.
type place struct {
	outcomes map[string]map[string]int // by instance
	token    uint64                    // the largest one that was written with,
	last     int                       // and the last number
}

func (p *place) note(name, outcome string, token uint64, n int) {
	if p.outcomes == nil {
		p.outcomes = map[string]map[string]int{}
	}
	if p.outcomes[name] == nil {
		p.outcomes[name] = map[string]int{}
	}
	p.outcomes[name][outcome]++
	if outcome == "written" && token >= p.token {
		p.token, p.last = token, n
	}
}

// written is how often the leader has written to NATS.
func (a *account) written() int { return a.nats.outcomes[a.leader]["written"] }

// note takes note of a line of an instance.
func (a *account) note(name, what string) {
	var token uint64
	var where, outcome string
	var n int
	var began int64
	switch {
	case what == "gave up":
		a.gaveUp = name
		return
	case what == "ended":
		a.ended = name
		return
	case scan(what, "leads %d", &token):
		fmt.Fprintf(a.out, "%s leads, with token %d\n", name, token)
		a.leader = name
		if a.first == "" {
			a.term = token
		}
		return
	case !scan(what, "%s %s %d %d %d", &where, &outcome, &token, &n, &began):
		fmt.Fprintf(a.out, "%s says %q\n", name, what)
		return
	}
	p := &a.nats
	if where == "storage" {
		p = &a.other
	}
	p.note(name, outcome, token, n)
	if outcome == "written" && token == a.term && !a.resumed.IsZero() && began > a.resumed.UnixNano() {
		a.late++
	}
}

func scan(what, format string, into ...any) bool {
	_, err := fmt.Sscanf(what, format, into...)
	return err == nil
}

// print writes the account. Its error says what the paused leader has spoiled.
func (a *account) print() error {
	fmt.Fprintln(a.out)
	var all error
	for _, p := range []struct {
		name string
		place
		state string
	}{
		{"NATS", a.nats, string(a.inNATS)},
		{"the storage", a.other, a.stored.read()},
	} {
		for _, name := range []string{a.first, a.second} {
			fmt.Fprintf(a.out, "%-28s %4d\n", name+": written to "+p.name, p.outcomes[name]["written"])
			fmt.Fprintf(a.out, "%-28s %4d\n", name+": refused by "+p.name, p.outcomes[name]["refused"])
		}
		if p.outcomes[a.first]["refused"] == 0 {
			all = errors.Join(all, fmt.Errorf("%s has refused nothing", p.name))
		}
		if want := state(p.last, p.token); p.state != want {
			all = errors.Join(all, fmt.Errorf("%s has %s, and not %s", p.name, p.state, want))
		}
	}
	fmt.Fprintf(a.out, "%-28s %4d\n", a.first+": written after the pause", a.late)
	fmt.Fprintf(a.out, "%-28s %s\n", "the state in NATS", a.inNATS)
	fmt.Fprintf(a.out, "%-28s %s\n", "the state in the storage", a.stored.read())
	if a.late > 0 {
		all = errors.Join(all, fmt.Errorf("%s has written %d times after the pause", a.first, a.late))
	}
	return all
}
