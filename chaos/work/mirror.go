package work

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/history"
)

// Settings is the bucket that caches and watches follow. It is deleted and made again.
const Settings = "settings"

// The Op of what is Mirrored.
const (
	Cached  = "cache"
	Watched = "watch"
	Whole   = "whole" // N keys of the copy named in Text were written down
)

// mirror follows a bucket, and writes to it.
func mirror(ctx context.Context, w *worker) error {
	b, err := natty.NewBucket[string](w.c, natty.BucketConfig{Bucket: Settings})
	if err != nil {
		return err
	}
	watch := &watched{}
	var parts sync.WaitGroup
	parts.Go(func() { watch.follow(ctx, w) })
	parts.Go(func() {
		cache, err := b.Cached(ctx)
		if err != nil {
			return // ctx has ended
		}
		select {
		case <-ctx.Done():
			return
		case <-w.dumping:
		}
		for cache.Age() > 3*time.Second && ctx.Err() == nil {
			pause(ctx, 100*time.Millisecond)
		}
		pairs := map[string]string{}
		for key, value := range cache.All() {
			pairs[key] = strconv.Quote(value) // as it is stored
		}
		w.dump(Cached, pairs)
		watch.mu.Lock()
		defer watch.mu.Unlock()
		w.dump(Watched, watch.pairs)
	})
	w.each(ctx, 150*time.Millisecond, func(n int) {
		brief, cancel := context.WithTimeout(ctx, attempt)
		defer cancel()
		key := fmt.Sprint("s", rand.IntN(20))
		var err error
		if rand.IntN(4) == 0 {
			err = b.Delete(brief, key)
		} else {
			err = b.Put(brief, key, w.id(n))
		}
		if err != nil {
			w.report("settings", err)
		}
	})
	w.drained(ctx)
	parts.Wait()
	return nil
}

func (w *worker) dump(op string, pairs map[string]string) {
	for key, value := range pairs {
		w.log.Add(history.Event{What: history.Mirrored, Op: op, Key: key, Text: value})
	}
	w.log.Add(history.Event{What: history.Mirrored, Op: Whole, N: int64(len(pairs)), Text: op})
}

// watched is the copy that a watch keeps.
type watched struct {
	mu    sync.Mutex // guards pairs
	pairs map[string]string
}

func (k *watched) follow(ctx context.Context, w *worker) {
	for ctx.Err() == nil {
		k.mu.Lock()
		k.pairs = map[string]string{}
		k.mu.Unlock()
		for entry, err := range w.c.Watch(ctx, Settings, ">") {
			if err != nil {
				w.report("watch", err)
				break
			}
			k.mu.Lock()
			if entry.Operation() == jetstream.KeyValuePut {
				k.pairs[entry.Key()] = string(entry.Value())
			} else {
				delete(k.pairs, entry.Key())
			}
			k.mu.Unlock()
		}
		pause(ctx, time.Second)
	}
}
