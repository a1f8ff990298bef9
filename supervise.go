package natty

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// What is held ahead of the handlers is what they get through in this time: enough never to wait for the
	// network, and little enough that an idle instance can still get at the rest.
	prefetchTime = time.Second
	maxPrefetch  = 2000
	// pullBytes bounds one request, and no request is sent while as much is held: 16 MiB at most in all.
	pullBytes = 8 << 20
)

// byteBudget is the size of a request in bytes, large enough for any one message.
func (e *engine) byteBudget() int {
	const overhead = 64 << 10 // subjects
	return max(pullBytes, int(e.c.nc.MaxPayload())+overhead)
}

// setDurable takes note of what the server says about the durable. The supervision's alone.
func (e *engine) setDurable(d durable) {
	e.durable = d
	warning := d.warning()
	e.mu.Lock()
	was := e.health.Warning
	e.health.Warning = warning
	e.health.Stream = d.stream
	e.health.AckFloor = d.floor
	e.health.Pending, e.health.AckPending, e.health.MaxAckPending = d.waiting, d.unacked, d.config.MaxAckPending
	e.mu.Unlock()
	if warning != "" && was == "" {
		e.report(fmt.Errorf("natty: consumer %q: %s", d.name, warning))
	}
}

// room returns how many messages to ask for now; zero means that it is not worth a request yet.
func (e *engine) room() int {
	n, bytes, perMsg := e.dispatch.load()
	return roomBeside(n, bytes, e.capacity(perMsg))
}

// roomBeside is how many messages to ask for beside n that are held.
func roomBeside(n, bytes, capacity int) int {
	if bytes >= pullBytes {
		return 0
	}
	room := capacity - n
	// Not for every message that leaves, unless there is only one to be had.
	if room < capacity/4 && n > 0 {
		return 0
	}
	return max(room, 0)
}

// capacity is how many messages to hold when a handler takes perMsg.
func (e *engine) capacity(perMsg time.Duration) int {
	workers, limit := e.cfg.Concurrency, maxPrefetch
	if e.batch != nil {
		// A batch to fill behind each that is being handled.
		workers *= 2 * e.batch.size
		limit = max(limit, workers)
	}
	capacity := workers // until the first one tells how long it takes
	if perMsg > 0 {
		capacity = max(workers, min(limit, workers*int(prefetchTime/perMsg)))
	}
	if m := e.cfg.MaxPollRecords; m > 0 {
		capacity = min(capacity, m)
	}
	return capacity
}

// tick is how often messages are kept alive and the server's silence is looked at.
func (e *engine) tick() time.Duration {
	return max(min(e.durable.ackWait()/3, e.cfg.Heartbeat), 10*time.Millisecond)
}

// supervise keeps a pull request at the server until ctx ends or something cannot be mended.
func (e *engine) supervise(ctx context.Context) error {
	tick := time.NewTicker(e.tick())
	defer tick.Stop()
	s := supervision{e: e, resume: time.NewTimer(time.Hour), sampled: time.Now()}
	defer s.resume.Stop()
	defer s.wait()
	up, changed := s.begin(ctx)
	for {
		if up && !s.paused && !s.troubling() && e.puller.idle() {
			s.pull(s.e.room())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.c.link.gone:
			return fmt.Errorf("natty: consumer %q: %w", e.cfg.Durable, ErrClosed)
		case <-changed:
			up, changed = e.c.link.watch()
			s.connection(ctx, up)
		case <-e.kick:
			s.ended(ctx)
		case <-s.resume.C:
			s.paused = false
		case l := <-s.checked:
			s.checked = nil
			if err := s.found(ctx, l); err != nil {
				return err
			}
			tick.Reset(e.tick()) // AckWait may be another one now
		case <-tick.C:
			s.tick(ctx, up)
		}
	}
}

// supervision is the state of supervise.
type supervision struct {
	e        *engine
	paused   bool // after trouble, until resume
	resume   *time.Timer
	troubles int           // in a row
	troubled time.Time     // when the last one came
	told     string        // what was reported of this row last
	checked  <-chan looked // the running look at the durable
	trouble  bool          // whether it is for a trouble
	stop     context.CancelFunc
	sampled  time.Time // when the server was last asked about the durable
	lost     time.Time // when the connection last was
	counting bool      // recount is under way
	behind   string    // why the durable could not be given the filters that it is to have, as reported
}

// troubling reports that trouble is being looked into.
func (s *supervision) troubling() bool { return s.checked != nil && (s.trouble || s.counting) }

// pull sends a request for n messages; for zero, none.
func (s *supervision) pull(n int) {
	if n == 0 {
		return
	}
	if err := s.e.puller.pull(n); err != nil {
		s.pause() // the connection has just gone
	}
}

// pause holds pulling for a moment, longer each time in a row.
func (s *supervision) pause() {
	s.troubles++
	s.troubled = time.Now()
	s.paused = true
	s.resume.Reset(retryPull.delay(s.troubles))
}

// well ends a row of troubles.
func (s *supervision) well() { s.troubles, s.told = 0, "" }

// report reports trouble once: a server that is away for an hour is one event.
func (s *supervision) report(what string, err error) {
	err = fmt.Errorf("natty: consumer %q: %s: %w", s.e.cfg.Durable, what, err)
	if s.told != err.Error() {
		s.told = err.Error()
		s.e.report(err)
	}
}

var retryPull = Backoff{Min: 20 * time.Millisecond, Max: 2 * time.Second}

