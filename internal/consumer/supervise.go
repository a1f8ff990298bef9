package consumer

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/incident"
	"github.com/natty-go/natty/internal/pull"
)

// supervision is the goroutine that keeps a pull request at the server. It waits out
// failures, and asks the server about the durable when something may be wrong with it.
type supervision struct {
	c *Consumer
	troubles

	changed <-chan struct{} // closed when the connection is another one

	checked       <-chan finding // the result of the running look at the durable; nil: none runs
	cancelLook    context.CancelFunc
	investigating bool         // a failure is the reason of the running look
	healing       atomic.Bool  // the look found that the durable is gone, and waits or recreates it
	sampled       time.Time    // when the last look began
	sampledStream time.Time    // when the last look began that read the stream as well
	cost          int          // requests of the last look
	idlePulls     int          // looks in a row at which nobody pulled, and messages were pending
	filters       incident.Log // why the durable's filters cannot follow its stream
	lost          loss
}

// run supervises until ctx ends or something cannot be repaired.
func (s *supervision) run(ctx context.Context, m mode) error {
	link := s.c.api.Link
	tick := time.NewTicker(m.tick())
	defer tick.Stop()
	s.resume, s.sampled, s.sampledStream = time.NewTimer(time.Hour), time.Now(), time.Now()
	defer s.resume.Stop()
	defer s.stopLook()
	up := s.begin(ctx)
	for {
		err := m.step(ctx, up)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-link.Gone:
			return s.c.errorf("%w", conn.ErrClosed)
		case <-s.changed:
			up, s.changed = link.Watch()
			err = m.onConnection(ctx, up)
		case <-s.c.wakeups:
			m.onPullEnd(ctx)
		case <-s.resume.C:
			s.paused = false
			s.countAgain(ctx)
		case f := <-s.checked:
			s.checked = nil
			err = m.onFound(ctx, f)
			tick.Reset(m.tick()) // AckWait may have changed
		case <-tick.C:
			if up {
				err = m.onTick(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
}

// begin looks at the connection for the first time. It may have been lost since the
// durable was made.
func (s *supervision) begin(ctx context.Context) (up bool) {
	if up, s.changed = s.c.api.Link.Watch(); up {
		s.c.setState(s.c.mode.role())
	} else {
		s.onConnection(up)
	}
	s.expectLost(ctx)
	return up
}

// onConnection reacts to a loss or a new connection, which does not know a pull request
// that was sent on the old one.
func (s *supervision) onConnection(up bool) {
	s.c.puller.Forget()
	if !up {
		s.c.ackTrouble.forget()
		s.c.setState(stateDisconnected)
		return
	}
	s.c.setState(s.c.mode.role())
	s.recovered()
	s.paused = false
}

// mayPull reports whether nothing must end before the next request: a pause, a look into
// a failure, the healing of a durable, or the wait for messages that got lost.
func (s *supervision) mayPull() bool {
	return !s.paused && !s.healing.Load() && !s.lost.suspected && (s.checked == nil || !s.investigating)
}

// pull sends a request for n messages; for zero, none.
func (s *supervision) pull(n int) { s.sent(n == 0, func() error { return s.c.puller.Pull(n) }) }

// pullBriefly is pull with a request that the server ends after d.
func (s *supervision) pullBriefly(n int, d time.Duration) {
	s.sent(n == 0, func() error { return s.c.puller.PullBriefly(n, d) })
}

func (s *supervision) sent(none bool, send func() error) {
	if none {
		return
	}
	if err := send(); err != nil {
		s.onRefusedPull(err) // or the connection has just been lost
	}
}

// onEnd acts on the end of a request. It reports whether messages may be lost on their
// way: the server, or the leader of the durable, was not there for a moment.
func (s *supervision) onEnd(ctx context.Context, end pull.End) (lossy bool) {
	switch {
	case end.Fruitless() && end.Expected():
		s.paused = true
		s.resume.Reset(pull.AtOnce)
	case end.Expected():
	case end.TooSmall():
		if !s.c.puller.Grow() {
			s.report(troubleTooSmall, "nothing is delivered any more", s.c.tooSmall(end))
		}
		s.pause()
	case end.Is("leadership change"), end.Is("server shutdown"):
		s.report(troubleAway, "pulling again", end.Err())
		s.pause()
	default: // deleted, no responder, or a changed limit
		s.investigate(ctx, kindOf(end), end.Err())
	}
	return end.Away()
}

// tooSmall explains that the next message does not fit into a request.
func (c *Consumer) tooSmall(end pull.End) error {
	if limit := c.puller.MaxBytes(); limit > 0 {
		return fmt.Errorf("the next message is larger than the durable's own limit on a request "+
			"(max_bytes %d); raise that, set it to 0, or remove the message: %w", limit, end.Err())
	}
	return end.Err()
}

// due reports whether it is time for a look at the durable, and the failure that is the
// reason, if any.
func (s *supervision) due() (now bool, why error) {
	s.checkRecovery()
	switch {
	case s.checked != nil:
		return false, nil
	case s.c.puller.Silent():
		s.c.puller.Forget()
		return true, jetstream.ErrNoHeartbeat
	}
	return time.Since(s.sampled) > s.lookEvery(), nil
}

// tick is how often progress is reported and the server's silence is noticed.
func (s *supervision) tick() time.Duration {
	return max(min(s.c.durable.AckWait()/3, s.c.cfg.Heartbeat), 10*time.Millisecond)
}

// errorf makes an error that names the consumer.
func (c *Consumer) errorf(format string, args ...any) error {
	return fmt.Errorf("natty: consumer %q: "+format, append([]any{c.cfg.Durable}, args...)...)
}
