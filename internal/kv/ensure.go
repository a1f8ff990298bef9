package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
)

const (
	// MarkerTTL is how long a bucket that natty makes keeps the marker of an expired
	// key. A watch that is interrupted for less follows without asking which keys there
	// are.
	MarkerTTL = time.Minute
	// bucketMemory is for how long a bucket's settings are not asked for again.
	bucketMemory = 5 * time.Second

	maxReplicas = 5 // the server's limit
)

// EnsureBucket is Client.EnsureBucket of the root.
func (c *Store) EnsureBucket(ctx context.Context, cfg jetstream.KeyValueConfig) (
	kv jetstream.KeyValue, err error,
) {
	ctx, cancel := jsapi.WithTimeout(ctx, jsapi.APITimeout)
	defer cancel()
	if err := c.MakeBucket(ctx, cfg); err != nil {
		return nil, err
	}
	err = jsapi.UntilKnown(ctx, jetstream.ErrBucketNotFound, func() error {
		return c.API.Persist(ctx, func(ctx context.Context) (err error) {
			kv, err = c.API.Via(ctx).KeyValue(ctx, cfg.Bucket)
			return err
		})
	})
	if err != nil {
		return nil, KeyError(cfg.Bucket, "", err)
	}
	return kv, nil
}

// MakeBucket is EnsureBucket without the result.
func (c *Store) MakeBucket(ctx context.Context, cfg jetstream.KeyValueConfig) error {
	if err := c.ValidBucketConfig(cfg); err != nil {
		return err
	}
	want, err := bucketSettings(cfg)
	if err != nil {
		return err
	}
	c.forget(cfg.Bucket)
	stream := StreamName(cfg.Bucket)
	if cfg.Replicas == 0 {
		cfg.Replicas = c.Replicas // of a new bucket only: want does not have it
	}
	creating := false
	err = c.API.Converge(ctx, jsapi.Resource{
		Kind: "bucket", Name: cfg.Bucket, Want: want,
		Info:   "STREAM.INFO." + stream,
		Update: "STREAM.UPDATE." + stream,
		Fixed:  []string{"storage", "retention"},
		Create: func(ctx context.Context) error {
			creating = true
			return c.createBucket(ctx, cfg)
		},
		Accept: func(have map[string]any) error {
			if mirror, _ := have["mirror"].(map[string]any); mirror != nil {
				name, _ := mirror["name"].(string)
				return c.readOnly(cfg.Bucket, strings.TrimPrefix(name, bucketPrefix))
			}
			// The server refuses a duplicate window that is longer than the age.
			if age := intOf(want["max_age"]); age > 0 && intOf(have["duplicate_window"]) > age {
				want["duplicate_window"] = want["max_age"]
			}
			return nil
		},
	})
	code := jsapi.Code(err)
	if creating && cfg.Replicas > 1 && (code == jsapi.CodeNoPeers || code == jsapi.CodeNoReplicas) {
		return c.Invalid("Replicas", strconv.Itoa(cfg.Replicas), fmt.Sprintf(
			"are more than there are servers to keep bucket %q; start more servers, or ask for fewer",
			cfg.Bucket), err)
	}
	return err
}

// createBucket makes a bucket with natty's defaults: with markers, if the server has
// them.
func (c *Store) createBucket(ctx context.Context, cfg jetstream.KeyValueConfig) error {
	asked := cfg.LimitMarkerTTL != 0
	if !asked {
		cfg.LimitMarkerTTL = MarkerTTL
	}
	_, err := c.API.Via(ctx).CreateKeyValue(ctx, cfg)
	if !errors.Is(err, jetstream.ErrLimitMarkerTTLNotSupported) {
		return err
	}
	if asked {
		return fmt.Errorf("%w: %w", jsapi.Markers.MissingFrom(c.API.ServerVersion(nil)), err)
	}
	cfg.LimitMarkerTTL = 0
	_, err = c.API.Via(ctx).CreateKeyValue(ctx, cfg)
	return err
}

