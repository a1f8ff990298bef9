package natty

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/kv"
)

// BucketConfig describes a Bucket.
type BucketConfig struct {
	Bucket string // its name; required
	// TTL is how long a key lives after its last write. 0: for ever, or the TTL of an
	// existing bucket.
	TTL time.Duration
	// Replicas is the number of copies of the bucket. Default: Config.Replicas for a
	// new bucket, and no change for an existing one.
	Replicas int
	// Codec encodes and decodes values. Default: JSON.
	Codec Codec
}

// Bucket is a bucket whose values are of one type. It may be used by many goroutines.
type Bucket[T any] struct {
	c     *Client
	cfg   jetstream.KeyValueConfig
	codec Codec
}

// NewBucket returns a view of a bucket. It does not ask the server: the first Put,
// Create or Modify makes a missing bucket, with TTL and Replicas. The settings of an
// existing bucket stay as they are; EnsureBucket changes them.
func NewBucket[T any](c *Client, cfg BucketConfig) (*Bucket[T], error) {
	if c == nil {
		return nil, invalid("c", "", "is nil; give a Client made with Connect", nil)
	}
	b := &Bucket[T]{
		c:     c,
		cfg:   jetstream.KeyValueConfig{Bucket: cfg.Bucket, TTL: cfg.TTL, Replicas: cfg.Replicas},
		codec: cfg.Codec,
	}
	if b.codec == nil {
		b.codec = jsonCodec{}
	}
	return b, c.kv.ValidBucketConfig(b.cfg)
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
	return b.c.kv.Put(ctx, b.cfg, key, data, ttl)
}

// Create sets a key that is not there, as Client.Create does.
func (b *Bucket[T]) Create(ctx context.Context, key string, v T, ttl ...time.Duration) error {
	data, err := b.encode(key, v)
	if err != nil {
		return err
	}
	return b.c.kv.Create(ctx, b.cfg, key, data, ttl)
}

// Delete deletes a key. A missing key is no error.
func (b *Bucket[T]) Delete(ctx context.Context, key string) error {
	return b.c.Delete(ctx, b.cfg.Bucket, key)
}

// Keys returns the keys of the bucket, sorted.
func (b *Bucket[T]) Keys(ctx context.Context) ([]string, error) {
	return b.c.Keys(ctx, b.cfg.Bucket)
}

// modifyPause is the pause after somebody else changed the key first.
var modifyPause = backoff.Exp{Min: time.Millisecond, Max: 250 * time.Millisecond}

// Modify replaces the value of a key by what f makes of it. A missing key, or bucket,
// is the zero T. The key's own TTL is kept.
//
// If somebody else changes the key meanwhile, Modify calls f again with the new value,
// after a pause with jitter, until ctx ends. So f should have no side effects. An error
// of f ends Modify: nothing is written, and the error is returned as it is.
//
// ErrOutcomeUnknown says that the value of f may be stored. Modify then does not call f
// again.
func (b *Bucket[T]) Modify(ctx context.Context, key string, f func(T) (T, error)) error {
	if err := b.c.kv.ValidKey(b.cfg.Bucket, key); err != nil {
		return err
	}
	if f == nil {
		return invalid("f", "", "is nil; give a function that makes the new value", nil)
	}
	for n := 1; ; n++ {
		lost, err := b.modify(ctx, key, f)
		if !lost {
			return err
		}
		if ended := modifyPause.Wait(ctx, n); ended != nil {
			return fmt.Errorf("%w: %w", ended, err)
		}
	}
}

// modify tries once, and reports whether somebody else changed the key first.
func (b *Bucket[T]) modify(ctx context.Context, key string, f func(T) (T, error)) (lost bool, err error) {
	last, err := b.c.kv.KeyAtLeader(ctx, b.cfg.Bucket, key)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return false, kv.KeyError(b.cfg.Bucket, key, err)
	}
	var v T
	if last.Live() {
		if v, err = b.decode(key, last.Data); err != nil {
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
	err = b.c.kv.Writing(ctx, b.cfg, func() error {
		_, err := b.c.kv.Replace(ctx, b.cfg.Bucket, key, data, last)
		return err
	})
	_, lost = errors.AsType[*RevisionError](err)
	return lost, err
}

// Entry is a change of a key.
type Entry[T any] struct {
	// Key is the key that was changed.
	Key string
	// Value is zero unless Operation is jetstream.KeyValuePut.
	Value T
	// Revision is the bucket's sequence of this change, for Client.Update.
	Revision uint64
	// Created is when the server stored the change.
	Created time.Time
	// Operation is jetstream.KeyValuePut, or KeyValueDelete or KeyValuePurge for a key
	// that is gone.
	Operation jetstream.KeyValueOp
}

// Watch iterates over the entries whose key matches keys, as Client.Watch does. A value
// that cannot be decoded comes with its key and an error, and does not end the watch.
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
		return nil, fmt.Errorf("natty: value for key %q of bucket %q: encode %T: %w",
			key, b.cfg.Bucket, v, err)
	}
	return data, nil
}

func (b *Bucket[T]) decode(key string, data []byte) (T, error) {
	var v T
	if err := b.codec.Unmarshal(data, &v); err != nil {
		return *new(T), fmt.Errorf("natty: value of key %q of bucket %q: decode as %T: %w",
			key, b.cfg.Bucket, v, err)
	}
	return v, nil
}
