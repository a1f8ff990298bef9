package consumer

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/jsapi"
)

const (
	ackEvery = 100
	ackDelay = 50 * time.Millisecond
)

// cumulativeAck acknowledges in runs what an ownership has handled. Messages come and
// are handled in order, so that the last message of a run stands for all.
type cumulativeAck struct {
	o    *ownership
	each bool // a WorkQueue stream wants each message acknowledged

	// mu guards what follows. It is held while sending: nothing is sent after drop.
	mu      sync.Mutex
	n       int      // messages of the run
	replies []string // what to acknowledge: each message, or the last
	sent    string   // what was acknowledged last
	timer   *time.Timer
}

func (a *cumulativeAck) begin(o *ownership) {
	a.o, a.each = o, o.durable.Config.AckPolicy == jetstream.AckExplicitPolicy
	a.timer = time.AfterFunc(time.Hour, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.flushLocked()
	})
}

// add adds a message that was handled in an epoch to the run.
func (a *cumulativeAck) add(m *dispatch.Message, epoch uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.addLocked(m, epoch) {
		return
	}
	switch {
	case a.n >= a.most():
		a.flushLocked()
	case a.n == 1:
		a.timer.Reset(ackDelay)
	}
}

// most is how many messages are acknowledged at once. Of those that the server has in
// flight at most, half: until they are acknowledged, it delivers no more.
func (a *cumulativeAck) most() int {
	if limit := int(a.o.c.ackLimit.Load()); limit > 0 {
		return max(min(ackEvery, limit/2), 1)
	}
	return ackEvery
}

func (a *cumulativeAck) addLocked(m *dispatch.Message, epoch uint64) bool {
	if epoch != a.o.epoch.Load() {
		return false // the durable is being reset, and will deliver it again
	}
	a.n++
	if !a.each {
		a.replies = a.replies[:0]
	}
	a.replies = append(a.replies, m.Reply())
	return true
}

// flushLocked sends the run. a.mu must be held. An acknowledgement that finds no
// connection is forgotten, since a new connection begins with a reset.
func (a *cumulativeAck) flushLocked() {
	if a.n == 0 || !a.o.trust.Holds(time.Now()) {
		return
	}
	for _, reply := range a.replies {
		_ = a.o.c.api.NC.Publish(reply, nil)
	}
	a.sent = a.replies[len(a.replies)-1]
	clear(a.replies)
	a.n, a.replies = 0, a.replies[:0]
}

// drop forgets what was not sent.
func (a *cumulativeAck) drop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.replies)
	a.n, a.replies, a.sent = 0, a.replies[:0], ""
}

// now acknowledges a message and all before it, and waits for the server's answer.
func (a *cumulativeAck) now(m *dispatch.Message, epoch uint64) {
	a.mu.Lock()
	a.addLocked(m, epoch)
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(a.o.ctx, jsapi.CallTimeout.Min)
	defer cancel()
	_ = a.sync(ctx) // no answer: like any acknowledgement that gets lost
}

// sync sends the run, and waits until the server has acted on all acknowledgements.
// Acknowledgements and resets take different ways through the server: a reset can
// overtake an acknowledgement that the server has not answered.
func (a *cumulativeAck) sync(ctx context.Context) error {
	a.mu.Lock()
	a.flushLocked()
	last := a.sent
	a.mu.Unlock()
	if last == "" || a.o.lost() {
		return nil
	}
	_, err := a.o.c.api.Mux.Request(ctx, a.o.c.api.NC, last, nil)
	return err
}
