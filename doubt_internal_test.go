package natty

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func doubtful(seq uint64, attempt int) *held {
	h := message(seq, attempt)
	h.doubtful = true
	return h
}

func TestMessageIsDoubtfulInItsLastDeliveriesBeforeTheLimit(t *testing.T) {
	t.Parallel()
	e := engine{cfg: ConsumerConfig{MaxDeliver: 3}}
	assert.False(t, e.doubtful(Delivery{Attempt: 8}))
	for attempt := 9; attempt <= 11; attempt++ {
		assert.True(t, e.doubtful(Delivery{Attempt: attempt}))
		require.NoError(t, e.condemned(message(1, attempt)), "it is tried")
	}
	require.Error(t, e.condemned(message(1, 12)))
	require.Error(t, e.condemned(message(1, 13)), "it could not be copied, and comes again")
	require.NoError(t, e.condemned(message(2, 12)), "one may do for all that came with it")
	e.cfg.MaxDeliver = 0
	assert.False(t, e.doubtful(Delivery{Attempt: 100}))
}

func TestDoubtfulMessagesRunOneAtATimeBesideOthers(t *testing.T) {
	t.Parallel()
	for attempt, want := range map[int][]uint64{5: {1, 2, 3}, 6: {3, 2, 1}} {
		synctest.Test(t, func(t *testing.T) {
			d := newDispatch(false)
			for seq := uint64(1); seq <= 3; seq++ {
				d.push(doubtful(seq, attempt))
			}
			d.push(message(4, 1))
			other, _ := d.next()
			assert.EqualValues(t, 4, other.d.Sequence, "it need not wait")
			var order []uint64
			for range want {
				time.Sleep(doubtPause) // fake time
				synctest.Wait()
				h, _ := d.next()
				order = append(order, h.d.Sequence)
				assert.Zero(t, d.ready.n, "one at a time")
				d.done(h, 1, false)
			}
			assert.Equal(t, want, order)
			n, _, _ := d.load()
			assert.Equal(t, 1, n)
		})
	}
}

func TestDoubtfulMessageIsABatchOfItsOwn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDispatch(false)
		d.push(message(1, 1))
		d.push(message(2, 1))
		d.push(doubtful(3, 5))
		d.push(doubtful(4, 5))
		time.Sleep(doubtPause) // fake time
		synctest.Wait()
		d.push(message(5, 1))
		start := time.Now()
		for _, want := range [][]uint64{{1, 2}, {3}, {5}, {4}} {
			batch, ok := d.nextBatch(10, time.Hour)
			require.True(t, ok)
			var got []uint64
			for _, h := range batch {
				got = append(got, h.d.Sequence)
				d.done(h, 1, false)
			}
			assert.Equal(t, want, got)
		}
		assert.Zero(t, time.Since(start), "nor is the one before it, which has to end there, waited with")
	})
}

func TestDoubtfulMessagesAreHandedBackAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDispatch(false)
		for seq := range uint64(3) {
			d.push(doubtful(seq, 5))
		}
		require.Equal(t, repeated, d.push(doubtful(1, 6)), "it is known that they are held")
		time.Sleep(doubtPause) // fake time
		synctest.Wait()
		h, _ := d.next()
		assert.Len(t, d.replies(0), 3, "all are kept alive")
		assert.Len(t, d.close(), 2)
		d.done(h, 1, false)
		<-d.idle
		time.Sleep(doubtPause) // fake time
		n, _, _ := d.load()
		assert.Zero(t, n)
	})
}

func TestDoubtfulMessageThatFailsAndRestsLetsTheNextOneRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDispatch(true)
		for seq, key := range []string{"a", "a", "b"} {
			h := doubtful(uint64(seq), 5)
			h.key = key
			d.push(h)
		}
		time.Sleep(doubtPause) // fake time
		synctest.Wait()
		h, _ := d.next()
		assert.EqualValues(t, 0, h.d.Sequence)
		require.True(t, d.restFor(h, 1, time.Hour))
		h, _ = d.next()
		assert.EqualValues(t, 2, h.d.Sequence, "the other one of its key waits")
		d.done(h, 1, false)
		for want := range uint64(2) {
			time.Sleep(time.Hour + doubtPause) // fake time
			synctest.Wait()
			h, _ = d.next()
			assert.Equal(t, want, h.d.Sequence)
			d.done(h, 1, false)
		}
	})
}