// bucketSettings returns the settings of cfg in the server's form.
func bucketSettings(cfg jetstream.KeyValueConfig) (map[string]any, error) {
	stream := jetstream.StreamConfig{
		Name:                   StreamName(cfg.Bucket),
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
	return jsapi.StreamSettings(stream)
}

// ValidBucketConfig refuses settings that can never work.
func (c *Store) ValidBucketConfig(cfg jetstream.KeyValueConfig) error {
	if err := c.validBucket(cfg.Bucket); err != nil {
		return err
	}
	switch {
	case cfg.Mirror != nil || len(cfg.Sources) > 0:
		return c.Invalid("Mirror, Sources", "",
			"natty keeps no copies of other buckets; make such a bucket with JetStream().CreateKeyValue", nil)
	case cfg.History > jetstream.KeyValueMaxHistory:
		return c.Invalid("History", strconv.Itoa(int(cfg.History)),
			fmt.Sprintf("keep %d values of a key at most", jetstream.KeyValueMaxHistory), nil)
	case cfg.Replicas < 0 || cfg.Replicas > maxReplicas:
		return c.Invalid("Replicas", strconv.Itoa(cfg.Replicas),
			fmt.Sprintf("expected 1 to %d, best an odd number", maxReplicas), nil)
	case cfg.TTL < 0 || cfg.TTL > 0 && cfg.TTL < 100*time.Millisecond:
		return c.Invalid("TTL", cfg.TTL.String(), "expected at least 100ms, or 0 for none", nil)
	case cfg.LimitMarkerTTL < 0 || cfg.LimitMarkerTTL%time.Second != 0:
		return c.Invalid("LimitMarkerTTL", cfg.LimitMarkerTTL.String(),
			"expected whole seconds, at least 1s, or 0 for natty's default", nil)
	}
	return nil
}

func intOf(v any) int64 {
	n, _ := v.(json.Number)
	i, _ := n.Int64()
	return i
}

// DeleteBucket is Client.DeleteBucket of the root.
func (c *Store) DeleteBucket(ctx context.Context, bucket string) error {
	if err := c.validBucket(bucket); err != nil {
		return err
	}
	c.forget(bucket)
	err := c.API.Query(ctx, "STREAM.DELETE."+StreamName(bucket), nil, &struct{}{})
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return KeyError(bucket, "", err)
	}
	return nil
}

// Status is Client.Status of the root.
func (c *Store) Status(ctx context.Context, bucket string) (status jetstream.KeyValueStatus, err error) {
	if err := c.validBucket(bucket); err != nil {
		return nil, err
	}
	err = c.API.Persist(ctx, func(ctx context.Context) error {
		kv, err := c.API.Via(ctx).KeyValue(ctx, bucket)
		if err == nil {
			status, err = kv.Status(ctx)
		}
		return err
	})
	if err != nil {
		return nil, KeyError(bucket, "", err)
	}
	return status, nil
}

// bucketState has the settings that decide about the life of a bucket's keys and
// markers.
type bucketState struct {
	seen    time.Time
	maxAge  time.Duration // 0: none
	markers time.Duration // their TTL; 0: there are none
	window  time.Duration // in which the server knows a message by its id
	history int64
	ttls    bool   // keys may have a TTL of their own
	mirror  bool   // it copies another bucket
	origin  string // the bucket that its subjects name: its own name, or that of what it mirrors
	version string // of its server
}

// lookAtBucket returns the state of a bucket, which may be a few seconds old.
func (c *Store) lookAtBucket(ctx context.Context, bucket string) (bucketState, error) {
	if v, ok := c.buckets.Load(bucket); ok {
		if state, _ := v.(bucketState); time.Since(state.seen) < bucketMemory {
			return state, nil
		}
	}
	return c.askForBucket(ctx, bucket)
}

func (c *Store) askForBucket(ctx context.Context, bucket string) (bucketState, error) {
	info, err := c.API.StreamInfo(ctx, StreamName(bucket), "")
	if err != nil {
		return bucketState{}, err
	}
	cfg := &info.Config
	state := bucketState{
		seen: time.Now(), maxAge: cfg.MaxAge, window: cfg.Duplicates, history: cfg.MaxMsgsPerSubject,
		ttls: cfg.AllowMsgTTL, mirror: cfg.Mirror != nil, origin: originIn(bucket, cfg),
		version: c.API.ServerVersion(cfg.Metadata),
	}
	if cfg.AllowMsgTTL {
		state.markers = cfg.SubjectDeleteMarkerTTL
	}
	c.buckets.Store(bucket, state)
	return state, nil
}

