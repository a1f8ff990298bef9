package natty

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/relistan/go-director"
)

// AsLeaderConfig says what to be the leader of.
type AsLeaderConfig struct {
	// Looper says how often AsLeader runs its function. Default: again and again, without a pause. Lead has no use for it.
	Looper director.Looper
	// Bucket holds the election, and others; it is made if it is missing. Key is what this one is about. NodeName is what
	// the key says while this process leads, for people to read: two processes of one name are two.
	Bucket, Key, NodeName string
	// Description of the bucket, if it is made.
	Description string
	// BucketTTL is how long the leadership of a process lasts that has died: whole seconds, at least 1s. Default 10s. All
	// elections of a bucket have the same.
	BucketTTL time.Duration
	// ReplicaCount of the bucket, if it is made. Default Config.Replicas.
	ReplicaCount int
}

const defaultLeaseTTL = 10 * time.Second

// termSuffix makes the name of the key that fences the writes of a term.
const termSuffix = "._term"

func (cfg AsLeaderConfig) validate() error {
	if err := validLease(cfg.Bucket, cfg.Key, "NodeName", cfg.NodeName); err != nil {
		return err
	}
	return validLeaseTTL("BucketTTL", cfg.BucketTTL)
}

// Lead waits to become the leader, and calls f while it is. At most one process leads, of all that use the same bucket and key.
//
// f's ctx ends when ctx does, and when the leadership can no longer be trusted: a fifth of the TTL before another one can
// follow, counted from when the last successful renewal was sent. Then f has to return; Lead waits for it, stands by again,
// and calls f again in its next term. Work that must not be done twice is to heed its ctx, or to be written with Term.Put, which
// the server refuses once there is another leader: that holds for a process too that was paused and knows nothing yet.
//
// Lead returns when f returns by itself, with its error; when f panics, with the panic as an error; when ctx ends or the
// Client is closed, with nil, after f has returned; and at once with an error for a configuration that can never work. It
// gives the leadership back before it returns, so that the next leader follows at once. A process that dies is followed after
// BucketTTL.
//
// While another one leads it asks the server nothing: it listens for the leader's renewals.
func (c *Client) Lead(ctx context.Context, cfg AsLeaderConfig, f func(ctx context.Context, term *Term) error) error {
	if f == nil {
		return &ConfigError{Field: "f", Reason: "is nil; give a function to run as the leader"}
	}
	cfg.BucketTTL = cmp.Or(cfg.BucketTTL, defaultLeaseTTL)
	if err := cfg.validate(); err != nil {
		return err
	}
	e := newElection(c, cfg, f)
	if err := c.enterTerm(e); err != nil {
		return err
	}
	defer c.leaveTerm(e)
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
		case hopeless(err):
			return err
		default:
			e.trouble(err)
		}
		if sleep(ctx, retryAcquire.delay(n)) != nil {
			return nil
		}
	}
}

// hopeless reports an error that waiting does not change: a configuration that cannot work.
func hopeless(err error) bool {
	switch errorCode(err) {
	case codeNoPeers, codeNoReplicas: // more replicas than there are servers
		return true
	}
	return !passing(err) && !missing(err) && !serverFault(err) && !errors.Is(err, errLost) && !errors.Is(err, ErrDeposed)
}

// election is one call of Lead.
type election struct {
	c   *Client
	cfg AsLeaderConfig
	key leaseKey
	f   func(ctx context.Context, term *Term) error

	mu     sync.Mutex // guards health
	health ElectionHealth
}

func newElection(c *Client, cfg AsLeaderConfig, f func(ctx context.Context, term *Term) error) *election {
	e := &election{
		c: c, cfg: cfg, key: c.leaseKey(cfg.Bucket, cfg.Key, cfg.BucketTTL, false), f: f,
		health: ElectionHealth{Bucket: cfg.Bucket, Key: cfg.Key, NodeName: cfg.NodeName, Since: time.Now()},
	}
	e.key.trouble = e.trouble
	return e
}

