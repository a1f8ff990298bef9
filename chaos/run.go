package main

import (
	"bytes"
	"context"
	"errors"
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
	"github.com/natty-go/natty/chaos/work"
)

// settings is one run.
type settings struct {
	seed     uint64
	duration time.Duration
	only     []int    // the faults to make; nil: all of the plan
	roles    []string // the workers to start; nil: all
	kinds    []string // of faults; nil: all
	old      string   // an older program that workers are restarted with
	dir      string   // for logs and histories
	tidy     bool     // remove it in any case
}

// member is a kind of worker in the roster: how many, and how many versions of them.
type member struct {
	role            string
	count, versions int
}

var roster = []member{
	{"pub", 1, 1},
	{"writer", 1, 1},
	{"batch", 1, 1},
	{"sched", 1, 1},
	{"plain", 2, 2},
	{"order", 1, 1},
	{"excl", 2, 2},
	{"dead", 1, 1},
	{"redrive", 1, 1},
	{"small", 1, 1},
	{"filling", 1, 1},
	{"pubfull", 1, 1},
	{"writerfull", 1, 1},
	{"batchfull", 1, 1},
	{"full", 1, 1},
	{"kv", 2, 1},
	{"cache", 1, 1},
	{"lead", 2, 1},
	{"lock", 2, 1},
}

// outcome is what a run has shown.
type outcome struct {
	faults   []nemesis.Fault
	events   []history.Event
	problems []check.Problem
	// undecided is what took too long to check.
	undecided []string
}

// run is a run under way.
type run struct {
	settings
	fleet *procs.Fleet
	admin *natty.Client
	log   *history.Log
	say   func(format string, args ...any)
}

// newRun makes a run, its processes and its own history in the folder of s. Open: workers do
// not log in.
func newRun(s settings, open bool, say func(format string, args ...any)) (r *run, end func(), err error) {
	fleet, err := procs.NewFleet(s.dir, open)
	if err != nil {
		return nil, nil, err
	}
	file, err := os.OpenFile(fleet.HistoryOf("run"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fleet.Close()
		return nil, nil, err
	}
	return &run{settings: s, fleet: fleet, log: history.NewLog(file, "run", 0), say: say}, func() {
		_ = file.Close() // every line is written at once
		fleet.Close()
	}, nil
}

// perform does a run from the start of the cluster to the verdict.
func perform(ctx context.Context, s settings, say func(format string, args ...any)) (out outcome, err error) {
	r, end, err := newRun(s, s.old != "", say)
	if err != nil {
		return out, err
	}
	defer end()
	if err := r.setUp(ctx); err != nil {
		return out, fmt.Errorf("set up: %w", err)
	}
	defer r.admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // everything is over
	defer r.watchTerms(ctx)()
	out.faults = r.plan()
	say("seed %d: %d servers, %d workers, %d faults within %v; logs in %s",
		s.seed, len(r.fleet.Servers), len(r.fleet.Workers), len(out.faults), s.duration, s.dir)
	r.phase(history.Chaos)
	n := &nemesis.Nemesis{
		Fleet: r.fleet, Admin: r.admin, Log: r.log, Stream: work.Work, Streams: streams, Durables: durables, Bucket: settingsBucket,
		Old: s.old,
	}
	n.Run(ctx, out.faults, s.duration)
	if err := ctx.Err(); err != nil {
		return out, err
	}
	if err := r.calmDown(ctx); err != nil {
		return out, err
	}
	if out.events, err = r.read(); err != nil {
		return out, err
	}
	out.problems, out.undecided = check.Run(out.events)
	return out, nil
}

// durables and streams are those that faults happen to.
var (
	durables = []string{"plain", "order", "excl", "dead"}
	streams  = []string{work.Full, work.Dead}
)

// plan returns the faults of the run.
func (r *run) plan() []nemesis.Fault {
	// The order is part of a seed's plan.
	cast := nemesis.Cast{Durables: []string{"plain", "order", "dead", "excl"}, Streams: streams, Old: r.old != ""}
	for _, s := range r.fleet.Servers {
		cast.Servers = append(cast.Servers, s.Name)
	}
	for _, w := range r.fleet.Workers {
		cast.Workers = append(cast.Workers, w.Name)
	}
	return nemesis.Only(nemesis.New(r.seed, r.duration, cast, r.kinds...), r.only)
}

func (r *run) phase(name string) { r.log.Add(history.Event{What: history.Phase, Text: name}) }

func (r *run) fail(format string, args ...any) {
	r.log.Add(history.Event{What: history.Report, Op: "run", Text: fmt.Sprintf(format, args...)})
}

var settingsBucket = jetstream.KeyValueConfig{Bucket: work.Settings, LimitMarkerTTL: time.Minute}

const startUp = 90 * time.Second

// setUp starts the servers, makes streams and buckets, and starts the workers.
func (r *run) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startUp)
	defer cancel()
	for _, s := range r.fleet.Servers {
		if err := s.Start(); err != nil {
			return err
		}
	}
	if err := r.fleet.AwaitHealthy(ctx); err != nil {
		return err
	}
	var err error
	r.admin, err = natty.Connect(ctx, work.Config("admin", r.fleet.URLs(), r.fleet.Files),
		natty.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	for _, cfg := range []jetstream.StreamConfig{
		{Name: work.Work, Subjects: []string{"w.>"}, AllowAtomicPublish: true, AllowMsgSchedules: true},
		{Name: work.Dead, Subjects: []string{"dead.>"}, Discard: jetstream.DiscardNew},
		{Name: work.Full, Subjects: []string{"full.>"}, Discard: jetstream.DiscardNew, AllowAtomicPublish: true},
		{Name: work.Small, Subjects: []string{"small.>"}, MaxMsgs: work.SmallMax, Discard: jetstream.DiscardOld},
	} {
		if _, err := r.admin.EnsureStream(ctx, cfg); err != nil {
			return err
		}
	}
	for _, cfg := range []jetstream.KeyValueConfig{{Bucket: work.Linear, TTL: time.Hour}, settingsBucket} {
		if _, err := r.admin.EnsureBucket(ctx, cfg); err != nil {
			return err
		}
	}
	return r.startWorkers(ctx)
}

