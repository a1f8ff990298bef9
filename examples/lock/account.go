package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// held is one time of having the lock.
type held struct {
	token      uint64
	began, end time.Time
}

// account is kept of who had the lock when.
type account struct {
	counter counter
	died    time.Time // when the process with the lock did

	mu      sync.Mutex // guards what follows
	held    []held
	counted int
}

// note is called by all clients.
func (a *account) note(h held, counted bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = append(a.held, h)
	if counted {
		a.counted++
	}
}

// print writes the account. Its error says what is wrong with the count.
func (a *account) print(out io.Writer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	slices.SortFunc(a.held, func(x, y held) int { return x.began.Compare(y.began) })
	together, smaller := 0, 0
	waited := time.Duration(-1)
	for i, h := range a.held {
		if i > 0 && h.began.Before(a.held[i-1].end) {
			together++
		}
		if i > 0 && h.token <= a.held[i-1].token {
			smaller++
		}
		if waited < 0 && h.began.After(a.died) {
			waited = h.began.Sub(a.died)
		}
	}
	n, _, err := a.counter.read()
	if err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, line := range []struct {
		what string
		n    int
	}{
		{"locked", len(a.held)},
		{"counted", a.counted},
		{"count in the file", n},
		{"at the same time", together},
		{"under a smaller token", smaller},
		{"wait for the dead, in ms", int(waited.Milliseconds())},
	} {
		fmt.Fprintf(out, "%-25s %5d\n", line.what, line.n)
	}
	if together+smaller > 0 {
		err = fmt.Errorf("the lock was had %d times by two, and %d times under a smaller token", together, smaller)
	}
	if want := clients * each; n != want || a.counted != want {
		err = errors.Join(err, fmt.Errorf("the count is %d, and not %d", n, want))
	}
	return err
}
