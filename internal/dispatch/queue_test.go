package dispatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func message(seq uint64, attempt int) *Message {
	h := &Message{Msg: &nats.Msg{}, Size: 10}
	h.Delivery = Delivery{Sequence: seq, Attempt: attempt}
	return h
}

func TestMessagesRunInOrderOfArrival(t *testing.T) {
	t.Parallel()
	d := New(false)
	for seq := range uint64(3) {
		require.Equal(t, Taken, d.Push(message(seq, 1)))
	}
	for seq := range uint64(3) {
		h, ok := d.Next()
		require.True(t, ok)
		assert.Equal(t, seq, h.Delivery.Sequence)
		d.Settle(h, time.Millisecond, false)
	}
	n, bytes, _ := d.Load()
	assert.Zero(t, n)
	assert.Zero(t, bytes)
}

func TestSecondDeliveryOfWhatIsHeldIsNotRun(t *testing.T) {
	t.Parallel()
	d := New(false)
	require.Equal(t, Taken, d.Push(message(1, 1)))
	require.Equal(t, Repeated, d.Push(message(1, 2)), "while it waits")
	h, _ := d.Next()
	require.Equal(t, Repeated, d.Push(message(1, 3)), "while it runs")
	assert.Empty(t, d.Settle(h, 1, false))
	n, _, _ := d.Load()
	assert.Zero(t, n)
}

func TestSecondDeliveryOfWhatTheHandlerReturnedIsRun(t *testing.T) {
	t.Parallel()
	d := New(false)
	d.Push(message(1, 1))
	h, _ := d.Next()
	require.Equal(t, Repeated, d.Push(message(1, 2)))
	assert.Empty(t, d.Settle(h, 1, true))
	again, ok := d.Next()
	require.True(t, ok)
	assert.Equal(t, 2, again.Delivery.Attempt)

	require.Equal(t, Repeated, d.Push(message(1, 3)))
	d.Close()
	back := d.Settle(again, 1, true)
	require.Len(t, back, 1, "too late to run it: it is returned")
	assert.Equal(t, 3, back[0].Delivery.Attempt)
	select {
	case <-d.Idle():
		assert.Fail(t, "idle before it is returned")
	default:
	}
	d.Returned()
	<-d.Idle()
}

func TestDeliveryAfterReturningIsANewOne(t *testing.T) {
	t.Parallel()
	d := New(false)
	d.Push(message(1, 1))
	h, _ := d.Next()
	d.Release(h)
	require.Equal(t, Taken, d.Push(message(1, 2)))
	assert.Empty(t, d.Settle(h, 1, false))
	again, _ := d.Next()
	assert.Equal(t, 2, again.Delivery.Attempt)
}

func TestClosingReturnsWhatNobodyHasBegunAndWaitsForTheRest(t *testing.T) {
	t.Parallel()
	d := New(false)
	for seq := range uint64(3) {
		d.Push(message(seq, 1))
	}
	h, _ := d.Next()
	assert.Len(t, d.Close(), 2)
	assert.Equal(t, Refused, d.Push(message(9, 1)))
	_, ok := d.Next()
	assert.False(t, ok)
	select {
	case <-d.Idle():
		assert.Fail(t, "one still runs")
	default:
	}
	d.Settle(h, 1, false)
	<-d.Idle()
	assert.Empty(t, d.Close(), "again")
}

func TestWorkersThatWaitAreWokenByMessagesAndByTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := New(false)
		ended := make(chan bool, 2)
		for range 2 {
			go func() {
				_, ok := d.Next()
				ended <- ok
			}()
		}
		synctest.Wait()
		d.Push(message(1, 1))
		assert.True(t, <-ended)
		d.Close()
		assert.False(t, <-ended)
	})
}

func TestMessagesOfOneKeyRunOneAfterTheOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := New(true)
		for seq, key := range []string{"a", "a", "b", "a"} {
			h := message(uint64(seq), 1)
			h.Key = key
			d.Push(h)
		}
		first, _ := d.Next()
		other, _ := d.Next()
		assert.EqualValues(t, 0, first.Delivery.Sequence)
		assert.EqualValues(t, 2, other.Delivery.Sequence, "other keys do not wait")
		next := first.Again(first.Delivery)
		require.True(t, d.Park(first, next, time.Second, time.Minute))
		key, waiting := d.Blocking()
		assert.Equal(t, "a", key)
		assert.Equal(t, 2, waiting)
		start := time.Now()
		again, _ := d.Next()
		assert.Same(t, next, again, "it runs again before the others of its key")
		assert.Equal(t, time.Minute, time.Since(start))

		back := d.Close()
		assert.Empty(t, back, "the others of its key wait for it, even now")
		assert.False(t, d.Park(again, again.Again(again.Delivery), 1, 1))
		d.Settle(other, 1, false)
		back = d.Settle(again, 1, false)
		require.Len(t, back, 2)
		assert.EqualValues(t, 1, back[0].Delivery.Sequence)
		assert.EqualValues(t, 3, back[1].Delivery.Sequence)
		d.Returned()
		<-d.Idle()
	})
}

func TestRecreatedDurableMayRepeatAHeldMessageAsANewOne(t *testing.T) {
	t.Parallel()
	d := New(false)
	require.Equal(t, Taken, d.Push(message(1, 1)))
	d.ExpectRedelivery()
	assert.Equal(t, Repeated, d.Push(message(1, 1)))
	newStream := message(1, 1)
	newStream.Epoch++
	assert.Equal(t, Taken, d.Push(newStream), "a sequence of another stream is another message")
}

func TestAverageFollowsWhatHandlersTake(t *testing.T) {
	t.Parallel()
	average := Smooth(0, 800)
	assert.EqualValues(t, 800, average, "the first is all there is")
	assert.EqualValues(t, 900, Smooth(average, 1600))
	assert.EqualValues(t, 1, Smooth(0, 0), "zero would mean that there was none")
}
