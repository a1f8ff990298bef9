package consumer

import (
	"context"
	"time"

	"github.com/natty-go/natty/internal/backoff"
)

// loss is what a supervision knows about messages that may have got lost on their way to
// a consumer that keeps the order of keys. The server redelivers them after AckWait,
// behind those that follow them. So nothing is pulled until they have come again, or
// it turned out that there are none. With other instances at work nobody can tell, and
// this one waits too.
type loss struct {
	suspected  bool      // messages may be lost, and nothing is pulled
	recounting bool      // the running look counts what is in flight
	served     time.Time // when the server ends the request that nobody listens to any more
	until      time.Time // when the wait ends; zero: it is not known yet
	counts     int       // how often there was a reason to wait
}

var retryCount = backoff.Exp{Min: 25 * time.Millisecond, Max: 5 * time.Second}

// lostMargin is how much later than AckWait the server may find that it is over.
const lostMargin = 200 * time.Millisecond

// suspect suspects that messages are lost on their way.
func (s *supervision) suspect(ctx context.Context) {
	s.lost.suspected, s.lost.served, s.lost.until, s.lost.counts = true, s.c.puller.Until(), time.Time{}, 0
	s.recount(ctx)
}

// recount finds out whether more messages are in flight than are held here.
func (s *supervision) recount(ctx context.Context) {
	s.stopLook() // it began before the loss
	s.lost.recounting = true
	s.look(ctx, nil)
}

// countAgain goes on waiting for lost messages when a pause is over.
func (s *supervision) countAgain(ctx context.Context) {
	if s.lost.suspected && !s.lost.recounting && !s.healing.Load() {
		s.recount(ctx)
	}
}

// onRecount acts on a finding that counted what is in flight. An error says nothing, and
// the count is repeated after the pause for it.
func (s *supervision) onRecount(f finding) {
	c, now := s.c, time.Now()
	held, _, _ := c.queue.Load()
	// The leader of the durable may learn late that a connection to another server, or
	// through a broken network, is gone. Until then it answers the request, and AckWait
	// of such a message begins later.
	served := f.durable.Requests > 0 && now.Before(s.lost.served)
	switch {
	case f.err != nil:
		return
	case f.gone != nil, !served && f.durable.Unacked <= held, !s.lost.until.IsZero() && now.After(s.lost.until):
		s.lost.suspected = false
		c.warn(warnLost, "")
		c.wake()
		return
	case served:
		_ = c.puller.Sweep() // lost with the connection: the next count is after another
	case s.lost.until.IsZero():
		s.lost.until = now.Add(c.durable.AckWait() + lostMargin)
	}
	// The first count may be too high: it includes what was settled while it was made.
	if s.lost.counts++; s.lost.counts > 1 {
		s.waitsForLost()
	}
	end := s.lost.until
	if end.IsZero() {
		end = s.lost.served
	}
	pause := min(time.Until(end), c.durable.AckWait()/4, retryCount.Base(s.lost.counts))
	s.paused = true
	s.resume.Reset(max(pause, retryCount.Min))
}

// waitsForLost says that this instance waits, and until when.
func (s *supervision) waitsForLost() {
	wait := time.Until(s.lost.until)
	if wait <= 0 {
		return
	}
	warning := "to keep the order of keys, it pulls nothing until " +
		s.lost.until.Format("15:04:05.000") + " at the latest: messages that were in flight when the " +
		"connection or the durable's leader was lost may be redelivered until then"
	if s.c.warn(warnLost, warning) {
		s.c.client.Log.Info("natty: consumer waits",
			"durable", s.c.cfg.Durable, "until", s.lost.until, "why", warning)
	}
}
