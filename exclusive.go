package natty

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// An Exclusive consumer is a durable with a pinned group: the server gives messages to one client of the group, the one
// that it gave the pin to, for as long as that asks for messages at least every PinnedTTL. What this file adds:
//
//   - The server does not deliver again at once what the former owner had. So whenever a pin is new, or a message
//     may have been missed, everything held is dropped and the durable is reset to its acknowledgement floor, before
//     anything is handled.
//   - Acknowledgements do not carry the pin: nobody checks who sends them. So only an owner that knows to be one, by
//     its clock, sends any; see trust.
//   - A pin is lost in silence. So the owner stops handling before another client can get it.

const (
	pinGroup         = "natty"
	defaultPinnedTTL = 10 * time.Second
	// A client that stands by, or has nothing to do, sends a request this often and hears from the server that often.
	maxPinExpiry    = 5 * time.Second
	maxPinHeartbeat = time.Second
	maxPinPrefetch  = maxAckPending
	// A request for more than can be held lasts longer: between two, nothing comes.
	pinRequests = 5
	headerPin   = "Nats-Pin-Id"
)

// exclusive runs an Exclusive consumer: it stands by until it gets the pin, and then feeds a tenure until that is over.
type exclusive struct {
	e      *engine
	id     string        // of this run, to tell it from other instances
	ttl    time.Duration // the durable's PinnedTTL
	times  pinTimes
	s      supervision
	gained chan gained
	owner  atomic.Pointer[tenure] // nil while it stands by; written by the supervision alone
	feed   *feed                  // of the owner

	// For whom and when the running look at the durable was begun.
	lookOwner *tenure
	lookEpoch uint64
}

// gained is a pin, and when the request was sent that it came for.
type gained struct {
	pin  string
	sent time.Time
}

func newExclusive(e *engine) *exclusive {
	return &exclusive{e: e, id: rand.Text(), gained: make(chan gained, 1)}
}

// run consumes until ctx ends or something cannot be mended.
func (x *exclusive) run(ctx context.Context) error {
	e := x.e
	x.ttl = e.durable.config.PinnedTTL
	x.times = pinTimesOf(x.ttl, e.cfg.Heartbeat)
	if err := x.standBy(); err != nil {
		return err
	}
	err := x.supervise(ctx)
	e.setState(ConsumerStopping)
	return errors.Join(err, x.stop())
}

// request is what requests of this instance look like; without a pin it stands by.
func (x *exclusive) request(pin string) pullRequest {
	return pullRequest{
		MaxBytes: x.e.byteBudget(), Expires: x.times.expires, Heartbeat: x.times.heartbeat, Group: pinGroup, Pin: pin,
	}
}

// standBy begins to wait for the pin. It comes with a message, which is dropped: the reset brings it again.
func (x *exclusive) standBy() error {
	var sent time.Time // the subscription's alone
	p, err := newPuller(x.e.c, x.e.durable, x.request(""), func(m *nats.Msg) {
		select {
		case x.gained <- gained{pinOf(m), sent}:
		default:
		}
	}, x.kick)
	if err != nil {
		return err
	}
	p.answered = func(at time.Time) { sent = at }
	x.e.puller = p
	x.e.setState(x.role())
	return nil
}

// kick wakes the supervision.
func (x *exclusive) kick() {
	select {
	case x.e.kick <- struct{}{}:
	default:
	}
}

// role is the state when nothing is wrong.
func (x *exclusive) role() ConsumerState {
	switch {
	case !x.e.c.link.up.Load():
		return ConsumerDisconnected
	case x.owner.Load() == nil:
		return ConsumerStandby
	}
	return ConsumerRunning
}

// load returns how many messages are held, and how many of them are being handled.
func (x *exclusive) load() (held, handling int) {
	if t := x.owner.Load(); t != nil {
		held, _, handling = t.load()
	}
	return held, handling
}

