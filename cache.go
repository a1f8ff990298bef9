package natty

import (
	"context"
	"errors"
	"iter"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/incident"
	"github.com/natty-go/natty/internal/kv"
)

// Cache is a live local copy of a Bucket. Reading it asks nobody.
type Cache[T any] struct {
	b      *Bucket[T]
	synced atomic.Int64 // when the copy was last known to be complete, Unix nanoseconds
	bad    incident.Log // the keys whose value cannot be decoded

	// mu guards what follows. It is not held while a value is decoded.
	mu      sync.RWMutex
	values  map[string]T
	changed chan struct{} // closed at the next change; nil: nobody waits for it
}

// Cached returns a copy of the bucket. The copy follows the bucket until ctx ends or
// the Client is closed; after that it stays as it is. Cached waits until the copy is
// complete, or ctx ends. A complete copy has every key that is in the bucket, whatever
// is written meanwhile.
//
// The copy of a missing bucket is empty. It fills when the bucket is made, within about
// two seconds. If the bucket is dropped later, the copy is empty too, until the bucket
// is back.
//
// A value that cannot be decoded is logged, once for each key until a value of it can be
// decoded again. The copy keeps the last good value of the key, if it has one. A codec
// that panics counts as one that cannot decode the value.
func (b *Bucket[T]) Cached(ctx context.Context) (*Cache[T], error) {
	cache := &Cache[T]{b: b, values: map[string]T{}}
	first := make(chan error, 1)
	if err := b.c.whileOpen(func() { b.c.caches.Add(1) }); err != nil {
		return nil, err
	}
	go cache.follow(ctx, first)
	if err := <-first; err != nil {
		return nil, kv.KeyError(b.cfg.Bucket, "", err)
	}
	return cache, nil
}

// Get returns the copy of a value, or false if the key is not there. All callers share
// the value: do not change what it points to.
func (a *Cache[T]) Get(key string) (T, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	v, ok := a.values[key]
	return v, ok
}

// All iterates over the keys and values of the copy as they are when the iteration
// begins, in no particular order. It costs memory for each key. All callers share the
// values: do not change what they point to.
func (a *Cache[T]) All() iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		a.mu.RLock()
		now := maps.Clone(a.values)
		a.mu.RUnlock()
		maps.All(now)(yield)
	}
}

// Changed returns a channel that is closed at the next change of the copy: when a value
// is set, or a key goes away. To miss no change, call Changed before each read of the
// copy, not after it. When the ctx of Cached has ended, the channel is not closed any
// more, so wait for that ctx too.
func (a *Cache[T]) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed == nil {
		a.changed = make(chan struct{})
	}
	return a.changed
}

// Age returns how long ago the copy was last known to have everything that the server
// had. It stays below about a second while the server is heard, and below about three
// while the bucket is missing. It grows while the server is not heard, and while the
// copy catches up.
func (a *Cache[T]) Age() time.Duration {
	return max(0, time.Since(time.Unix(0, a.synced.Load())))
}

// cachePause is the pause before the next look for a bucket that is missing.
var cachePause = backoff.Exp{Min: 250 * time.Millisecond, Max: 2 * time.Second}

// following is the work of following a bucket. It outlives a codec that ends its
// goroutine.
type following[T any] struct {
	*Cache[T]
	watch    *kv.Watcher
	life     context.Context //nolint:containedctx // ends the work
	first    chan<- error    // gets the outcome of the first copy, once
	complete bool            // first has got it
	failed   int             // attempts in a row
}

// follow keeps the copy up to date. It sends the outcome of the first copy to first,
// once, and ends if that failed.
func (a *Cache[T]) follow(ctx context.Context, first chan<- error) {
	life, stop := context.WithCancel(ctx)
	detach := context.AfterFunc(a.b.c.life, stop)
	f := &following[T]{Cache: a, life: life, first: first}
	f.watch = kv.NewWatcher(a.b.c.kv, a.b.cfg.Bucket, ">")
	f.watch.Once = true
	f.watch.Yield = func(e jetstream.KeyValueEntry) bool {
		a.apply(e)
		return true
	}
	f.watch.Synced = func(at time.Time) bool {
		a.synced.Store(at.UnixNano())
		f.failed = 0
		f.firstIs(nil)
		return true
	}
	callback.Loop(func() (more bool) {
		if more = f.step(); !more {
			detach()
			stop()
			a.b.c.caches.Done()
		}
		return more
	})
}

// firstIs tells Cached how the first copy went.
func (f *following[T]) firstIs(outcome error) {
	if !f.complete {
		f.complete, f.watch.Once = true, false
		f.first <- outcome
	}
}

// step watches until something ends the watch, and reports whether to go on.
func (f *following[T]) step() (more bool) {
	err := f.watch.Run(f.life)
	if err == nil { // the Client is closing: nothing else ends this watch without an error
		err = ErrClosed
	}
	switch {
	case f.life.Err() != nil, errors.Is(err, ErrClosed), !f.complete && !errors.Is(err, jetstream.ErrStreamNotFound):
		f.firstIs(err)
		return false
	case errors.Is(err, jetstream.ErrStreamNotFound):
		f.clear()
		f.watch.Forget()
		f.synced.Store(time.Now().UnixNano())
		f.firstIs(nil)
		if f.failed++; f.failed == 1 {
			f.b.c.log.Info("natty: the copy of a bucket is empty until somebody makes the bucket",
				"bucket", f.b.cfg.Bucket)
		}
	default:
		if f.failed++; f.failed > 1 {
			break
		}
		f.b.c.log.Warn("natty: the copy of a bucket cannot be kept up to date",
			"bucket", f.b.cfg.Bucket, "error", err)
	}
	return cachePause.Wait(f.life, f.failed) == nil
}

// apply takes a change over into the copy.
func (a *Cache[T]) apply(e jetstream.KeyValueEntry) {
	key := e.Key()
	if e.Operation() != jetstream.KeyValuePut {
		a.bad.Resolve(key)
		a.change(func() (changed bool) {
			_, changed = a.values[key]
			delete(a.values, key)
			return changed
		})
		return
	}
	var v T
	callback.Call(func() (err error) {
		v, err = a.b.decode(key, e.Value())
		return err
	}, func(stack []byte, err error) {
		if err == nil {
			a.bad.Resolve(key)
			a.change(func() bool { a.values[key] = v; return true })
			return
		}
		if a.bad.Open(key) {
			about := []any{"bucket", a.b.cfg.Bucket, "key", key, "revision", e.Revision(), "error", err}
			if stack != nil {
				about = append(about, "stack", string(stack))
			}
			a.b.c.log.Warn("natty: a value cannot be decoded; the copy of its bucket keeps the last good one", about...)
		}
	})
}

func (a *Cache[T]) clear() {
	a.bad.ResolveAll()
	a.change(func() (changed bool) {
		changed = len(a.values) > 0
		clear(a.values)
		return changed
	})
}

// change changes the values, and tells those who wait for that if anything has changed.
func (a *Cache[T]) change(values func() (changed bool)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if values() && a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}
