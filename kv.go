package natty

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A bucket is a stream, and a key the last message of a subject of it (ADR-8).
const (
	bucketPrefix = "KV_"  // of the stream's name
	keyPrefix    = "$KV." // of the subject, before the bucket's name and the key

	headerOperation = "KV-Operation"
)

// ttlNever is the TTL of a message that outlives its stream's MaxAge.
const ttlNever = "never"

func keySubject(bucket, key string) string { return keyPrefix + bucket + "." + key }

// keyTarget is the subject to publish a key to: another domain's or account's is reached through its API.
func (c *Client) keyTarget(bucket, key string) string {
	if c.cfg.Domain == "" && c.cfg.APIPrefix == "" {
		return keySubject(bucket, key)
	}
	return c.cfg.apiPrefix() + keySubject(bucket, key)
}

// Get returns the value of a key. It is fast, and in a replicated bucket it may be answered by a replica that has not seen
// the last write yet; Update, Refresh, Create and Bucket.Modify look for themselves, at the bucket's leader. A missing key is
// jetstream.ErrKeyNotFound, a missing bucket jetstream.ErrBucketNotFound. Without a deadline in ctx it takes at most 5s.
func (c *Client) Get(ctx context.Context, bucket, key string) ([]byte, error) {
	if err := validKey(bucket, key); err != nil {
		return nil, err
	}
	var value []byte
	err := c.persist(ctx, func(ctx context.Context) (err error) {
		value, err = c.getKey(ctx, bucket, key)
		return err
	})
	if err != nil {
		return nil, keyError(bucket, key, err)
	}
	return value, nil
}

// getKey reads a key once, from any replica if the bucket allows that.
func (c *Client) getKey(ctx context.Context, bucket, key string) ([]byte, error) {
	msg, err := c.request(ctx, "DIRECT.GET."+bucketPrefix+bucket+"."+keySubject(bucket, key), nil)
	if errors.Is(err, nats.ErrNoResponders) {
		// Not allowed by this bucket, no bucket, or no leader: one that has an answer will tell.
		return c.getKeyFromLeader(ctx, bucket, key)
	}
	if err != nil {
		return nil, err
	}
	switch status := header(msg.Header, "Status"); {
	case status == "404", status == "" && operation(msg.Header) != jetstream.KeyValuePut:
		return nil, jetstream.ErrKeyNotFound
	case status != "":
		return nil, fmt.Errorf("the server refused the read: %s %s", status, header(msg.Header, "Description"))
	}
	return msg.Data, nil
}

func (c *Client) getKeyFromLeader(ctx context.Context, bucket, key string) ([]byte, error) {
	m, err := c.leaderGetOnce(ctx, bucketPrefix+bucket, map[string]any{"last_by_subj": keySubject(bucket, key)})
	if err != nil {
		return nil, err
	}
	if s := newKeyState(m); s.live() {
		return s.data, nil
	}
	return nil, jetstream.ErrKeyNotFound
}

