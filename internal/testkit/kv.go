package testkit

import (
	"context"
	"math"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
)

// Bucket creates a bucket and returns nats.go's view of it.
func Bucket(t testing.TB, c *natty.Client, cfg jetstream.KeyValueConfig) jetstream.KeyValue {
	t.Helper()
	kv, err := c.EnsureBucket(Ctx(t), cfg)
	require.NoError(t, err)
	return kv
}

// LastMessage returns the key's last message as the stream holds it, headers included.
func LastMessage(t testing.TB, c *natty.Client, bucket, key string) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := c.JetStream().Stream(Ctx(t), "KV_"+bucket)
	require.NoError(t, err)
	m, err := s.GetLastMsgForSubject(Ctx(t), "$KV."+bucket+"."+key)
	require.NoError(t, err)
	return m
}

// TTLOf returns the TTL header of the key's last message.
func TTLOf(t testing.TB, c *natty.Client, bucket, key string) string {
	t.Helper()
	return LastMessage(t, c, bucket, key).Header.Get(jetstream.MsgTTLHeader)
}

// RevisionOf returns the key's revision according to the bucket's leader.
func RevisionOf(t testing.TB, c *natty.Client, bucket, key string) uint64 {
	t.Helper()
	_, err := c.Update(Ctx(t), bucket, key, nil, math.MaxUint64)
	var stale *natty.RevisionError
	require.ErrorAs(t, err, &stale)
	return stale.Have
}

// IsKeyGone reports whether the key cannot be read.
func IsKeyGone(ctx context.Context, c *natty.Client, bucket, key string) bool {
	_, err := c.Get(ctx, bucket, key)
	return err != nil
}

// Following collects the entries of a watch, as "key=value" or "-key".
type Following struct {
	Entries chan string
	Err     chan error // the watch's last error, sent when the watch ends; may be nil
	Stop    func()
}

// Follow watches keys of a bucket until Stop, or the end of the test.
func Follow(t *testing.T, c *natty.Client, bucket, keys string) *Following {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &Following{Entries: make(chan string, 10_000), Err: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var last error
		for e, err := range c.Watch(ctx, bucket, keys) {
			switch {
			case err != nil:
				last = err
			case e.Operation() == jetstream.KeyValuePut:
				f.Entries <- e.Key() + "=" + string(e.Value())
			default:
				f.Entries <- "-" + e.Key()
			}
		}
		f.Err <- last
	}()
	f.Stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(f.Stop)
	return f
}

// Wants expects exactly these entries next.
func (f *Following) Wants(t *testing.T, entries ...string) {
	t.Helper()
	for _, want := range entries {
		require.Equal(t, want, Receive(t, f.Entries))
	}
}

// Silent expects that no further entry has come.
func (f *Following) Silent(t *testing.T) {
	t.Helper()
	select {
	case e := <-f.Entries:
		require.Empty(t, e, "nothing more comes")
	default:
	}
}
