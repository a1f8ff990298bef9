package dispatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func quarantined(seq uint64, attempt int) *Message {
	h := message(seq, attempt)
	h.Quarantined = true
	return h
}

func TestOneQuarantinedMessageRunsAtATimeAndOthersBesideIt(t *testing.T) {
	t.Parallel()
	d := New(false)
	for _, h := range []*Message{message(1, 1), quarantined(2, 8), quarantined(3, 8), message(4, 1)} {
		d.Push(h)
	}
	next := func(want uint64) *Message {
		t.Helper()
		require.NotZero(t, d.Flow().Ready)
		h, _ := d.Next()
		require.Equal(t, want, h.Delivery.Sequence)
		return h
	}
	trial := next(2)
	next(1)
	next(4)
	assert.Zero(t, d.Flow().Ready, "the second trial waits for the first")
	d.Push(message(5, 1))
	next(5)
	d.Settle(trial, 1, false)
	next(3)
	assert.Equal(t, 4, d.Running(), "a trial waits for no other handler")
}

func TestNoDoubtfulMessageRunsBesideATrial(t *testing.T) {
	t.Parallel()
	d := New(false)
	doubtful := func(seq uint64) *Message {
		h := message(seq, 3)
		h.Doubtful = true
		return h
	}
	next := func(want uint64) *Message {
		t.Helper()
		require.NotZero(t, d.Flow().Ready)
		h, _ := d.Next()
		require.Equal(t, want, h.Delivery.Sequence)
		return h
	}
	for _, h := range []*Message{doubtful(1), doubtful(2), message(3, 1), doubtful(4)} {
		d.Push(h)
	}
	first := next(1)
	d.Push(quarantined(5, 8))
	d.Push(doubtful(6))
	next(3)
	assert.Zero(t, d.Flow().Ready, "the trial waits for a doubtful one that runs, the others for the trial")
	d.Settle(first, 1, false)
	trial := next(5)
	d.Push(message(7, 1))
	next(7)
	assert.Zero(t, d.Flow().Ready)
	assert.Len(t, d.Replies(0), 6, "all are kept alive")
	d.Settle(trial, 1, false)
	next(2)
	next(4)
	next(6)
	d.Push(quarantined(8, 8))
	d.Push(doubtful(9))
	assert.Len(t, d.Close(), 2, "all that wait go back")
}

func TestEndOfATrialWakesWhoWaitsForTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := New(false)
		d.Push(quarantined(1, 8))
		d.Push(quarantined(2, 8))
		first, _ := d.Next()
		second := make(chan *Message)
		go func() {
			h, _ := d.Next()
			second <- h
		}()
		synctest.Wait()
		d.Settle(first, 1, false)
		assert.EqualValues(t, 2, (<-second).Delivery.Sequence)
	})
}

func TestQuarantinedMessageIsABatchOfItsOwn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := New(false)
		for _, h := range []*Message{message(1, 1), message(2, 1), quarantined(3, 8), quarantined(4, 8)} {
			d.Push(h)
		}
		next := func(want ...uint64) {
			batch, ok := d.NextBatch(10, time.Hour)
			require.True(t, ok)
			var got []uint64
			for _, h := range batch {
				got = append(got, h.Delivery.Sequence)
				d.Settle(h, 1, false)
			}
			assert.Equal(t, want, got)
		}
		start := time.Now()
		next(3)
		next(4)
		assert.Zero(t, time.Since(start), "nor does it wait for others")
		time.AfterFunc(time.Minute, func() { d.Push(quarantined(5, 8)) })
		next(5)
		assert.Equal(t, time.Minute, time.Since(start))
		next(1, 2)
		assert.Equal(t, time.Hour+time.Minute, time.Since(start))
	})
}

func TestQuarantinedMessagesAreReturnedAtTheEnd(t *testing.T) {
	t.Parallel()
	d := New(false)
	for seq := range uint64(3) {
		d.Push(quarantined(seq, 8))
	}
	require.Equal(t, Repeated, d.Push(quarantined(1, 9)), "it is known to be held")
	h, _ := d.Next()
	assert.Len(t, d.Replies(0), 3, "all are kept alive")
	assert.Len(t, d.Close(), 2)
	d.Settle(h, 1, false)
	<-d.Idle()
	n, _, _ := d.Load()
	assert.Zero(t, n)
}

func TestQuarantinedMessageThatFailsAndRestsLetsTheNextOneRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := New(true)
		for seq, key := range []string{"a", "a", "b"} {
			h := quarantined(uint64(seq), 8)
			h.Key = key
			d.Push(h)
		}
		h, _ := d.Next()
		assert.EqualValues(t, 0, h.Delivery.Sequence)
		require.True(t, d.Park(h, h.Again(h.Delivery), 1, time.Hour))
		h, _ = d.Next()
		assert.EqualValues(t, 2, h.Delivery.Sequence, "the other one of its key waits")
		d.Settle(h, 1, false)
		for want := range uint64(2) {
			time.Sleep(time.Hour) // fake time
			synctest.Wait()
			h, _ = d.Next()
			assert.Equal(t, want, h.Delivery.Sequence)
			d.Settle(h, 1, false)
		}
	})
}
