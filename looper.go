package natty

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/turns"
)

// standbyTurn is how long a standby's turn of the Looper waits for the leadership.
const standbyTurn = 250 * time.Millisecond

// AsLeader calls f on each turn of cfg.Looper while this process is the leader, as Lead
// decides it. On standbys, and while the lease is in doubt, a turn is a no-op that
// lasts up to 250 ms. AsLeader does not start f after the leadership has ended. A
// running f gets no signal of the end, and may still run when the next leader begins.
// Long work belongs in Lead.
//
// AsLeader logs errors and panics of f, and a runtime.Goexit in f, and goes on. It
// returns nil when ctx ends, the Client is closed, or the Looper ends; before, f has
// returned and the leadership is released. An error says that the configuration can
// never work.
//
// The first turn waits until it is known who leads, but for BucketTTL at most. So a
// Looper with a single turn does run f if nobody else leads, even over a slow network.
// Several calls of AsLeader can share a FreeLooper or a TimedLooper, and each call counts
// its own turns. The end of one call's ctx ends only that call. Each call of Quit ends
// one call of AsLeader, between two turns. You need not read the Looper's done channel.
//
// f must not call Close, which would wait for f: Close then returns an error at once.
func (c *Client) AsLeader(ctx context.Context, cfg AsLeaderConfig, f func() error) error {
	if f == nil {
		return invalid("f", "", "is nil; give a function to run as the leader", nil)
	}
	if reason := turns.Invalid(cfg.Looper); reason != "" {
		return invalid("Looper", "", reason, nil)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := asLeader{
		c: c, cfg: cfg, f: f, changed: make(chan struct{}),
		patience: max(standbyTurn, cmp.Or(cfg.BucketTTL, defaultLeaseTTL)),
	}
	led := make(chan error, 1)
	go func() {
		led <- c.lead(ctx, cfg, a.lead, a.known)
		cancel() // the configuration cannot work, or the Client is closed
	}()
	turns.Run(ctx, cfg.Looper, func() { a.once(ctx) })
	cancel()
	a.turn.Lock()   // waits for f, whatever the Looper does
	a.turn.Unlock() //nolint:staticcheck // the end of lead needs it
	return <-led
}

// asLeader is one call of AsLeader.
type asLeader struct {
	c   *Client
	cfg AsLeaderConfig
	f   func() error

	turn sync.Mutex // held while f runs

	// mu guards the fields below.
	mu      sync.Mutex
	term    *Term         // nil on a standby
	changed chan struct{} // closed and replaced when term or patience changes
	// patience is how long a turn waits for the leadership.
	patience time.Duration
}

// lead offers the term to the turns until it ends, and waits for the last of them.
func (a *asLeader) lead(ctx context.Context, term *Term) error {
	a.set(term)
	<-ctx.Done()
	a.set(nil)
	a.turn.Lock() // waits for f
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

// known ends the patience of the first turn: this is a standby, or in trouble.
func (a *asLeader) known() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.patience != standbyTurn {
		a.patience = standbyTurn
		close(a.changed)
		a.changed = make(chan struct{})
	}
}

func (a *asLeader) current() (_ *Term, patience time.Duration, _ <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.term, a.patience, a.changed
}

// once is one turn of the Looper.
func (a *asLeader) once(ctx context.Context) {
	defer a.known() // patience is the first turn's only
	began := time.Now()
	for {
		term, patience, changed := a.current()
		if term != nil {
			a.run(ctx, term)
			return
		}
		timer := time.NewTimer(patience - time.Since(began))
		select {
		case <-changed:
			timer.Stop()
			continue
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		return
	}
}

func (a *asLeader) run(ctx context.Context, term *Term) {
	a.turn.Lock()
	defer a.turn.Unlock()
	if ctx.Err() != nil || !term.t.Lease.Trust.Holds(time.Now()) {
		return
	}
	stack, err := a.call()
	if err == nil {
		return
	}
	log := a.c.log.With("bucket", a.cfg.Bucket, "key", a.cfg.Key, "node", a.cfg.NodeName)
	if stack != nil {
		log = log.With("stack", string(stack))
	}
	log.Warn("natty: the leader's function failed", "error", err)
}

// call calls f in a goroutine of its own: a runtime.Goexit in f, as in t.FailNow, must
// not end the Looper's goroutine.
func (a *asLeader) call() (stack []byte, err error) {
	ended := make(chan struct{})
	go func() {
		defer a.c.inside.Enter()()
		callback.Call(a.f, func(where []byte, outcome error) {
			stack, err = where, outcome
			close(ended)
		})
	}()
	<-ended
	return stack, err
}
