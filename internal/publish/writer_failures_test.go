package publish

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEveryFailureReachesOnErrorAndKeepsItsSlotUntilThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 600
		var got []string
		free := make(chan struct{})
		w := writer(WriterConfig{MaxPending: n, OnError: func(_ *nats.Msg, err error) {
			<-free
			got = append(got, err.Error())
			switch len(got) % 3 {
			case 1:
				panic("no")
			case 2:
				runtime.Goexit()
			}
		}})
		var slots []*slot
		for range n {
			s, err := w.put(t.Context(), 1)
			require.NoError(t, err)
			slots = append(slots, s)
		}
		w.locked(func() {
			for i, s := range slots {
				w.failLocked(s, w.publication(s), fmt.Errorf("failure %d", i))
			}
		})
		synctest.Wait()
		require.Error(t, w.Flush(t.Context()), "every message has its outcome, whatever OnError does")
		assert.Equal(t, n, w.State().Pending, "a blocked OnError keeps the window full")
		free <- struct{}{}
		synctest.Wait()
		assert.Equal(t, n-1, w.State().Pending)
		close(free)
		synctest.Wait()
		assert.Zero(t, w.State().Pending)
		assert.False(t, w.reporting)
		require.Len(t, got, n)
		for i, text := range got {
			assert.Equal(t, fmt.Sprint("failure ", i), text)
		}
		w.clock.stop()
	})
}

func TestAFlushReturnsTwentyFailuresAndTheNumberOfTheOthers(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	var f, g failures
	require.NoError(t, f.err())
	for range 15 {
		f.add(failed)
		g.add(failed)
	}
	require.EqualError(t, g.err(), errors.Join(g.kept...).Error())
	f.merge(g)
	f.merge(f)
	assert.Len(t, f.kept, keptFailures)
	assert.Equal(t, 60, f.n)
	require.ErrorIs(t, f.err(), failed)
	require.ErrorContains(t, f.err(), "and 40 more messages failed")
}

func TestFlushesAtOnceEachReturnWhatFailedMeanwhile(t *testing.T) {
	t.Parallel()
	w := writer(WriterConfig{MaxPending: 4})
	defer w.clock.stop()
	failed := errors.New("failed")
	first, err := w.put(t.Context(), 1)
	require.NoError(t, err)
	second, err := w.put(t.Context(), 1)
	require.NoError(t, err)
	var a, b *flush
	w.locked(func() {
		a, b = w.flushLocked(), w.flushLocked()
		w.failLocked(second, w.publication(second), failed)
		assert.False(t, a.complete, "the first message has no outcome yet")
		w.settleLocked(first)
		assert.True(t, a.complete)
		require.ErrorIs(t, w.takeFailuresLocked(a), failed)
		require.ErrorIs(t, w.takeFailuresLocked(b), failed)
		require.NoError(t, w.takeFailuresLocked(w.flushLocked()))
	})
	_, err = w.put(t.Context(), 1)
	require.NoError(t, err)
	require.ErrorContains(t, w.Flush(canceledCtx), "1 messages have no outcome yet")
}
