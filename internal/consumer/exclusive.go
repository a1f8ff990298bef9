package consumer

import (
	"context"
	"crypto/rand"
	"errors"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/durable"
)

// exclusive is the mode of consumers with one active instance. It stands by until the
// server gives it the pin. Then it brings messages to an ownership until that ends.
type exclusive struct {
	c          *Consumer
	s          *supervision
	id         string        // of this run, which tells it from other instances
	ttl        time.Duration // the durable's PinnedTTL
	times      pinTimes
	grants     chan pinGrant
	owner      atomic.Pointer[ownership] // nil on standby; written by the supervision alone
	deliveries *deliveries               // to the owner; nil before the first reset
	claim      claim                     // when an owner may begin
	askAt      time.Time                 // a standby does not ask for the pin before
	server     string                    // the id of the server that it is connected to

	unsupported atomic.Bool // the server is too old; it stands still
	version     string      // of the connected server, when that was last looked at
	verifying   bool        // the running look is to say whether it is too old

	// The owner and its epoch when the running look at the durable began.
	lookOwner *ownership
	lookEpoch uint64
	// Those of the last look whose answer came between the same two resets.
	countOwner *ownership
	countEpoch uint64
}

func newExclusive(c *Consumer) *exclusive {
	return &exclusive{c: c, s: c.supervision, id: rand.Text(), grants: make(chan pinGrant, 1)}
}

func (x *exclusive) start() error {
	x.setTTL(x.c.durable.Config.PinnedTTL)
	x.server, x.version = x.c.api.NC.ConnectedServerId(), x.c.api.NC.ConnectedServerVersion()
	return x.standBy()
}

func (x *exclusive) setTTL(ttl time.Duration) {
	x.ttl, x.times = ttl, pinTimesOf(ttl, x.c.cfg.Heartbeat)
	x.claim.trust = x.times.trust
}

// standBy begins to wait for the pin. It comes with a message, which is dropped: the
// reset brings it again.
func (x *exclusive) standBy() error {
	var since time.Time // the subscription's alone
	p, err := x.c.newPuller(x.request(""), func(m *nats.Msg) {
		select {
		case x.grants <- grantOf(m, since):
		default:
		}
	}, x.c.wake)
	if err != nil {
		return err
	}
	p.Answered = func(time.Time) {
		if since.IsZero() {
			since = time.Now()
		}
	}
	x.c.puller = p
	x.c.setState(x.role())
	return nil
}

func (x *exclusive) step(ctx context.Context, up bool) error {
	select {
	case g := <-x.grants:
		x.begin(g)
	default:
	}
	o := x.owner.Load()
	switch {
	case o != nil && o.lost():
		return x.endOwnership(o)
	case x.mustStandAside(o):
		return x.standAside(ctx, o, up)
	case !up:
		return nil
	case o != nil:
		x.touch()
	}
	switch {
	case !x.s.mayPull(), x.unsupported.Load(), x.verifying && x.s.checked != nil:
		return nil
	case o == nil:
		if x.c.puller.Idle() && !x.askAt.After(time.Now()) {
			x.s.pull(1)
		}
		return nil
	}
	return x.advance(ctx, o)
}

// advance does the next thing for an owner.
func (x *exclusive) advance(ctx context.Context, o *ownership) error {
	switch {
	case x.deliveries == nil || x.deliveries.broken.Load():
		return x.subscribe(o)
	case !x.deliveries.begun:
		if !o.due.After(time.Now()) {
			x.reset(ctx, o)
		}
		return nil
	}
	if retired, err := x.retire(ctx, o); retired {
		return err
	}
	if x.c.puller.Idle() {
		x.s.pull(x.room(o))
	}
	return nil
}

