package natty

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// pinTimes follow from the time after which the server takes the pin from a silent owner.
type pinTimes struct {
	trust     time.Duration // how long after a request was sent its pin can be relied on: a margin of a fifth, for clocks that differ
	expires   time.Duration // of requests
	heartbeat time.Duration
	touch     time.Duration // how old the last request may get
}

func pinTimesOf(ttl, heartbeat time.Duration) pinTimes {
	return pinTimes{
		trust:     ttl - ttl/5,
		expires:   min(maxPinExpiry, ttl/2),
		heartbeat: max(minHeartbeat, min(heartbeat, maxPinHeartbeat, ttl/10)),
		touch:     min(maxPinExpiry/2, ttl/4),
	}
}

// pinOf returns the pin that a message came for. The server writes its header behind those of the message.
func pinOf(m *nats.Msg) string {
	if pins := m.Header[headerPin]; len(pins) > 0 {
		return pins[len(pins)-1]
	}
	return ""
}

const (
	ackEvery = 100
	ackDelay = 50 * time.Millisecond
)

// ackRun acknowledges in runs what a tenure has handled: messages come and are handled in order, so that the last one
// of a run stands for all.
type ackRun struct {
	t    *tenure
	each bool // a WorkQueue stream wants each message acknowledged

	// mu guards what follows. It is held while sending too, so that nothing is sent after drop.
	mu      sync.Mutex
	n       int      // messages of the run
	replies []string // to be acknowledged: of each, or of the last
	sent    string   // what was acknowledged last
	timer   *time.Timer
}

func (a *ackRun) begin(t *tenure) {
	a.t, a.each = t, t.durable.config.AckPolicy == jetstream.AckExplicitPolicy
	a.timer = time.AfterFunc(time.Hour, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.flushLocked()
	})
}

// add puts a message that was handled in an epoch behind the run.
func (a *ackRun) add(h *held, epoch uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.addLocked(h, epoch) {
		return
	}
	switch a.n {
	case 1:
		a.timer.Reset(ackDelay)
	case ackEvery:
		a.flushLocked()
	}
}

func (a *ackRun) addLocked(h *held, epoch uint64) bool {
	if epoch != a.t.epoch.Load() {
		return false // the durable is being reset: it comes again
	}
	a.n++
	if !a.each {
		a.replies = a.replies[:0]
	}
	a.replies = append(a.replies, h.sent.reply)
	return true
}

// flushLocked sends the run. a.mu must be held. What finds no connection is forgotten: a new one begins with a
// reset.
func (a *ackRun) flushLocked() {
	if a.n == 0 || !a.t.trust.holds(time.Now()) {
		return
	}
	for _, reply := range a.replies {
		_ = a.t.e.c.nc.Publish(reply, nil)
	}
	a.sent = a.replies[len(a.replies)-1]
	clear(a.replies)
	a.n, a.replies = 0, a.replies[:0]
}

// drop forgets what was not sent.
func (a *ackRun) drop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.replies)
	a.n, a.replies, a.sent = 0, a.replies[:0], ""
}

// now acknowledges a message and all before it, and waits until the server has done that.
func (a *ackRun) now(h *held, epoch uint64) {
	a.mu.Lock()
	a.addLocked(h, epoch)
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(a.t.ctx, callTimeout.Min)
	defer cancel()
	_ = a.sync(ctx) // no answer: as with any acknowledgement that gets lost
}

// sync sends the run, and waits until the server has dealt with all acknowledgements. They and requests to reset
// the durable take different ways through the server: what it has not answered can be overtaken.
func (a *ackRun) sync(ctx context.Context) error {
	a.mu.Lock()
	a.flushLocked()
	last := a.sent
	a.mu.Unlock()
	if last == "" || a.t.lost() {
		return nil
	}
	_, err := a.t.e.c.acks.request(ctx, a.t.e.c.nc, last, nil)
	return err
}
