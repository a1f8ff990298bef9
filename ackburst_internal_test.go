package natty

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// burstLog is an ackBurst for a number of handlers, and when what it was given went.
func burstLog(handlers int) (b *ackBurst, sent func() []time.Duration) {
	begin, mu, at := time.Now(), sync.Mutex{}, []time.Duration(nil)
	b = newAckBurst(handlers, func(*held) {
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
			b.add(&held{})
			time.Sleep(ackLinger) // fake time
		}
		assert.Equal(t, []time.Duration{0, ackLinger, 2 * ackLinger}, sent())
	})
}

func TestAcknowledgementsThatFollowWaitForEachOtherAMillisecondAtMost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, sent := burstLog(64)
		b.add(&held{})
		time.Sleep(ackLinger / 4) // fake time
		b.add(&held{})
		time.Sleep(ackLinger / 4) // fake time
		b.add(&held{})
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
			b.add(&held{})
		}
		assert.Len(t, sent(), 1+4)
		b.flush()
		assert.Len(t, sent(), 1+4+3)
		time.Sleep(10 * ackLinger) // fake time
		assert.Len(t, sent(), 1+4+3, "none goes twice")
	})
}
