package natty

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// BucketConfig describes a Bucket.
type BucketConfig struct {
	Bucket string // its name; required
	// TTL is how long a key lives after it was last written. 0: for ever, or as an existing bucket has it.
	TTL time.Duration
	// Replicas of the bucket. Default: Config.Replicas for one that is made, and what it has for an existing one.
	Replicas int
	// Codec makes bytes of values. Default: JSON.
	Codec Codec
}

// Bucket is a bucket whose values are of one type. It may be used by many goroutines.
type Bucket[T any] struct {
	c     *Client
	cfg   jetstream.KeyValueConfig
	codec Codec
}

// NewBucket returns a view of a bucket. It does not ask the server: the first Put, Create or Modify makes the bucket if it is
// missing, with TTL and Replicas. Settings of an existing one are left alone; EnsureBucket changes them.
func NewBucket[T any](c *Client, cfg BucketConfig) (*Bucket[T], error) {
	if c == nil {
		return nil, &ConfigError{Field: "c", Reason: "is nil; give a Client made with Connect"}
	}
	b := &Bucket[T]{
		c:     c,
		cfg:   jetstream.KeyValueConfig{Bucket: cfg.Bucket, TTL: cfg.TTL, Replicas: cfg.Replicas},
		codec: cfg.Codec,
	}
	if b.codec == nil {
		b.codec = jsonCodec{}
	}
	return b, validBucketConfig(b.cfg)
}

// Get returns the value of a key, as Client.Get does.
func (b *Bucket[T]) Get(ctx context.Context, key string) (T, error) {
	data, err := b.c.Get(ctx, b.cfg.Bucket, key)
	if err != nil {
		return *new(T), err
	}
	return b.decode(key, data)
}

// Put sets a key, as Client.Put does.
func (b *Bucket[T]) Put(ctx context.Context, key string, v T, ttl ...time.Duration) error {
	data, err := b.encode(key, v)
	if err != nil {
		return err
	}
	return b.c.put(ctx, b.cfg, key, data, ttl)
}

// Create sets a key that is not there, as Client.Create does.
func (b *Bucket[T]) Create(ctx context.Context, key string, v T, ttl ...time.Duration) error {
	data, err := b.encode(key, v)
	if err != nil {
		return err
	}
	return b.c.create(ctx, b.cfg, key, data, ttl)
}

// Delete takes a key away. One that is not there is no error.
func (b *Bucket[T]) Delete(ctx context.Context, key string) error {
	return b.c.Delete(ctx, b.cfg.Bucket, key)
}

// Keys returns the keys, sorted.
func (b *Bucket[T]) Keys(ctx context.Context) ([]string, error) {
	return b.c.Keys(ctx, b.cfg.Bucket)
}

// modifyPause is the pause after somebody else was faster.
var modifyPause = Backoff{Min: time.Millisecond, Max: 250 * time.Millisecond}

// Modify replaces the value of a key by what f makes of it. When somebody else changes the key meanwhile, f is called again
// with the new value, after a pause with jitter, until ctx ends; so f should do nothing else. A missing key, or bucket, is the
// zero T. The key's own TTL is kept. An error of f ends Modify, is returned as it is, and nothing is written.
//
// ErrOutcomeUnknown says that what f made may be stored: it is not called again then.
func (b *Bucket[T]) Modify(ctx context.Context, key string, f func(T) (T, error)) error {
	if err := validKey(b.cfg.Bucket, key); err != nil {
		return err
	}
	for n := 1; ; n++ {
		lost, err := b.modify(ctx, key, f)
		if !lost {
			return err
		}
		if ended := sleep(ctx, modifyPause.delay(n)); ended != nil {
			return fmt.Errorf("%w: %w", ended, err)
		}
	}
}

// modify tries once, and reports whether somebody was faster.
func (b *Bucket[T]) modify(ctx context.Context, key string, f func(T) (T, error)) (lost bool, err error) {
	last, err := b.c.keyAtLeader(ctx, b.cfg.Bucket, key)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return false, keyError(b.cfg.Bucket, key, err)
	}
	var v T
	if last.live() {
		if v, err = b.decode(key, last.data); err != nil {
			return false, err
		}
	}
	if v, err = f(v); err != nil {
		return false, err
	}
	data, err := b.encode(key, v)
	if err != nil {
		return false, err
	}
	err = b.c.writing(ctx, b.cfg, func() error {
		_, err := b.c.replace(ctx, b.cfg.Bucket, key, data, last)
		return err
	})
	_, lost = errors.AsType[*RevisionError](err)
	return lost, err
}

// Entry is a change of a key.
type Entry[T any] struct {
	Key      string
	Value    T // zero unless Operation is jetstream.KeyValuePut
	Revision uint64
	Created  time.Time
	// Operation is jetstream.KeyValuePut, or one of the two that take a key away.
	Operation jetstream.KeyValueOp
}

// Watch iterates over the entries whose key matches keys, as Client.Watch does. A value that cannot be decoded comes with an
// error and its key, and is not the end.
func (b *Bucket[T]) Watch(ctx context.Context, keys string) iter.Seq2[Entry[T], error] {
	return func(yield func(Entry[T], error) bool) {
		for e, err := range b.c.Watch(ctx, b.cfg.Bucket, keys) {
			if err != nil {
				yield(Entry[T]{}, err)
				return
			}
			if !yield(b.entry(e)) {
				return
			}
		}
	}
}

func (b *Bucket[T]) entry(e jetstream.KeyValueEntry) (Entry[T], error) {
	entry := Entry[T]{Key: e.Key(), Revision: e.Revision(), Created: e.Created(), Operation: e.Operation()}
	if e.Operation() != jetstream.KeyValuePut {
		return entry, nil
	}
	var err error
	entry.Value, err = b.decode(e.Key(), e.Value())
	return entry, err
}

func (b *Bucket[T]) encode(key string, v T) ([]byte, error) {
	data, err := b.codec.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("natty: value for key %q of bucket %q: encode %T: %w", key, b.cfg.Bucket, v, err)
	}
	return data, nil
}

func (b *Bucket[T]) decode(key string, data []byte) (T, error) {
	var v T
	if err := b.codec.Unmarshal(data, &v); err != nil {
		return *new(T), fmt.Errorf("natty: value of key %q of bucket %q: decode as %T: %w", key, b.cfg.Bucket, v, err)
	}
	return v, nil
}