// begin makes this instance the owner.
func (x *exclusive) begin(g pinGrant) {
	if x.owner.Load() != nil {
		return // cannot be: a request brings one message
	}
	x.unsubscribe()
	x.claim.granted(g)
	o := newOwnership(x.c, x.id, g.pin, x.times.trust)
	o.cleared = g.fresh || x.claim.entitled()
	// Nobody has begun with a message since the last reset, and so nobody died of it.
	o.counted = g.fresh || x.c.cfg.MaxDeliver == 0
	x.deliveries = nil
	x.owner.Store(o)
	x.c.setState(x.role())
	go o.work()
}

// subscribe drops the messages that no handler has begun, and prepares for deliveries
// that begin behind the ack floor. A new subscription keeps them apart from what the
// server sent before.
func (x *exclusive) subscribe(o *ownership) error {
	x.unsubscribe()
	d := &deliveries{o: o, epoch: o.drop()}
	p, err := x.c.newPuller(x.request(o.pin), d.receive, x.c.wake)
	if err != nil {
		return err
	}
	p.Answered = o.trust.Renew
	x.c.puller, x.deliveries = p, d
	o.puller.Store(p)
	x.c.wake() // the reset is next
	return nil
}

// unsubscribe ends the subscription. Messages that are on their way are dropped.
func (x *exclusive) unsubscribe() {
	x.c.puller.Stop(false)
	x.c.puller.Forget()
}

// room is how many messages to ask for. An exclusive consumer may fetch much further
// ahead than others, since no standby could handle the messages meanwhile. No progress
// is reported for them. If AckWait ends while they wait, the server redelivers them to
// this instance, which drops the second delivery. That is less work than thousands of
// reports behind a message that blocks.
func (x *exclusive) room(o *ownership) int {
	n, bytes, _ := o.load()
	capacity := 1 // until the first handler shows how long it takes
	if perMsg := o.perMsg.Load(); perMsg > 0 {
		ahead := int64(min(prefetchTime, x.c.durable.AckWait()/4))
		capacity = int(max(1, min(maxPinPrefetch, ahead/perMsg)))
	}
	if most := x.c.cfg.MaxPollRecords; most > 0 {
		capacity = min(capacity, most)
	}
	room := roomBeside(n, bytes, capacity)
	limit := x.c.durable.Config.MaxAckPending
	if capacity == maxPinPrefetch && limit > 0 && limit <= maxPinPrefetch {
		room *= pinRequests // the server stops at its limit until messages are acknowledged
	}
	return room
}

// touch keeps the pin while the buffer is full and there is no other request to send.
func (x *exclusive) touch() {
	if p := x.c.puller; p.Idle() && time.Since(p.Sent) >= x.times.touch {
		_ = p.Touch() // an error means that there is no connection, which is noticed soon
	}
}

// endOwnership ends an ownership whose pin is lost, as soon as its handler has ended.
// Then this instance stands by again.
func (x *exclusive) endOwnership(o *ownership) error {
	if x.deliveries != nil {
		x.unsubscribe()
		x.deliveries = nil
		o.drop()
		x.s.report(troubleDeposed, "no longer the active instance", context.Cause(o.ctx))
	}
	select {
	case <-o.idle:
	default: // the worker wakes the supervision
		x.c.setState(x.role())
		return nil
	}
	return x.becomeStandby(o)
}

// becomeStandby makes an owner whose worker has ended a standby.
func (x *exclusive) becomeStandby(o *ownership) error {
	if o.acting.Load() {
		x.claim.former = *o.trust.From.Load()
	}
	x.owner.Store(nil)
	x.deliveries = nil
	x.c.wake()
	return x.standBy()
}

// restart begins again behind the ack floor, or to stand by. It is called when a
// message may have been missed, or may come so late that nobody can tell which request
// it answers, and so until when its pin can be relied on.
func (x *exclusive) restart() error {
	switch o := x.owner.Load(); {
	case o == nil:
		x.unsubscribe()
		return x.standBy()
	case x.deliveries != nil:
		x.deliveries.broken.Store(true)
		o.drop()
	}
	return nil
}