// term waits for one term and leads in it. over says that f has returned by itself.
func (e *election) term(ctx context.Context) (over bool, err error) {
	bucket := leaseBucket{
		name: e.cfg.Bucket, description: e.cfg.Description, ttl: e.cfg.BucketTTL, replicas: e.cfg.ReplicaCount,
	}
	if err := e.c.ensureLeaseBucket(ctx, bucket); err != nil {
		return false, err
	}
	lease, err := e.key.acquire(ctx, e.cfg.NodeName)
	if err != nil {
		return false, err
	}
	defer e.leave(lease)()
	term, err := e.begin(lease)
	if err != nil {
		return false, fmt.Errorf("natty: begin a term: %w", err)
	}
	lease.keep()
	e.elected(lease.Token())
	err = term.run(ctx, e.f)
	if ctx.Err() != nil || lease.ctx.Err() == nil {
		return true, err
	}
	e.c.log.Warn("natty: deposed", "bucket", e.cfg.Bucket, "key", e.cfg.Key, "node", e.cfg.NodeName, "cause", context.Cause(lease.ctx), "error", err)
	return false, nil
}

// leave returns what ends a term and tells of that. A leadership that is lost is told of at once, whether or not the
// leader has noticed.
func (e *election) leave(lease *Lease) func() {
	lost := make(chan struct{})
	context.AfterFunc(lease.ctx, func() {
		defer close(lost)
		if cause := context.Cause(lease.ctx); errors.Is(cause, ErrDeposed) {
			e.over(lease.token, cause)
		}
	})
	return func() {
		err := e.release(lease)
		<-lost
		e.over(lease.token, err)
	}
}

// release lets the next leader follow. ctx may have ended, which must not cost the others the TTL.
func (e *election) release(lease *Lease) error {
	ctx, cancel := context.WithTimeout(context.Background(), min(e.cfg.BucketTTL, apiTimeout))
	defer cancel()
	err := lease.Release(ctx)
	if err != nil && !errors.Is(err, ErrDeposed) {
		e.c.log.Warn("natty: the leadership could not be given back, and expires by itself", "bucket", e.cfg.Bucket, "key", e.cfg.Key, "error", err)
	}
	return err
}

// begin writes the key that fences this term's writes, if the lease still is this process's. It outlives the bucket's TTL.
func (e *election) begin(lease *Lease) (*Term, error) {
	ctx, cancel := context.WithTimeout(lease.ctx, lease.trust.left(time.Now()))
	defer cancel()
	w := lease.key.fenced(e.cfg.Key+termSuffix, []byte(e.cfg.NodeName), lease.key.subject, lease.revision)
	sequence, _, err := lease.key.store(ctx, &w)
	if err != nil {
		return nil, err
	}
	return &Term{lease: lease, fence: w.subject, sequence: sequence, writing: make(chan struct{}, 1)}, nil
}

// fenced returns a write of another key of the bucket.
func (k *leaseKey) fenced(key string, data []byte, fence string, expected uint64) leaseWrite {
	return leaseWrite{
		id: k.c.ids.next(), subject: keySubject(k.bucket, key), to: k.c.keyTarget(k.bucket, key),
		data: data, ttl: ttlNever, fence: fence, expected: expected, once: true,
	}
}

// Term is one time of being the leader.
type Term struct {
	lease   *Lease
	fence   string // the subject that was written when the term began
	writing chan struct{}

	// Whoever is in writing may use what follows.
	sequence uint64          // the fence's revision
	mine     map[string]bool // keys known not to be an election's
	strays   bool            // copies of Puts under this fence may still come in
	renewal  *leaseWrite     // of the fence, without an outcome yet
}

// Token grows with every term of an election: whoever is given tokens can refuse the smaller ones.
func (t *Term) Token() uint64 { return t.lease.Token() }

