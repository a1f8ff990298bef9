package dispatch

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// batchLog is an AckBatch for a number of handlers, and when what it was given went.
func batchLog(handlers int) (b *AckBatch, sent func() []time.Duration) {
	begin, mu, at := time.Now(), sync.Mutex{}, []time.Duration(nil)
	b = NewAckBatch(handlers, func(string) {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Since(begin))
	})
	return b, func() []time.Duration {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return at
	}
}

func TestAcknowledgementThatComesAloneGoesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, sent := batchLog(64)
		for range 3 {
			b.Add("reply")
			time.Sleep(ackLinger) // fake time
		}
		assert.Equal(t, []time.Duration{0, ackLinger, 2 * ackLinger}, sent())
	})
}

func TestAcknowledgementsThatFollowWaitForEachOtherAMillisecondAtMost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, sent := batchLog(64)
		b.Add("reply")
		time.Sleep(ackLinger / 4) // fake time
		b.Add("reply")
		time.Sleep(ackLinger / 4) // fake time
		b.Add("reply")
		assert.Len(t, sent(), 1)
		time.Sleep(10 * ackLinger) // fake time
		assert.Equal(t, []time.Duration{0, ackLinger, ackLinger}, sent())
	})
}

func TestNoMoreAcknowledgementsWaitThanAQuarterOfTheHandlers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, sent := batchLog(16)
		for range 1 + 4 + 3 {
			b.Add("reply")
		}
		assert.Len(t, sent(), 1+4)
		b.Flush()
		assert.Len(t, sent(), 1+4+3)
		time.Sleep(10 * ackLinger) // fake time
		assert.Len(t, sent(), 1+4+3, "none goes twice")
	})
}

func TestFlushWaitsForAcknowledgementsThatAreBeingSent(t *testing.T) {
	t.Parallel()
	sending, hold := make(chan struct{}), make(chan struct{})
	var sent atomic.Bool
	b := NewAckBatch(8, func(string) {
		close(sending)
		<-hold
		sent.Store(true)
	})
	go b.Add("reply")
	<-sending
	time.AfterFunc(20*time.Millisecond, func() { close(hold) })
	b.Flush()
	assert.True(t, sent.Load())
}
