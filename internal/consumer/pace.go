package consumer

import (
	"context"
	"time"

	"github.com/natty-go/natty/internal/pull"
)

// pace says how often the server is asked without a reason. A consumer whose durable
// works sends at most six requests a minute to the API, and one whose durable is idle at
// most two, its pull requests included.
type pace struct {
	expiry time.Duration // of pull requests
	busy   time.Duration // between requests for looks while there is something to lose
	idle   time.Duration // between looks otherwise
	stream time.Duration // between looks that read the stream as well without a reason
	// calm is for how long nothing may fail before a trouble counts as over. The same
	// trouble may let a message through now and then, and is no news after that.
	calm time.Duration
}

func paceOf(ctx context.Context) pace {
	p := pace{
		expiry: pull.Expiry, busy: 10 * time.Second, idle: 2 * time.Minute, stream: time.Minute,
		calm: 10 * time.Second,
	}
	if n, _ := ctx.Value(paceKey{}).(int); n > 1 {
		d := time.Duration(n)
		p = pace{expiry: p.expiry / d, busy: p.busy / d, idle: p.idle / d, stream: p.stream / d, calm: p.calm / d}
	}
	return p
}

type paceKey struct{}

// WithPace returns a ctx in which Run asks the server n times as often. It is for tests,
// which cannot wait for minutes.
func WithPace(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, paceKey{}, n)
}

// lookEvery is the time between looks at the durable.
func (s *supervision) lookEvery() time.Duration {
	if s.busy() {
		return s.c.pace.busy * time.Duration(max(s.cost, 1))
	}
	return s.c.pace.idle
}

// busy reports whether the durable works, here or elsewhere: messages came or are held,
// wait or are in flight by the last look, or were delivered to anyone since. A heartbeat
// says that without a request.
func (s *supervision) busy() bool {
	d := &s.c.durable
	if held, _ := s.c.mode.load(); held > 0 || d.Waiting > 0 || d.Unacked > 0 {
		return true
	}
	if n, known := s.c.puller.Deliveries(); known && n != d.Deliveries {
		return true
	}
	return s.c.lastMessage.Load() > s.sampled.UnixNano()
}
