package consumer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/durable"
)

func TestNewOwnerWaitsAsLongAsAnUnknownOneMayTrustItsPin(t *testing.T) {
	t.Parallel()
	const trust, never = 8 * time.Second, time.Duration(1 << 62)
	for name, test := range map[string]struct {
		led, known time.Duration // how long ago; zero: not known
		want       time.Duration
	}{
		"the leader is new":                      {led: time.Second, want: 7 * time.Second},
		"it was elected in this moment":          {led: time.Nanosecond, want: trust - time.Nanosecond},
		"it led for longer than anybody trusts":  {led: trust, want: 0},
		"it leads, and this instance is new":     {led: time.Second, known: never, want: 7 * time.Second},
		"the server restarted":                   {known: 2 * time.Second, want: 6 * time.Second},
		"it restarted long ago":                  {known: time.Minute, want: 0},
		"nothing is known of an earlier process": {known: never, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := claim{trust: trust}
				if test.known > 0 && test.known != never {
					c.known = time.Now().Add(-test.known)
				}
				assert.Equal(t, test.want, c.wait(durable.Pinned{Memory: test.led, Known: test.led > 0}))
			})
		})
	}
}

func TestFormerOwnerIsEntitledWhileItsTrustWouldLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := claim{trust: 8 * time.Second}
		assert.False(t, c.entitled(), "it never was the owner")
		c.former = time.Now()
		time.Sleep(8*time.Second - 1) // fake time
		assert.True(t, c.entitled())
		time.Sleep(time.Nanosecond) // fake time
		assert.False(t, c.entitled())
	})
}

func TestServerIsKnownFromItsFirstAnswerAfterAnInterruption(t *testing.T) {
	t.Parallel()
	first := time.Now()
	c := claim{trust: time.Second}
	c.granted(pinGrant{since: first})
	assert.Zero(t, c.known, "there was no interruption")
	c.unknown = true
	c.granted(pinGrant{since: first})
	c.granted(pinGrant{since: first.Add(time.Hour)})
	assert.Equal(t, first, c.known)
}

func TestOwnershipRetiresOnlyWhileItsWorkerWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, d := owned(t)
		next := make(chan uint64)
		go func() {
			defer close(o.idle)
			for m := o.next(); m != nil; m = o.next() {
				next <- m.Delivery.Sequence
				o.accept(m)
			}
		}()
		synctest.Wait()
		begun := time.Now()
		time.Sleep(time.Second) // fake time
		assert.False(t, o.retire(begun.Add(-1)), "it did not wait for so long")
		d.receive(delivered("pin", 1, 2))
		synctest.Wait()
		assert.False(t, o.retire(time.Now()), "it has a message in hand")
		require.EqualValues(t, 2, <-next)
		synctest.Wait()
		assert.True(t, o.retire(time.Now()))
		<-o.idle
		d.receive(delivered("pin", 2, 3))
		assert.Nil(t, o.next(), "nothing begins after that")
	})
}

func TestPinIsTrustedFromWhenTheServerGaveIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, _ := owned(t)
		given := time.Now().Add(-time.Minute)
		require.True(t, o.begin(given, 0))
		assert.Equal(t, given, *o.trust.From.Load())
		assert.True(t, o.acting.Load())

		o, _ = owned(t)
		time.Sleep(time.Second) // fake time
		renewed := time.Now()
		o.trust.Renew(renewed)
		require.True(t, o.begin(given, 0))
		assert.Equal(t, renewed, *o.trust.From.Load(), "a later request was answered")

		o, _ = owned(t)
		assert.False(t, o.begin(time.Now().Add(-time.Hour), 0))
		assert.True(t, o.lost())
		assert.False(t, o.acting.Load())
	})
}
