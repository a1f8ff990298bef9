package natty

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// markerTTL is how long a bucket that natty makes keeps the marker of an expired key: what a watch that was
	// interrupted for less than that can follow without asking which keys there are.
	markerTTL = time.Minute
	// bucketMemory is how long what was seen of a bucket's settings is believed.
	bucketMemory = 5 * time.Second

	maxReplicas = 5 // the server's limit
)

// EnsureBucket makes the bucket of cfg.Bucket if it is missing: with Config.Replicas where cfg gives no number, a History of
// 1, and markers (LimitMarkerTTL, one minute), which tell watchers of expired keys and which a key's own TTL needs; on a
// server before 2.11, without them.
//
// Of an existing bucket it changes what cfg sets and leaves the rest, as EnsureStream does; Storage always counts as set.
// What cannot be changed is a *DriftError. Mirror and Sources are refused: make such buckets with JetStream(). More replicas than
// there are servers is a *ConfigError, after ctx or 5s, since servers may be about to join.
func (c *Client) EnsureBucket(ctx context.Context, cfg jetstream.KeyValueConfig) (kv jetstream.KeyValue, err error) {
	if err := validBucketConfig(cfg); err != nil {
		return nil, err
	}
	ctx, cancel := withDefaultTimeout(ctx, apiTimeout)
	defer cancel()
	if err := c.makeBucket(ctx, cfg); err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		err := c.persist(ctx, func(ctx context.Context) (err error) {
			kv, err = c.js.KeyValue(ctx, cfg.Bucket)
			return err
		})
		switch {
		case err == nil:
			return kv, nil
		case !errors.Is(err, jetstream.ErrBucketNotFound) || sleep(ctx, createPause.delay(n)) != nil:
			return nil, keyError(cfg.Bucket, "", err)
		}
	}
}

// makeBucket is EnsureBucket without the result.
func (c *Client) makeBucket(ctx context.Context, cfg jetstream.KeyValueConfig) error {
	if err := validBucketConfig(cfg); err != nil {
		return err
	}
	want, err := bucketSettings(cfg)
	if err != nil {
		return err
	}
	c.buckets.Delete(cfg.Bucket)
	stream := bucketPrefix + cfg.Bucket
	if cfg.Replicas == 0 {
		cfg.Replicas = c.cfg.Replicas // of a new bucket only: it is not in want
	}
	err = c.converge(ctx, resource{
		kind: "bucket", name: cfg.Bucket, want: want,
		info:   "STREAM.INFO." + stream,
		update: "STREAM.UPDATE." + stream,
		body:   func(merged any) any { return merged },
		fixed:  []string{"storage", "retention"},
		create: func(ctx context.Context) error { return c.createBucket(ctx, cfg) },
		accept: func(have map[string]any) error {
			// The server refuses a duplicate window beyond the age.
			if age := intOf(want["max_age"]); age > 0 && intOf(have["duplicate_window"]) > age {
				want["duplicate_window"] = want["max_age"]
			}
			return nil
		},
	})
	if _, drift := errors.AsType[*DriftError](err); drift {
		return err
	}
	if code := errorCode(err); cfg.Replicas > 1 && (code == codeNoPeers || code == codeNoReplicas) {
		return &ConfigError{
			Field: "Replicas", Value: strconv.Itoa(cfg.Replicas),
			Reason: fmt.Sprintf("are more than there are servers to keep bucket %q; start more servers, or ask for fewer", cfg.Bucket), Err: err,
		}
	}
	return err
}

// createBucket makes a bucket with natty's defaults.
func (c *Client) createBucket(ctx context.Context, cfg jetstream.KeyValueConfig) error {
	asked := cfg.LimitMarkerTTL != 0
	if !asked {
		cfg.LimitMarkerTTL = markerTTL
	}
	_, err := c.js.CreateKeyValue(ctx, cfg)
	if !errors.Is(err, jetstream.ErrLimitMarkerTTLNotSupported) {
		return err
	}
	if asked {
		return fmt.Errorf("%w: %w", markers.missingFrom(c.serverVersion(nil)), err)
	}
	cfg.LimitMarkerTTL = 0
	_, err = c.js.CreateKeyValue(ctx, cfg)
	return err
}

