package nemesis

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/procs"
	"github.com/natty-go/natty/nattytest"
)

// Nemesis makes faults happen.
type Nemesis struct {
	Fleet  *procs.Fleet
	Admin  *natty.Client // on the servers' own addresses
	Log    *history.Log
	Stream string // that the durables belong to
	// Streams are those that are filled.
	Streams []string
	// Durables are those whose leaders step down.
	Durables []string
	// Bucket is deleted and made again.
	Bucket jetstream.KeyValueConfig
	// Old is an older program that workers are restarted with.
	Old string

	servers sync.Mutex // held by a fault of servers, until they are healthy again
	busy    sync.Map   // workers that a fault is about
}

// Run makes faults happen, each at its time, until all are over or ctx ends.
func (n *Nemesis) Run(ctx context.Context, faults []Fault, duration time.Duration) {
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, began.Add(duration))
	defer cancel()
	var all sync.WaitGroup
	for _, f := range faults {
		all.Go(func() {
			if wait(ctx, time.Until(began.Add(f.At))) {
				n.make(ctx, f)
			}
		})
	}
	all.Wait()
	wait(ctx, duration)
}

// wait returns false if ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// make does a fault and writes it down.
func (n *Nemesis) make(ctx context.Context, f Fault) {
	for _, w := range n.Fleet.Workers {
		if w.Name == f.Target {
			n.toWorker(ctx, f, w)
			return
		}
	}
	for _, s := range n.Fleet.Servers {
		if s.Name == f.Target {
			n.toServer(ctx, f, s)
			return
		}
	}
	if f.Kind == Fill {
		n.note(f, func() { n.fill(ctx, f) })
		return
	}
	n.note(f, func() { n.ofData(ctx, f) })
}

// toWorker does nothing while another fault is about the same worker: the two would undo
// each other.
func (n *Nemesis) toWorker(ctx context.Context, f Fault, w *procs.Worker) {
	if _, busy := n.busy.LoadOrStore(w.Name, true); !busy {
		n.note(f, func() { n.ofWorker(ctx, f, w) })
		n.busy.Delete(w.Name)
	}
}

// toServer waits until an earlier fault of servers is over, and they are healthy.
func (n *Nemesis) toServer(ctx context.Context, f Fault, s *procs.Server) {
	n.servers.Lock()
	defer n.servers.Unlock()
	if ctx.Err() != nil {
		return
	}
	n.note(f, func() { n.ofServer(ctx, f, s) })
	healing, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_ = n.Fleet.AwaitHealthy(healing) // the next fault comes anyway
}

func (n *Nemesis) note(f Fault, do func()) {
	e := history.Event{What: history.Fault, Who: "nemesis", ID: fmt.Sprint(f.N), Op: string(f.Kind), Key: f.Target, From: history.Now()}
	do()
	e.At = history.Now()
	n.Log.Add(e)
}

func (n *Nemesis) ofWorker(ctx context.Context, f Fault, w *procs.Worker) {
	links := func(do func(l *nattytest.Link)) {
		for _, l := range w.Links {
			do(l)
		}
	}
	switch f.Kind {
	case Kill:
		w.Kill()
		wait(ctx, f.For)
		n.start(w.Process)
	case Restart:
		n.check(w.Stop(40 * time.Second))
		n.start(w.Process)
	case Downgrade:
		n.replace(w, n.Old)
		wait(ctx, f.For)
		n.replace(w, "")
	case Pause:
		w.Signal(syscall.SIGSTOP)
		wait(ctx, f.For)
		w.Signal(syscall.SIGCONT)
	case Cut:
		links((*nattytest.Link).Cut)
	case Freeze:
		links((*nattytest.Link).Freeze)
		wait(ctx, f.For)
		links((*nattytest.Link).Thaw)
	case Deafen, Lose:
		links((*nattytest.Link).FreezeReplies)
		wait(ctx, f.For)
		if f.Kind == Lose {
			links((*nattytest.Link).Cut)
		}
		links((*nattytest.Link).Thaw)
	case Mute:
		links((*nattytest.Link).FreezeRequests)
		wait(ctx, f.For)
		links((*nattytest.Link).Thaw)
	case Slow:
		links(func(l *nattytest.Link) { l.Delay(f.Delay) })
		wait(ctx, f.For)
		links(func(l *nattytest.Link) { l.Delay(0) })
	}
}

