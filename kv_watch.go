package natty

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Watch iterates over the entries of a bucket whose key matches keys (* for any one part, > at the end for all that follow;
// ">" is every key): first the last entry of each key, deletions that the bucket still knows included, then every change
// as it comes. It ends with ctx, with the Client, and when the caller leaves the loop; nothing runs after that.
//
// It goes on after whatever interrupts it, behind the last revision that it has seen: a reconnect at once, a server
// that falls silent within three seconds. A key that is deleted or expires comes as an entry with that operation. One that
// has vanished without leaving a marker (the marker was gone before the watch was back, or the bucket has none) is found out
// by asking which keys there are, after an interruption and, in a bucket whose keys expire without markers, every five
// seconds; it comes as a jetstream.KeyValuePurge at the last revision of the bucket. A purge of the bucket's stream that
// happens while the watch is not interrupted is not seen. A bucket that is deleted and made again meanwhile is
// reported as what differs, from its first revision on.
//
// An error is the last that comes: jetstream.ErrBucketNotFound, also for a bucket that is dropped while it is watched, ErrClosed
// for a connection that is gone for good, a *ConfigError, or the server's refusal.
func (c *Client) Watch(ctx context.Context, bucket, keys string) iter.Seq2[jetstream.KeyValueEntry, error] {
	return func(yield func(jetstream.KeyValueEntry, error) bool) {
		if err := validKeys(bucket, keys); err != nil {
			yield(nil, err)
			return
		}
		w := newWatch(c, bucket, keys)
		w.yield = func(e *keyEntry) bool { return yield(e, nil) }
		if err := w.run(ctx); err != nil && ctx.Err() == nil {
			yield(nil, keyError(bucket, "", err))
		}
	}
}

// keyEntry implements jetstream.KeyValueEntry.
type keyEntry struct {
	bucket, key string
	value       []byte
	revision    uint64
	delta       uint64
	created     time.Time
	op          jetstream.KeyValueOp
}

func (e *keyEntry) Bucket() string                  { return e.bucket }
func (e *keyEntry) Key() string                     { return e.key }
func (e *keyEntry) Value() []byte                   { return e.value }
func (e *keyEntry) Revision() uint64                { return e.revision }
func (e *keyEntry) Created() time.Time              { return e.created }
func (e *keyEntry) Delta() uint64                   { return e.delta }
func (e *keyEntry) Operation() jetstream.KeyValueOp { return e.op }

const (
	watchBatch     = 256
	watchBytes     = 4 << 20
	watchExpiry    = 30 * time.Second
	watchHeartbeat = time.Second
	// watchSilence is after how long without a heartbeat the consumer is given up.
	watchSilence = 2*watchHeartbeat + watchHeartbeat/2
	// verifyEvery is how often a bucket whose keys vanish without a word is asked what it has.
	verifyEvery = 5 * time.Second
	// notFoundTimes is how often in a row a watched bucket must be said not to be there: a cluster may say so for a moment.
	notFoundTimes = 3
)

// watchPause is the pause before a watch is taken up again.
var watchPause = Backoff{Min: 20 * time.Millisecond, Max: time.Second}

// watch follows the keys of a bucket on consumers of its own: nats.go's watcher is blind for 10 to 20 seconds after
// a server's restart. It runs on its caller's goroutine.
type watch struct {
	c           *Client
	bucket      string
	filter      string // the subjects
	headersOnly bool
	yield       func(*keyEntry) bool       // false ends the watch
	synced      func(since time.Time) bool // the watch had seen everything at that time; false ends it. May be nil

	created time.Time         // of the stream
	last    uint64            // the highest revision seen
	known   map[string]uint64 // revisions of the keys that are there
	// stale are keys that may have vanished: those known before, until everything that there is has come once more.
	stale map[string]uint64
}

func newWatch(c *Client, bucket, keys string) *watch {
	return &watch{c: c, bucket: bucket, filter: keySubject(bucket, keys), known: map[string]uint64{}}
}

// forget makes the watch begin anew with the next run.
func (w *watch) forget() {
	w.created, w.last, w.known, w.stale = time.Time{}, 0, map[string]uint64{}, nil
}

func (w *watch) liveKeys() []string { return slices.Sorted(maps.Keys(w.known)) }

var (
	errStopped    = errors.New("stopped")
	errHeartbeats = errors.New("the server has missed two heartbeats")
	errLink       = errors.New("the connection has changed")
	errGap        = errors.New("a message is missing")
	errAnew       = errors.New("the bucket was made anew, or has lost its end")
	errPullEnded  = errors.New("the server has ended the consumer")
)

// run returns nil when yield or synced ended it, and the error that did otherwise.
func (w *watch) run(ctx context.Context) error {
	if w.c.life.Err() != nil {
		return ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.c.life, cancel)()
	failed, missing := 0, 0
	for {
		l := leg{watch: w}
		err := l.run(ctx)
		switch {
		case errors.Is(err, errStopped):
			return nil
		case w.c.life.Err() != nil:
			return nil // as with the end of ctx
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, jetstream.ErrStreamNotFound):
			if missing++; missing >= notFoundTimes || w.created.IsZero() {
				return err
			}
		case passing(err), errors.Is(err, errHeartbeats), errors.Is(err, errLink), errors.Is(err, errGap),
			errors.Is(err, errAnew), errors.Is(err, errPullEnded), errors.Is(err, jetstream.ErrConsumerNotFound):
			missing = 0
		default:
			return err
		}
		if l.caughtUp {
			failed = 0
		}
		if failed++; failed == 1 {
			w.c.log.Info("natty: watch interrupted", "bucket", w.bucket, "reason", err)
		}
		if err := sleep(ctx, watchPause.delay(failed)); err != nil {
			continue // the next leg tells why
		}
	}
}
