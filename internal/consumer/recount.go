package consumer

import (
	"context"
	"time"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
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

// lose notes that messages may be lost on their way. What was known of others is the
// past: these come later.
func (s *supervision) lose() { s.lost = loss{suspected: true, served: s.c.puller.Until()} }

// suspect suspects that messages are lost on their way, if the order of keys matters.
func (s *supervision) suspect(ctx context.Context) {
	if s.c.cfg.OrderBy != nil {
		s.lose()
		s.recount(ctx)
	}
}

// expectLost waits for what was lost on its way to an instance that has stopped.
func (s *supervision) expectLost(ctx context.Context) {
	wait := s.c.durable.LostFor()
	if s.c.cfg.OrderBy == nil || wait == 0 {
		return
	}
	s.lost = loss{suspected: true, until: time.Now().Add(wait)}
	s.recount(ctx)
}

// passOn leaves the wait for lost messages to the next instance, which does not know of
// them. returned of those in flight went back to the server in order.
func (m *shared) passOn(returned int) {
	c, l := m.c, &m.lost
	select {
	case <-m.changed: // the supervision has not seen it any more
		m.lose()
	default:
		if c.puller.TakeEnd().Away() {
			m.lose()
		}
	}
	if !l.suspected || !c.api.Link.Up() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.handlerCtx), answerTimeout)
	defer cancel()
	d := c.durable
	err := c.client.Glance(ctx, &d)
	if jsapi.Missing(err) || err == nil && l.over(d, returned) {
		return
	}
	if err == nil {
		err = c.client.NoteLost(ctx, d, time.Until(l.latest(d)))
	}
	if err != nil {
		c.report(c.errorf("messages that were in flight when the connection or the durable's leader was lost may "+
			"be redelivered behind later ones of their key: the next instance could not be told to wait: %w", err))
	}
}

// answers reports whether the server may still answer a request that nobody listens to
// any more.
func (l *loss) answers(d durable.Durable) bool {
	return d.Requests > 0 && time.Now().Before(l.served)
}

// over reports whether no message is lost, or none any more. held of those in flight are
// not lost.
func (l *loss) over(d durable.Durable, held int) bool {
	return !l.answers(d) && d.Unacked <= held || !l.until.IsZero() && time.Now().After(l.until)
}

// latest returns when the last lost message may come again.
func (l *loss) latest(d durable.Durable) time.Time {
	switch {
	case !l.until.IsZero():
		return l.until
	case l.answers(d):
		return l.served.Add(d.RedeliveredWithin() + lostMargin)
	}
	return time.Now().Add(d.RedeliveredWithin() + lostMargin)
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
	c := s.c
	held, _, _ := c.queue.Load()
	// The leader of the durable may learn late that a connection to another server, or
	// through a broken network, is gone. Until then it answers the request, and AckWait
	// of such a message begins later.
	served := s.lost.answers(f.durable)
	switch {
	case f.err != nil:
		return
	case f.gone != nil, s.lost.over(f.durable, held):
		s.lost.suspected = false
		c.warn(warnLost, "")
		c.wake()
		return
	case served:
		_ = c.puller.Sweep() // lost with the connection: the next count is after another
	case s.lost.until.IsZero():
		s.lost.until = s.lost.latest(f.durable)
	}
	// The first count may be too high: it includes what was settled while it was made.
	if s.lost.counts++; s.lost.counts > 1 {
		s.waitsForLost(s.lost.latest(f.durable))
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
func (s *supervision) waitsForLost(until time.Time) {
	warning := "to keep the order of keys, it pulls nothing until " +
		until.Format("15:04:05.000") + " at the latest: messages that were in flight when the " +
		"connection or the durable's leader was lost may be redelivered until then"
	if s.c.warn(warnLost, warning) {
		s.c.client.Log.Info("natty: consumer waits",
			"durable", s.c.cfg.Durable, "until", until, "why", warning)
	}
}
