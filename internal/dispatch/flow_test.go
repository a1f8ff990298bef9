package dispatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func keyed(seq uint64, key string) *Message {
	m := message(seq, 1)
	m.Key = key
	return m
}

func TestFlowTellsWhatRunsWhatIsReadyAndWhatRests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := New(true)
		assert.Zero(t, q.Flow())
		for seq, key := range []string{"a", "a", "b", "c", "d"} {
			q.Push(keyed(uint64(seq), key))
		}
		a, _ := q.Next()
		require.True(t, q.Park(a, a.Again(a.Delivery), 8*time.Second, time.Hour))
		_, _ = q.Next()
		time.Sleep(time.Second) // fake time
		assert.Equal(t, Flow{
			Held: 5, Running: 1, Ready: 2, AheadBytes: 40, RestingBytes: 20,
			PerMsg: 8 * time.Second, SinceBegun: time.Second,
		}, q.Flow())
		q.Close()
	})
}

func TestFullQueueRefusesWhatARequestOfAnOldConnectionBrings(t *testing.T) {
	t.Parallel()
	q := New(false)
	q.Limit(3, 1000, 2)
	large := func(seq uint64) *Message {
		m := message(seq, 1)
		m.Size = 600
		return m
	}
	assert.Equal(t, Taken, q.Push(large(1)))
	assert.Equal(t, Taken, q.Push(large(2)), "each handler gets one, whatever the bytes")
	assert.Equal(t, Refused, q.Push(large(3)))
	_, _ = q.Next()
	assert.Equal(t, Taken, q.Push(large(3)), "what a handler has does not wait")
	_, _ = q.Next()
	assert.Equal(t, Refused, q.Push(message(4, 1)), "nor more than are allowed")
	assert.Equal(t, Repeated, q.Push(message(3, 2)), "a held message is not returned")

	ordered := New(true)
	ordered.Limit(1, 1, 1)
	assert.Equal(t, Taken, ordered.Push(keyed(1, "a")))
	assert.Equal(t, Taken, ordered.Push(keyed(2, "a")), "returned, it would come behind its followers")
}

func TestExcessIsTheNewestThatNoHandlerHasBegun(t *testing.T) {
	t.Parallel()
	q := New(false)
	for seq := range uint64(6) {
		q.Push(message(seq, 1))
	}
	_, _ = q.Next()
	assert.Empty(t, q.Excess(5))
	back := q.Excess(2)
	require.Len(t, back, 3)
	for i, m := range back {
		assert.EqualValues(t, 3+i, m.Delivery.Sequence)
	}
	f := q.Flow()
	assert.Equal(t, 3, f.Held)
	assert.Equal(t, 20, f.AheadBytes)
	assert.Equal(t, Taken, q.Push(message(4, 2)), "it may come back")

	ordered := New(true)
	ordered.Push(keyed(1, "a"))
	ordered.Push(keyed(2, "b"))
	assert.Empty(t, ordered.Excess(0))
}

func TestBatchDoesNotWaitForWhatCannotCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := New(false)
		q.Push(message(1, 1))
		start := time.Now()
		time.AfterFunc(time.Second, func() { q.ExpectMore(false) })
		batch, ok := q.NextBatch(10, time.Hour)
		require.True(t, ok)
		assert.Len(t, batch, 1)
		assert.Equal(t, time.Second, time.Since(start))
		time.AfterFunc(time.Second, func() { q.Push(message(2, 1)) })
		batch, _ = q.NextBatch(10, time.Hour)
		assert.Len(t, batch, 1, "but it has a first message")
		q.ExpectMore(true)
		q.Push(message(3, 1))
		_, _ = q.NextBatch(10, time.Hour)
		assert.Equal(t, time.Hour+2*time.Second, time.Since(start))
	})
}
