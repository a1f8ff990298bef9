package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/natty-go/natty"
)

// account is kept of what the services have seen.
type account struct {
	services []*service
	version  int           // of the configuration now
	changes  int           // that all services have seen
	slowest  time.Duration // until all had seen one
	caughtUp time.Duration // until all had seen the one that was made while the network was cut
}

// follow changes the configuration, and waits until every service has seen that.
func (a *account) follow(ctx context.Context, settings *natty.Bucket[limits]) error {
	began := time.Now()
	if err := a.change(ctx, settings); err != nil {
		return err
	}
	if err := a.seen(ctx); err != nil {
		return err
	}
	a.slowest = max(a.slowest, time.Since(began))
	return nil
}

// change changes the configuration.
func (a *account) change(ctx context.Context, settings *natty.Bucket[limits]) error {
	a.version++
	return change(ctx, settings)
}

// seen waits until every service has seen what was changed last.
func (a *account) seen(ctx context.Context) error {
	for _, s := range a.services {
		if err := wait(ctx, func() bool { return s.sees() == a.version }); err != nil {
			return err
		}
	}
	a.changes++
	return nil
}

// wait looks every millisecond.
func wait(ctx context.Context, until func() bool) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if until() {
			return nil
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// print writes the account. Its error says what the services have not seen.
func (a *account) print(out io.Writer) error {
	reads, missing, oldest := 0, 0, time.Duration(0)
	for _, s := range a.services {
		s.mu.Lock()
		reads, missing, oldest = reads+s.reads, missing+s.missing, max(oldest, s.oldest)
		s.mu.Unlock()
	}
	fmt.Fprintln(out)
	for _, line := range []struct {
		what string
		n    int
	}{
		{"changes seen by all", a.changes},
		{"reads", reads},
		{"reads of nothing, or wrong", missing},
		{"slowest change, in ms", int(a.slowest.Milliseconds())},
		{"oldest copy, in ms", int(oldest.Milliseconds())},
		{"caught up, in ms", int(a.caughtUp.Milliseconds())},
	} {
		fmt.Fprintf(out, "%-28s %6d\n", line.what, line.n)
	}
	if missing > 0 || a.changes != changes+1 {
		return fmt.Errorf("%d reads had no configuration or a wrong one, and %d changes of %d were seen", missing, a.changes, changes+1)
	}
	return nil
}
