package publish

import (
	"cmp"
	"context"
	"log/slog"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/jsapi"
)

func TestSilenceIsNotASlowNetwork(t *testing.T) {
	t.Parallel()
	var c silence
	c.init(WriterConfig{Timeout: time.Minute}, func() {})
	start := time.Now()
	at := start.Add
	c.ticked = start
	// Answers keep coming, to messages that were sent ten seconds before.
	now := time.Duration(0)
	for ; now < 10*time.Second; now += c.every {
		c.noteAnswer(at(now - 10*time.Second))
		c.tick(at(now))
		assert.False(t, c.silent(at(now-9*time.Second), at(now)), "its turn comes")
	}
	// Then none.
	for end := now + c.limit; now < end; now += c.every {
		c.tick(at(now))
	}
	assert.True(t, c.silent(at(now-9*time.Second), at(now)))
	assert.False(t, c.silent(at(now-c.limit/2), at(now)), "it was sent just now")
	// Answers again, but to later messages only.
	c.noteAnswer(at(now - c.limit/2))
	c.tick(at(now))
	assert.True(t, c.silent(at(now-2*c.limit), at(now)))
	assert.False(t, c.silent(at(now-c.limit), at(now)))
	// Nothing waits longer than the timeout.
	assert.True(t, c.silent(at(now-time.Minute), at(now)))
	// A process that was stopped itself has not heard nothing.
	now += time.Hour
	c.newest = time.Time{}
	c.tick(at(now))
	assert.False(t, c.silent(at(now-10*time.Second), at(now)))
}

// writer returns a Writer without a connection, whose messages are only in its window.
func writer(cfg WriterConfig) *Writer {
	cfg.MaxPendingBytes = cmp.Or(cfg.MaxPendingBytes, 1<<20)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Minute)
	pub := offline()
	pub.Log = slog.New(slog.DiscardHandler)
	return pub.NewWriter(cfg, func() {})
}

// put admits a message of so many bytes.
func (w *Writer) put(ctx context.Context, size int) (*slot, error) {
	s := w.spare
	s.subject, s.size = "s", size
	return s, w.admit(ctx, s)
}

func (w *Writer) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func TestAFullWindowWakesTheWriteThatWaitsWhenAQuarterIsFree(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]WriterConfig{
		"messages": {MaxPending: 8},
		"bytes":    {MaxPending: 100, MaxPendingBytes: 80},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := writer(cfg)
				defer w.clock.stop()
				var slots []*slot
				for range 8 {
					s, err := w.put(t.Context(), 10)
					require.NoError(t, err)
					slots = append(slots, s)
				}
				admitted := make(chan error, 1)
				go func() {
					_, err := w.put(t.Context(), 10)
					admitted <- err
				}()
				w.clock.stop() // its tick would wake the Write as well
				synctest.Wait()
				w.locked(func() { w.settleLocked(slots[0]) })
				synctest.Wait()
				assert.Empty(t, admitted, "there is room, but not enough to wake a goroutine for")
				w.locked(func() { w.settleLocked(slots[5]) })
				synctest.Wait()
				require.Len(t, admitted, 1)
				require.NoError(t, <-admitted)
				assert.Equal(t, 7, w.State().Pending)
				assert.Equal(t, 70, w.State().PendingBytes)
			})
		})
	}
}

func TestAWriteThatWaitsForRoomEndsWithItsContextAndLeavesNoTrace(t *testing.T) {
	t.Parallel()
	w := writer(WriterConfig{MaxPending: 1})
	defer w.clock.stop()
	_, err := w.put(t.Context(), 10)
	require.NoError(t, err)
	_, err = w.put(canceledCtx, 10)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "1 of 1 messages")
	assert.Zero(t, w.wanted)
	assert.Equal(t, 1, w.State().Pending)
	assert.Equal(t, uint64(1), w.written)
}

func TestALateAnswerNeverSettlesTheNextMessageInItsSlot(t *testing.T) {
	t.Parallel()
	w := writer(WriterConfig{MaxPending: 1})
	defer w.clock.stop()
	ack := &nats.Msg{Data: []byte(`{"stream":"S","seq":1}`)}
	first, err := w.put(t.Context(), 1)
	require.NoError(t, err)
	old := strconv.FormatUint(first.token, 36)
	w.receive(old, ack)
	assert.Zero(t, w.State().Pending)
	_, err = w.put(t.Context(), 1)
	require.NoError(t, err)
	w.locked(func() { w.settleLocked(w.first) })
	again, err := w.put(t.Context(), 1)
	require.NoError(t, err)
	require.Same(t, first, again)
	w.receive(old, ack)
	w.receive("?", ack)
	assert.Equal(t, 1, w.State().Pending)
	w.receive(strconv.FormatUint(again.token, 36), ack)
	assert.Zero(t, w.State().Pending)
}

func TestALateAcknowledgementEndsARetry(t *testing.T) {
	t.Parallel()
	w := writer(WriterConfig{MaxPending: 1})
	defer w.clock.stop()
	w.retrying = maxRetries // no goroutine begins
	s, err := w.put(t.Context(), 1)
	require.NoError(t, err)
	token := strconv.FormatUint(s.token, 36)
	w.fail("another", nats.ErrDisconnected)
	assert.Equal(t, slotSent, s.state)
	w.fail("", errSilent)
	assert.Equal(t, slotRetrying, s.state)
	refused := refusal(jsapi.CodeNotLeader)
	w.receive(token, &nats.Msg{Data: []byte(`{"error":{"code":503,"err_code":10009}}`)})
	require.ErrorIs(t, s.retry.err, refused, "an answer says more than silence")
	w.receive(token, &nats.Msg{Data: []byte(`{"stream":"S","seq":1}`)})
	assert.Zero(t, w.State().Pending)
	assert.Nil(t, w.nextRetry(), "there is nothing to retry")
}
