package natty

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// keyError names the bucket, and the key if there is one, and calls what is missing by its name among buckets.
func keyError(bucket, key string, err error) error {
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

// maxKeyLen leaves room on the protocol line for what stands around a key, see maxSubjectLen.
const maxKeyLen = 3000

func validBucket(bucket string) error {
	var wrong string
	switch {
	case bucket == "":
		wrong = "is empty"
	case len(bucketPrefix+bucket) > maxNameLen:
		wrong = fmt.Sprintf("is longer than %d bytes", maxNameLen-len(bucketPrefix))
	case strings.ContainsFunc(bucket, func(r rune) bool { return !isKeyRune(r) || strings.ContainsRune("./=", r) }):
		wrong = "holds something else than letters, digits, - and _"
	default:
		return nil
	}
	return &ConfigError{Field: "bucket", Value: bucket, Reason: wrong + "; name it with letters, digits, - and _"}
}

func validKey(bucket, key string) error {
	if err := validBucket(bucket); err != nil {
		return err
	}
	wrong := wrongKey(key)
	if wrong == "" && strings.ContainsFunc(key, func(r rune) bool { return !isKeyRune(r) }) {
		wrong = "holds something else than letters, digits and - _ = / ."
	}
	if wrong == "" {
		return nil
	}
	return &ConfigError{Field: "key", Value: key, Reason: wrong + "; write it with letters, digits and - _ = /, in parts separated by single dots"}
}

// validKeys checks a pattern of keys.
func validKeys(bucket, keys string) error {
	if err := validBucket(bucket); err != nil {
		return err
	}
	wrong := wrongKey(keys)
	if wrong == "" {
		wrong = validFilter(keys)
	}
	if wrong == "" && strings.ContainsFunc(keys, func(r rune) bool { return !isKeyRune(r) && r != '*' && r != '>' }) {
		wrong = "holds something else than letters, digits, - _ = / . and the wildcards * and >"
	}
	if wrong == "" {
		return nil
	}
	return &ConfigError{Field: "keys", Value: keys, Reason: wrong + `; expected a key, or parts with * for any one and > at the end for all that follow (">" is every key)`}
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

func isKeyRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=/.", r)
}