// onConnection reacts to a loss or a new connection: messages on their way are lost.
func (x *exclusive) onConnection(ctx context.Context, up bool) error {
	x.s.onConnection(up)
	if id := x.c.api.NC.ConnectedServerId(); up && id != x.server {
		x.server = id
		x.interrupted()
		x.claim.known, x.claim.unknown = time.Now(), false
	}
	if up {
		x.verify(ctx)
	}
	return x.restart()
}

func (x *exclusive) onPullEnd(ctx context.Context) {
	end, o := x.c.puller.TakeEnd(), x.owner.Load()
	switch {
	case end.Refusal != nil:
		x.s.onRefusedPull(end.Refusal)
	case end.Expected(), end.TooSmall():
		x.s.onEnd(ctx, end)
	case end.Status == "423": // another instance has the pin by now, or none has
		if o != nil {
			o.lose(errDeposed)
		}
	case end.Is("leadership change"), end.Is("server shutdown"):
		x.interrupted()
		if o != nil { // the new leader does not know who has the pin
			o.lose(end.Err())
		} else {
			x.s.report(troubleAway, "asking again", end.Err())
		}
		x.s.pause()
	default:
		x.investigate(ctx, kindOf(end), end.Err())
	}
}

func (x *exclusive) onTick(ctx context.Context) error {
	now, why := x.s.due()
	switch {
	case why != nil:
		x.interrupted()
		x.investigate(ctx, troubleAway, why)
		return x.restart()
	case now:
		x.look(ctx, nil)
	}
	x.lookForSupport(ctx)
	return nil
}

// investigate is the supervision's.
func (x *exclusive) investigate(ctx context.Context, kind string, why error) {
	x.s.report(kind, "looking into", why)
	x.s.pause()
	x.look(ctx, why)
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

// onFound compares what the server says with what this instance believes.
func (x *exclusive) onFound(ctx context.Context, f finding) error {
	x.noticeResets()
	if err := x.s.onFound(ctx, f); err != nil {
		return err
	}
	x.verifying = false
	if f.err == nil {
		if err := x.heed(f.durable); err != nil {
			return err
		}
	}
	o, ttl := x.owner.Load(), x.c.durable.Config.PinnedTTL
	if ttl != x.ttl {
		x.setTTL(ttl)
		if o != nil {
			o.lose(errors.New("somebody changed the durable's priority_timeout (PinnedTTL)"))
		}
		return x.restart()
	}
	switch {
	case o == nil || o != x.lookOwner || f.err != nil:
	case f.gone != nil:
		o.lose(f.gone)
	case f.durable.Pin != o.pin:
		o.lose(errDeposed)
	case x.deliveries != nil && o.epoch.Load() == x.lookEpoch && f.durable.FloorCount > o.reached.Load():
		// A former owner's acknowledgement came after the reset. Its count is so high
		// that the server ignores ours, until another reset. Without deliveries, one is
		// about to be made.
		x.deliveries.broken.Store(true)
	}
	return nil //nolint:nilerr // reported, and tried again
}

func (x *exclusive) tick() time.Duration {
	return max(min(x.s.tick(), x.times.touch/2), 10*time.Millisecond)
}

func (x *exclusive) role() State {
	switch {
	case !x.c.api.Link.Up():
		return stateDisconnected
	case x.unsupported.Load():
		return stateUnsupported
	}
	switch o := x.owner.Load(); {
	case o == nil:
		return stateStandby
	case o.acting.Load() && o.lost():
		return stateDeposed
	case o.acting.Load():
		return stateRunning
	}
	return stateStandby // a former owner may still be active
}

func (x *exclusive) load() (held, handling int) {
	if o := x.owner.Load(); o != nil {
		held, _, handling = o.load()
	}
	return held, handling
}

func (x *exclusive) oldest() time.Time {
	if o := x.owner.Load(); o != nil {
		if ns := o.handling.Load(); ns != 0 {
			return time.Unix(0, ns)
		}
	}
	return time.Time{}
}

const (
	maxPinPrefetch = durable.MaxAckPending
	// pinRequests is how many times more messages than can be held a request is for:
	// between two requests, nothing comes.
	pinRequests = 5
)
