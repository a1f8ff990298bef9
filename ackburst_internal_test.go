package natty

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
)

// burstLog is an ackBurst for a number of handlers, and when what it was given went.
func burstLog(handlers int) (b *ackBurst, sent func() []time.Duration) {
	begin, mu, at := time.Now(), sync.Mutex{}, []time.Duration(nil)
	b = newAckBurst(handlers, func(*nats.Msg) {
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
		b, sent := burstLog(64)
		for range 3 {
			b.add(&nats.Msg{})
			time.Sleep(ackLinger) // fake time
		}
		assert.Equal(t, []time.Duration{0, ackLinger, 2 * ackLinger}, sent())
	})
}

func TestAcknowledgementsThatFollowWaitForEachOtherAMillisecondAtMost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, sent := burstLog(64)
		b.add(&nats.Msg{})
		time.Sleep(ackLinger / 4) // fake time
		b.add(&nats.Msg{})
		time.Sleep(ackLinger / 4) // fake time
		b.add(&nats.Msg{})
		assert.Len(t, sent(), 1)
		time.Sleep(10 * ackLinger) // fake time
		assert.Equal(t, []time.Duration{0, ackLinger, ackLinger}, sent())
	})
}

func TestNoMoreAcknowledgementsWaitThanAQuarterOfTheHandlers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, sent := burstLog(16)
		for range 1 + 4 + 3 {
			b.add(&nats.Msg{})
		}
		assert.Len(t, sent(), 1+4)
		b.flush()
		assert.Len(t, sent(), 1+4+3)
		time.Sleep(10 * ackLinger) // fake time
		assert.Len(t, sent(), 1+4+3, "none goes twice")
	})
}

func TestFlushWaitsForAcknowledgementsThatAreBeingSent(t *testing.T) {
	t.Parallel()
	sending, hold := make(chan struct{}), make(chan struct{})
	var sent atomic.Bool
	b := newAckBurst(8, func(*nats.Msg) {
		close(sending)
		<-hold
		sent.Store(true)
	})
	go b.add(&nats.Msg{})
	<-sending
	time.AfterFunc(20*time.Millisecond, func() { close(hold) })
	b.flush()
	assert.True(t, sent.Load())
}
