package main

import (
	"fmt"
	"io"
	"strconv"
	"time"
)

// account is kept of what the instances say that they have handled.
type account struct {
	out   io.Writer
	ready int // instances that stand by

	active     string // who handled the last number
	last       int    // that number
	handled    [numbers + 1]bool
	by         map[string]int
	repeats    int
	outOfOrder int

	ended    time.Time // when the active instance was stopped or killed
	handOver time.Duration
}

// note takes note of a line of an instance: "ready", or a number.
func (a *account) note(name, what string) {
	if what == "ready" {
		a.ready++
		fmt.Fprintln(a.out, name, "stands by")
		return
	}
	n, err := strconv.Atoi(what)
	if err != nil || n < 1 || n > numbers {
		fmt.Fprintf(a.out, "%s says %q\n", name, what)
		return
	}
	next := n == a.last+1
	if name != a.active {
		// It goes on behind the last acknowledgement: some may come again. Whoever was active before must be silent by now.
		next = n <= a.last+1 && a.by[name] == 0
		if !a.ended.IsZero() && a.handOver == 0 {
			a.handOver = time.Since(a.ended)
		}
		fmt.Fprintf(a.out, "%s is active, from number %d on\n", name, n)
	}
	if !next {
		a.outOfOrder++
	}
	if a.handled[n] {
		a.repeats++
	}
	a.active, a.last, a.handled[n] = name, n, true
	a.by[name]++
}

// print writes the account. Its error says what was lost or out of order.
func (a *account) print() error {
	lost := 0
	for _, handled := range a.handled[1:] {
		if !handled {
			lost++
		}
	}
	fmt.Fprintf(a.out, "\npublished      %4d\nhandled by A   %4d\nhandled by B   %4d\nhandled twice  %4d\nout of order   %4d\nlost           %4d\nhand-over    %6.2f s\n",
		numbers, a.by["A"], a.by["B"], a.repeats, a.outOfOrder, lost, a.handOver.Seconds())
	if lost > 0 || a.outOfOrder > 0 {
		return fmt.Errorf("%d numbers were not handled, and %d were out of order", lost, a.outOfOrder)
	}
	return nil
}