// startWorkers starts the latest version of each consumer first: what is published
// before a durable has its filters is not for it.
func (r *run) startWorkers(ctx context.Context) error {
	first := func(m member, version int) bool { return work.Durables[m.role] != "" && version == m.versions }
	if err := r.startSome(ctx, first); err != nil {
		return err
	}
	err := procs.WaitFor(ctx, "all durables have their filters", func() bool { return r.durablesReady(ctx) })
	if err != nil {
		return err
	}
	return r.startSome(ctx, func(m member, version int) bool { return !first(m, version) })
}

// durablesReady reports whether all durables are there, and the one of two versions has
// the filters of both.
func (r *run) durablesReady(ctx context.Context) bool {
	for _, w := range r.fleet.Workers {
		c, err := r.durable(ctx, work.Durables[w.Role], w.Role)
		if err != nil || w.Role == "plain" && len(c.CachedInfo().Config.FilterSubjects) < work.PlainFilters {
			return false
		}
	}
	return true
}

// startSome starts the workers of a part of the roster, and waits until they are
// connected.
func (r *run) startSome(ctx context.Context, part func(m member, version int) bool) error {
	for _, m := range roster {
		if r.roles != nil && !slices.Contains(r.roles, m.role) {
			continue
		}
		for i := range m.count {
			version := i%m.versions + 1
			if !part(m, version) {
				continue
			}
			w := r.fleet.AddWorker(m.role, i+1, version, r.seed)
			if err := w.Start(); err != nil {
				return err
			}
		}
	}
	return procs.WaitFor(ctx, "all workers are connected", func() bool {
		return !slices.ContainsFunc(r.fleet.Workers, func(w *procs.Worker) bool { return !r.said(w, history.Started) })
	})
}