func (x *exclusive) supervise(ctx context.Context) (err error) {
	e, s := x.e, &x.s
	tick := time.NewTicker(max(min(e.tick(), x.times.touch/2), 10*time.Millisecond))
	defer tick.Stop()
	*s = supervision{e: e, resume: time.NewTimer(time.Hour), sampled: time.Now()}
	defer s.resume.Stop()
	defer s.wait()
	up, changed := s.begin(ctx)
	for err == nil {
		if err = x.step(ctx, up); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.c.link.gone:
			return fmt.Errorf("natty: consumer %q: %w", e.cfg.Durable, ErrClosed)
		case <-changed:
			up, changed = e.c.link.watch()
			err = x.connection(ctx, up)
		case g := <-x.gained:
			x.begin(g)
		case <-e.kick:
			x.ended(ctx)
		case <-s.resume.C:
			s.paused = false
		case l := <-s.checked:
			s.checked = nil
			err = x.found(ctx, l)
		case <-tick.C:
			err = x.tick(ctx, up)
		}
	}
	return err
}

// step does what can be done now.
func (x *exclusive) step(ctx context.Context, up bool) error {
	t := x.owner.Load()
	if t != nil && t.lost() {
		return x.leave(t)
	}
	if !up {
		return nil
	}
	if t != nil {
		x.touch()
	}
	if x.s.paused || x.s.troubling() {
		return nil
	}
	switch {
	case t == nil:
		if x.e.puller.idle() {
			x.s.pull(1)
		}
	case x.feed == nil || x.feed.broken.Load():
		return x.feedAnew(t)
	case !x.feed.begun:
		x.resume(ctx, t)
	case x.e.puller.idle():
		x.s.pull(x.room(t))
	}
	return nil
}

// room is how many messages to ask for. Whoever stands by cannot handle them meanwhile, so that there may be
// more than elsewhere. No progress is reported for them: should AckWait end while they wait, the server sends them again,
// to this instance alone, which drops them. That is less work than thousands of reports behind a message that blocks.
func (x *exclusive) room(t *tenure) int {
	n, bytes, _ := t.load()
	capacity := 1 // until the first one tells how long it takes
	if perMsg := t.perMsg.Load(); perMsg > 0 {
		ahead := int64(min(prefetchTime, x.e.durable.ackWait()/4))
		capacity = int(max(1, min(maxPinPrefetch, ahead/perMsg)))
	}
	if most := x.e.cfg.MaxPollRecords; most > 0 {
		capacity = min(capacity, most)
	}
	room := roomBeside(n, bytes, capacity)
	if limit := x.e.durable.config.MaxAckPending; capacity == maxPinPrefetch && limit > 0 && limit <= maxPinPrefetch {
		room *= pinRequests // the server waits for acknowledgements at its limit
	}
	return room
}

// touch keeps the pin while there is no other request to send, because nothing more can be held.
func (x *exclusive) touch() {
	if p := x.e.puller; p.idle() && time.Since(p.sent) >= x.times.touch {
		_ = p.touch() // no connection: soon to be seen
	}
}

// begin makes this instance the owner.
func (x *exclusive) begin(g gained) {
	if x.owner.Load() != nil {
		return // a second message for the same request cannot be
	}
	x.quiet()
	t := newTenure(x.e, x.id, g, x.times.trust, x.kick)
	x.feed = nil
	x.owner.Store(t)
	x.e.setState(x.role())
	go t.work()
}

// feedAnew drops what is held, and makes ready to begin again behind what was acknowledged. A subscription of its own
// keeps apart what the server sent before.
func (x *exclusive) feedAnew(t *tenure) error {
	x.quiet()
	f := &feed{t: t, epoch: t.drop()}
	p, err := newPuller(x.e.c, x.e.durable, x.request(t.pin), f.receive, x.kick)
	if err != nil {
		return err
	}
	p.answered = t.trust.renew
	x.e.puller, x.feed = p, f
	t.puller.Store(p)
	x.kick() // there is more to do
	return nil
}

