package consumer

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPinTimesLeaveRoomForALateAnswer(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{time.Second, 10 * time.Second, time.Hour} {
		p := pinTimesOf(ttl, 5*time.Second)
		assert.Less(t, p.trust, ttl)
		assert.Less(t, p.expires+2*p.heartbeat, p.trust, "two heartbeats of a request that was sent when the last one expired")
		assert.Less(t, p.touch, p.expires)
		assert.LessOrEqual(t, p.heartbeat, p.expires/2, "the server wants that")
	}
	assert.Equal(t, 8*time.Second, pinTimesOf(10*time.Second, 5*time.Second).trust)
}

// An idle instance is to send at most two requests a minute, looks at the durable
// included.
func TestPinTimesKeepIdleInstancesQuiet(t *testing.T) {
	t.Parallel()
	p := pinTimesOf(10*time.Second, 5*time.Second)
	assert.Equal(t, 2*time.Minute, p.standbyExpires)
	assert.Equal(t, 5*time.Second, p.standbyHeartbeat)
	assert.Equal(t, 30*time.Second, p.idle)
	for _, ttl := range []time.Duration{time.Second, time.Hour, math.MaxInt64} {
		p := pinTimesOf(ttl, 5*time.Second)
		assert.LessOrEqual(t, p.idle, 30*time.Second)
		assert.Greater(t, p.idle, p.expires, "an owner that works does not give the pin back between two requests")
		assert.LessOrEqual(t, p.standbyHeartbeat, p.standbyExpires/2, "the server wants that")
		assert.Less(t, p.touch, p.holdBack, "the last owner asks first")
		assert.Less(t, p.holdBack, p.trust)
	}
}
