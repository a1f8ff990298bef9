package natty

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Cache is a live local copy of a Bucket. Reading it asks nobody.
type Cache[T any] struct {
	b      *Bucket[T]
	synced atomic.Int64 // when the copy was last known to be complete, Unix nanoseconds

	// mu guards values. It is never held while decoding.
	mu     sync.RWMutex
	values map[string]T
}

// Cached returns a copy of the bucket that follows it until ctx ends or the Client is closed; after that it stays as it is.
// It waits until the copy is complete, or ctx ends. A missing bucket is jetstream.ErrBucketNotFound; one that is dropped
// later leaves an empty copy, which is filled again when the bucket is.
//
// A value that cannot be decoded is missing in the copy, and logged.
func (b *Bucket[T]) Cached(ctx context.Context) (*Cache[T], error) {
	cache := &Cache[T]{b: b, values: map[string]T{}}
	first := make(chan error, 1)
	if err := b.c.whileOpen(func() { b.c.caches.Add(1) }); err != nil {
		return nil, err
	}
	go func() {
		defer b.c.caches.Done()
		cache.follow(ctx, first)
	}()
	if err := <-first; err != nil {
		return nil, keyError(b.cfg.Bucket, "", err)
	}
	return cache, nil
}

// Get returns the copy of a value, false if the key is not there. Everybody gets the same: what it points to must not be
// changed.
func (a *Cache[T]) Get(key string) (T, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	v, ok := a.values[key]
	return v, ok
}

// Age is how long ago the copy was last known to have everything that the server had. It stays below about a second while
// the server is heard, and grows while it is not.
func (a *Cache[T]) Age() time.Duration {
	return max(0, time.Since(time.Unix(0, a.synced.Load())))
}

// cachePause is the pause before a bucket that was dropped is looked for again.
var cachePause = Backoff{Min: 250 * time.Millisecond, Max: 2 * time.Second}

// follow keeps the copy up to date. It tells first how the first copy went, once, and ends if that failed.
func (a *Cache[T]) follow(ctx context.Context, first chan<- error) {
	life, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(a.b.c.life, stop)()
	told, failed := false, 0
	w := a.newWatch(func() {
		if failed = 0; !told {
			told = true
			first <- nil
		}
	})
	for {
		err := w.run(life)
		switch {
		case !told && err == nil:
			first <- ErrClosed
			return
		case !told:
			first <- err
			return
		case life.Err() != nil, errors.Is(err, ErrClosed):
			return
		case errors.Is(err, jetstream.ErrStreamNotFound):
			a.clear()
			w.forget()
			a.synced.Store(time.Now().UnixNano())
		}
		if failed++; failed == 1 {
			a.b.c.log.Warn("natty: the copy of a bucket cannot be kept up to date", "bucket", a.b.cfg.Bucket, "error", err)
		}
		if sleep(life, cachePause.delay(failed)) != nil {
			return
		}
	}
}

// newWatch returns the watch that keeps the copy, and calls synced whenever it is complete.
func (a *Cache[T]) newWatch(synced func()) *watch {
	w := newWatch(a.b.c, a.b.cfg.Bucket, ">")
	w.yield = a.apply
	w.synced = func(at time.Time) bool {
		a.synced.Store(at.UnixNano())
		synced()
		return true
	}
	return w
}

func (a *Cache[T]) apply(e *keyEntry) bool {
	if e.op == jetstream.KeyValuePut {
		v, err := a.b.decode(e.key, e.value)
		if err == nil {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.values[e.key] = v
			return true
		}
		a.b.c.log.Warn("natty: a value is missing in the copy of its bucket", "revision", e.revision, "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.values, e.key)
	return true
}

func (a *Cache[T]) clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.values)
}