// resume resets the durable, as soon as the handler that may still run has ended: what that message comes to
// decides where to go on.
func (x *exclusive) resume(ctx context.Context, t *tenure) {
	if t.busy.Load() {
		return // it kicks
	}
	brief, cancel := context.WithTimeout(ctx, x.times.touch)
	defer cancel()
	if t.resumed {
		// Somebody else may be the owner by now, who would have to begin again because of the reset.
		d := x.e.durable
		if err := x.e.c.refresh(brief, &d); err == nil && d.pin != t.pin {
			t.lose(errDeposed)
			return
		}
	}
	floor, pin, err := x.e.c.resetDurable(brief, x.e.durable)
	switch {
	case errors.Is(err, nats.ErrNoResponders): // it may be gone
		x.look(ctx, err)
	case err != nil:
		x.s.report("reset", err)
		x.s.pause()
	case pin != t.pin:
		t.lose(errDeposed)
	default:
		t.resume(floor)
		x.feed.begun = true
		x.kick()
	}
}

// quiet ends the subscription: what comes is no longer of interest.
func (x *exclusive) quiet() {
	x.e.puller.stop(false)
	x.e.puller.forget()
}

// leave ends a tenure whose pin is lost, as soon as its handler has ended, and stands by again.
func (x *exclusive) leave(t *tenure) error {
	if x.feed != nil {
		x.quiet()
		x.feed = nil
		t.drop()
		x.s.report("no longer the active instance", context.Cause(t.ctx))
	}
	select {
	case <-t.idle:
	default:
		return nil // it kicks
	}
	x.owner.Store(nil)
	x.kick()
	return x.standBy()
}

// connection reacts to a loss, or to a new connection: what was on its way is gone.
func (x *exclusive) connection(ctx context.Context, up bool) error {
	x.s.connection(ctx, up)
	return x.doubt()
}

// ended looks at how the last request ended.
func (x *exclusive) ended(ctx context.Context) {
	end, t := x.e.puller.takeEnd(), x.owner.Load()
	switch {
	case end.expected():
		if end.status != "" {
			x.s.well()
		}
	case end.status == "423": // the pin is another one's by now, or nobody's
		if t != nil {
			t.lose(errDeposed)
		}
	case end.is("leadership change"), end.is("server shutdown"):
		if t != nil { // the new leader does not know who has the pin
			t.lose(end.err())
		} else {
			x.s.report("asking again", end.err())
		}
		x.s.pause()
	default:
		x.look(ctx, end.err())
	}
}

func (x *exclusive) tick(ctx context.Context, up bool) error {
	if !up {
		return nil
	}
	now, why := x.s.due()
	if !now {
		return nil
	}
	x.look(ctx, why)
	if why != nil {
		return x.doubt()
	}
	return nil
}

// doubt begins anew when a message may have been missed, or may come so late that nobody can tell which request it is an
// answer to, and so until when it can be relied on.
func (x *exclusive) doubt() error {
	switch t := x.owner.Load(); {
	case t == nil:
		x.quiet()
		return x.standBy()
	case x.feed != nil:
		x.feed.broken.Store(true)
		t.drop()
	}
	return nil
}

func (x *exclusive) look(ctx context.Context, why error) {
	if x.s.checked != nil {
		return
	}
	if x.lookOwner = x.owner.Load(); x.lookOwner != nil {
		x.lookEpoch = x.lookOwner.epoch.Load()
	}
	x.s.look(ctx, why)
}

// found compares what the server says with what this instance believes.
func (x *exclusive) found(ctx context.Context, l looked) error {
	if err := x.s.found(ctx, l); err != nil {
		return err
	}
	t, ttl := x.owner.Load(), x.e.durable.config.PinnedTTL
	if ttl != x.ttl {
		x.ttl, x.times = ttl, pinTimesOf(ttl, x.e.cfg.Heartbeat)
		if t != nil {
			t.lose(errors.New("somebody changed after what time that is"))
		}
		return x.doubt()
	}
	switch {
	case t == nil || t != x.lookOwner || l.err != nil:
	case l.gone != nil:
		t.lose(l.gone)
	case l.durable.pin != t.pin:
		t.lose(errDeposed)
	case t.epoch.Load() == x.lookEpoch && l.durable.floorCount > t.reached.Load():
		// An acknowledgement of a former owner came after the reset, and its count is so high that the server ignores
		// ours, which count from the reset on. Another reset ends that.
		x.feed.broken.Store(true)
	}
	return nil //nolint:nilerr // reported, and tried again
}
