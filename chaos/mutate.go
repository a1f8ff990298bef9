package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/natty-go/natty/chaos/check"
	"github.com/natty-go/natty/chaos/history"
)

// mutant is natty with one promise broken, the workers that use the promise, and the
// checks of which one must notice.
type mutant struct {
	name   string
	breaks string
	roles  string
	kinds  string
	by     []string
	least  time.Duration // of faults that it takes to show
}

var mutants = []mutant{
	{
		name: "ack-first", breaks: "a message is acknowledged before its handler runs",
		roles: "pub,plain,dead", kinds: "kill,restart,kill-server", by: []string{"stored is handled", "dead letters are complete"},
	},
	{
		name: "blind-renewal", breaks: "a lease counts as renewed without an answer",
		roles: "lead,lock", kinds: "freeze", by: []string{"one leader", "one lock owner", "locks are linearizable"},
	},
	{
		name: "blind-writes", breaks: "a write of a key depends on no revision",
		roles: "kv,lock", kinds: "freeze,cut", by: []string{"keys are linearizable", "one lock owner", "locks are linearizable"},
	},
	{
		name: "drops-letters", breaks: "a message that failed for good has no letter",
		roles: "pub,dead", kinds: "kill", by: []string{"dead letters are complete"},
	},
	{
		name: "early", breaks: "a schedule is due three seconds too soon",
		roles: "sched,plain", kinds: "kill", by: []string{"schedule is in time"},
	},
	{
		name: "half-batch", breaks: "a batch is committed without its second half",
		roles: "batch,plain", kinds: "kill", by: []string{"batch is whole"},
	},
	{
		name: "hides-removals", breaks: "nobody is told that messages were removed",
		roles: "filling,small", kinds: "freeze,pause", by: []string{"stored is handled"},
		least: time.Minute, // a consumer looks for removals every 30 s at least
	},
	{
		name: "hurries", breaks: "a publish waits for no answer, and is sent again without a pause",
		roles: "pub,batch", kinds: "deafen,mute-server,pause-two", by: []string{"requests are bounded"},
	},
	{
		name: "leaks", breaks: "a publish leaves a goroutine behind",
		roles: "pub,plain", kinds: "cut", by: []string{"goroutines and heap are flat"},
	},
	{
		name: "lets-panic", breaks: "the panic of a handler ends the process",
		roles: "pub,plain", kinds: "cut", by: []string{"processes end"},
	},
	{
		name: "no-fence", breaks: "Term.Put does not depend on the fence",
		roles: "lead", kinds: "freeze", by: []string{"fenced writes"},
	},
	{
		name: "no-message-id", breaks: "a publish has no message id",
		roles: "pub,writer,plain", kinds: "lose,cut,freeze,deafen,kill-server", by: []string{"stored once"},
	},
	{
		name: "no-order", breaks: "OrderBy orders nothing",
		roles: "pub,order", kinds: "cut", by: []string{"order of a key"},
	},
	{
		name: "no-reset", breaks: "a new active instance goes on where the deliveries are",
		roles: "pub,excl", kinds: "kill,restart,freeze,cut", by: []string{"order of exclusive", "stored is handled"},
	},
	{
		name: "not-exclusive", breaks: "all instances are active",
		roles: "pub,writer,batch,excl", kinds: "cut", by: []string{"one active instance"},
	},
	{
		name: "replaces-filters", breaks: "an instance takes filters off",
		roles: "pub,plain", kinds: "kill,restart", by: []string{"stored is handled"},
	},
	{
		name: "stalls", breaks: "a consumer's goroutines end after a message, and nobody is told",
		roles: "pub,plain", kinds: "cut", by: []string{"nothing is silent"},
	},
	{
		name: "stale-copies", breaks: "a copy keeps the keys of a bucket that was made anew",
		roles: "cache", kinds: "remake-bucket,freeze", by: []string{"copies equal the bucket"},
	},
	{
		name: "tells-again", breaks: "trouble is reported as often as it is noticed",
		roles: "pub,plain,excl,order,dead", kinds: "remake-bucket", by: []string{"trouble is told once"},
		least: 45 * time.Second, // a consumer looks at its durable every 10 s, and no fault is to disturb that
	},
}

// report is the result of a run for another process.
type report struct {
	Chaos    int64 // when faults began
	Problems []check.Problem
}

func writeReport(file string, o outcome) error {
	r := report{Problems: o.problems}
	for _, e := range o.events {
		if e.What == history.Phase && e.Text == history.Chaos {
			r.Chaos = e.At
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

// mutate builds this program with natty's mutants, and fails unless each is found.
func mutate(ctx context.Context, o options, say func(string, ...any)) error {
	dir, err := os.MkdirTemp("", "chaos-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // it is in the folder for such things
	program := filepath.Join(dir, "chaos")
	build := exec.CommandContext(ctx, "go", "build", "-tags", "natty_mutant", "-o", program, //nolint:gosec // this program
		"github.com/natty-go/natty/chaos")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	var survivors []string
	for _, m := range mutants {
		if o.mutants != nil && !slices.Contains(o.mutants, m.name) {
			continue
		}
		caught := false
		for seed := o.seed; seed < o.seed+uint64(o.seeds) && !caught && ctx.Err() == nil; seed++ {
			caught = m.try(ctx, program, dir, seed, o.duration, say)
		}
		if !caught {
			survivors = append(survivors, m.name)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if survivors != nil {
		return fmt.Errorf("no checker noticed: %s", strings.Join(survivors, ", "))
	}
	say("every mutant was caught")
	return nil
}

// try makes a run with a mutant. It reports whether one of the checks noticed.
func (m mutant) try(ctx context.Context, program, dir string, seed uint64, d time.Duration, say func(string, ...any)) bool {
	file := filepath.Join(dir, "report.json")
	_ = os.Remove(file) // there is none before the first run
	began := time.Now()
	cmd := exec.CommandContext(ctx, program, //nolint:gosec // built just now
		"-seed", fmt.Sprint(seed), "-duration", max(d, m.least).String(), "-roles", m.roles, "-kinds", m.kinds, "-tidy",
		"-json", file, "-html", filepath.Join(dir, "page.html"))
	cmd.Env = append(os.Environ(), "NATTY_MUTANT="+m.name)
	out, err := cmd.CombinedOutput()
	data, missing := os.ReadFile(file)
	var r report
	if err := errors.Join(missing, json.Unmarshal(data, &r)); err != nil {
		say("%-16s seed %d: the run failed: %v: %s", m.name, seed, err, lastLine(out))
		return false
	}
	if err == nil {
		say("%-16s seed %d: nothing noticed that %s", m.name, seed, m.breaks)
		return false
	}
	counts, first := map[string]int{}, int64(0)
	for _, p := range r.Problems {
		counts[p.Check]++
		if first == 0 && slices.Contains(m.by, p.Check) {
			first = p.At
		}
	}
	var checks []string
	for _, c := range check.All {
		if counts[c.Name] > 0 {
			checks = append(checks, fmt.Sprintf("%s (%d)", c.Name, counts[c.Name]))
		}
	}
	if first == 0 {
		say("%-16s seed %d: only others noticed: %s", m.name, seed, strings.Join(checks, ", "))
		return false
	}
	say("%-16s seed %d: caught after %.1f s of faults, in a run of %.0f s, by: %s",
		m.name, seed, float64(first-r.Chaos)/1e9, time.Since(began).Seconds(), strings.Join(checks, ", "))
	return true
}

func lastLine(out []byte) string {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	return string(lines[len(lines)-1])
}