// withTTL writes a key that has a TTL. Before, it makes the bucket from cfg if it is
// missing, and refuses a TTL that the bucket would not keep.
func (c *Store) withTTL(ctx context.Context, cfg jetstream.KeyValueConfig, ttls []time.Duration,
	write func(ttl string) error,
) error {
	ttl, err := c.keyTTL(ttls)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		if err := c.readyForTTL(ctx, cfg, ttl); err != nil {
			return err
		}
		err := c.Writing(ctx, cfg, func() error { return write(ttlHeader(ttl)) })
		if n > 1 || jsapi.Code(err) != jsapi.CodeNoTTLs {
			return err
		}
		c.forget(cfg.Bucket) // it was replaced by another bucket of this name
	}
}

func ttlHeader(ttl time.Duration) string { return strconv.FormatInt(int64(ttl/time.Second), 10) + "s" }

func (c *Store) keyTTL(ttls []time.Duration) (time.Duration, error) {
	if len(ttls) > 1 {
		return 0, c.Invalid("ttl", fmt.Sprint(ttls), "a key has one TTL; give one", nil)
	}
	switch ttl := ttls[0]; {
	case ttl < time.Second || ttl%time.Second != 0:
		return 0, c.Invalid("ttl", ttl.String(),
			"expected whole seconds, at least 1s; leave it out for a key that does not expire by itself", nil)
	case ttl > jsapi.LongestTTL:
		return 0, c.Invalid("ttl", ttl.String(), "is above a hundred years, and the server's clock overflows; "+
			"leave it out for a key that does not expire by itself", nil)
	}
	return ttls[0], nil
}

// readyForTTL makes a missing bucket, and refuses a TTL that the bucket would not keep.
func (c *Store) readyForTTL(ctx context.Context, cfg jetstream.KeyValueConfig, ttl time.Duration) error {
	state, err := c.lookAtBucket(ctx, cfg.Bucket)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if cfg.TTL > 0 && ttl > cfg.TTL {
			return c.ttlBeyond(cfg.Bucket, ttl, cfg.TTL)
		}
		if err := c.MakeBucket(ctx, cfg); err != nil {
			return err
		}
		state, err = c.lookAtBucket(ctx, cfg.Bucket)
	}
	if err == nil && c.wrongTTL(cfg.Bucket, state, ttl) != nil {
		state, err = c.askForBucket(ctx, cfg.Bucket) // it may be changed by now
	}
	if err != nil {
		return KeyError(cfg.Bucket, "", err)
	}
	return c.wrongTTL(cfg.Bucket, state, ttl)
}

// wrongTTL says why a bucket would not keep the TTL of a key, and what to do instead.
func (c *Store) wrongTTL(bucket string, state bucketState, ttl time.Duration) error {
	switch {
	case state.origin != bucket:
		return c.readOnly(bucket, state.origin)
	case state.history != 1:
		// The server raises the TTL to that of the markers, and when it ends the value
		// before is the key's again.
		return c.Invalid("ttl", ttl.String(), fmt.Sprintf("cannot be kept by bucket %q, whose History is %d: "+
			"an older value would take the place of the one that expires; use a bucket with a History of 1, "+
			"or leave the ttl out", bucket, state.history), nil)
	case state.maxAge > 0 && ttl > state.maxAge:
		return c.ttlBeyond(bucket, ttl, state.maxAge)
	case state.ttls:
		return nil
	}
	if missing := jsapi.Markers.MissingFrom(state.version); missing != nil {
		return KeyError(bucket, "", missing)
	}
	return c.Invalid("ttl", ttl.String(), fmt.Sprintf("cannot be kept by bucket %q, which was made without markers; "+
		"leave the ttl out, or call EnsureBucket with its name and a LimitMarkerTTL. "+
		"Do that only when no client uses nats.go's older KeyValue any more: "+
		"it takes the marker of an expired key for an empty value", bucket), nil)
}

func (c *Store) ttlBeyond(bucket string, ttl, own time.Duration) error {
	return c.Invalid("ttl", ttl.String(), fmt.Sprintf("is beyond the TTL of bucket %q itself (%v), "+
		"which would end the key sooner; ask for less, or use a bucket with a longer TTL or none",
		bucket, own), nil)
}
