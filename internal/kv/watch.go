package kv

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/respmux"
)

// Watch is Client.Watch of the root.
func (c *Store) Watch(ctx context.Context, bucket, keys string) iter.Seq2[jetstream.KeyValueEntry, error] {
	return func(yield func(jetstream.KeyValueEntry, error) bool) {
		if err := c.validKeys(bucket, keys); err != nil {
			yield(nil, err)
			return
		}
		w := NewWatcher(c, bucket, keys)
		w.Yield = func(e jetstream.KeyValueEntry) bool { return yield(e, nil) }
		if err := w.Run(ctx); err != nil && ctx.Err() == nil {
			yield(nil, KeyError(bucket, "", err))
		}
	}
}

// entry implements jetstream.KeyValueEntry.
type entry struct {
	bucket, key string
	value       []byte
	revision    uint64
	delta       uint64
	created     time.Time
	op          jetstream.KeyValueOp
}

func (e *entry) Bucket() string                  { return e.bucket }
func (e *entry) Key() string                     { return e.key }
func (e *entry) Value() []byte                   { return e.value }
func (e *entry) Revision() uint64                { return e.revision }
func (e *entry) Created() time.Time              { return e.created }
func (e *entry) Delta() uint64                   { return e.delta }
func (e *entry) Operation() jetstream.KeyValueOp { return e.op }

const (
	// watchBatch is large because of slow networks: a request asks for the next messages
	// when all of the last one's have come.
	watchBatch     = 2048
	watchBytes     = 4 << 20
	watchExpiry    = 30 * time.Second
	watchHeartbeat = time.Second
	// verifyEvery is the pause between two looks for the keys that are there, in a
	// bucket whose keys vanish without a marker. It is longer where looking takes long.
	verifyEvery = 5 * time.Second
	// compareEvery is the pause between two looks for keys that have yet to come.
	compareEvery = time.Second
	// steadyAfter is how long a session has to last before the pause after it is the
	// shortest again.
	steadyAfter = 10 * time.Second
	// notFoundTimes in a row a watched bucket has to be missing: for a moment a cluster
	// may say so of a bucket that is there.
	notFoundTimes = 3
)

// watchPause is the pause between two sessions.
var watchPause = backoff.Exp{Min: 20 * time.Millisecond, Max: time.Second}

// watchPatience bounds the requests of a session. When a node is away, nobody answers;
// for a large bucket the server needs its time.
var watchPatience = backoff.Exp{Min: 2 * time.Second, Max: 16 * time.Second}

// Watcher follows the keys of a bucket, on its caller's goroutine. It has consumers of
// its own, one for each session: nats.go's watcher is blind for 10 to 20 seconds after
// a server's restart.
type Watcher struct {
	c           *Store
	bucket      string
	keys        string // a pattern
	headersOnly bool
	Yield       func(jetstream.KeyValueEntry) bool // false ends the watch
	// Synced is called when the watch had seen everything at a time; false ends the
	// watch. It may be nil.
	Synced func(at time.Time) bool
	// Once ends the watch while the server refuses the subscription for its answers: its
	// caller waits for one answer. Else the watch goes on once that is permitted.
	Once     bool
	progress func() // called when the server has brought something
	deaf     bool   // it was logged that the server refuses the subscription

	created time.Time              // of the stream
	config  jetstream.StreamConfig // of the stream, when the watch last began
	stored  string                 // the bucket that the stream's subjects name
	ran     bool                   // there was a consumer once
	last    uint64                 // the highest revision seen
	known   map[string]uint64      // revisions of the keys that are there
	whole   bool                   // all current values have come once
	gone    map[string]time.Time   // when the keys were deleted whose last message was a marker
	// uncounted says that gone was too large to keep, once the watch was whole.
	uncounted bool
	// stale has the revisions of keys that may have vanished: the keys known before a
	// new start, until the bucket has delivered everything once more.
	stale map[string]uint64
}