// begin looks at the connection for the first time: it may have been lost since the durable was made.
func (s *supervision) begin(ctx context.Context) (up bool, changed <-chan struct{}) {
	if up, changed = s.e.c.link.watch(); up {
		s.e.setState(s.e.role())
	} else {
		s.connection(ctx, up)
	}
	return up, changed
}

// connection reacts to a loss, or to a new connection, which knows nothing of a request on the old one.
func (s *supervision) connection(ctx context.Context, up bool) {
	s.e.puller.forget()
	if !up {
		s.lost = time.Now()
		s.e.setState(ConsumerDisconnected)
		return
	}
	s.e.setState(s.e.role())
	s.well()
	s.paused = false
	s.e.reportProgress()
	s.e.tellOwed()
	if s.e.cfg.OrderBy != nil {
		s.recount(ctx)
	}
}

// recount finds out whether messages got lost on their way with the last connection. The server sends them again AckWait
// later, behind those that follow them: nothing is pulled before that, so that their order is kept. With other instances
// at work there is no telling, and it waits as well.
func (s *supervision) recount(ctx context.Context) {
	if s.checked != nil { // begun before the loss
		s.wait()
		s.checked = nil
	}
	s.counting = true
	s.look(ctx, nil)
}

// ended looks at how the last request ended.
func (s *supervision) ended(ctx context.Context) {
	end := s.e.puller.takeEnd()
	switch {
	case end.expected():
		s.well()
	case end.is("leadership change"), end.is("server shutdown"):
		s.report("pulling again", end.err())
		s.pause()
	default:
		// Deleted, nobody there to answer, or a limit that was changed.
		s.look(ctx, end.err())
	}
}

func (s *supervision) tick(ctx context.Context, up bool) {
	if !up {
		return
	}
	s.e.reportProgress()
	s.e.tellOwed()
	if now, why := s.due(); now {
		s.look(ctx, why)
	}
}

// due reports whether it is time to look at the durable, and for which trouble, if any.
func (s *supervision) due() (now bool, why error) {
	if s.troubles > 0 && s.e.puller.lastHeard().After(s.troubled) {
		s.well()
	}
	switch {
	case s.checked != nil:
		return false, nil
	case s.e.puller.silent():
		s.e.puller.forget()
		return true, jetstream.ErrNoHeartbeat
	}
	return time.Since(s.sampled) > sampleEvery, nil
}

// sampleEvery is how often the server is asked how far the whole group has got.
const sampleEvery = 5 * time.Second

// look asks the server about the durable, and mends it if it is gone; beside the supervision, which goes on
// reporting progress. why is the trouble that made it necessary, if any.
func (s *supervision) look(ctx context.Context, why error) {
	if s.checked != nil {
		return
	}
	if why != nil {
		s.report("looking into", why)
	}
	s.trouble, s.sampled = why != nil, time.Now()
	ctx, s.stop = context.WithCancel(ctx)
	checked := make(chan looked, 1)
	s.checked = checked
	e, l, counting := s.e, looked{durable: s.e.durable, why: why}, s.counting
	go func() {
		if counting {
			e.burst.flush()
			_ = e.barrier() // an error means that the answer to the look says nothing either
		}
		once, cancel := context.WithTimeout(ctx, apiTimeout)
		l.err = e.c.refresh(once, &l.durable)
		cancel()
		if missing(l.err) {
			l.gone = l.err
			l.durable, l.healed, l.err = e.heal(ctx, l.durable)
		} else if l.err == nil {
			l.behind = e.c.keepUp(ctx, l.durable)
		}
		checked <- l
	}()
}

// looked is what a look at the durable found.
type looked struct {
	why     error
	durable durable
	behind  error  // it could not be given the filters that it is to have
	gone    error  // it was deleted,
	healed  string // and this was done about it
	err     error
}

// found acts on what a look found: an error it returns ends the consumer.
func (s *supervision) found(ctx context.Context, l looked) error {
	s.stop()
	e := s.e
	counting := s.counting
	s.counting = false
	switch {
	case ctx.Err() != nil:
		return nil //nolint:nilerr // the end of the consumer is no error
	case l.gone != nil && l.err != nil:
		return fmt.Errorf("natty: consumer %q on stream %q was deleted, and cannot be made again: %w", e.durable.name, e.durable.stream, l.err)
	case l.err != nil:
		s.report("no answer about it", l.err)
		s.pause()
		return nil //nolint:nilerr // reported, and tried again
	case l.gone != nil:
		e.dispatch.suspect()
		e.puller.forget()
		s.report("it was deleted", fmt.Errorf("%w: %s", l.gone, l.healed))
	}
	if !l.durable.streamCreated.Equal(e.durable.streamCreated) {
		e.epoch.Add(1)
	}
	s.reportBehind(l.behind)
	e.setDurable(l.durable)
	e.reportRemovals()
	e.puller.limit(l.durable.config)
	if l.why != nil || l.gone != nil {
		s.pause()
	}
	if n, _, _ := e.dispatch.load(); counting && l.durable.unacked > n {
		s.paused = true
		s.resume.Reset(e.durable.ackWait() - time.Since(s.lost))
	}
	return nil
}

// reportBehind reports once that the durable's filters do not follow its stream. It goes on being tried.
func (s *supervision) reportBehind(err error) {
	why := ""
	if err != nil && !passing(err) {
		why = err.Error()
	}
	if why != "" && why != s.behind {
		s.e.report(fmt.Errorf("natty: consumer %q: its filters cannot follow the subjects of the stream: %w", s.e.cfg.Durable, err))
	}
	s.behind = why
}

// wait ends a look that is under way.
func (s *supervision) wait() {
	if s.checked != nil {
		s.stop()
		<-s.checked
	}
}
