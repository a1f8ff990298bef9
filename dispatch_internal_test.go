package natty

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func message(seq uint64, attempt int) *held {
	h := &held{msg: &nats.Msg{}, size: 10}
	h.d = Delivery{Sequence: seq, Attempt: attempt}
	return h
}

func TestMessagesRunInOrderOfArrival(t *testing.T) {
	t.Parallel()
	d := newDispatch(false)
	for seq := range uint64(3) {
		require.Equal(t, taken, d.push(message(seq, 1)))
	}
	for seq := range uint64(3) {
		h, ok := d.next()
		require.True(t, ok)
		assert.Equal(t, seq, h.d.Sequence)
		d.done(h, time.Millisecond, false)
	}
	n, bytes, _ := d.load()
	assert.Zero(t, n)
	assert.Zero(t, bytes)
}

func TestSecondDeliveryOfWhatIsHeldIsNotRun(t *testing.T) {
	t.Parallel()
	d := newDispatch(false)
	require.Equal(t, taken, d.push(message(1, 1)))
	require.Equal(t, repeated, d.push(message(1, 2)), "while it waits")
	h, _ := d.next()
	require.Equal(t, repeated, d.push(message(1, 3)), "while it runs")
	assert.Empty(t, d.done(h, 1, false))
	n, _, _ := d.load()
	assert.Zero(t, n)
}

func TestSecondDeliveryOfWhatTheHandlerGaveBackIsRun(t *testing.T) {
	t.Parallel()
	d := newDispatch(false)
	d.push(message(1, 1))
	h, _ := d.next()
	require.Equal(t, repeated, d.push(message(1, 2)))
	assert.Empty(t, d.done(h, 1, true))
	again, ok := d.next()
	require.True(t, ok)
	assert.Equal(t, 2, again.d.Attempt)

	require.Equal(t, repeated, d.push(message(1, 3)))
	d.close()
	back := d.done(again, 1, true)
	require.Len(t, back, 1, "too late to run it: it is handed back")
	assert.Equal(t, 3, back[0].d.Attempt)
	select {
	case <-d.idle:
		assert.Fail(t, "idle before it is handed back")
	default:
	}
	d.handedBack()
	<-d.idle
}

func TestDeliveryAfterGivingBackIsANewOne(t *testing.T) {
	t.Parallel()
	d := newDispatch(false)
	d.push(message(1, 1))
	h, _ := d.next()
	d.letGo(h)
	require.Equal(t, taken, d.push(message(1, 2)))
	assert.Empty(t, d.done(h, 1, false))
	again, _ := d.next()
	assert.Equal(t, 2, again.d.Attempt)
}

func TestClosingReturnsWhatNobodyHasBegunAndWaitsForTheRest(t *testing.T) {
	t.Parallel()
	d := newDispatch(false)
	for seq := range uint64(3) {
		d.push(message(seq, 1))
	}
	h, _ := d.next()
	assert.Len(t, d.close(), 2)
	assert.Equal(t, refused, d.push(message(9, 1)))
	_, ok := d.next()
	assert.False(t, ok)
	select {
	case <-d.idle:
		assert.Fail(t, "one still runs")
	default:
	}
	d.done(h, 1, false)
	<-d.idle
	assert.Empty(t, d.close(), "again")
}

func TestWorkersThatWaitAreWokenByMessagesAndByTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDispatch(false)
		ended := make(chan bool, 2)
		for range 2 {
			go func() {
				_, ok := d.next()
				ended <- ok
			}()
		}
		synctest.Wait()
		d.push(message(1, 1))
		assert.True(t, <-ended)
		d.close()
		assert.False(t, <-ended)
	})
}

func TestPrefetchIsAboutOneSecondOfWork(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		workers, limit int
		perMsg         time.Duration
		want           int
	}{
		{1, 0, 0, 1}, // nothing is known yet
		{64, 0, 0, 64},
		{1, 0, 100 * time.Millisecond, 10},
		{4, 0, 100 * time.Millisecond, 40},
		{4, 0, time.Minute, 4}, // at least one for each
		{1, 0, time.Microsecond, maxPrefetch},
		{1, 25, time.Microsecond, 25},
		{3000, 0, time.Microsecond, 3000},
		{1, 0, 1, maxPrefetch},
	} {
		e := engine{cfg: ConsumerConfig{Concurrency: tc.workers, MaxPollRecords: tc.limit}}
		assert.Equal(t, tc.want, e.capacity(tc.perMsg), "%+v", tc)
	}
}

func TestNoRequestIsMadeForEveryMessageThatLeaves(t *testing.T) {
	t.Parallel()
	e := engine{cfg: ConsumerConfig{Concurrency: 1, MaxPollRecords: 100}, dispatch: newDispatch(false)}
	e.dispatch.perMsg = 1
	for seq := range uint64(100) {
		e.dispatch.push(message(seq, 1))
	}
	leave := func(n int) {
		for range n {
			h, _ := e.dispatch.next()
			e.dispatch.done(h, 1, false)
		}
	}
	assert.Zero(t, e.room())
	leave(24)
	assert.Zero(t, e.room())
	leave(1)
	assert.Equal(t, 25, e.room())
	h := message(1000, 1)
	h.size = pullBytes
	e.dispatch.push(h)
	assert.Zero(t, e.room(), "whatever the number, bytes are bounded")
}
