// Package kv owns keys and their buckets: reading, writing with compare-and-set, making
// buckets with the right settings, and watching keys without a gap. It knows bytes and
// revisions. It does not know the types of values, nor what a key is for: a lease is one
// key among others. Read first:
//
//	kv.go       the writes of callers; ensure.go makes the bucket
//	write.go    a compare-and-set, and what became of it when the answer was lost
//	read.go     reads; mirror.go finds where a mirrored bucket is written
//	watch.go    a watch that outlives connections; session.go is one consumer of it
//	catchup.go  keys that changed or vanished while nobody listened; listing.go
package kv

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/publish"
)

// A bucket is a stream, and a key the last message of a subject of it (ADR-8).
const (
	bucketPrefix = "KV_" // of the stream's name

	// HeaderOperation says that a message takes its key away.
	HeaderOperation = "KV-Operation"
)

// TTLNever is the TTL of a message that outlives its stream's MaxAge.
const TTLNever = "never"

// Store has the keys and buckets of one connection.
type Store struct {
	API      *jsapi.Client
	Pub      *publish.Publisher
	Log      *slog.Logger
	Life     context.Context //nolint:containedctx // ends when the Client is closed
	Replicas int             // of a new bucket whose settings give no number
	buckets  sync.Map        // bucketState by name, as last seen
	origins  sync.Map        // origin by name of bucket, as last seen

	// Invalid makes the error for an argument that can never work, Changed the one for
	// a key that does not have the revision it should have.
	Invalid func(field, value, reason string, cause error) error
	Changed func(bucket, key string, have, want uint64) error
}

// StreamName returns the name of the stream that is a bucket.
func StreamName(bucket string) string { return bucketPrefix + bucket }

// KeySubject returns the subject under which the bucket's stream stores a key.
func KeySubject(bucket, key string) string { return publish.KeyPrefix + bucket + "." + key }

// KeyTarget returns the subject to publish a key to. The buckets of another domain or
// account are reached through its API prefix.
func (c *Store) KeyTarget(bucket, key string) string {
	if c.API.Prefix == jsapi.DefaultPrefix {
		return KeySubject(bucket, key)
	}
	return c.API.Prefix + KeySubject(bucket, key)
}

// Put is Client.Put of the root. It makes a missing bucket from cfg.
func (c *Store) Put(ctx context.Context, cfg jetstream.KeyValueConfig, key string, data []byte,
	ttl []time.Duration,
) error {
	if err := c.ValidKey(cfg.Bucket, key); err != nil {
		return err
	}
	subject := c.KeyTarget(cfg.Bucket, key)
	if len(ttl) == 0 {
		return c.Writing(ctx, cfg, func() error { return c.Pub.Publish(ctx, subject, data) })
	}
	return c.withTTL(ctx, cfg, ttl, func(ttl string) error {
		msg := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{jetstream.MsgTTLHeader: {ttl}}}
		_, err := c.Pub.PublishMsg(ctx, msg, nil)
		return err
	})
}

// Create is Client.Create of the root. It makes a missing bucket from cfg.
func (c *Store) Create(ctx context.Context, cfg jetstream.KeyValueConfig, key string, data []byte,
	ttl []time.Duration,
) error {
	if err := c.ValidKey(cfg.Bucket, key); err != nil {
		return err
	}
	write := func(ttl string) error {
		w := swap{c: c, create: true, Write: Write{Bucket: cfg.Bucket, Key: key, Fence: key, Data: data, TTL: ttl}}
		_, err := w.run(ctx, State{})
		return err
	}
	if len(ttl) == 0 {
		return c.Writing(ctx, cfg, func() error { return write("") })
	}
	return c.withTTL(ctx, cfg, ttl, write)
}

// Update is Client.Update of the root.
func (c *Store) Update(ctx context.Context, bucket, key string, data []byte,
	revision uint64,
) (uint64, error) {
	if err := c.ValidKey(bucket, key); err != nil {
		return 0, err
	}
	last, err := c.lastForWrite(ctx, bucket, key)
	if err != nil {
		return 0, err
	}
	if have := last.revision(); have != revision {
		return 0, c.Changed(bucket, key, have, revision)
	}
	return c.Replace(ctx, bucket, key, data, last)
}

