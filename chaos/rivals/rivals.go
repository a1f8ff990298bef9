// Package rivals is what the workers of a comparison do: each is a process of its own
// that publishes, handles or leads, with natty or with another library. One loop for
// each role calls all libraries through a small adapter.
package rivals

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/procs"
	"github.com/natty-go/natty/chaos/work"
)

// Roles of workers.
const (
	Publisher = "pub"
	Consumer  = "plain"
	Candidate = "lead"
)

// The stream, whose only subject has its name; the durable; and the bucket of the
// election and its key.
const (
	Stream  = work.Work
	durable = "plain"
	Bucket  = work.Elections
	key     = "boss"
	// TTL is how long a leadership survives its owner.
	TTL = work.LeaseTTL
)

// Rival is a library, and what a service writes to use it.
type Rival struct {
	Name  string
	Roles []string
	// Durable is the name that its consumer has on the server.
	Durable string

	connect func(ctx context.Context, cfg procs.WorkerConfig) (*adapter, error)
}

var (
	messages = []string{Publisher, Consumer}
	allRoles = []string{Publisher, Consumer, Candidate}
)

// All are those that there are.
var All = []Rival{
	{"natty", allRoles, durable, connectNatty},
	{"nats.go", allRoles, durable, connectPlain},
	{"nats.go with message ids", messages, durable, connectWithIDs},
	{"watermill-nats", messages, "watermill__" + durable + "__" + Stream, connectWatermill},
	{"KV lease with Put", []string{Candidate}, "", connectBlind},
}

// adapter is what the roles ask of a library. A library without a role has nil.
type adapter struct {
	// publish returns nil when the server has acknowledged the message.
	publish func(ctx context.Context, id string) error
	// consume calls handle for each message, until ctx ends or it cannot go on.
	consume func(ctx context.Context, handle func(id string)) error
	// lead calls elected when this process believes that it leads, and what elected
	// returned when it no longer does, until ctx ends or it cannot go on.
	lead  func(ctx context.Context, elected func() (deposed func())) error
	close func()
}

type worker struct {
	procs.WorkerConfig
	*adapter
	log      *history.Log
	draining chan struct{}
}

// again is the pause after which a service tries something again that has failed.
const again = time.Second

// Run does a worker's work until the process is told to end.
func Run(cfg procs.WorkerConfig) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	w := &worker{WorkerConfig: cfg, log: history.NewLog(os.Stdout, cfg.Name, cfg.Life), draining: make(chan struct{})}
	go w.obey()
	var connect func(context.Context, procs.WorkerConfig) (*adapter, error)
	for _, r := range All {
		if r.Name == cfg.Rival {
			connect = r.connect
		}
	}
	if connect == nil {
		return fmt.Errorf("there is no rival %q", cfg.Rival)
	}
	w.persist(ctx, "connect", func() (err error) {
		w.adapter, err = connect(ctx, cfg)
		return err
	})
	if ctx.Err() != nil {
		return nil
	}
	w.log.Add(history.Event{What: history.Started})
	var living sync.WaitGroup
	living.Go(func() { w.live(ctx) })
	switch cfg.Role {
	case Publisher:
		w.publishAll(ctx)
	case Consumer:
		w.persist(ctx, "consume", func() error { return w.consume(ctx, w.handle) })
	case Candidate:
		w.persist(ctx, "lead", func() error { return w.lead(ctx, w.elected()) })
	}
	<-ctx.Done()
	living.Wait()
	w.close()
	w.log.Add(history.Event{What: history.Ended})
	return nil
}

// obey reads what the parent tells. The process ends with its parent.
func (w *worker) obey() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == work.Drain {
			close(w.draining)
		}
	}
	os.Exit(1)
}

// persist calls f until it succeeds or ctx ends: as whoever restarts a service that
// could not start.
func (w *worker) persist(ctx context.Context, op string, f func() error) {
	for ctx.Err() == nil {
		err := f()
		if err == nil {
			return
		}
		w.log.Add(history.Event{What: history.Report, Op: op, Text: err.Error()})
		pause(ctx, again)
	}
}

// live writes down that the process is alive: what it believed when it was killed, it
// believed until then.
func (w *worker) live(ctx context.Context) {
	for ctx.Err() == nil {
		w.log.Add(history.Event{What: history.Sampled})
		pause(ctx, 200*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// attempts is how often a service publishes a message that is not acknowledged.
const attempts = 3

func (w *worker) publishAll(ctx context.Context) {
	for n := 1; ctx.Err() == nil; n++ {
		select {
		case <-w.draining:
			w.log.Add(history.Event{What: history.Phase, Text: work.Drained})
			return
		case <-time.After(50*time.Millisecond + rand.N(100*time.Millisecond)):
			w.publishOne(ctx, fmt.Sprintf("%s.%d.%d", w.Name, w.Life, n))
		}
	}
}

func (w *worker) publishOne(ctx context.Context, id string) {
	w.log.Add(history.Event{What: history.Sent, ID: id})
	var err error
	for range attempts {
		if err = w.publish(ctx, id); err == nil {
			w.log.Add(history.Event{What: history.Acked, ID: id})
			return
		}
		w.log.Add(history.Event{What: history.Report, Op: "publish", ID: id, Text: err.Error()})
		pause(ctx, again)
	}
	w.log.Add(history.Event{What: history.Unknown, ID: id, Text: err.Error()})
}

func (w *worker) handle(id string) {
	w.log.Add(history.Event{What: history.Begun, ID: id})
	pause(context.Background(), rand.N(10*time.Millisecond))
	w.log.Add(history.Event{What: history.Done, ID: id})
}

// elected returns what writes down the times for which this process leads.
func (w *worker) elected() func() (deposed func()) {
	var n uint64 // of the term, within this process
	return func() func() {
		n++
		e := history.Event{What: history.Own, Op: work.Leading, Seq: n}
		w.log.Add(e)
		var once sync.Once
		return func() {
			once.Do(func() {
				e.What = history.Disow
				w.log.Add(e)
			})
		}
	}
}
