// Package work is what the workers of a chaos run do: each is a process of its own that
// uses natty as a service does, and writes down what it did and what it was told.
package work

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/procs"
)

// What a worker is told on its standard input.
const (
	Drain = "drain" // publish nothing more
	Dump  = "dump"  // say what the copies of buckets hold
)

// Drained is the Text of the phase in which a worker has stopped to publish.
const Drained = "drained"

// worker is what all roles share.
type worker struct {
	procs.WorkerConfig
	c        *natty.Client
	log      *history.Log
	draining chan struct{} // closed at Drain
	dumping  chan struct{} // closed at Dump
	failure  atomic.Value  // the last error of a handler
}

// roles are the kinds of workers. Each runs until ctx ends.
var roles = map[string]func(ctx context.Context, w *worker) error{
	"pub":     publishSingly,
	"writer":  write,
	"batch":   publishBatches,
	"sched":   schedule,
	"plain":   consumePlain,
	"order":   consumeOrdered,
	"excl":    consumeExclusively,
	"dead":    consumeDeadly,
	"small":   consumeSmall,
	"kv":      useKeys,
	"cache":   mirror,
	"redrive": redrive,
	"lead":    lead,
	"lock":    lock,
	"filling": fill,
	// The stream that is full now and then.
	"pubfull":    publishSingly,
	"writerfull": write,
	"batchfull":  publishBatches,
	"full":       consumeDeadly,
}

// drainers are the roles that publish, and say when they have stopped.
var drainers = []string{"pub", "writer", "batch", "sched", "kv", "cache", "filling", "redrive", "pubfull", "writerfull", "batchfull"}

// Drains reports whether a role publishes, and says when it has stopped.
func Drains(role string) bool { return slices.Contains(drainers, role) }

// Config is how natty connects.
func Config(name string, servers []string, files procs.Files) natty.Config {
	return natty.Config{
		Name: name, Servers: servers, NKeyFile: files.NKey, Replicas: 3,
		TLS: natty.TLSConfig{CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Cert},
	}
}

// Run does a worker's work until the process is told to end.
func Run(cfg procs.WorkerConfig) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	w := &worker{
		WorkerConfig: cfg, log: history.NewLog(os.Stdout, cfg.Name, cfg.Life),
		draining: make(chan struct{}), dumping: make(chan struct{}),
	}
	role, known := roles[cfg.Role]
	if !known {
		return fmt.Errorf("there is no role %q", cfg.Role)
	}
	go w.obey()
	var err error
	w.c, err = natty.Connect(ctx, Config("chaos", cfg.Servers, cfg.Files), natty.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))), natty.WithObserver(natty.ObserverFunc(w.observe)))
	if err != nil {
		return err
	}
	w.log.Add(history.Event{What: history.Started})
	var sampling sync.WaitGroup
	sampling.Go(func() { w.sample(ctx) })
	err = role(ctx, w)
	if ctx.Err() == nil {
		w.log.Add(history.Event{What: history.Report, Op: "ended", Text: fmt.Sprint("the role has ended: ", err)})
		<-ctx.Done()
	}
	sampling.Wait()
	closing, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	if closed := w.c.Close(closing); closed != nil {
		w.log.Add(history.Event{What: history.Report, Op: "close", Text: closed.Error()})
	}
	w.log.Add(history.Event{What: history.Ended})
	return err
}

// obey reads what the parent tells. The process ends with its parent.
func (w *worker) obey() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case Drain:
			close(w.draining)
		case Dump:
			close(w.dumping)
		}
	}
	os.Exit(1)
}

// observe writes down what is told to the Observer only: consumers tell OnError too.
func (w *worker) observe(e natty.Event) {
	switch e := e.(type) {
	case natty.ElectionEvent:
		if e.Err != nil {
			w.report("election", e.Err)
		}
	case natty.LockEvent:
		w.report("lock", e.Err)
	case natty.ConnectionEvent:
		if e.Err != nil {
			w.report("connection", e.Err)
		}
	}
}

func (w *worker) report(op string, err error) {
	w.log.Add(history.Event{What: history.Report, Op: op, Text: err.Error()})
}

// onError is the OnError of a consumer.
func (w *worker) onError(err error) {
	if _, failed := errors.AsType[*natty.HandlerError](err); failed {
		w.failure.Store(err.Error())
		w.report("handler", err)
		return
	}
	if removed, is := errors.AsType[*natty.RemovedError](err); is {
		w.log.Add(history.Event{What: history.Report, Op: "removed", N: int64(removed.Count), Seq: removed.First, Text: err.Error()})
		return
	}
	w.report("consumer", err)
}

const sampleEvery = 2 * time.Second

func (w *worker) sample(ctx context.Context) {
	for {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		w.log.Add(history.Event{What: history.Sampled, Sample: &history.Sample{
			Goroutines: runtime.NumGoroutine(), Heap: m.HeapInuse, Out: w.c.Conn().Stats().OutMsgs,
			Health: w.summary(w.c.Health()),
		}})
		select {
		case <-ctx.Done():
			return
		case <-time.After(sampleEvery):
		}
	}
}

// summary is what Health says that explains a lack of progress. The error of a handler,
// or of a message that failed, does not: those are in the history.
func (w *worker) summary(h natty.Health) string {
	var parts []string
	if !h.Connected {
		parts = append(parts, "not connected: "+h.LastError)
	}
	for _, c := range h.Consumers {
		if c.LastError == w.failure.Load() {
			c.LastError = ""
		}
		fine := c.State == natty.ConsumerRunning || c.State == natty.ConsumerStandby
		if !fine || c.Warning != "" || c.LastError != "" {
			parts = append(parts, fmt.Sprintf("consumer %s: %s %s %s", c.Durable, c.State, c.Warning, c.LastError))
		}
	}
	for _, e := range h.Elections {
		if e.LastError != "" || e.Warning != "" {
			parts = append(parts, fmt.Sprintf("election %s: %s %s", e.Key, e.LastError, e.Warning))
		}
	}
	return strings.Join(parts, "\n")
}

// each calls f again and again, with pauses of about a duration, until the worker is to
// drain or to end. For the full stream the pauses are longer: most of it is dead-lettered,
// and redrive walks through all letters.
func (w *worker) each(ctx context.Context, pause time.Duration, f func(n int)) {
	if w.fills() {
		pause *= 8
	}
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-w.draining:
			return
		case <-time.After(pause/2 + rand.N(pause)):
			f(n)
		}
	}
}

// drained says that nothing more is published, and waits for the end.
func (w *worker) drained(ctx context.Context) {
	if ctx.Err() == nil {
		w.log.Add(history.Event{What: history.Phase, Text: Drained})
	}
	<-ctx.Done()
}

// id names a message or an operation uniquely in the run.
func (w *worker) id(n int) string { return fmt.Sprintf("%s.%d.%d", w.Name, w.Life, n) }

// pause waits for up to d.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(rand.N(d)):
	}
}