// said reports whether the present life of a worker has written down an event of a kind,
// or a phase of a name.
func (r *run) said(w *procs.Worker, what history.What) bool {
	data, _ := os.ReadFile(r.fleet.HistoryOf(w.Name)) // it may not have written yet
	life := fmt.Appendf(nil, `"life":%d,`, w.Life())
	for line := range bytes.Lines(data) {
		if bytes.Contains(line, life) && bytes.Contains(line, fmt.Appendf(nil, `:%q`, what)) {
			return true
		}
	}
	return false
}

// calmDown ends all faults, lets the workers come to rest, and writes down what is
// stored in the end.
func (r *run) calmDown(ctx context.Context) error {
	r.say("all faults are over; waiting until all is quiet")
	if err := r.fleet.Heal(); err != nil {
		return err
	}
	r.phase(history.Healed)
	if err := r.settle(ctx); err != nil {
		r.fail("it did not come to rest: %v", err)
	} else {
		r.phase(history.Quiet)
	}
	for _, w := range r.fleet.Workers {
		w.Tell(work.Dump)
	}
	if err := r.readStored(ctx); err != nil {
		r.fail("what is stored cannot be read: %v", err)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(6 * time.Second): // samples of workers that are idle
	}
	r.phase(history.Over)
	var ending sync.WaitGroup
	for _, w := range r.fleet.Workers {
		ending.Go(func() {
			if err := w.Stop(40 * time.Second); err != nil {
				r.fail("%v", err)
			}
		})
	}
	ending.Wait()
	return r.crashes()
}

// crashes looks for processes that have crashed, in what they wrote to standard error.
func (r *run) crashes() error {
	files, err := filepath.Glob(filepath.Join(r.dir, "*.err"))
	if err != nil {
		return err
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(data) {
			text := string(bytes.TrimSpace(line))
			if strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ") || strings.Contains(text, "DATA RACE") {
				r.fail("%s: %s", filepath.Base(name), text)
			}
		}
	}
	return nil
}

const (
	settling    = 4 * time.Minute
	scheduleLag = 7 * time.Second // until the last schedule is due, and a little more
)

// settle waits until nothing is published any more and everything is handled.
func (r *run) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	if err := r.fleet.AwaitHealthy(ctx); err != nil {
		return err
	}
	for _, w := range r.fleet.Workers {
		if err := procs.WaitFor(ctx, w.Name+" is connected", func() bool { return r.said(w, history.Started) }); err != nil {
			return err
		}
		w.Tell(work.Drain)
	}
	for _, w := range r.fleet.Workers {
		if !work.Drains(w.Role) {
			continue
		}
		if err := procs.WaitFor(ctx, w.Name+" has stopped to publish", func() bool { return r.said(w, work.Drained) }); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(scheduleLag):
	}
	for durable, stream := range work.Durables {
		if r.roles != nil && !slices.Contains(r.roles, durable) {
			continue
		}
		var state string
		err := procs.WaitFor(ctx, "everything is handled", func() (done bool) {
			done, state = r.idle(ctx, stream, durable)
			return done
		})
		if err != nil {
			return fmt.Errorf("durable %s: %s: %w", durable, state, err)
		}
	}
	return nil
}

// durable asks about a durable. A server without a leader for it may not answer at all.
func (r *run) durable(ctx context.Context, stream, name string) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return r.admin.JetStream().Consumer(ctx, stream, name)
}

// idle reports whether a durable has nothing to deliver and nothing in flight.
func (r *run) idle(ctx context.Context, stream, durable string) (bool, string) {
	c, err := r.durable(ctx, stream, durable)
	if err != nil {
		return false, err.Error()
	}
	info := c.CachedInfo()
	return info.NumPending == 0 && info.NumAckPending == 0,
		fmt.Sprintf("%d pending, %d in flight", info.NumPending, info.NumAckPending)
}

// read returns all events of the run.
func (r *run) read() ([]history.Event, error) {
	files, err := filepath.Glob(filepath.Join(r.dir, "*.jsonl"))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(err, errors.New("there is no history"))
	}
	return history.Read(files...)
}