// bucketSettings returns what cfg sets, in the form in which the server has it.
func bucketSettings(cfg jetstream.KeyValueConfig) (map[string]any, error) {
	stream := jetstream.StreamConfig{
		Name:                   bucketPrefix + cfg.Bucket,
		Description:            cfg.Description,
		MaxMsgsPerSubject:      int64(cfg.History),
		MaxBytes:               cfg.MaxBytes,
		MaxAge:                 cfg.TTL,
		MaxMsgSize:             cfg.MaxValueSize,
		Storage:                cfg.Storage,
		Replicas:               cfg.Replicas,
		Placement:              cfg.Placement,
		RePublish:              cfg.RePublish,
		AllowMsgTTL:            cfg.LimitMarkerTTL != 0,
		SubjectDeleteMarkerTTL: cfg.LimitMarkerTTL,
		Metadata:               cfg.Metadata,
	}
	if cfg.Compression {
		stream.Compression = jetstream.S2Compression
	}
	return streamSettings(stream)
}

func validBucketConfig(cfg jetstream.KeyValueConfig) error {
	if err := validBucket(cfg.Bucket); err != nil {
		return err
	}
	switch {
	case cfg.Mirror != nil || len(cfg.Sources) > 0:
		return &ConfigError{Field: "Mirror, Sources", Reason: "natty keeps no copies of other buckets; make such a bucket with JetStream().CreateKeyValue"}
	case cfg.History > jetstream.KeyValueMaxHistory:
		return &ConfigError{Field: "History", Value: strconv.Itoa(int(cfg.History)), Reason: fmt.Sprintf("keep %d values of a key at most", jetstream.KeyValueMaxHistory)}
	case cfg.Replicas < 0 || cfg.Replicas > maxReplicas:
		return &ConfigError{Field: "Replicas", Value: strconv.Itoa(cfg.Replicas), Reason: fmt.Sprintf("expected 1 to %d, best an odd number", maxReplicas)}
	case cfg.TTL < 0 || cfg.TTL > 0 && cfg.TTL < 100*time.Millisecond:
		return &ConfigError{Field: "TTL", Value: cfg.TTL.String(), Reason: "expected at least 100ms, or 0 for none"}
	case cfg.LimitMarkerTTL < 0 || cfg.LimitMarkerTTL%time.Second != 0:
		return &ConfigError{Field: "LimitMarkerTTL", Value: cfg.LimitMarkerTTL.String(), Reason: "expected whole seconds, at least 1s, or 0 for natty's default"}
	}
	return nil
}

func intOf(v any) int64 {
	n, _ := v.(json.Number)
	i, _ := n.Int64()
	return i
}

// DeleteBucket deletes a bucket with everything in it. One that is not there is no error.
func (c *Client) DeleteBucket(ctx context.Context, bucket string) error {
	if err := validBucket(bucket); err != nil {
		return err
	}
	c.buckets.Delete(bucket)
	err := c.query(ctx, "STREAM.DELETE."+bucketPrefix+bucket, nil, &struct{}{})
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return keyError(bucket, "", err)
	}
	return nil
}

// Status returns a bucket's settings and what it holds; jetstream.ErrBucketNotFound if there is none.
func (c *Client) Status(ctx context.Context, bucket string) (status jetstream.KeyValueStatus, err error) {
	if err := validBucket(bucket); err != nil {
		return nil, err
	}
	err = c.persist(ctx, func(ctx context.Context) error {
		kv, err := c.js.KeyValue(ctx, bucket)
		if err == nil {
			status, err = kv.Status(ctx)
		}
		return err
	})
	if err != nil {
		return nil, keyError(bucket, "", err)
	}
	return status, nil
}

// bucketState is what decides about the life of a bucket's keys and markers.
type bucketState struct {
	seen    time.Time
	maxAge  time.Duration // 0: none
	markers time.Duration // their TTL; 0: there are none
	history int64
}

// lookAtBucket returns what was seen of a bucket lately, or asks.
func (c *Client) lookAtBucket(ctx context.Context, bucket string) (bucketState, error) {
	if v, ok := c.buckets.Load(bucket); ok {
		if state, _ := v.(bucketState); time.Since(state.seen) < bucketMemory {
			return state, nil
		}
	}
	return c.askForBucket(ctx, bucket)
}