// Put sets a key, whatever it was. A missing bucket is made: see EnsureBucket for what it is like.
//
// With a ttl the key is gone after that time, unless it is written or refreshed before: whole seconds, at least one, and not
// more than the bucket's own TTL. Without one it lives as long as the bucket lets it, also when it had a TTL before. A bucket
// that was made without markers gets them with the first ttl, see EnsureBucket.
//
// Errors are those of PublishMsg: what is not acknowledged is retried within ctx, and ErrOutcomeUnknown says that the value
// may be stored.
func (c *Client) Put(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error {
	return c.put(ctx, jetstream.KeyValueConfig{Bucket: bucket}, key, data, ttl)
}

// put is Put into a bucket that is made from cfg.
func (c *Client) put(ctx context.Context, cfg jetstream.KeyValueConfig, key string, data []byte, ttl []time.Duration) error {
	if err := validKey(cfg.Bucket, key); err != nil {
		return err
	}
	subject := c.keyTarget(cfg.Bucket, key)
	if len(ttl) == 0 {
		return c.writing(ctx, cfg, func() error { return c.Publish(ctx, subject, data) })
	}
	return c.withTTL(ctx, cfg, ttl, func(ttl string) error {
		_, err := c.publish(ctx, &nats.Msg{Subject: subject, Data: data, Header: nats.Header{jetstream.MsgTTLHeader: {ttl}}}, nil)
		return err
	})
}

// Create sets a key that is not there; of several that try, one succeeds. A key that is there is jetstream.ErrKeyExists. One
// that was deleted or has expired can be created. Otherwise it is like Put.
//
// When an answer is lost, natty finds out from the bucket's leader what became of it. Where that is impossible, because
// another one's value stands there by now, the error matches ErrOutcomeUnknown.
func (c *Client) Create(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error {
	return c.create(ctx, jetstream.KeyValueConfig{Bucket: bucket}, key, data, ttl)
}

func (c *Client) create(ctx context.Context, cfg jetstream.KeyValueConfig, key string, data []byte, ttl []time.Duration) error {
	if err := validKey(cfg.Bucket, key); err != nil {
		return err
	}
	write := func(ttl string) error {
		w := swap{c: c, bucket: cfg.Bucket, key: key, data: data, ttl: ttl}
		_, err := w.run(ctx, keyState{})
		return err
	}
	var err error
	if len(ttl) == 0 {
		err = c.writing(ctx, cfg, func() error { return write("") })
	} else {
		err = c.withTTL(ctx, cfg, ttl, write)
	}
	if _, exists := errors.AsType[*RevisionError](err); exists {
		return keyError(cfg.Bucket, key, jetstream.ErrKeyExists)
	}
	return err
}

// Update sets a key that is still at the revision given, and returns its new one. A key's own TTL is kept, and counts anew.
// A key that has changed is a *RevisionError with both revisions, which matches jetstream.ErrKeyRevisionMismatch, and
// jetstream.ErrKeyNotFound if the key is gone. Revision 0 asks that it is not there. A missing bucket is not made:
// jetstream.ErrBucketNotFound. Lost answers are treated as Create does.
func (c *Client) Update(ctx context.Context, bucket, key string, data []byte, revision uint64) (uint64, error) {
	if err := validKey(bucket, key); err != nil {
		return 0, err
	}
	last, err := c.keyAtLeader(ctx, bucket, key)
	if err != nil {
		return 0, keyError(bucket, key, err)
	}
	if have := last.revision(); have != revision {
		return 0, &RevisionError{Bucket: bucket, Key: key, Have: have, Want: revision}
	}
	return c.replace(ctx, bucket, key, data, last)
}

// replace sets a key that is still as last, and keeps its TTL.
func (c *Client) replace(ctx context.Context, bucket, key string, data []byte, last keyState) (uint64, error) {
	w := swap{c: c, bucket: bucket, key: key, data: data, want: last.revision(), ttl: last.ttl()}
	return w.run(ctx, last)
}

// Refresh begins the life of a key anew, with the TTL that it was given or its bucket's; where there is neither, it does
// nothing. It writes what it has read, and only if nobody has changed the key in between: a *RevisionError says that
// somebody has. The key gets a new revision. One that is gone is jetstream.ErrKeyNotFound.
//
// It refreshes whoever's value is there. To keep a key only as long as it is one's own, use Update with its revision.
func (c *Client) Refresh(ctx context.Context, bucket, key string) error {
	if err := validKey(bucket, key); err != nil {
		return err
	}
	last, err := c.keyAtLeader(ctx, bucket, key)
	if err == nil && !last.live() {
		err = jetstream.ErrKeyNotFound
	}
	if err != nil {
		return keyError(bucket, key, err)
	}
	switch last.ttl() {
	case ttlNever:
		return nil
	case "":
		state, err := c.lookAtBucket(ctx, bucket)
		if err != nil {
			return keyError(bucket, key, err)
		}
		if state.maxAge == 0 {
			return nil
		}
	}
	w := swap{c: c, bucket: bucket, key: key, data: last.data, header: last.own(), want: last.seq, ttl: last.ttl()}
	_, err = w.run(ctx, last)
	return err
}

// Delete takes a key away. One that is not there, or whose bucket is not, is no error.
//
// Where the bucket has markers (LimitMarkerTTL) and a History of 1, what is left of the key goes away after their time, and
// watchers see a jetstream.KeyValuePurge, as for a key that expires. Elsewhere a marker stays behind, a
// jetstream.KeyValueDelete, as of nats.go's Delete.
func (c *Client) Delete(ctx context.Context, bucket, key string) error {
	if err := validKey(bucket, key); err != nil {
		return err
	}
	h := nats.Header{headerOperation: {"DEL"}}
	switch state, err := c.lookAtBucket(ctx, bucket); {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil
	case err == nil && state.markers > 0 && state.history == 1:
		// Under a DEL the server would put another marker when it ends.
		h = nats.Header{
			headerOperation:        {"PURGE"},
			jetstream.MsgRollup:    {jetstream.MsgRollupSubject},
			jetstream.MsgTTLHeader: {ttlHeader(state.markers)},
		}
	}
	msg := &nats.Msg{Subject: c.keyTarget(bucket, key), Header: h}
	_, err := c.publish(ctx, msg, nil)
	if errorCode(err) == codeNoTTLs {
		c.buckets.Delete(bucket) // another bucket of this name by now
		msg.Header = nats.Header{headerOperation: {"DEL"}}
		_, err = c.publish(ctx, msg, nil)
	}
	if errors.Is(err, ErrNoStream) {
		return nil
	}
	return err
}

// Keys returns the keys of a bucket, sorted. Without a deadline in ctx it takes at most 5s.
func (c *Client) Keys(ctx context.Context, bucket string) ([]string, error) {
	if err := validBucket(bucket); err != nil {
		return nil, err
	}
	ctx, cancel := withDefaultTimeout(ctx, apiTimeout)
	defer cancel()
	w := newWatch(c, bucket, ">")
	w.headersOnly = true
	w.yield = func(*keyEntry) bool { return true }
	w.synced = func(time.Time) bool { return false }
	if err := w.run(ctx); err != nil {
		return nil, keyError(bucket, "", err)
	}
	return w.liveKeys(), nil
}

// writing repeats a write after making the bucket that it misses. A cluster may not know for a moment a bucket that has just
// been made.
func (c *Client) writing(ctx context.Context, cfg jetstream.KeyValueConfig, write func() error) error {
	err := write()
	for n := 1; n <= 5 && errors.Is(err, ErrNoStream); n++ {
		if n > 1 {
			if ended := sleep(ctx, createPause.delay(n)); ended != nil {
				return err
			}
		}
		if err := c.makeBucket(ctx, cfg); err != nil {
			return err
		}
		err = write()
	}
	return err
}
