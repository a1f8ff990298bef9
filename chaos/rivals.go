package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/check"
	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/nemesis"
	"github.com/natty-go/natty/chaos/procs"
	"github.com/natty-go/natty/chaos/rivals"
	"github.com/natty-go/natty/chaos/work"
)

// rivalWorkers are the workers of a comparison. All rivals have the same plan of faults,
// also those without some of these workers.
var rivalWorkers = []string{"plain-1", "plain-2", "pub-1", "pub-2", "lead-1", "lead-2"}

// compare does a run with each rival, and returns and writes the table.
func compare(ctx context.Context, o options, say func(string, ...any)) error {
	chosen, err := chooseRivals(o.against)
	if err != nil {
		return err
	}
	var rows []rivals.Row
	for _, r := range chosen {
		tally, err := against(ctx, o.settings, r, say)
		if err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		say("%s: %v", r.Name, tally)
		rows = append(rows, rivals.Row{Rival: r, Tally: tally})
	}
	table := rivals.Table(rows)
	say("\n%s", table)
	if o.table == "" {
		return nil
	}
	return os.WriteFile(o.table, []byte(table), 0o600)
}

// chooseRivals returns the rivals with these names, and all for nil.
func chooseRivals(names []string) (chosen []rivals.Rival, err error) {
	if names == nil {
		return rivals.All, nil
	}
	for _, name := range names {
		i := slices.IndexFunc(rivals.All, func(r rivals.Rival) bool { return r.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("-against: there is no rival %q", name)
		}
		chosen = append(chosen, rivals.All[i])
	}
	return chosen, nil
}

// against does a run with one rival in a folder of its own. It keeps the folder below
// -dir.
func against(ctx context.Context, s settings, rival rivals.Rival, say func(string, ...any)) (tally check.Tally, err error) {
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "chaos-"); err != nil {
			return tally, err
		}
		defer func() { _ = os.RemoveAll(s.dir) }() // it is in the folder for such things
	} else {
		s.dir = filepath.Join(s.dir, strings.ReplaceAll(rival.Name, " ", "-"))
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return tally, err
		}
	}
	r, end, err := newRun(s, true, say)
	if err != nil {
		return tally, err
	}
	defer end()
	r.fleet.Rival = rival.Name
	return contest{run: r, rival: rival}.perform(ctx)
}

// contest is the run of a rival.
type contest struct {
	*run
	rival rivals.Rival
}

func (c contest) perform(ctx context.Context) (tally check.Tally, err error) {
	if err := c.setUp(ctx); err != nil {
		return tally, fmt.Errorf("set up: %w", err)
	}
	defer c.admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // everything is over
	faults := c.plan()
	c.say("%s: seed %d, %d faults within %v; logs in %s", c.rival.Name, c.seed, len(faults), c.duration, c.dir)
	c.phase(history.Chaos)
	n := &nemesis.Nemesis{Fleet: c.fleet, Admin: c.admin, Log: c.log, Stream: rivals.Stream}
	if c.rival.Durable != "" {
		n.Durables = []string{c.rival.Durable}
	}
	n.Run(ctx, faults, c.duration)
	if err := c.calmDown(ctx); err != nil {
		return tally, err
	}
	events, err := c.read()
	if err != nil {
		return tally, err
	}
	return check.Count(events), nil
}

// plan returns the faults. Nothing that is stored is deleted or reset: the rivals do not
// promise to cope with that.
func (c contest) plan() []nemesis.Fault {
	cast := nemesis.Cast{Workers: rivalWorkers}
	for _, s := range c.fleet.Servers {
		cast.Servers = append(cast.Servers, s.Name)
	}
	return nemesis.Only(nemesis.New(c.seed, c.duration, cast, c.kinds...), c.only)
}

// setUp starts the servers, makes the stream and the bucket, and starts the workers:
// consumers first.
func (c contest) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startUp)
	defer cancel()
	for _, s := range c.fleet.Servers {
		if err := s.Start(); err != nil {
			return err
		}
	}
	if err := c.fleet.AwaitHealthy(ctx); err != nil {
		return err
	}
	var err error
	c.admin, err = natty.Connect(ctx, work.Config("admin", c.fleet.URLs(), c.fleet.Files),
		natty.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	if _, err := c.admin.EnsureStream(ctx, jetstream.StreamConfig{Name: rivals.Stream, Subjects: []string{rivals.Stream}}); err != nil {
		return err
	}
	if c.rival.Name != "natty" { // which makes the bucket as it needs it
		_, err := c.admin.EnsureBucket(ctx, jetstream.KeyValueConfig{Bucket: rivals.Bucket, TTL: rivals.TTL})
		if err != nil {
			return err
		}
	}
	for _, name := range rivalWorkers {
		role, number, _ := strings.Cut(name, "-")
		if !slices.Contains(c.rival.Roles, role) {
			continue
		}
		w := c.fleet.AddWorker(role, int(number[0]-'0'), 1, c.seed)
		if err := w.Start(); err != nil {
			return err
		}
		if err := procs.WaitFor(ctx, name+" is connected", func() bool { return c.said(w, history.Started) }); err != nil {
			return err
		}
	}
	return nil
}

// Times after the last fault.
const (
	calming  = 40 * time.Second // in which everything must make progress
	patience = 45 * time.Second // with a consumer that handles nothing more
)

// calmDown ends all faults, looks on for a while, and then waits until everything is
// handled or nothing more is.
func (c contest) calmDown(ctx context.Context) error {
	if err := c.fleet.Heal(); err != nil {
		return err
	}
	c.phase(history.Healed)
	healing, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	if err := c.fleet.AwaitHealthy(healing); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(calming):
	}
	c.phase(history.Calm)
	for _, w := range c.fleet.Workers {
		w.Tell(work.Drain)
	}
	waiting, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	if err := procs.WaitFor(waiting, "all is handled", c.finished); err != nil {
		c.say("%v", err) // what is missing is counted
	}
	if err := c.readStream(waiting, rivals.Stream, rivals.Stream); err != nil {
		return err
	}
	c.phase(history.Over)
	var ending sync.WaitGroup
	for _, w := range c.fleet.Workers {
		ending.Go(func() {
			if err := w.Stop(40 * time.Second); err != nil {
				c.say("%v", err)
			}
		})
	}
	ending.Wait()
	return c.crashes()
}

// finished reports whether everything that was acknowledged is handled, or nothing was
// handled for a while.
func (c contest) finished() bool {
	if !slices.Contains(c.rival.Roles, rivals.Consumer) {
		return true
	}
	events, err := c.read()
	if err != nil {
		return false
	}
	var latest int64 // of publishing and handling
	for _, e := range events {
		if e.What == history.Acked || e.What == history.Done || e.What == history.Phase {
			latest = e.At
		}
	}
	idle := time.Duration(history.Now() - latest)
	return idle > patience || idle > 5*time.Second && check.Count(events).Lost == 0
}
