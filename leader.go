package natty

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/relistan/go-director"

	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/incident"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/lease"
)

// AsLeaderConfig says what to be the leader of.
type AsLeaderConfig struct {
	// Looper says how often AsLeader runs its function. Default: again and again,
	// without a pause. Lead does not use it.
	Looper director.Looper
	// Bucket holds this election, and maybe others. It is made if it is missing.
	Bucket string
	// Key names the election.
	Key string
	// NodeName is the value of the key while this process leads. It is for people to
	// read: two processes with the same name are two candidates.
	NodeName string
	// Description is the description of a new bucket.
	Description string
	// BucketTTL is how long the leadership survives the leader's crash: whole seconds,
	// at least 1s. Default 10s. All elections of a bucket have the same.
	BucketTTL time.Duration
	// ReplicaCount is the number of copies of a new bucket. Default Config.Replicas.
	ReplicaCount int
}

const defaultLeaseTTL = 10 * time.Second

func (cfg AsLeaderConfig) validate(c *Client) error {
	if err := c.validLease(cfg.Bucket, cfg.Key, "NodeName", cfg.NodeName); err != nil {
		return err
	}
	return validLeaseTTL("BucketTTL", cfg.BucketTTL)
}

// Lead waits to become the leader, and calls f while it leads. Of all processes that
// use the same bucket and key, at most one leads.
//
// The ctx of f ends when ctx does, and when the leadership can no longer be trusted: a
// fifth of the TTL before another leader can follow, counted from when the last
// successful renewal was sent. Then f must return. Lead waits for it, stands by again,
// and calls f again in its next term. For work that must not be done twice, heed the
// ctx of f, or write with Term.Put: once there is another leader the server refuses the
// write, even if this process was paused and does not know yet.
//
// Lead returns:
//   - the error of f when f returns by itself, and an error when f panics
//   - nil when ctx ends or the Client is closed, after f has returned
//   - at once an error for a configuration that can never work
//
// Lead releases the leadership before it returns, so that the next leader follows at
// once. After a crash the next leader follows within BucketTTL.
//
// A standby asks the server nothing: it listens for the leader's renewals.
func (c *Client) Lead(ctx context.Context, cfg AsLeaderConfig,
	f func(ctx context.Context, term *Term) error,
) error {
	return c.lead(ctx, cfg, f, func() {})
}

// lead is Lead. It calls known each time that it is known who leads, or that it cannot
// be known at present.
func (c *Client) lead(ctx context.Context, cfg AsLeaderConfig,
	f func(ctx context.Context, term *Term) error, known func(),
) error {
	if f == nil {
		return invalid("f", "", "is nil; give a function to run as the leader", nil)
	}
	cfg.BucketTTL = min(cmp.Or(cfg.BucketTTL, defaultLeaseTTL), longest)
	if err := cfg.validate(c); err != nil {
		return err
	}
	e := newElection(c, cfg, f, known)
	if err := c.elections.enter(e); err != nil {
		return err
	}
	defer c.elections.leave(e)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()

	for n := 1; ; n++ {
		over, err := e.term(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case over:
			return err
		case err == nil: // deposed
			n = 0
			continue
		case lease.Final(err):
			return err
		case !errors.Is(err, ErrDeposed) && e.troubles.Open(err.Error()):
			e.trouble(err)
		}
		if lease.RetryAcquire.Wait(ctx, n) != nil {
			return nil
		}
	}
}

// election is one call of Lead.
type election struct {
	c   *Client
	cfg AsLeaderConfig
	key lease.Key
	f   func(ctx context.Context, term *Term) error

	known    func()
	troubles incident.Log // that kept a term from beginning

	mu     sync.Mutex // guards health
	health ElectionHealth
}

