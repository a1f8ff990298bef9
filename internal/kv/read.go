package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
)

// Get is Client.Get of the root.
func (c *Store) Get(ctx context.Context, bucket, key string) ([]byte, error) {
	e, err := c.read(ctx, bucket, key)
	return e.value, err
}

// GetEntry is Client.GetEntry of the root.
func (c *Store) GetEntry(ctx context.Context, bucket, key string) (jetstream.KeyValueEntry, error) {
	e, err := c.read(ctx, bucket, key)
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// read reads a key that is there. Otherwise the entry is zero.
func (c *Store) read(ctx context.Context, bucket, key string) (e entry, err error) {
	if err := c.ValidOldKey(bucket, key); err != nil {
		return entry{}, err
	}
	err = c.API.Persist(ctx, func(ctx context.Context) (err error) {
		e, err = c.readOnce(ctx, bucket, bucket, key)
		if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return err
		}
		if origin := c.originOf(ctx, bucket); origin != bucket {
			e, err = c.readOnce(ctx, bucket, origin, key)
		}
		return err
	})
	if err == nil && e.op != jetstream.KeyValuePut {
		err = jetstream.ErrKeyNotFound
	}
	if err != nil {
		return entry{}, KeyError(bucket, key, err)
	}
	return e, nil
}

// readOnce reads the last message of a key, from any replica if the bucket allows
// direct reads. The subjects of the bucket's stream name the bucket stored.
func (c *Store) readOnce(ctx context.Context, bucket, stored, key string) (entry, error) {
	e := entry{bucket: bucket, key: key}
	msg, err := c.API.Request(ctx, "DIRECT.GET."+StreamName(bucket)+"."+KeySubject(stored, key), nil)
	if err == nil {
		return e, e.take(msg)
	}
	if !errors.Is(err, nats.ErrNoResponders) {
		return e, err
	}
	// The bucket forbids direct reads, or there is no bucket or no leader. The API
	// knows which.
	m, err := c.API.LeaderGetOnce(ctx, StreamName(bucket), lastOf(stored, key))
	if err == nil {
		s := stateOf(m)
		e.value, e.revision, e.created, e.op = s.Data, s.Seq, s.Time, s.op
	}
	return e, err
}

// take fills e from the answer to a direct read. Only the server adds a sequence to the
// headers of a stored message, behind those that the message has: without one, the
// answer is no value, and with one, a status in it belongs to the value.
func (e *entry) take(msg *nats.Msg) (err error) {
	sequence := lastHeader(msg.Header, jetstream.SequenceHeader)
	if sequence == "" {
		return refusalIn(msg)
	}
	if e.revision, err = strconv.ParseUint(sequence, 10, 64); err != nil {
		return fmt.Errorf("unreadable revision in the answer of the server: %w", err)
	}
	stored := lastHeader(msg.Header, jetstream.TimeStampHeaer)
	if e.created, err = time.Parse(time.RFC3339Nano, stored); err != nil {
		return fmt.Errorf("unreadable time in the answer of the server: %w", err)
	}
	e.value, e.op = msg.Data, operation(msg.Header)
	return nil
}

func lastHeader(h nats.Header, name string) string {
	if values := h[name]; len(values) > 0 {
		return values[len(values)-1]
	}
	return ""
}

// refusalIn returns the error in an answer that is not a stored message.
func refusalIn(msg *nats.Msg) error {
	switch status := msg.Header.Get("Status"); status {
	case "404":
		return jetstream.ErrMsgNotFound
	case "":
	default:
		return fmt.Errorf("the server refused the read: %s %s", status, msg.Header.Get("Description"))
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err == nil && answer.Error != nil {
		return answer.Error
	}
	return errors.New("the answer is not a stored message; does something else answer JetStream's subjects here")
}

// Keys is Client.Keys of the root.
func (c *Store) Keys(ctx context.Context, bucket string) ([]string, error) {
	if err := c.validBucket(bucket); err != nil {
		return nil, err
	}
	w := NewWatcher(c, bucket, ">")
	if _, bounded := ctx.Deadline(); !bounded {
		// A large bucket takes its time. Only a server that brings nothing is given up.
		silent, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		timer := time.AfterFunc(jsapi.APITimeout, func() { cancel(context.DeadlineExceeded) })
		defer timer.Stop()
		w.progress = func() { timer.Reset(jsapi.APITimeout) }
		ctx = silent
	}
	w.headersOnly, w.Once = true, true
	w.Yield = func(jetstream.KeyValueEntry) bool { return true }
	w.Synced = func(time.Time) bool { return false }
	if err := w.Run(ctx); err != nil {
		return nil, KeyError(bucket, "", err)
	}
	return w.liveKeys(), nil
}
