package kv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A mirror is a bucket that copies another one, its origin. Its stream has the origin's
// subjects, and takes no writes.

// originMemory is for how long natty remembers whether a bucket is a mirror.
const originMemory = time.Minute

type origin struct {
	seen time.Time
	name string // the bucket's own, if it is no mirror
}

// originOf returns the bucket that a bucket mirrors, or its own name. Where the server
// does not say, it is the bucket's own.
func (c *Store) originOf(ctx context.Context, bucket string) string {
	if v, ok := c.origins.Load(bucket); ok {
		if o, _ := v.(origin); time.Since(o.seen) < originMemory {
			return o.name
		}
	}
	o := origin{seen: time.Now(), name: bucket}
	switch state, err := c.lookAtBucket(ctx, bucket); {
	case err == nil:
		o.name = state.origin
	case !errors.Is(err, nats.ErrPermissionViolation):
		return bucket
	}
	c.origins.Store(bucket, o)
	return o.name
}

// originIn returns the bucket whose subjects the stream of a bucket has.
func originIn(bucket string, cfg *jetstream.StreamConfig) string {
	if m := cfg.Mirror; m != nil {
		return strings.TrimPrefix(m.Name, bucketPrefix)
	}
	return bucket
}

// forget makes the next look at a bucket ask the server.
func (c *Store) forget(bucket string) {
	c.buckets.Delete(bucket)
	c.origins.Delete(bucket)
}

// refuseMirror returns an error if the bucket is a mirror with a name of its own.
func (c *Store) refuseMirror(bucket, origin string) error {
	if origin == bucket {
		return nil
	}
	return c.readOnly(bucket, origin)
}

func (c *Store) readOnly(bucket, origin string) error {
	return c.Invalid("bucket", bucket, fmt.Sprintf(
		"is a mirror of bucket %q, and can only be read; write to %[1]q where that is", origin), nil)
}

// lastForWrite is KeyAtLeader for a write. A mirror has none of its own keys.
func (c *Store) lastForWrite(ctx context.Context, bucket, key string) (State, error) {
	last, err := c.KeyAtLeader(ctx, bucket, key)
	switch {
	case err != nil:
		return State{}, KeyError(bucket, key, err)
	case last.Seq == 0:
		return State{}, c.refuseMirror(bucket, c.originOf(ctx, bucket))
	}
	return last, nil
}
