package natty

import (
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
	replicas          int
	ttl               time.Duration // of the bucket; zero where keys have their own,
	perKey            time.Duration // which is this one
}

// ensureLeaseBucket makes a bucket for leases, or checks that the one that is there can hold them.
func (c *Client) ensureLeaseBucket(ctx context.Context, b leaseBucket) error {
	status, err := c.bucketStatus(ctx, b.name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = c.persist(ctx, func(ctx context.Context) error {
			_, err := c.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
				Bucket: b.name, Description: b.description, History: 1, TTL: b.ttl, Replicas: b.replicas, LimitMarkerTTL: markerTTL(b.ttl),
			})
			return err
		})
		if !errors.Is(err, jetstream.ErrBucketExists) {
			return inBucket(b.name, err)
		}
		status, err = c.bucketStatus(ctx, b.name) // another process was faster
	}
	if err != nil {
		return inBucket(b.name, err)
	}
	switch have := status.TTL(); {
	case status.History() > 1:
		return &ConfigError{Field: "Bucket", Value: b.name, Reason: fmt.Sprintf("keeps %d revisions of a key, and an expired lease would uncover the one before; use a bucket with History 1, or change its max_msgs_per_subject", status.History())}
	case b.perKey == 0 && have != b.ttl:
		return fmt.Errorf("natty: bucket %q: %w: it has %v, and BucketTTL is %v; use the same in all elections of a bucket, another bucket, or change its max_age", b.name, ErrBucketTTLMismatch, have, b.ttl)
	case b.perKey > 0 && have > 0 && have < b.perKey:
		return fmt.Errorf("natty: bucket %q: %w: it has %v, which ends a lock of %v early; use another bucket, one without a TTL", b.name, ErrBucketTTLMismatch, have, b.perKey)
	case status.LimitMarkerTTL() == 0:
		return &ConfigError{Field: "Bucket", Value: b.name, Reason: "has no limit markers, without which its keys cannot have TTLs of their own; set its LimitMarkerTTL, or use another bucket"}
	}
	return nil
}

// markerTTL is how long the marker of an expired key stays.
func markerTTL(ttl time.Duration) time.Duration {
	if ttl > 0 {
		return min(ttl, time.Minute)
	}
	return time.Minute
}

func (c *Client) bucketStatus(ctx context.Context, name string) (status jetstream.KeyValueStatus, err error) {
	err = c.persist(ctx, func(ctx context.Context) error {
		kv, err := c.js.KeyValue(ctx, name)
		if err == nil {
			status, err = kv.Status(ctx)
		}
		return err
	})
	return status, err
}

func inBucket(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("natty: bucket %q: %w", name, err)
}

// validKey says what is wrong with the name of a key, or "".
func validKey(key string) string {
	switch {
	case key == "":
		return "is empty; give the key a name"
	case strings.HasPrefix(key, "."), strings.HasSuffix(key, "."), strings.Contains(key, ".."):
		return "has an empty part; separate the parts by single dots"
	case strings.ContainsFunc(key, func(r rune) bool { return !strings.ContainsRune(keyRunes, r) }):
		return "holds a character that keys cannot have; use letters, digits, and - / _ = ."
	}
	return ""
}

const keyRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-/_=."

// validLease checks the names of a lease; who of the field ownerField, unless that is "".
func validLease(bucket, key, ownerField, owner string) error {
	switch wrong := validKey(key); {
	case bucket == "":
		return &ConfigError{Field: "Bucket", Reason: "is empty; give the bucket a name"}
	case strings.ContainsFunc(bucket, func(r rune) bool { return r == '.' || r == '/' || r == '=' || !strings.ContainsRune(keyRunes, r) }):
		return &ConfigError{Field: "Bucket", Value: bucket, Reason: "holds a character that buckets cannot have; use letters, digits, - and _"}
	case wrong != "":
		return &ConfigError{Field: "Key", Value: key, Reason: wrong}
	case strings.HasSuffix(key, termSuffix):
		return &ConfigError{Field: "Key", Value: key, Reason: "ends in " + termSuffix + ", which natty uses; use another name"}
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
