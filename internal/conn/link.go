package conn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// ErrClosed says that the connection is gone for good.
var ErrClosed = errors.New("client closed")

// Link is what natty knows about its connection. nats.Conn guards its own state with a
// lock that it holds while it dials: asking it can take as long as a frozen server
// likes.
type Link struct {
	Gone     chan struct{} // closed when there will be no connection any more
	goneOnce sync.Once

	up atomic.Bool // written under mu; every publish reads it without the lock

	refusals refusals

	// mu guards what follows. Nothing blocks while it is held.
	mu      sync.Mutex
	state   State
	changed chan struct{}    // closed and replaced when the state changes
	files   map[string]error // why files cannot be used, by what they hold
}

// State is a snapshot of a Link.
type State struct {
	Up         bool
	Since      time.Time // of Up
	EverUp     bool
	Reconnects int
	Server     string // last connected to, redacted
	Version    string // of that server
	Cluster    string // that it is part of, or ""
	// LastErr is why the connection is down, or last was, and which files cannot be used.
	LastErr error
}

// NewLink returns a Link that is down.
func NewLink() *Link {
	return &Link{
		Gone: make(chan struct{}), state: State{Since: time.Now()}, changed: make(chan struct{}),
	}
}

// Up reports whether there is a connection. It takes no lock.
func (l *Link) Up() bool { return l.up.Load() }

// IsGone reports whether there will be no connection any more.
func (l *Link) IsGone() bool {
	select {
	case <-l.Gone:
		return true
	default:
		return false
	}
}

// State returns what is known.
func (l *Link) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state
	for _, kind := range slices.Sorted(maps.Keys(l.files)) {
		s.LastErr = also(s.LastErr, l.files[kind])
	}
	return s
}

// also adds what is wrong beside err.
func also(err, other error) error {
	if err == nil {
		return other
	}
	return fmt.Errorf("%w; also: %w", err, other)
}

// setFile records why a file cannot be used, and with nil that it can.
func (l *Link) setFile(kind string, trouble error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if trouble == nil {
		delete(l.files, kind)
		return
	}
	if l.files == nil {
		l.files = map[string]error{}
	}
	l.files[kind] = trouble
}

// Watch returns whether the connection is up, and a channel that is closed when that
// changes.
func (l *Link) Watch() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Up, l.changed
}

// Wait returns nil as soon as there is a connection. If ctx or the deadline ends first,
// it returns an error that says why there is none. A zero deadline is none.
func (l *Link) Wait(ctx context.Context, deadline time.Time) error {
	if l.Up() {
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
		up, changed := l.Watch()
		if up {
			return nil
		}
		select {
		case <-changed:
		case <-l.Gone:
			return fmt.Errorf("%w: %w", ErrClosed, nats.ErrConnectionClosed)
		case <-ctx.Done():
			ended = ctx.Err()
		case <-timeout:
			ended = context.DeadlineExceeded
		}
	}
	reason := l.State().LastErr
	if reason == nil {
		reason = errors.New("no answer from any server")
	}
	return fmt.Errorf("not connected: %w: %w", ended, reason)
}

// setServer records what the server that is connected to says about itself.
func (l *Link) setServer(version, cluster string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Version, l.state.Cluster = version, cluster
}

// SetUp records a connection to a server, and reports whether there was none before.
func (l *Link) SetUp(server string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Up {
		return false
	}
	if l.state.EverUp {
		l.state.Reconnects++
	}
	l.state.EverUp, l.state.Server = true, server
	l.setLocked(true)
	return true
}

// SetDown records that there is no connection, and reports whether there was one
// before.
func (l *Link) SetDown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.state.Up {
		return false
	}
	l.setLocked(false)
	return true
}

// setLocked changes the state and wakes those who wait for that. l.mu must be held.
func (l *Link) setLocked(up bool) {
	l.up.Store(up)
	l.state.Up, l.state.Since = up, time.Now()
	close(l.changed)
	l.changed = make(chan struct{})
}

// setReason records what went wrong, and reports whether that is news. It keeps an
// error that wraps err: that says more than the bare cause, which nats.go repeats at
// every attempt.
func (l *Link) setReason(err error) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.state.LastErr
	if last != nil && (errors.Is(last, err) || last.Error() == err.Error()) {
		return false
	}
	l.state.LastErr = err
	return true
}

// setGone may be called again.
func (l *Link) setGone() {
	l.SetDown()
	l.goneOnce.Do(func() { close(l.Gone) })
}
