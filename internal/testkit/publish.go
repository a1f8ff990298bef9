package testkit

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
)

// Ensure creates a stream of these subjects.
func Ensure(t testing.TB, c *natty.Client, name string, subjects ...string) jetstream.Stream {
	t.Helper()
	s, err := c.EnsureStream(Ctx(t), jetstream.StreamConfig{Name: name, Subjects: subjects})
	require.NoError(t, err)
	return s
}

// Fill publishes n messages with the bodies 0 to n-1.
func Fill(t testing.TB, c *natty.Client, subject string, n int) {
	t.Helper()
	for i := range n {
		require.NoError(t, c.Publish(Ctx(t), subject, fmt.Append(nil, i)))
	}
}

// Stored returns how many messages the stream holds.
func Stored(t testing.TB, s jetstream.Stream) uint64 {
	t.Helper()
	info, err := s.Info(Ctx(t))
	require.NoError(t, err)
	return info.State.Msgs
}

// Bodies reads a whole stream. It returns the sequences of each body.
func Bodies(t testing.TB, s jetstream.Stream) map[string][]uint64 {
	t.Helper()
	n := Stored(t, s)
	found := make(map[string][]uint64, n)
	if n == 0 {
		return found
	}
	// A stream whose leader has just changed may have nobody to answer.
	Eventually(t, func() bool {
		clear(found)
		return readAll(s, int(n), found) == nil
	}, "the stream can be read")
	total := 0
	for _, sequences := range found {
		total += len(sequences)
	}
	require.EqualValues(t, n, total, "the whole stream is read")
	return found
}

// readAll reads n messages of a stream.
func readAll(s jetstream.Stream, n int, found map[string][]uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	batch, err := consumer.Fetch(n, jetstream.FetchMaxWait(Patience))
	if err != nil {
		return err
	}
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		found[string(msg.Data())] = append(found[string(msg.Data())], meta.Sequence.Stream)
	}
	return batch.Error()
}

// NewWriter returns a Writer of c. The Client's Close at the end of the test closes it.
func NewWriter(t testing.TB, c *natty.Client, cfg natty.WriterConfig) *natty.Writer {
	t.Helper()
	w, err := c.NewWriter(cfg)
	require.NoError(t, err)
	return w
}

// Write writes n messages to the subject "s", with the bodies from to from+n-1.
func Write(t testing.TB, w *natty.Writer, from, n int) {
	t.Helper()
	for i := range n {
		require.NoError(t, w.Write(Ctx(t), &nats.Msg{Subject: "s", Data: fmt.Append(nil, from+i)}))
	}
}

// Failures collects the calls of a Writer's OnError.
type Failures struct {
	mu   sync.Mutex
	Msgs []*nats.Msg
	Errs []error
}

// Add is an OnError.
func (o *Failures) Add(msg *nats.Msg, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.Msgs, o.Errs = append(o.Msgs, msg), append(o.Errs, err)
}

// Len returns how many messages have failed.
func (o *Failures) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.Errs)
}

// BatchStream creates a stream that takes batches.
func BatchStream(t *testing.T, c *natty.Client, cfg jetstream.StreamConfig) jetstream.Stream {
	t.Helper()
	cfg.Name, cfg.AllowAtomicPublish = "S", true
	if cfg.Subjects == nil {
		cfg.Subjects = []string{"s.>"}
	}
	s, err := c.EnsureStream(Ctx(t), cfg)
	require.NoError(t, err)
	return s
}

// Messages makes n messages of s.0, s.1, s.2 with one body.
func Messages(n int, body string) []*nats.Msg {
	msgs := make([]*nats.Msg, n)
	for i := range msgs {
		msgs[i] = &nats.Msg{Subject: fmt.Sprintf("s.%d", i%3), Data: []byte(body)}
	}
	return msgs
}