func (c *Client) askForBucket(ctx context.Context, bucket string) (bucketState, error) {
	var info streamInfo
	if err := c.query(ctx, "STREAM.INFO."+bucketPrefix+bucket, nil, &info); err != nil {
		return bucketState{}, err
	}
	state := bucketState{seen: time.Now(), maxAge: info.Config.MaxAge, history: info.Config.MaxMsgsPerSubject}
	if info.Config.AllowMsgTTL {
		state.markers = info.Config.SubjectDeleteMarkerTTL
	}
	c.buckets.Store(bucket, state)
	return state, nil
}

// withTTL does a write of a key that has a TTL, after seeing to it that the bucket, made from cfg if it is missing, heeds that.
func (c *Client) withTTL(ctx context.Context, cfg jetstream.KeyValueConfig, ttls []time.Duration, write func(ttl string) error) error {
	ttl, err := keyTTL(ttls)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		if err := c.readyForTTL(ctx, cfg, ttl); err != nil {
			return err
		}
		err := c.writing(ctx, cfg, func() error { return write(ttlHeader(ttl)) })
		if n > 1 || errorCode(err) != codeNoTTLs {
			return err
		}
		c.buckets.Delete(cfg.Bucket) // another bucket of this name by now
	}
}

func ttlHeader(ttl time.Duration) string { return strconv.FormatInt(int64(ttl/time.Second), 10) + "s" }

func keyTTL(ttls []time.Duration) (time.Duration, error) {
	if len(ttls) > 1 {
		return 0, &ConfigError{Field: "ttl", Value: fmt.Sprint(ttls), Reason: "a key has one TTL; give one"}
	}
	if ttl := ttls[0]; ttl < time.Second || ttl%time.Second != 0 {
		return 0, &ConfigError{Field: "ttl", Value: ttl.String(), Reason: "expected whole seconds, at least 1s; leave it out for a key that does not expire by itself"}
	}
	return ttls[0], nil
}

func (c *Client) readyForTTL(ctx context.Context, cfg jetstream.KeyValueConfig, ttl time.Duration) error {
	state, err := c.lookAtBucket(ctx, cfg.Bucket)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if cfg.TTL > 0 && ttl > cfg.TTL {
			return ttlBeyond(cfg.Bucket, ttl, cfg.TTL)
		}
		if err := c.makeBucket(ctx, cfg); err != nil {
			return err
		}
		state, err = c.lookAtBucket(ctx, cfg.Bucket)
	}
	if err == nil && state.maxAge > 0 && ttl > state.maxAge {
		state, err = c.askForBucket(ctx, cfg.Bucket) // it may have been changed since
	}
	switch {
	case err != nil:
		return keyError(cfg.Bucket, "", err)
	case state.maxAge > 0 && ttl > state.maxAge:
		return ttlBeyond(cfg.Bucket, ttl, state.maxAge)
	case state.markers > 0:
		return nil
	}
	return c.addMarkers(ctx, cfg.Bucket)
}

func ttlBeyond(bucket string, ttl, own time.Duration) error {
	return &ConfigError{Field: "ttl", Value: ttl.String(), Reason: fmt.Sprintf(
		"is beyond the TTL of bucket %q itself (%v), which would end the key sooner; ask for less, or use a bucket with a longer TTL or none", bucket, own)}
}

// addMarkers makes a bucket heed its keys' TTLs, and tell of their end.
func (c *Client) addMarkers(ctx context.Context, bucket string) error {
	stream := bucketPrefix + bucket
	have, err := c.currentConfig(ctx, "STREAM.INFO."+stream)
	if err != nil {
		return keyError(bucket, "", err)
	}
	err = c.update(ctx, resource{
		kind: "bucket", name: bucket,
		want: map[string]any{
			"allow_msg_ttl":             true,
			"subject_delete_marker_ttl": json.Number(strconv.FormatInt(int64(markerTTL), 10)),
		},
		update: "STREAM.UPDATE." + stream,
		body:   func(merged any) any { return merged },
	}, have)
	if errors.Is(err, ErrUnsupported) {
		return err
	}
	if err != nil {
		return fmt.Errorf("natty: bucket %q cannot be made to heed a key's own TTL: %w", bucket, err)
	}
	if _, err := c.askForBucket(ctx, bucket); err != nil {
		return keyError(bucket, "", err)
	}
	return nil
}
