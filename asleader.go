package natty

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/relistan/go-director"
)

// standbyTurn is how long a turn of the Looper waits for the leadership.
const standbyTurn = 250 * time.Millisecond

// AsLeader calls f on each turn of cfg.Looper while this process is the leader, as Lead does it; elsewhere, and without
// trust in the leadership, a turn does nothing, for up to 250 ms. f is not told when the leadership ends: it is not begun after
// that, and a long one may still run when the next leader begins. Long work belongs in Lead.
//
// Errors and panics of f are logged, and it goes on; so is an end of its goroutine (runtime.Goexit). It returns nil when ctx
// ends, the Client is closed, or the Looper ends, after f has returned; the leadership is given back then. An error says that
// the configuration can never work. The Looper's done channel need not be read.
func (c *Client) AsLeader(ctx context.Context, cfg AsLeaderConfig, f func() error) error {
	if f == nil {
		return &ConfigError{Field: "f", Reason: "is nil; give a function to run as the leader"}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := asLeader{c: c, cfg: cfg, f: f, changed: make(chan struct{})}
	led := make(chan error, 1)
	go func() {
		led <- c.Lead(ctx, cfg, a.lead)
		cancel() // a configuration that cannot work, or a closed Client
	}()
	a.loop(ctx)
	cancel()
	return <-led
}

// asLeader is one call of AsLeader.
type asLeader struct {
	c   *Client
	cfg AsLeaderConfig
	f   func() error

	turn sync.Mutex // held while f runs

	// mu guards what follows.
	mu      sync.Mutex
	term    *Term
	changed chan struct{} // closed and made anew when term changes
}

// lead offers the term to the turns, and ends when the last of them has.
func (a *asLeader) lead(ctx context.Context, term *Term) error {
	a.set(term)
	<-ctx.Done()
	a.set(nil)
	a.turn.Lock() // f has returned
	defer a.turn.Unlock()
	return nil
}

func (a *asLeader) set(term *Term) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.term = term
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *asLeader) current() (*Term, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.term, a.changed
}

// once is one turn of the Looper.
func (a *asLeader) once(ctx context.Context) {
	timer := time.NewTimer(standbyTurn)
	defer timer.Stop()
	for {
		term, changed := a.current()
		if term != nil {
			a.run(ctx, term)
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (a *asLeader) run(ctx context.Context, term *Term) {
	a.turn.Lock()
	defer a.turn.Unlock()
	if ctx.Err() != nil || !term.lease.trust.holds(time.Now()) {
		return
	}
	if err := a.call(); err != nil {
		a.c.log.Warn("natty: the leader's function failed", "bucket", a.cfg.Bucket, "key", a.cfg.Key, "error", err)
	}
}

// call calls f in a goroutine of its own: runtime.Goexit in it, as of t.FailNow, must not end the Looper's.
func (a *asLeader) call() error {
	err, ended := errGoexit, make(chan struct{})
	go func() {
		defer close(ended)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		err = a.f()
	}()
	<-ended
	return err
}

// loop runs the Looper until it or ctx ends.
func (a *asLeader) loop(ctx context.Context) {
	looper, done := withOwnDone(a.cfg.Looper)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if looper == nil {
			for ctx.Err() == nil {
				a.once(ctx)
			}
			return
		}
		looper.Loop(func() error { a.once(ctx); return nil })
		done()
	}()
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	if looper != nil {
		looper.Quit()
	}
	select {
	case <-ended:
	case <-time.After(endGrace): // a Looper of somebody else's, which waits for its done channel to be read
	}
	a.turn.Lock() // whatever the Looper does, f has returned
	defer a.turn.Unlock()
}

// withOwnDone returns a Looper that reports its end to a channel which is always read, and what tells the original's. A
// Looper of go-director blocks at its end until somebody reads; its quit channel both share.
func withOwnDone(l director.Looper) (_ director.Looper, tell func()) {
	own := make(chan error, 1)
	switch l := l.(type) {
	case *director.FreeLooper:
		shared := *l
		shared.DoneChan = own
		return &shared, func() { tellDone(l.DoneChan, own) }
	case *director.TimedLooper:
		shared := *l
		shared.DoneChan = own
		return &shared, func() { tellDone(l.DoneChan, own) }
	}
	return l, func() {}
}

// tellDone passes the end of a Looper on to whoever waits for it, or will.
func tellDone(to, from chan error) {
	if to == nil {
		return
	}
	err := <-from
	select {
	case to <- err:
	default:
		go func() { to <- err }()
	}
}
