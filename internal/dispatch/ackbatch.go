package dispatch

import (
	"sync"
	"time"
)

// ackLinger is the longest that an acknowledgement waits for others.
const ackLinger = time.Millisecond

// AckBatch sends acknowledgements of many handlers together. Sent one by one, each
// would be a write to the connection and a read at the server, which is more work than
// all that natty does for a message. An acknowledgement that comes alone is sent at
// once. At most a quarter as many wait as there are handlers, so that a process that
// dies leaves few more messages to be redelivered than its handlers had.
type AckBatch struct {
	size int // so many are sent at once
	send func(reply string)

	// sending is held while a batch is being sent. So Flush returns only after
	// everything that was added before has been sent.
	sending sync.Mutex

	// mu guards what follows. It is not held while sending.
	mu      sync.Mutex
	waiting []string    // reply subjects
	sent    time.Time   // when the last batch was sent
	timer   *time.Timer // runs while any wait
}

// NewAckBatch returns an AckBatch for a number of handlers, which sends with send.
func NewAckBatch(handlers int, send func(reply string)) *AckBatch {
	b := &AckBatch{size: handlers / 4, send: send}
	b.timer = time.AfterFunc(time.Hour, b.Flush)
	b.timer.Stop()
	return b
}

// Enabled reports whether acknowledgements may wait at all. With fewer than eight
// handlers they do not, and Add must not be called.
func (b *AckBatch) Enabled() bool { return b.size > 1 }

// Add sends the acknowledgement of the message with this reply subject within ackLinger.
func (b *AckBatch) Add(reply string) {
	b.mu.Lock()
	b.waiting = append(b.waiting, reply)
	if n := len(b.waiting); n < b.size {
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
	b.Flush()
}

// Flush sends all that wait.
func (b *AckBatch) Flush() {
	b.sending.Lock()
	defer b.sending.Unlock()
	b.mu.Lock()
	all := b.waiting
	b.waiting = nil
	if len(all) > 0 {
		b.timer.Stop()
		b.sent = time.Now()
		b.waiting = make([]string, 0, b.size)
	}
	b.mu.Unlock()
	for _, reply := range all {
		b.send(reply)
	}
}
