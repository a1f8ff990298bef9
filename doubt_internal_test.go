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

func TestDoubtfulMessagesRunAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDispatch(false)
		begun := make(chan *held)
		for range 3 {
			go func() {
				for h, ok := d.next(); ok; h, ok = d.next() {
					begun <- h
					time.Sleep(time.Second) // fake time
					d.done(h, 1, false)
				}
				begun <- nil
			}()
		}
		d.push(message(1, 1))
		d.push(message(2, 1))
		first, second := <-begun, <-begun
		assert.EqualValues(t, 3, first.d.Sequence+second.d.Sequence, "others run beside each other")
		d.push(doubtful(3, 8))
		d.push(doubtful(4, 8))
		d.push(message(5, 1))
		d.push(message(6, 1))
		start := time.Now()
		assert.EqualValues(t, 3, (<-begun).d.Sequence)
		assert.Equal(t, time.Second, time.Since(start), "when they have ended")
		assert.EqualValues(t, 4, (<-begun).d.Sequence)
		assert.Equal(t, 2*time.Second, time.Since(start))
		<-begun
		<-begun
		assert.Equal(t, 3*time.Second, time.Since(start), "then they go on")
		d.close()
		for range 3 {
			assert.Nil(t, <-begun)
		}
	})
}

func TestDoubtfulMessageIsABatchOfItsOwn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDispatch(false)
		for _, h := range []*held{message(1, 1), message(2, 1), doubtful(3, 8), doubtful(4, 8)} {
			d.push(h)
		}
		next := func(want ...uint64) {
			batch, ok := d.nextBatch(10, time.Hour)
			require.True(t, ok)
			var got []uint64
			for _, h := range batch {
				got = append(got, h.d.Sequence)
				d.done(h, 1, false)
			}
			assert.Equal(t, want, got)
		}
		start := time.Now()
		next(3)
		next(4)
		assert.Zero(t, time.Since(start), "nor does it wait for others")
		time.AfterFunc(time.Minute, func() { d.push(doubtful(5, 8)) })
		next(5)
		assert.Equal(t, time.Minute, time.Since(start))
		next(1, 2)
		assert.Equal(t, time.Hour+time.Minute, time.Since(start))
	})
}

func TestDoubtfulMessagesAreHandedBackAtTheEnd(t *testing.T) {
	t.Parallel()
	d := newDispatch(false)
	for seq := range uint64(3) {
		d.push(doubtful(seq, 8))
	}
	require.Equal(t, repeated, d.push(doubtful(1, 9)), "it is known that they are held")
	h, _ := d.next()
	assert.Len(t, d.replies(0), 3, "all are kept alive")
	assert.Len(t, d.close(), 2)
	d.done(h, 1, false)
	<-d.idle
	n, _, _ := d.load()
	assert.Zero(t, n)
}

func TestDoubtfulMessageThatFailsAndRestsLetsTheNextOneRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDispatch(true)
		for seq, key := range []string{"a", "a", "b"} {
			h := doubtful(uint64(seq), 8)
			h.key = key
			d.push(h)
		}
		h, _ := d.next()
		assert.EqualValues(t, 0, h.d.Sequence)
		require.True(t, d.restFor(h, 1, time.Hour))
		h, _ = d.next()
		assert.EqualValues(t, 2, h.d.Sequence, "the other one of its key waits")
		d.done(h, 1, false)
		for want := range uint64(2) {
			time.Sleep(time.Hour) // fake time
			synctest.Wait()
			h, _ = d.next()
			assert.Equal(t, want, h.d.Sequence)
			d.done(h, 1, false)
		}
	})
}
