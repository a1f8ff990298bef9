package natty

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// leaseBucket is the bucket that leases need.
type leaseBucket struct {
	name, description string
	replicas          int           // 0: Config.Replicas
	ttl               time.Duration // of the bucket; zero where keys have their own,
	perKey            time.Duration // which is this one
}

// ensureLeaseBucket makes a bucket for leases, or checks that the one that is there can hold them.
func (c *Client) ensureLeaseBucket(ctx context.Context, b leaseBucket) error {
	status, err := c.Status(ctx, b.name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = c.makeBucket(ctx, jetstream.KeyValueConfig{
			Bucket: b.name, Description: b.description, History: 1, TTL: b.ttl, Replicas: b.replicas, LimitMarkerTTL: min(markerTTL, cmp.Or(b.ttl, markerTTL)),
		})
		if err == nil {
			status, err = c.Status(ctx, b.name)
		}
	}
	if err != nil {
		return err
	}
	switch have := status.TTL(); {
	case status.History() > 1:
		return &ConfigError{Field: "bucket", Value: b.name, Reason: fmt.Sprintf("keeps %d revisions of a key, and an expired lease would uncover the one before; use a bucket with History 1, or change its max_msgs_per_subject", status.History())}
	case b.perKey == 0 && have != b.ttl:
		return fmt.Errorf("natty: bucket %q: %w: it has %v, and BucketTTL is %v; use the same in all elections of a bucket, another bucket, or change its max_age", b.name, ErrBucketTTLMismatch, have, b.ttl)
	case b.perKey > 0 && have > 0 && have < b.perKey:
		return fmt.Errorf("natty: bucket %q: %w: it has %v, which ends a lock of %v early; use another bucket, one without a TTL", b.name, ErrBucketTTLMismatch, have, b.perKey)
	case status.LimitMarkerTTL() == 0: // a key's own TTL needs them
		return c.addMarkers(ctx, b.name)
	}
	return nil
}

// validLease checks the names of a lease; who of the field ownerField, unless that is "".
func validLease(bucket, key, ownerField, owner string) error {
	switch err := validKey(bucket, key); {
	case err != nil:
		return err
	case strings.HasSuffix(key, termSuffix):
		return &ConfigError{Field: "key", Value: key, Reason: "ends in " + termSuffix + ", which natty uses; use another name"}
	case ownerField != "" && owner == "":
		return &ConfigError{Field: ownerField, Reason: "is empty; say who this is"}
	}
	return nil
}

func validLeaseTTL(field string, ttl time.Duration) error {
	if ttl < time.Second || ttl%time.Second != 0 {
		return &ConfigError{Field: field, Value: ttl.String(), Reason: "is not a number of whole seconds, at least one, which is all that the server knows"}
	}
	return nil
}