// NewWatcher returns a watcher of the keys that match a pattern. It needs a Yield.
func NewWatcher(c *Store, bucket, keys string) *Watcher {
	w := &Watcher{c: c, bucket: bucket, stored: bucket, keys: keys, progress: func() {}}
	w.Forget()
	return w
}

// Forget makes the next Run start from nothing.
func (w *Watcher) Forget() {
	w.created, w.last, w.stale, w.whole = time.Time{}, 0, nil, false
	w.known, w.gone, w.uncounted = map[string]uint64{}, map[string]time.Time{}, false
}

func (w *Watcher) filter() string { return KeySubject(w.stored, w.keys) }

func (w *Watcher) liveKeys() []string { return slices.Sorted(maps.Keys(w.known)) }

var (
	errStopped    = errors.New("stopped")
	errHeartbeats = errors.New("the server has missed two heartbeats")
	errLink       = errors.New("the connection has changed")
	errGap        = errors.New("a message is missing")
	errReplaced   = errors.New("the bucket was made anew, or has lost its end")
	errPullEnded  = errors.New("the server has ended the consumer")
)

// Run watches until ctx ends, the Client closes, the bucket is gone, or the server
// refuses. It returns nil if Yield, Synced or the closing Client ended it.
func (w *Watcher) Run(ctx context.Context) error {
	if w.c.Life.Err() != nil {
		return conn.ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.c.Life, cancel)()
	failed, missing := 0, 0
	var reason error
	for {
		began := time.Now()
		s := session{Watcher: w, patience: watchPatience.Base(failed + 1)}
		err := jsapi.WhenClosed(s.run(ctx))
		switch {
		case errors.Is(err, errStopped), w.c.Life.Err() != nil:
			return nil
		case ctx.Err() != nil:
			return ended(ctx, err, reason)
		case errors.Is(err, jetstream.ErrStreamNotFound):
			if missing++; missing >= notFoundTimes {
				return err
			}
		case w.Once && w.c.API.Mux.Err() != nil:
			return err
		case w.passes(err):
			missing = 0
		default:
			return err
		}
		reason = err
		// A lost connection has a pace of its own.
		if errors.Is(err, errLink) || time.Since(began) > steadyAfter {
			failed = 0
		}
		failed++
		w.logInterruption(err, failed == 1 && missing == 0)
		_ = watchPause.Wait(ctx, failed) // if ctx ends it, the next session says why
	}
}

// ended returns the error of a watch whose ctx has ended. If the last session only says
// that ctx has ended, the one before may say more, such as why there is no connection.
// If the time ran out that Keys gives a silent server, nobody has canceled anything.
func ended(ctx context.Context, last, before error) error {
	end := ctx.Err()
	if last == nil || errors.Is(end, last) {
		last = before
	}
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		end = context.DeadlineExceeded
	}
	return jsapi.Because(end, last)
}

// logInterruption logs why the watch begins again, if that is news. That the server
// refuses the subscription may last, and is logged once until something arrives.
func (w *Watcher) logInterruption(err error, first bool) {
	switch {
	case errors.Is(err, respmux.ErrInbox) && !w.deaf:
		w.deaf = true
		w.c.Log.Warn("natty: a watch receives nothing", "bucket", w.bucket, "error", err)
	case first:
		w.c.Log.Info("natty: watch interrupted", "bucket", w.bucket, "error", err)
	}
}

// passes reports whether a session that ended with err is followed by another one.
func (w *Watcher) passes(err error) bool {
	for _, end := range []error{
		errHeartbeats, errLink, errGap, errReplaced, errPullEnded, jetstream.ErrConsumerNotFound,
	} {
		if errors.Is(err, end) {
			return true
		}
	}
	// The consumer of the last session counts until the server removes it.
	return jsapi.Passing(err) || w.ran && jsapi.Code(err) == jsapi.CodeMaxConsumers
}
