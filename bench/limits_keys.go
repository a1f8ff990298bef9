package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

// keyLimits are the limits of a live copy of a large bucket.
var keyLimits = []limit{
	{name: "copy, fill", most: 30, unit: "s", keys: million, copied: timeToFill},
	{name: "copy, resume", most: 30, unit: "s", keys: million, copied: timeToResume},
	{name: "copy, a key", most: 768, unit: "B", keys: million, copied: bytesPerKey},
}

// liveCopy is a copy of a bucket that follows it.
type liveCopy struct {
	has func(key string) bool
	// currentSince says that it was known to be complete after a time; nil: it cannot
	// know.
	currentSince func(t time.Time) bool
}

// followers make a copy with natty, and with nats.go.
var followers = []func(ctx context.Context, c client, bucket string) (*liveCopy, error){cached, watched}

// asIs is a codec for values that are bytes.
type asIs struct{}

func (asIs) ContentType() string { return "" }

func (asIs) Marshal(any) ([]byte, error) { return nil, errors.ErrUnsupported }

func (asIs) Unmarshal(data []byte, v any) error {
	to, ok := v.(*[]byte)
	if !ok {
		return errors.ErrUnsupported
	}
	*to = data
	return nil
}

func cached(ctx context.Context, c client, bucket string) (*liveCopy, error) {
	b, err := natty.NewBucket[[]byte](c.natty, natty.BucketConfig{Bucket: bucket, Codec: asIs{}})
	if err != nil {
		return nil, err
	}
	cache, err := b.Cached(ctx)
	if err != nil {
		return nil, err
	}
	return &liveCopy{
		has:          func(key string) bool { _, ok := cache.Get(key); return ok },
		currentSince: func(t time.Time) bool { return cache.Age() < time.Since(t) },
	}, nil
}

// watched is a map that a watch of nats.go fills.
func watched(ctx context.Context, c client, bucket string) (*liveCopy, error) {
	kv, err := c.js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, err
	}
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.RWMutex
	values, filled := map[string][]byte{}, make(chan struct{})
	go func() {
		for e := range w.Updates() {
			if e == nil { // the current values have come
				close(filled)
				continue
			}
			mu.Lock()
			values[e.Key()] = e.Value()
			mu.Unlock()
		}
	}()
	select {
	case <-filled:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &liveCopy{has: func(key string) bool {
		mu.RLock()
		defer mu.RUnlock()
		_, ok := values[key]
		return ok
	}}, nil
}

// runKeys measures natty and then nats.go, on one bucket.
func (l limit) runKeys(ctx context.Context, url, bucket string) (took [2]float64, err error) {
	setup, err := prepare(ctx, url)
	if err != nil {
		return took, err
	}
	defer setup.close(ctx)
	kv, err := setup.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, LimitMarkerTTL: time.Minute})
	if err != nil {
		return took, err
	}
	defer func() { err = errors.Join(err, setup.js.DeleteKeyValue(context.WithoutCancel(ctx), bucket)) }()
	if err := fillKeys(ctx, setup.js, bucket, l.keys); err != nil {
		return took, fmt.Errorf("fill the bucket: %w", err)
	}
	// The server reads a bucket that was just filled more slowly the first time.
	once, cancel := context.WithCancel(ctx)
	_, err = watched(once, setup, bucket)
	cancel()
	if err != nil {
		return took, fmt.Errorf("read the bucket: %w", err)
	}
	for i, follow := range followers {
		side := [...]string{"natty", "raw"}[i]
		label(ctx, l.name, side, func(ctx context.Context) {
			var c client
			if c, err = connect(ctx, url, side); err != nil {
				return
			}
			defer c.close(ctx)
			took[i], err = l.copied(ctx, &copying{client: c, follow: follow, kv: kv, keys: l.keys})
		})
		if err != nil {
			return took, fmt.Errorf("%s: %w", side, err)
		}
	}
	return took, nil
}

func fillKeys(ctx context.Context, js jetstream.JetStream, bucket string, n int) error {
	js, err := jetstream.New(js.Conn(), jetstream.WithPublishAsyncMaxPending(4000))
	if err != nil {
		return err
	}
	for i := range n {
		msg := &nats.Msg{Subject: "$KV." + bucket + "." + keyOf(i), Data: payload}
		if _, err := js.PublishMsgAsync(msg, jetstream.WithStallWait(time.Minute)); err != nil {
			return err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func keyOf(i int) string { return "key." + strconv.Itoa(i) }

// copying is one measurement of one side.
type copying struct {
	client
	follow func(ctx context.Context, c client, bucket string) (*liveCopy, error)
	kv     jetstream.KeyValue // of a third connection
	keys   int
}

// begin makes a copy, and checks that it is complete.
func (c *copying) begin(ctx context.Context) (*liveCopy, error) {
	made, err := c.follow(ctx, c.client, c.kv.Bucket())
	if err != nil {
		return nil, err
	}
	for i := range c.keys {
		if !made.has(keyOf(i)) {
			return nil, fmt.Errorf("the copy lacks %s", keyOf(i))
		}
	}
	return made, nil
}

// timeToFill is how long it takes to copy the bucket, in seconds.
func timeToFill(ctx context.Context, c *copying) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := time.Now()
	_, err := c.follow(ctx, c.client, c.kv.Bucket())
	return time.Since(start).Seconds(), err
}

// timeToResume is how long after a lost connection the copy has what was written
// meanwhile, and natty's is known to be complete, in seconds.
func timeToResume(ctx context.Context, c *copying) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	made, err := c.begin(ctx)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := c.js.Conn().ForceReconnect(); err != nil {
		return 0, err
	}
	mark := "mark." + strconv.FormatInt(start.UnixNano(), 36)
	if _, err := c.kv.Put(ctx, mark, payload); err != nil {
		return 0, err
	}
	for !made.has(mark) || made.currentSince != nil && !made.currentSince(start) {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return time.Since(start).Seconds(), nil
}

// bytesPerKey is how much heap the copy takes for each key, value included.
func bytesPerKey(ctx context.Context, c *copying) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	before := heap()
	made, err := c.begin(ctx)
	if err != nil {
		return 0, err
	}
	after := heap()
	if !made.has(keyOf(0)) { // so that it is still there
		return 0, errors.New("the copy is empty")
	}
	return float64(after-before) / float64(c.keys), nil
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // what pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
