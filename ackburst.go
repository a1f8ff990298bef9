package natty

import (
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// ackLinger is how long an acknowledgement waits, at most, for others to go with it.
const ackLinger = time.Millisecond

// ackBurst sends the acknowledgements of handlers that run side by side together, where there are many: each for itself
// would be a write to the connection and a read at the server, which is more work than all that natty does for a
// message. One that comes alone goes at once. No more than a quarter as many wait as there are handlers, so that a
// process that dies had not many more messages in hand for it.
type ackBurst struct {
	most int // this many go at once; where it is less than two, nothing waits
	send func(*nats.Msg)

	// sending is held while what waited goes: flush returns when all that was added before has gone.
	sending sync.Mutex

	// mu guards what follows. It is not held while sending.
	mu      sync.Mutex
	waiting []*nats.Msg
	sent    time.Time   // when the last ones went
	timer   *time.Timer // runs while any wait
}

func newAckBurst(handlers int, send func(*nats.Msg)) *ackBurst {
	b := &ackBurst{most: handlers / 4, send: send}
	b.timer = time.AfterFunc(time.Hour, b.flush)
	b.timer.Stop()
	return b
}

// add sends the acknowledgement of a message, or lets it wait. most must be two at least. The message must not be changed
// any more.
func (b *ackBurst) add(m *nats.Msg) {
	b.mu.Lock()
	b.waiting = append(b.waiting, m)
	if n := len(b.waiting); n < b.most {
		if n > 1 {
			b.mu.Unlock()
			return
		}
		if linger := ackLinger - time.Since(b.sent); linger > 0 {
			b.timer.Reset(linger)
			b.mu.Unlock()
			return
		}
	}
	b.mu.Unlock()
	b.flush()
}

// flush sends all that wait.
func (b *ackBurst) flush() {
	b.sending.Lock()
	defer b.sending.Unlock()
	b.mu.Lock()
	all := b.waiting
	b.waiting = nil
	if len(all) > 0 {
		b.timer.Stop()
		b.sent = time.Now()
		b.waiting = make([]*nats.Msg, 0, b.most)
	}
	b.mu.Unlock()
	for _, m := range all {
		b.send(m)
	}
}