func (n *Nemesis) ofServer(ctx context.Context, f Fault, s *procs.Server) {
	switch f.Kind {
	case KillServer:
		s.Kill()
		wait(ctx, f.For)
		n.start(s.Process)
	case RestartServer:
		n.restart(ctx, f, s)
	case PauseServer:
		s.Signal(syscall.SIGSTOP)
		wait(ctx, f.For)
		s.Signal(syscall.SIGCONT)
	case Rolling:
		for _, s := range n.Fleet.Servers {
			n.restart(ctx, f, s)
			healing, cancel := context.WithTimeout(ctx, 15*time.Second)
			_ = n.Fleet.AwaitHealthy(healing) // the next one is restarted anyway
			cancel()
		}
	case KillAll:
		for _, s := range n.Fleet.Servers {
			s.Kill()
		}
		wait(ctx, f.For)
		for _, s := range n.Fleet.Servers {
			n.start(s.Process)
		}
	case PauseTwo:
		for _, s := range n.Fleet.Servers[:2] {
			s.Signal(syscall.SIGSTOP)
		}
		wait(ctx, f.For)
		for _, s := range n.Fleet.Servers[:2] {
			s.Signal(syscall.SIGCONT)
		}
	default:
		n.ofCluster(ctx, f, s)
	}
}

// ofCluster does faults while all servers run.
func (n *Nemesis) ofCluster(ctx context.Context, f Fault, s *procs.Server) {
	switch f.Kind {
	case Isolate:
		n.Fleet.Isolate(s)
		wait(ctx, f.For)
		n.Fleet.Rejoin(s)
	case MuteServer:
		n.Fleet.Mute(s)
		wait(ctx, f.For)
		n.Fleet.Rejoin(s)
	case Rotate:
		n.rotate(ctx, f)
	case StepDown:
		for _, stream := range append([]string{n.Stream, "KV_linear", "KV_elections", "KV_locks"}, n.Streams...) {
			n.ask(ctx, "STREAM.LEADER.STEPDOWN."+stream)
		}
	case StepAside:
		for _, durable := range n.Durables {
			n.ask(ctx, "CONSUMER.LEADER.STEPDOWN."+n.Stream+"."+durable)
		}
	}
}

// rotate replaces everything that servers and clients prove themselves with. For a while
// the old and the new are accepted. In the end the servers close the connections that
// have logged in with the old.
func (n *Nemesis) rotate(ctx context.Context, f Fault) {
	for _, step := range []func() error{n.Fleet.Offer, n.Fleet.Switch, n.Fleet.Retire} {
		n.check(step())
		reloading, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		n.check(n.Fleet.Reload(reloading))
		cancel()
		wait(ctx, f.For/3)
	}
}

func (n *Nemesis) ofData(ctx context.Context, f Fault) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	switch f.Kind { // errors are not looked at: a fault of the servers may be in the way
	case DeleteDurable:
		_ = n.Admin.JetStream().DeleteConsumer(ctx, n.Stream, f.Target)
	case ResetDurable: // under load, at which nats-server 2.15.2 loses messages; 2.15.3 does not
		_, _ = n.Admin.JetStream().ResetConsumer(ctx, n.Stream, f.Target)
	case RemakeBucket:
		_ = n.Admin.DeleteBucket(ctx, n.Bucket.Bucket)
		wait(ctx, f.For)
		_, _ = n.Admin.EnsureBucket(ctx, n.Bucket)
	}
}

// room is for how many messages more a stream has room that is filled.
const room = 5

// fill leaves a stream room for a few messages, which publishers soon use up. In the end
// it has room for any number. That is written whatever the server says of the first
// change: without an answer it may be made later.
func (n *Nemesis) fill(ctx context.Context, f Fault) {
	asking, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := n.Admin.JetStream().Stream(asking, f.Target)
	if err != nil { // a fault of the servers is in the way
		return
	}
	cfg := stream.CachedInfo().Config
	cfg.MaxMsgs = int64(stream.CachedInfo().State.Msgs) + room
	_, _ = n.Admin.JetStream().UpdateStream(asking, cfg)
	wait(ctx, f.For)
	cfg.MaxMsgs = -1
	emptying, cancel := context.WithTimeout(context.WithoutCancel(ctx), 40*time.Second)
	defer cancel()
	for {
		brief, cancel := context.WithTimeout(emptying, 2*time.Second)
		_, err = n.Admin.JetStream().UpdateStream(brief, cfg)
		cancel()
		if err == nil || !wait(emptying, time.Second/5) {
			n.check(err)
			return
		}
	}
}

// ask sends a request to the API, whose answer does not matter.
func (n *Nemesis) ask(ctx context.Context, what string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, _ = n.Admin.Conn().RequestWithContext(ctx, "$JS.API."+what, nil)
}

func (n *Nemesis) restart(ctx context.Context, f Fault, s *procs.Server) {
	n.check(s.Stop(20 * time.Second))
	wait(ctx, f.For)
	n.start(s.Process)
}

// replace restarts a worker with another program; empty: this one.
func (n *Nemesis) replace(w *procs.Worker, program string) {
	n.check(w.Stop(40 * time.Second))
	w.Use(program)
	n.start(w.Process)
}

func (n *Nemesis) start(p *procs.Process) { n.check(p.Start()) }

// check writes down what a fault did not do as it should.
func (n *Nemesis) check(err error) {
	if err != nil {
		n.Log.Add(history.Event{What: history.Report, Who: "nemesis", Op: "nemesis", Text: err.Error()})
	}
}
