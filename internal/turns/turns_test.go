package turns

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/relistan/go-director"
	"github.com/stretchr/testify/assert"
)

func TestLooperEndsWithItsCtxOnly(t *testing.T) {
	t.Parallel()
	for name, looper := range map[string]func() director.Looper{
		"none":             func() director.Looper { return nil },
		"free by hand":     func() director.Looper { return &director.FreeLooper{Count: director.FOREVER} },
		"timed by hand":    func() director.Looper { return &director.TimedLooper{Count: director.FOREVER, Interval: time.Hour} },
		"timed and shared": func() director.Looper { return director.NewTimedLooper(director.FOREVER, time.Hour, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := looper() // its channels belong in here: fake time stands still while a goroutine waits for others
				ctx, cancel := context.WithCancel(t.Context())
				other, end := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					Run(other, l, func() { time.Sleep(time.Millisecond) }) // fake time
				}()
				time.AfterFunc(time.Second, cancel)
				began := time.Now()
				Run(ctx, l, func() { time.Sleep(time.Millisecond) }) // fake time
				assert.Less(t, time.Since(began), 1100*time.Millisecond)
				time.Sleep(time.Second) // fake time
				select {
				case <-ended:
					t.Error("the other call has ended too")
				default:
				}
				end()
				<-ended
			})
		})
	}
}

func TestTimedLooperHasItsTurnsAtItsInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, began, turns := &director.TimedLooper{Count: 3, Interval: time.Minute}, time.Now(), 0
		Run(t.Context(), l, func() { turns++ })
		assert.Equal(t, 3, turns)
		assert.InDelta(t, 3*time.Minute, time.Since(began), float64(time.Second))
	})
}

func TestLooperThatWouldPanicIsRefused(t *testing.T) {
	t.Parallel()
	assert.NotEmpty(t, Invalid(&director.TimedLooper{Count: 1}))
	assert.NotEmpty(t, Invalid((*director.FreeLooper)(nil)))
	assert.Empty(t, Invalid(&director.FreeLooper{Count: 1}))
}
