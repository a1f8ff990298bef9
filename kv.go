package natty

import (
	"context"
	"iter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Get returns the value of a key. A replica that has not seen the last write yet may
// answer, which makes Get fast; Update, Refresh, Create and Bucket.Modify ask the
// bucket's leader. A missing key is jetstream.ErrKeyNotFound, a missing bucket
// jetstream.ErrBucketNotFound. Without a deadline in ctx it takes at most 5s.
//
// A bucket that mirrors another one is read as what it mirrors. All reads, Delete and
// the patterns of Watch take keys that others have made with characters that Put
// refuses, as in "user:42".
func (c *Client) Get(ctx context.Context, bucket, key string) ([]byte, error) {
	return c.kv.Get(ctx, bucket, key)
}

// GetEntry is Get with the revision that Update wants, and the time of the last write.
// The entry's Delta is 0.
func (c *Client) GetEntry(ctx context.Context, bucket, key string) (jetstream.KeyValueEntry, error) {
	return c.kv.GetEntry(ctx, bucket, key)
}

// Put sets a key, whether or not it is there. It makes a missing bucket, with the
// settings that EnsureBucket gives one.
//
// With a ttl the key expires after that time, unless it is written or refreshed before.
// A ttl is whole seconds, at least one, at most a hundred years, and at most the
// bucket's own TTL. Without a ttl the key lives as long as the bucket lets it, even if
// it had a TTL before.
//
// If the bucket cannot keep the ttl, Put writes nothing and returns a *ConfigError. This
// is a bucket with a History over 1, in which an older value would come back when the
// newest one expires, or a bucket without markers, such as one that another program has
// made. EnsureBucket with a LimitMarkerTTL adds markers to a bucket. Clients that do not
// know markers, such as nats.go's nats.KeyValue, read the marker of an expired key as an
// empty value.
//
// A bucket that mirrors another one takes no writes: a *ConfigError names the one to
// write to.
//
// Put returns the errors of PublishMsg. A write without an acknowledgement is retried
// within ctx. ErrOutcomeUnknown says that the value may be stored.
func (c *Client) Put(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error {
	return c.kv.Put(ctx, jetstream.KeyValueConfig{Bucket: bucket}, key, data, ttl)
}

// Create sets a key that is not there. If several callers try, one succeeds. A key that
// is there is jetstream.ErrKeyExists; a deleted or expired key can be created.
// Otherwise Create is like Put.
//
// If an answer is lost, natty asks the bucket's leader whether the value is stored. If
// that cannot be known, because somebody else's value is there by now, the error
// matches ErrOutcomeUnknown.
func (c *Client) Create(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error {
	return c.kv.Create(ctx, jetstream.KeyValueConfig{Bucket: bucket}, key, data, ttl)
}

// Update sets a key that is still at the given revision, and returns its new revision.
// The key's own TTL is kept, and starts again.
//
// If the key has changed, the error is a *RevisionError with both revisions. It matches
// jetstream.ErrKeyRevisionMismatch, and jetstream.ErrKeyNotFound if the key is gone.
// Revision 0 means that the key must not be there. A missing bucket is not made: it is
// jetstream.ErrBucketNotFound. Update treats lost answers as Create does.
func (c *Client) Update(ctx context.Context, bucket, key string, data []byte,
	revision uint64,
) (uint64, error) {
	return c.kv.Update(ctx, bucket, key, data, revision)
}

// Refresh starts the life of a key again, with the key's own TTL or that of its bucket.
// Without either it does nothing. It writes the value that it has read, and only if
// nobody has changed the key in between: otherwise the error is a *RevisionError. The
// key gets a new revision. A missing key is jetstream.ErrKeyNotFound.
//
// Refresh does not ask whose value is there. To keep a key only while it is your own,
// use Update with its revision.
func (c *Client) Refresh(ctx context.Context, bucket, key string) error {
	return c.kv.Refresh(ctx, bucket, key)
}

// Delete deletes a key. A missing key or bucket is no error. A key of a mirror cannot be
// deleted there: that is a *ConfigError, as for Put.
//
// In a bucket with markers (LimitMarkerTTL) and a History of 1, the key's marker
// expires too, and watchers see a jetstream.KeyValuePurge, as for a key that expires.
// In other buckets a marker stays, and watchers see a jetstream.KeyValueDelete, as with
// nats.go's Delete.
func (c *Client) Delete(ctx context.Context, bucket, key string) error {
	return c.kv.Delete(ctx, bucket, key)
}

// Keys returns the keys of a bucket, sorted. It leaves out no key that is there all the
// time, whatever is written meanwhile. Without a deadline in ctx it takes as long as the
// bucket is large, and ends with an error when the server has sent nothing for 5s.
func (c *Client) Keys(ctx context.Context, bucket string) ([]string, error) {
	return c.kv.Keys(ctx, bucket)
}

// Watch iterates over the entries of a bucket whose key matches keys: * stands for any
// one part, > at the end for all that follow, and ">" matches every key. First come the
// last entries of all keys, including the deletions that the bucket still knows, then
// every change as it happens. The watch ends with ctx, with the Client, and when the
// caller leaves the loop; nothing runs after that.
//
// The watch survives interruptions, and continues behind the last revision that it has
// seen: at once after a reconnect, within three seconds if a server falls silent. A key
// that is deleted or expires comes as an entry with that operation.
//
// A key can vanish without a marker: because the bucket has none, or because the marker
// expired during an interruption. To notice, the watch asks the bucket's leader which
// keys there are after each interruption, and every five seconds (less often in large
// buckets) in a bucket whose keys expire without markers. Such a key comes as a
// jetstream.KeyValuePurge at the last revision of the bucket. The watch does not notice
// a purge of the bucket's stream without an interruption. If the bucket is deleted and
// made again, the watch yields all entries of the new bucket, and a
// jetstream.KeyValuePurge for each key that only the old one had.
//
// An error ends the watch: jetstream.ErrBucketNotFound, also for a bucket that is
// dropped while it is watched, ErrClosed if the connection is gone for good, a
// *ConfigError, or the server's refusal. A limit on consumers ends only a watch that has
// not begun.
func (c *Client) Watch(ctx context.Context, bucket, keys string) iter.Seq2[jetstream.KeyValueEntry, error] {
	return c.kv.Watch(ctx, bucket, keys)
}

// EnsureBucket makes the bucket of cfg.Bucket if it is missing. The defaults are
// Config.Replicas, a History of 1, and markers (LimitMarkerTTL, one minute): they show
// expired keys to watchers, and a key's own TTL needs them. A server before 2.11 makes
// the bucket without markers.
//
// In an existing bucket it changes what cfg sets and leaves the rest, as EnsureStream
// does; Storage always counts as set. A setting that cannot be changed is a
// *DriftError. Mirror and Sources are refused, and so is an existing bucket that is a
// mirror: make and change such buckets with JetStream(). More
// replicas than there are servers is a *ConfigError, after ctx or 5s, since servers may
// be about to join.
func (c *Client) EnsureBucket(ctx context.Context, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	return c.kv.EnsureBucket(ctx, cfg)
}

// DeleteBucket deletes a bucket with everything in it. A missing bucket is no error.
func (c *Client) DeleteBucket(ctx context.Context, bucket string) error {
	return c.kv.DeleteBucket(ctx, bucket)
}

// Status returns a bucket's settings and its state. A missing bucket is
// jetstream.ErrBucketNotFound.
func (c *Client) Status(ctx context.Context, bucket string) (status jetstream.KeyValueStatus, err error) {
	return c.kv.Status(ctx, bucket)
}