// Put writes a key of the election's bucket, which does not expire, for as long as there is no later leader: the server itself
// refuses the write else, whatever this process believes, with ErrDeposed, and the term's ctx ends. The keys of elections cannot
// be written. Puts take effect in the order in which they are made, and one at a time: what an earlier one that got no
// answer has still on its way is refused once a later one has returned nil.
//
// An error that matches ErrOutcomeUnknown says that it may have been written. ctx bounds the attempt, Config.PublishTimeout
// where it has no deadline. ErrDeposed alone may stand for a write whose answer got lost and that the next leader has overwritten.
func (t *Term) Put(ctx context.Context, key string, data []byte) error {
	k := &t.lease.key
	if err := validKey(k.bucket, key); err != nil {
		return err
	}
	ctx, cancel := withDefaultTimeout(ctx, k.c.cfg.PublishTimeout)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(t.lease.ctx, func() { end(ErrDeposed) })()
	select {
	case t.writing <- struct{}{}: // one at a time: the server refuses concurrent ones under one fence
		defer func() { <-t.writing }()
	case <-ctx.Done():
		return fmt.Errorf("natty: put %q: %w", key, context.Cause(ctx))
	}
	if err := t.mayWrite(ctx, key); err != nil {
		return err
	}
	var sent time.Time
	err := t.renewFence(ctx)
	w := k.fenced(key, data, t.fence, t.sequence)
	if err == nil {
		_, sent, err = k.store(ctx, &w)
		t.strays = w.strays > 0
	}
	switch {
	case errors.Is(err, errLost):
		t.lease.lose(err)
		return fmt.Errorf("natty: put %q: %w", key, ErrDeposed)
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("natty: put %q: %w: %d bytes, and the server takes %d at most, headers included: %w", key, ErrTooLarge, len(data), k.c.nc.MaxPayload(), err)
	case err != nil && ctx.Err() != nil:
		return &PublishError{Subject: w.subject, MsgID: w.id, Unknown: !sent.IsZero(), Err: fmt.Errorf("%w: %w", context.Cause(ctx), err)}
	case err != nil && w.strays > 0:
		return &PublishError{Subject: w.subject, MsgID: w.id, Unknown: true, Err: err}
	case err != nil:
		return fmt.Errorf("natty: put %q: %w", key, err)
	}
	return nil
}

// renewFence writes the fence anew where copies of an earlier Put may still come in, in this term and so behind a newer Put:
// the server refuses all that were sent under the old one. Whoever is in writing may call it.
func (t *Term) renewFence(ctx context.Context) error {
	if !t.strays {
		return nil
	}
	k := &t.lease.key
	if t.renewal == nil {
		w := k.fenced(k.key+termSuffix, []byte(t.lease.holder), t.fence, t.sequence)
		t.renewal = &w
	}
	sequence, _, err := k.store(ctx, t.renewal)
	if err != nil {
		return err // it may have been made: the same write again finds out
	}
	t.sequence, t.strays, t.renewal = sequence, false, nil
	return nil
}

// mayWrite refuses the keys of elections. Whoever is in writing may call it.
func (t *Term) mayWrite(ctx context.Context, key string) error {
	if t.mine[key] {
		return nil
	}
	k := &t.lease.key
	of := strings.TrimSuffix(key, termSuffix)
	fence, err := k.read(ctx, keySubject(k.bucket, of+termSuffix))
	switch {
	case of != key, key == k.key, err == nil && fence.revision != 0:
		return &ConfigError{Field: "key", Value: key, Reason: "belongs to an election of bucket " + k.bucket + "; use another one"}
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("natty: put %q: %w: %w", key, context.Cause(ctx), err)
	case err != nil:
		return fmt.Errorf("natty: put %q: %w", key, err)
	}
	if t.mine == nil {
		t.mine = map[string]bool{}
	}
	t.mine[key] = true
	return nil
}

// run calls f with a ctx that ends with the term, or with ctx.
func (t *Term) run(ctx context.Context, f func(ctx context.Context, term *Term) error) (err error) {
	ctx, end := context.WithCancelCause(context.WithValue(ctx, handlerOf{}, t.lease.key.c))
	defer end(nil)
	defer context.AfterFunc(t.lease.ctx, func() { end(context.Cause(t.lease.ctx)) })()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("natty: the leader panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return f(ctx, t)
}

// HaveLeader reports whether a node of this name leads now. An answer that does not come is no.
func (c *Client) HaveLeader(ctx context.Context, nodeName, bucket, key string) bool {
	leader, err := c.GetLeader(ctx, bucket, key)
	return err == nil && leader == nodeName
}

// GetLeader returns the NodeName of the leader. While there is none it is jetstream.ErrKeyNotFound, and
// jetstream.ErrBucketNotFound where there never was one.
func (c *Client) GetLeader(ctx context.Context, bucket, key string) (string, error) {
	if err := validLease(bucket, key, "", ""); err != nil {
		return "", err
	}
	k := c.leaseKey(bucket, key, defaultLeaseTTL, false)
	now, err := k.look(ctx)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return "", fmt.Errorf("natty: leader of %s: %w", k.name(), jetstream.ErrBucketNotFound)
	case err != nil:
		return "", fmt.Errorf("natty: leader of %s: %w", k.name(), err)
	case !now.held:
		return "", fmt.Errorf("natty: leader of %s: %w", k.name(), jetstream.ErrKeyNotFound)
	}
	return now.holder, nil
}
