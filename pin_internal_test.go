package natty

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestTrustLastsFromWhenTheRequestWasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lapsed := make(chan time.Time, 1)
		var tr trust
		start := time.Now()
		tr.begin(start.Add(-3*time.Second), 8*time.Second, func() { tr.end(); lapsed <- time.Now() })
		assert.True(t, tr.holds(time.Now()))
		time.Sleep(4 * time.Second) // fake time
		tr.renew(start.Add(time.Second))
		time.Sleep(2 * time.Second) // fake time
		assert.True(t, tr.holds(time.Now()))
		assert.Equal(t, start.Add(9*time.Second), <-lapsed)
		assert.False(t, tr.holds(time.Now()))
	})
}

func TestTrustThatEndedIsNotRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lapsed := 0
		var tr trust
		tr.begin(time.Now(), time.Second, func() { tr.end(); lapsed++ })
		time.Sleep(2 * time.Second) // fake time
		synctest.Wait()
		assert.Equal(t, 1, lapsed)
		tr.renew(time.Now())
		assert.False(t, tr.holds(time.Now()))
	})
}

func TestTrustEndsByTheWallClockToo(t *testing.T) {
	t.Parallel()
	var tr trust
	now := time.Now()
	tr.begin(now, time.Minute, func() {})
	defer tr.end()
	assert.True(t, tr.holds(now.Add(59*time.Second)))
	suspended := time.Unix(0, now.Add(61*time.Second).UnixNano()) // without a monotonic reading
	assert.False(t, tr.holds(suspended))
	assert.False(t, tr.holds(now.Add(61*time.Second)))
}

func TestPinTimesLeaveRoomForALateAnswer(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{time.Second, defaultPinnedTTL, time.Hour} {
		p := pinTimesOf(ttl, defaultHeartbeat)
		assert.Less(t, p.trust, ttl)
		assert.Less(t, p.expires+2*p.heartbeat, p.trust, "two heartbeats of a request that was sent when the last one expired")
		assert.Less(t, p.touch, p.expires)
		assert.LessOrEqual(t, p.heartbeat, p.expires/2, "the server wants that")
	}
	assert.Equal(t, 8*time.Second, pinTimesOf(defaultPinnedTTL, defaultHeartbeat).trust)
}
