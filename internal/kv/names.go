package kv

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/subject"
)

// KeyError names the bucket in err, and the key unless that is "". A missing stream or
// message becomes a missing bucket or key.
func KeyError(bucket, key string, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("natty: bucket %q: %w", bucket, jetstream.ErrBucketNotFound)
	case errors.Is(err, jetstream.ErrMsgNotFound):
		err = jetstream.ErrKeyNotFound
	}
	if key == "" {
		return fmt.Errorf("natty: bucket %q: %w", bucket, err)
	}
	return fmt.Errorf("natty: key %q of bucket %q: %w", key, bucket, err)
}

// maxKeyLen leaves room on the protocol line for what surrounds a key, as a subject's
// limit does.
const maxKeyLen = 3000

func (c *Store) validBucket(bucket string) error {
	var wrong string
	switch {
	case bucket == "":
		wrong = "is empty"
	case len(StreamName(bucket)) > subject.MaxNameLen:
		wrong = fmt.Sprintf("is longer than %d bytes", subject.MaxNameLen-len(bucketPrefix))
	case hasOther(bucket, func(r rune) bool { return isKeyRune(r) && !strings.ContainsRune("./=", r) }):
		wrong = "holds something else than letters, digits, - and _"
	default:
		return nil
	}
	return c.Invalid("bucket", bucket, wrong+"; name it with letters, digits, - and _", nil)
}

// ValidKey checks the names of a bucket and a key.
func (c *Store) ValidKey(bucket, key string) error {
	if err := c.validBucket(bucket); err != nil {
		return err
	}
	wrong := wrongKey(key)
	if wrong == "" && hasOther(key, isKeyRune) {
		wrong = "holds something else than letters, digits and - _ = / ."
	}
	if wrong == "" {
		return nil
	}
	return c.Invalid("key", key,
		wrong+"; write it with letters, digits and - _ = /, in parts separated by single dots", nil)
}

// ValidOldKey checks the names of a bucket and of a key to read or delete. Such a key may
// have been made by others, with characters that natty and nats.go do not write.
func (c *Store) ValidOldKey(bucket, key string) error {
	if err := c.validBucket(bucket); err != nil {
		return err
	}
	wrong := wrongKey(key)
	if wrong == "" {
		wrong = subject.Unpublishable(key)
	}
	if wrong == "" {
		return nil
	}
	return c.Invalid("key", key, wrong+"; expected the name of one key, without spaces", nil)
}

// validKeys checks a pattern of keys, which others may have made.
func (c *Store) validKeys(bucket, keys string) error {
	if err := c.validBucket(bucket); err != nil {
		return err
	}
	wrong := wrongKey(keys)
	if wrong == "" {
		wrong = subject.InvalidFilter(keys)
	}
	if wrong == "" {
		return nil
	}
	return c.Invalid("keys", keys, wrong+`; expected a key, or parts with * for any one `+
		`and > at the end for all that follow (">" is every key)`, nil)
}

func wrongKey(key string) string {
	switch {
	case key == "":
		return "is empty"
	case len(key) > maxKeyLen:
		return fmt.Sprintf("is longer than %d bytes", maxKeyLen)
	case key[0] == '.' || key[len(key)-1] == '.' || strings.Contains(key, ".."):
		return "has an empty part (a dot at an end, or two in a row)"
	}
	return ""
}

// hasOther reports whether s has a rune that is not allowed.
func hasOther(s string, allowed func(rune) bool) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return !allowed(r) })
}

func isKeyRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
		strings.ContainsRune("-_=/.", r)
}
