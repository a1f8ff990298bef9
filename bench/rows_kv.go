package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// bucketKeys is how many keys a bucket has.
const bucketKeys = 100

// keyed is one read or write of a key.
type keyed func(ctx context.Context, t *trial, kv jetstream.KeyValue, key string) error

// keys calls do for one key after the other, in a new bucket. The clock runs from the
// first call.
func keys(do keyed) side {
	return func(ctx context.Context, t *trial) (err error) {
		// With the settings of natty's buckets.
		kv, err := t.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: t.stream, LimitMarkerTTL: time.Minute})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.js.DeleteKeyValue(context.WithoutCancel(ctx), t.stream)) }()
		var names [bucketKeys]string
		for i := range names {
			names[i] = "key." + strconv.Itoa(i)
			if _, err := kv.Put(ctx, names[i], payload); err != nil {
				return err
			}
		}
		t.start = time.Now()
		for i := range t.messages {
			if err := do(ctx, t, kv, names[i%bucketKeys]); err != nil {
				return err
			}
		}
		t.done()
		t.verified = true
		return verifyKeys(ctx, kv)
	}
}

func verifyKeys(ctx context.Context, kv jetstream.KeyValue) error {
	status, err := kv.Status(ctx)
	if err == nil && status.Values() != bucketKeys {
		err = fmt.Errorf("%d of %d keys are in the bucket", status.Values(), bucketKeys)
	}
	return err
}

func nattyGet(ctx context.Context, t *trial, _ jetstream.KeyValue, key string) error {
	v, err := t.natty.Get(ctx, t.stream, key)
	return checkValue(v, err)
}

func rawGet(ctx context.Context, _ *trial, kv jetstream.KeyValue, key string) error {
	e, err := kv.Get(ctx, key)
	if err != nil {
		return err
	}
	return checkValue(e.Value(), nil)
}

func checkValue(v []byte, err error) error {
	if err == nil && len(v) != len(payload) {
		err = fmt.Errorf("a value has %d bytes, not %d", len(v), len(payload))
	}
	return err
}

func nattyPut(ctx context.Context, t *trial, _ jetstream.KeyValue, key string) error {
	return t.natty.Put(ctx, t.stream, key, payload)
}

func rawPut(ctx context.Context, _ *trial, kv jetstream.KeyValue, key string) error {
	_, err := kv.Put(ctx, key, payload)
	return err
}

// rawPutWithID has the server store the value once, as natty always does.
func rawPutWithID(ctx context.Context, t *trial, _ jetstream.KeyValue, key string) error {
	_, err := t.js.Publish(ctx, "$KV."+t.stream+"."+key, payload, jetstream.WithMsgID("bench-"+strconv.FormatInt(ids.Add(1), 36)))
	return err
}