// Replace sets a key whose last message still is last, and keeps its TTL.
func (c *Store) Replace(ctx context.Context, bucket, key string, data []byte, last State) (uint64, error) {
	w := swap{c: c, want: last.revision(), Write: Write{
		Bucket: bucket, Key: key, Fence: key, Data: data, TTL: last.ttl(),
	}}
	return w.run(ctx, last)
}

// Refresh is Client.Refresh of the root.
func (c *Store) Refresh(ctx context.Context, bucket, key string) error {
	if err := c.ValidKey(bucket, key); err != nil {
		return err
	}
	last, err := c.lastForWrite(ctx, bucket, key)
	switch {
	case err != nil:
		return err
	case !last.Live():
		return KeyError(bucket, key, jetstream.ErrKeyNotFound)
	}
	switch last.ttl() {
	case TTLNever:
		return nil
	case "":
		state, err := c.lookAtBucket(ctx, bucket)
		if err != nil {
			return KeyError(bucket, key, err)
		}
		if state.maxAge == 0 {
			return nil
		}
	}
	w := swap{c: c, want: last.Seq, Write: Write{
		Bucket: bucket, Key: key, Fence: key, Data: last.Data, Header: last.ownHeader(), TTL: last.ttl(),
	}}
	_, err = w.run(ctx, last)
	return err
}

// Delete is Client.Delete of the root.
func (c *Store) Delete(ctx context.Context, bucket, key string) error {
	if err := c.ValidOldKey(bucket, key); err != nil {
		return err
	}
	h := nats.Header{HeaderOperation: {"DEL"}}
	switch state, err := c.lookAtBucket(ctx, bucket); {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil
	case err != nil && ctx.Err() != nil: // a publish would not say why
		return KeyError(bucket, key, err)
	case err == nil && state.origin != bucket:
		return c.readOnly(bucket, state.origin)
	case err == nil && state.markers > 0 && state.history == 1:
		// When a DEL expires, the server puts another marker in its place.
		h = nats.Header{
			HeaderOperation:        {"PURGE"},
			jetstream.MsgRollup:    {jetstream.MsgRollupSubject},
			jetstream.MsgTTLHeader: {ttlHeader(state.markers)},
		}
	}
	msg := &nats.Msg{Subject: c.KeyTarget(bucket, key), Header: h}
	_, err := c.Pub.PublishMsg(ctx, msg, nil)
	if jsapi.Code(err) == jsapi.CodeNoTTLs {
		c.forget(bucket) // it was replaced by another bucket of this name
		msg.Header = nats.Header{HeaderOperation: {"DEL"}}
		_, err = c.Pub.PublishMsg(ctx, msg, nil)
	}
	if errors.Is(err, jsapi.ErrNoStream) {
		return c.undeletable(ctx, bucket, err)
	}
	return err
}

// undeletable returns nil if there is no bucket to delete a key from. A stream that does
// not take the key's subject is one all the same: nothing was deleted.
func (c *Store) undeletable(ctx context.Context, bucket string, err error) error {
	state, lookErr := c.askForBucket(ctx, bucket)
	switch {
	case errors.Is(lookErr, jetstream.ErrStreamNotFound):
		return nil
	case lookErr != nil:
		return jsapi.Because(err, lookErr)
	case state.mirror:
		return c.readOnly(bucket, state.origin)
	}
	return err
}

// Writing does a write, and repeats it after making the bucket if that is missing. For
// a moment a cluster may not know a bucket that was just made.
func (c *Store) Writing(ctx context.Context, cfg jetstream.KeyValueConfig, write func() error) error {
	err := write()
	for n := 1; n <= 5 && errors.Is(err, jsapi.ErrNoStream); n++ {
		if n > 1 {
			if ended := jsapi.CreatePause.Wait(ctx, n); ended != nil {
				return err
			}
		}
		if err := c.MakeBucket(ctx, cfg); err != nil {
			return err
		}
		err = write()
	}
	return err
}
