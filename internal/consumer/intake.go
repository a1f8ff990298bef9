package consumer

import (
	"log/slog"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/callback"
	"github.com/natty-go/natty/internal/dispatch"
)

// intake takes messages from the subscription's goroutine to one of natty's, in their
// order. OrderBy runs there. It may end its goroutine (runtime.Goexit), and nothing could
// replace the subscription's.
type intake struct {
	c *Consumer

	// mu guards what follows.
	mu      sync.Mutex
	waiting []*nats.Msg
	running bool   // a goroutine takes them; it ends when there are no more
	keying  string // the reply subject of the message that OrderBy has
}

// add takes a message from the subscription.
func (in *intake) add(msg *nats.Msg) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.waiting = append(in.waiting, msg)
	if !in.running {
		in.running = true
		go callback.Loop(in.step)
	}
}

// step receives a message. It returns false when there are no more.
func (in *intake) step() (more bool) {
	in.mu.Lock()
	if len(in.waiting) == 0 {
		in.waiting, in.running, in.keying = nil, false, ""
		in.mu.Unlock()
		in.c.wakeIfRoom()
		return false
	}
	msg := in.waiting[0]
	in.waiting[0] = nil
	in.waiting = in.waiting[1:]
	in.keying = msg.Reply
	in.mu.Unlock()
	in.c.receive(msg)
	return true
}

// replies returns the reply subjects of the messages that wait.
func (in *intake) replies() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	var all []string
	if in.keying != "" {
		all = append(all, in.keying)
	}
	for _, m := range in.waiting {
		all = append(all, m.Reply)
	}
	return all
}

// load returns how many messages wait, and whether all are in the queue.
func (in *intake) load() (n int, done bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.waiting), !in.running
}

// pushByKey pushes a message under the key that OrderBy gives it. Messages for which
// OrderBy fails share a key, so that they stay in order among themselves.
func (c *Consumer) pushByKey(m *dispatch.Message) {
	callback.Call(func() error {
		m.Key = c.cfg.OrderBy(m.Msg)
		return nil
	}, func(stack []byte, err error) {
		c.push(m)
		switch {
		case stack != nil:
			why := strings.TrimPrefix(err.Error(), "panic: ")
			c.reportAs(slog.LevelWarn, "natty: consumer", c.errorf("OrderBy panicked on %q: %s", m.Subject(), why),
				slog.String("subject", m.Subject()), slog.String("stack", string(stack)))
		case err != nil:
			c.report(c.errorf("OrderBy failed on %q: %w", m.Subject(), err))
		}
	})
}
