package natty

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// link is what natty knows about its connection, kept beside nats.Conn because that one's
// own state sits behind a lock that it holds while it dials: asking it can take as
// long as a frozen server likes.
type link struct {
	up atomic.Bool // written under mu, read without it on the way of every publish

	// mu guards what follows. Nothing blocks while it is held.
	mu         sync.Mutex
	since      time.Time // of the current state
	connected  bool      // at least once
	reconnects int
	server     string        // last connected to, redacted
	lastErr    error         // why it is down, or was the last time
	changed    chan struct{} // closed and made anew when up changes

	gone     chan struct{} // closed when there will be no connection any more
	goneOnce sync.Once
}

func newLink() *link {
	return &link{since: time.Now(), gone: make(chan struct{}), changed: make(chan struct{})}
}

// setUp and setDown report whether that is a change.
func (l *link) setUp(server string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up.Load() {
		return false
	}
	if l.connected {
		l.reconnects++
	}
	l.connected, l.server = true, server
	l.setLocked(true)
	return true
}

func (l *link) setDown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up.Load() {
		return false
	}
	l.setLocked(false)
	return true
}

// setReason records what went wrong, and reports whether that is news. It keeps an error that already has err in
// it: of the servers' answer, nats.go reports the bare cause at every attempt.
func (l *link) setReason(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lastErr != nil && (errors.Is(l.lastErr, err) || l.lastErr.Error() == err.Error()) {
		return false
	}
	l.lastErr = err
	return true
}

// setGone may be called again.
func (l *link) setGone() {
	l.setDown()
	l.goneOnce.Do(func() { close(l.gone) })
}

func (l *link) isGone() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

// setLocked changes the state and wakes those who wait for that. l.mu must be held.
func (l *link) setLocked(up bool) {
	l.up.Store(up)
	l.since = time.Now()
	close(l.changed)
	l.changed = make(chan struct{})
}

// watch returns whether the connection is up, and a channel that is closed when that changes.
func (l *link) watch() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up.Load(), l.changed
}

// everConnected reports whether there was a connection at all.
func (l *link) everConnected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connected
}

// lastServer is the redacted URL of the server last connected to.
func (l *link) lastServer() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.server
}

// wait returns nil as soon as there is a connection, and an error that tells why there is none
// when ctx or the deadline ends first. A zero deadline is none.
func (l *link) wait(ctx context.Context, deadline time.Time) error {
	if l.up.Load() {
		return nil
	}
	var timeout <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		timeout = timer.C
	}
	var ended error
	for ended == nil {
		up, changed := l.watch()
		if up {
			return nil
		}
		select {
		case <-changed:
		case <-l.gone:
			return fmt.Errorf("%w: %w", ErrClosed, nats.ErrConnectionClosed)
		case <-ctx.Done():
			ended = ctx.Err()
		case <-timeout:
			ended = context.DeadlineExceeded
		}
	}
	l.mu.Lock()
	reason := l.lastErr
	l.mu.Unlock()
	if reason == nil {
		reason = errors.New("no answer from any server")
	}
	return fmt.Errorf("not connected: %w: %w", ended, reason)
}