func newElection(
	c *Client, cfg AsLeaderConfig, f func(ctx context.Context, term *Term) error, known func(),
) *election {
	e := &election{
		c: c, cfg: cfg, f: f, known: known,
		health: ElectionHealth{Bucket: cfg.Bucket, Key: cfg.Key, NodeName: cfg.NodeName, Since: time.Now()},
	}
	e.key = c.leases.Key(
		lease.Bucket{Name: cfg.Bucket, Description: cfg.Description, TTL: cfg.BucketTTL, Replicas: cfg.ReplicaCount},
		cfg.Key, lease.Events{Trouble: e.trouble, Standby: e.standsBy})
	return e
}

// term waits for one term and leads in it. over reports that f has returned by itself.
func (e *election) term(ctx context.Context) (over bool, err error) {
	l, err := e.key.Acquire(ctx, e.cfg.NodeName)
	if err != nil {
		return false, err
	}
	defer e.leave(l)()
	term, err := l.BeginTerm()
	if err != nil {
		return false, jsapi.About("begin a term", err)
	}
	l.Keep()
	e.troubles.ResolveAll()
	e.elected(l.Token)
	err = (&Term{term, e.c}).run(ctx, e.f)
	if ctx.Err() != nil || l.Ctx.Err() == nil {
		return true, err
	}
	if err != nil { // what f says of it; that the leadership is lost was logged when it was
		e.c.log.Warn("natty: the leader's function failed",
			"bucket", e.cfg.Bucket, "key", e.cfg.Key, "error", err)
	}
	return false, nil
}

// leave returns a function that ends the term and reports its end. A lost leadership is
// reported at once, whether or not f has noticed.
func (e *election) leave(l *lease.Lease) func() {
	ended := make(chan struct{})
	context.AfterFunc(l.Ctx, func() {
		defer close(ended)
		if cause := context.Cause(l.Ctx); errors.Is(cause, ErrDeposed) {
			e.over(l.Token, cause)
		}
	})
	return func() {
		err := e.release(l)
		<-ended
		e.over(l.Token, err)
	}
}

// release lets the next leader follow. It has a ctx of its own, so that the standbys
// need not wait for the TTL if the caller's ctx has ended.
func (e *election) release(l *lease.Lease) error {
	ctx, cancel := context.WithTimeout(context.Background(), min(e.cfg.BucketTTL, jsapi.APITimeout))
	defer cancel()
	return l.Release(ctx)
}

// Term is one time of being the leader.
type Term struct {
	t *lease.Term
	c *Client
}

// Token returns a number that grows with every term of an election. A service that gets
// tokens with its requests can refuse the lower ones.
func (t *Term) Token() uint64 { return t.t.Lease.Token }

// Put writes a key of the election's bucket. The key does not expire. The keys of
// elections cannot be written.
//
// Once a later leader exists, the server rejects the write, whatever this process
// believes: Put returns ErrDeposed, and the term's ctx ends. Puts take effect one at a
// time and in order. Once a Put has returned nil, the server refuses late copies of an
// earlier Put that got no answer.
//
// ErrOutcomeUnknown says that the value may be stored. ErrDeposed does not mean that
// nothing was written: the value may have been stored, its acknowledgement lost, and
// the next leader may have overwritten it. Without a deadline in ctx, Put takes at most
// Config.PublishTimeout.
func (t *Term) Put(ctx context.Context, key string, data []byte) error {
	return t.t.Put(ctx, key, data)
}

// run calls f with a ctx that ends with the term, or with ctx.
func (t *Term) run(ctx context.Context, f func(ctx context.Context, term *Term) error) (err error) {
	ctx, end := context.WithCancelCause(context.WithValue(ctx, handlerOf{}, t.c))
	defer end(nil)
	defer context.AfterFunc(t.t.Lease.Ctx, func() { end(context.Cause(t.t.Lease.Ctx)) })()
	defer t.c.inside.Enter()()
	callback.Call(func() error { return f(ctx, t) }, func(stack []byte, outcome error) {
		if err = outcome; stack != nil {
			cause := strings.TrimPrefix(outcome.Error(), "panic: ")
			err = fmt.Errorf("natty: the leader panicked: %s\n%s", cause, stack)
		}
	})
	return err
}

