package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// work is the job, done once.
type work struct {
	name       string
	tick       int
	began, end time.Time
}

// account is kept of what the nodes have done.
type account struct {
	out     io.Writer
	changed chan struct{}

	mu   sync.Mutex // guards what follows
	done []work
}

// note is called by both nodes.
func (a *account) note(w work) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.done) == 0 || a.done[len(a.done)-1].name != w.name {
		fmt.Fprintf(a.out, "%s does the job, from tick %d on\n", w.name, w.tick)
	}
	a.done = append(a.done, w)
	select {
	case a.changed <- struct{}{}:
	default: // there is something to look at already
	}
}

// follow waits until the job was done so many times.
func (a *account) follow(ctx context.Context, times int) error {
	for {
		a.mu.Lock()
		n := len(a.done)
		a.mu.Unlock()
		if n >= times {
			return nil
		}
		select {
		case <-a.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leaver is who did the job last, and is to leave now.
func (a *account) leaver() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := a.done[len(a.done)-1].name
	fmt.Fprintln(a.out, name, "leaves")
	return name
}

// print writes the account. Its error says what was done twice, or not at all.
func (a *account) print() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.SortFunc(a.done, func(x, y work) int { return x.began.Compare(y.began) })
	times, by := map[int]int{}, map[string]int{}
	last, twice, together, hands, pause := 0, 0, 0, 0, time.Duration(0)
	for i, w := range a.done {
		if times[w.tick]++; times[w.tick] == 2 {
			twice++
		}
		if i > 0 {
			before := a.done[i-1]
			if w.began.Before(before.end) {
				together++
			}
			if w.name != before.name {
				hands++
			}
			pause = max(pause, w.began.Sub(before.end))
		}
		last = max(last, w.tick)
		by[w.name]++
	}
	missed := last - len(times)
	fmt.Fprintln(a.out)
	for _, line := range []struct {
		what string
		n    int
	}{
		{"ticks", last},
		{"done by A", by["A"]},
		{"done by B", by["B"]},
		{"done twice", twice},
		{"missed", missed},
		{"at the same time", together},
		{"changed hands", hands},
		{"longest pause, in ms", int(pause.Milliseconds())},
	} {
		fmt.Fprintf(a.out, "%-22s %4d\n", line.what, line.n)
	}
	if twice+missed+together > 0 {
		return fmt.Errorf("%d ticks were done twice, %d were missed, and %d overlapped", twice, missed, together)
	}
	if hands != 1 {
		return fmt.Errorf("the job changed hands %d times, and not once, when its node left", hands)
	}
	return nil
}
