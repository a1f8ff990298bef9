package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/child"
)

// program is the command that runs while the key is owned.
type program struct {
	args []string
	l    *leaseFlags
	app  *app
}

// run runs the command once, until it ends, natty is stopped or the key is lost.
func (p *program) run(owned context.Context, stop stops, token uint64) (int, error) {
	return child.Run(child.Config{
		Args: p.args, In: p.app.in, Out: p.app.out, Err: p.app.err,
		Env: []string{
			"NATTY_TOKEN=" + strconv.FormatUint(token, 10),
			"NATTY_BUCKET=" + p.l.bucket, "NATTY_KEY=" + p.l.key, "NATTY_OWNER=" + p.l.name,
		},
		Stop: stop.first, Grace: p.l.grace,
		Lost: owned, LostGrace: p.l.lostGrace(),
		Hurry:   stop.second,
		Silence: p.l.ttl / 6,
	})
}

// stops are the ctxs that end with the first and the second signal to natty.
type stops struct {
	first, second context.Context //nolint:containedctx // the program's own
	signal        *atomic.Int32   // the first one
}

// onSignals returns ctxs that end with the signals that ask natty to stop. Those that
// it was started to ignore, as by nohup, stay ignored.
func onSignals(ctx context.Context) (stops, func()) {
	all := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		all = append(all, syscall.SIGHUP)
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, all...)
	first, cancelFirst := context.WithCancel(context.WithoutCancel(ctx))
	second, cancelSecond := context.WithCancel(context.WithoutCancel(ctx))
	s := stops{first, second, &atomic.Int32{}}
	ended := make(chan struct{})
	go func() {
		for _, cancel := range []func(){cancelFirst, cancelSecond} {
			select {
			case got := <-signals:
				if number, ok := got.(syscall.Signal); ok {
					s.signal.CompareAndSwap(0, int32(number))
				}
				cancel()
			case <-ended:
				return
			}
		}
	}()
	return s, func() {
		signal.Stop(signals)
		close(ended)
		cancelFirst()
		cancelSecond()
	}
}

// underLease connects, and calls f.
func (a *app) underLease(ctx context.Context, f func(stops, *natty.Client) error) error {
	stop, end := onSignals(ctx)
	defer end()
	c, err := a.connect(stop.first, true)
	if err == nil {
		err = f(stop, c)
		closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(closing) // the key is released already, or expires
	}
	if _, done := errors.AsType[*exitError](err); stop.first.Err() != nil && !done {
		return &exitError{128 + int(stop.signal.Load())}
	}
	return err
}

// runLead runs the command in each term, until it ends by itself.
func (p *program) runLead(stop stops, c *natty.Client) error {
	a, l := p.app, p.l
	// A stop must not end the term: the leadership is renewed until the command has ended.
	ctx, cancel := context.WithCancel(context.WithoutCancel(stop.first))
	defer cancel()
	var mu sync.Mutex // a term begins, or the stop ends the wait for one
	running := false
	defer context.AfterFunc(stop.first, func() {
		mu.Lock()
		defer mu.Unlock()
		if !running {
			cancel()
		}
	})()
	code := -1
	err := c.Lead(ctx, natty.AsLeaderConfig{
		Bucket: l.bucket, Key: l.key, NodeName: l.name, BucketTTL: l.ttl, ReplicaCount: l.replicas,
	}, func(owned context.Context, term *natty.Term) (err error) {
		mu.Lock()
		running = stop.first.Err() == nil
		mu.Unlock()
		if !running {
			return nil
		}
		a.say("leads", l, term.Token())
		ended, err := p.run(owned, stop, term.Token())
		mu.Lock()
		defer mu.Unlock()
		running = false
		switch {
		case err != nil:
			return err
		case !errors.Is(context.Cause(owned), natty.ErrDeposed), stop.first.Err() != nil:
			code = ended
			cancel()
		default:
			a.say("is no longer the leader; the command was stopped", l, term.Token())
		}
		return nil
	})
	if err == nil && code >= 0 {
		return &exitError{code}
	}
	return err
}

// runLock runs the command once, under the lock.
func (p *program) runLock(stop stops, c *natty.Client, noWait bool, wait time.Duration) error {
	a, l := p.app, p.l
	lease, err := p.acquire(stop, c, noWait, wait)
	if err != nil {
		return err
	}
	a.say("has the lock", l, lease.Token())
	owned := lease.Context()
	code, err := p.run(owned, stop, lease.Token())
	lost := context.Cause(owned)
	end, cancel := context.WithTimeout(context.Background(), min(l.ttl, 5*time.Second))
	defer cancel()
	releaseErr := lease.Release(end)
	switch {
	case err != nil:
		return err
	case errors.Is(lost, natty.ErrDeposed):
		return fmt.Errorf("the lock was lost while the command ran, and the command was stopped: %w", lost)
	case releaseErr != nil:
		fmt.Fprintln(a.err, "natty: "+oneLine(releaseErr.Error()))
	}
	return &exitError{code}
}

func (p *program) acquire(stop stops, c *natty.Client, noWait bool, wait time.Duration) (*natty.Lease, error) {
	l := p.l
	cfg := natty.LockConfig{Bucket: l.bucket, Key: l.key, Owner: l.name, TTL: l.ttl, ReplicaCount: l.replicas}
	if noWait {
		lease, err := c.TryLock(stop.first, cfg)
		if errors.Is(err, natty.ErrLocked) {
			err = fmt.Errorf("%w; leave out --no-wait to wait for it", err)
		}
		return lease, err
	}
	ctx := stop.first
	if wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	lease, err := c.Lock(ctx, cfg)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fmt.Errorf("somebody else has the lock %q of bucket %q for longer than %v", l.key, l.bucket, wait)
	}
	return lease, err
}

// say tells what happens, with --verbose.
func (a *app) say(what string, l *leaseFlags, token uint64) {
	if a.verbose {
		fmt.Fprintf(a.err, "natty: %s %s: key %s of bucket %s, token %d\n", l.name, what, l.key, l.bucket, token)
	}
}
