package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/kv"
)

// Bucket describes a bucket of leases. Either the bucket or its keys have the TTL.
type Bucket struct {
	Name        string
	Description string        // of a new bucket
	Replicas    int           // of a new bucket; 0: as the Client's configuration says
	TTL         time.Duration // of a lease
	PerKey      bool          // TTL is the keys' own, and not the bucket's
}

// ErrBucketTTLMismatch says that a bucket exists with another TTL than its leases need.
var ErrBucketTTLMismatch = errors.New("the bucket has another TTL")

// found is what the server says of a bucket.
type found struct {
	created time.Time // a bucket that was deleted and made anew has another one
	maxAge  time.Duration
	ttls    bool // messages may have a TTL of their own
	// again says that the revisions of a bucket that replaces this one may begin at one
	// again, since somebody other than natty has made it.
	again bool
}

// Ready makes the bucket of the key if it is missing. It refuses one that cannot hold
// the lease. It changes nothing about a bucket that exists: that may be another
// program's, whose next start might refuse the changed bucket, or whose readers may take
// the marker of an expired key for an empty value.
func (k *Key) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, jsapi.APITimeout) // then it is reported
	defer cancel()
	info, err := k.describe(ctx)
	if err != nil {
		return err
	}
	b, cfg := &k.bucket, &info.Config
	k.found = found{created: info.Created, maxAge: cfg.MaxAge, ttls: cfg.AllowMsgTTL, again: cfg.FirstSeq <= 1}
	k.ownTTL = b.PerKey && cfg.AllowMsgTTL
	switch {
	case cfg.MaxMsgsPerSubject != 1:
		return hopeless(k.kv().Invalid("bucket", b.Name, fmt.Sprintf(
			"keeps %d revisions of a key, and an expired lease would uncover the one before; "+
				"use a bucket with History 1, or change its max_msgs_per_subject", cfg.MaxMsgsPerSubject), nil))
	case !b.PerKey && cfg.MaxAge != b.TTL:
		return hopeless(fmt.Errorf("%w: it has %v, and BucketTTL is %v; "+
			"use the same in all elections of a bucket, another bucket, or change its max_age",
			ErrBucketTTLMismatch, cfg.MaxAge, b.TTL))
	case b.PerKey && cfg.MaxAge > 0 && cfg.MaxAge < b.TTL:
		return hopeless(fmt.Errorf("%w: it has %v, which ends a lock of %v early; "+
			"use another bucket, one without a TTL", ErrBucketTTLMismatch, cfg.MaxAge, b.TTL))
	case b.PerKey && !cfg.AllowMsgTTL && cfg.MaxAge != b.TTL: // with the same, the bucket's TTL will do
		return hopeless(k.noTTLs(info))
	}
	return nil
}

// noTTLs is the error for a bucket that does not heed the TTL of a key.
func (k *Key) noTTLs(info *jetstream.StreamInfo) error {
	if err := jsapi.Markers.MissingFrom(k.kv().API.ServerVersion(info.Config.Metadata)); err != nil {
		return err
	}
	return k.kv().Invalid("bucket", k.Bucket, "does not heed the TTL of a key, so that the lock of a process "+
		"that has crashed would stay for ever; use another bucket, or call EnsureBucket with its name and a "+
		"LimitMarkerTTL", nil)
}

// describe returns what the server says of the bucket. It makes a missing one. Another
// instance may make it at the same moment, and for a moment one server of a cluster may
// not know what another one has made.
func (k *Key) describe(ctx context.Context) (*jetstream.StreamInfo, error) {
	stream := kv.StreamName(k.Bucket)
	for n := 1; ; n++ {
		info, err := k.kv().API.StreamInfo(ctx, stream, "")
		if !jsapi.Missing(err) {
			return info, err
		}
		made, err := k.make(ctx, stream)
		if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return made, err
		}
		if jsapi.CreatePause.Wait(ctx, n) != nil {
			return nil, err
		}
	}
}

// make makes the bucket as nats.go would, in one request and with one thing more: its
// revisions begin with the microseconds of this clock. A bucket that is deleted and made
// again so goes on behind the revisions of the one before, and what was conditional on
// one of those is refused.
func (k *Key) make(ctx context.Context, stream string) (*jetstream.StreamInfo, error) {
	s, b := k.kv(), &k.bucket
	cfg := jetstream.StreamConfig{
		Name: stream, Description: b.Description, Subjects: []string{kv.KeySubject(k.Bucket, ">")},
		MaxMsgsPerSubject: 1, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1, MaxConsumers: -1,
		Replicas: cmp.Or(b.Replicas, s.Replicas), Discard: jetstream.DiscardNew,
		AllowRollup: true, DenyDelete: true, AllowDirect: true,
		FirstSeq: uint64(time.Now().UnixMicro()),
	}
	marker := kv.MarkerTTL
	cfg.Duplicates = 2 * time.Minute
	if !b.PerKey {
		cfg.MaxAge = b.TTL
		marker, cfg.Duplicates = min(marker, b.TTL), min(cfg.Duplicates, b.TTL)
	}
	cfg.AllowMsgTTL, cfg.SubjectDeleteMarkerTTL = true, marker // ignored by a server before 2.11
	if err := s.ValidBucketConfig(jetstream.KeyValueConfig{
		Bucket: k.Bucket, TTL: cfg.MaxAge, Replicas: cfg.Replicas,
	}); err != nil {
		return nil, hopeless(err)
	}
	var info jetstream.StreamInfo
	err := s.API.Query(ctx, "STREAM.CREATE."+stream, cfg, &info)
	switch jsapi.Code(err) {
	case 0:
	case jsapi.CodeNoReplicas:
		return nil, hopeless(s.Invalid("Replicas", strconv.Itoa(cfg.Replicas), fmt.Sprintf(
			"are more than there are servers to keep bucket %q; start more servers, or ask for fewer",
			k.Bucket), err))
	}
	if err != nil {
		return nil, err
	}
	s.Log.Info("natty: made the bucket", "bucket", k.Bucket, "subjects", cfg.Subjects)
	return &info, nil
}

// sameBucket returns an error if the bucket is known to be another one than when the
// lease began: it was deleted, and made again. Then a revision of the one may be one of
// the other too, unless natty has made it (see make).
func (k *Key) sameBucket(ctx context.Context) error {
	if !k.found.again {
		return nil
	}
	return k.stillThere(ctx)
}

// stillThere is sameBucket for a bucket of any maker.
func (k *Key) stillThere(ctx context.Context) error {
	info, err := k.kv().API.StreamInfo(ctx, kv.StreamName(k.Bucket), "")
	if err != nil || k.found.created.IsZero() || info.Created.Equal(k.found.created) {
		return nil //nolint:nilerr // it is not known; what follows fails by itself
	}
	return fmt.Errorf("its bucket was deleted, and recreated at %v", info.Created.Format(time.RFC3339))
}
