package consumer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/internal/durable"
)

func TestAckThatCrossesARedeliveryIsNoTrouble(t *testing.T) {
	t.Parallel()
	var a ackTrouble
	a.sent(1)
	assert.False(t, a.redelivered(2), "it was not acked here")
	assert.False(t, a.redelivered(1), "once")
	a.sent(1)
	assert.True(t, a.redelivered(1), "twice")

	a.forget() // a lost connection may have had the acks
	assert.False(t, a.redelivered(1))
	a.sent(1)
	assert.False(t, a.redelivered(1))
	a.look(durable.Durable{Created: time.Unix(1, 0)}) // made again, it begins anew
	assert.False(t, a.redelivered(1))
}

func TestAcksThatHaveNoEffectAreOneTroubleUntilTheFloorPassesThem(t *testing.T) {
	t.Parallel()
	var a ackTrouble
	a.sent(7)
	assert.True(t, a.open("refused"))
	assert.False(t, a.open("no effect"), "it is the same trouble")
	a.look(durable.Durable{Floor: 6})
	assert.Equal(t, "refused", a.warning())
	a.look(durable.Durable{Floor: 7})
	assert.Empty(t, a.warning())
	assert.True(t, a.open("no effect"))
}

func TestFewAckedMessagesAreWatchedAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var a ackTrouble
		for sequence := range uint64(10 * watchedAcks) {
			a.sent(sequence)
		}
		assert.Len(t, a.acked, watchedAcks)
		a.redelivered(5)
		d := durable.Durable{Config: jetstream.ConsumerConfig{AckWait: time.Second}, Floor: 3}
		a.look(d)
		assert.Len(t, a.acked, watchedAcks-4)
		// Behind a message that blocks the floor, those that do not come again make room.
		time.Sleep(2*time.Second + 1) // fake time
		a.look(d)
		assert.Len(t, a.acked, 1)
		a.sent(1000)
		assert.Len(t, a.acked, 2)
	})
}