// HaveLeader reports whether a node of this name leads now. Without an answer it is
// false.
func (c *Client) HaveLeader(ctx context.Context, nodeName, bucket, key string) bool {
	leader, err := c.GetLeader(ctx, bucket, key)
	return err == nil && leader == nodeName
}

// GetLeader returns the NodeName of the leader. Without a leader it is
// jetstream.ErrKeyNotFound, and jetstream.ErrBucketNotFound if there never was one.
func (c *Client) GetLeader(ctx context.Context, bucket, key string) (string, error) {
	if err := c.validLease(bucket, key, "", ""); err != nil {
		return "", err
	}
	k := c.leases.Key(lease.Bucket{Name: bucket, TTL: defaultLeaseTTL}, key, lease.Events{})
	now, err := k.Look(ctx)
	switch {
	case err == nil && now.Owned:
		return now.Owner, nil
	case err == nil:
		err = jetstream.ErrKeyNotFound
	case errors.Is(err, jetstream.ErrStreamNotFound):
		err = jetstream.ErrBucketNotFound
	}
	return "", fmt.Errorf("natty: leader of %s: %w", k.Name(), err)
}

// elected reports a new term to the log, Health and the Observer.
func (e *election) elected(token uint64) {
	e.mu.Lock()
	h := &e.health
	h.Leading, h.Token, h.Since, h.LastError, h.Warning = true, token, time.Now(), "", ""
	e.observeLocked(true, token, nil)
	e.mu.Unlock()
	e.c.log.Info("natty: leadership gained", "bucket", e.cfg.Bucket, "key", e.cfg.Key, "node", e.cfg.NodeName, "token", token)
}

// over reports the end of a term to the log, Health and the Observer, once. why is nil
// when the leader released the leadership.
func (e *election) over(token uint64, why error) {
	e.mu.Lock()
	h := &e.health
	leading := h.Leading && h.Token == token
	if leading {
		h.Leading, h.Token, h.Since = false, 0, time.Now()
		if why != nil {
			h.LastError = why.Error()
		}
		e.observeLocked(false, token, why)
	}
	e.mu.Unlock()
	if leading {
		e.logOver(token, why)
	}
}

func (e *election) logOver(token uint64, why error) {
	log := e.c.log.With("bucket", e.cfg.Bucket, "key", e.cfg.Key, "node", e.cfg.NodeName, "token", token)
	switch {
	case why == nil:
		log.Info("natty: leadership released")
	case errors.Is(why, ErrDeposed):
		log.Warn("natty: leadership lost", "error", why)
	default:
		log.Warn("natty: leadership could not be released, and expires by itself", "error", why)
	}
}

// trouble reports an error that does not end the election.
func (e *election) trouble(err error) {
	e.mu.Lock()
	e.health.LastError = err.Error()
	e.observeLocked(e.health.Leading, e.health.Token, err)
	e.mu.Unlock()
	e.known()
	e.c.log.Warn("natty: election", "bucket", e.cfg.Bucket, "key", e.cfg.Key, "error", err)
}

// standsBy notes that somebody else leads, and why the end of that cannot be heard of.
func (e *election) standsBy(deaf string) {
	e.mu.Lock()
	news := deaf != "" && e.health.Warning == ""
	if e.health.Warning = ""; deaf != "" {
		e.health.Warning = lookingOften + ": " + deaf
	}
	e.mu.Unlock()
	e.known()
	if news {
		e.c.log.Info("natty: "+lookingOften,
			"bucket", e.cfg.Bucket, "key", e.cfg.Key, "node", e.cfg.NodeName, "reason", deaf)
	}
}

// observeLocked queues an event. The caller holds e.mu, so that events arrive in the
// order of the changes.
func (e *election) observeLocked(leading bool, token uint64, err error) {
	e.c.events.Add(ElectionEvent{
		Bucket: e.cfg.Bucket, Key: e.cfg.Key, NodeName: e.cfg.NodeName, Leading: leading, Token: token, Err: err,
	})
}

func (e *election) snapshot() ElectionHealth {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.health
}
