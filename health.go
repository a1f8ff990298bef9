package natty

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Health is a snapshot of a Client, for a health endpoint: it marshals to JSON, holds no secret, and is made
// without asking the network.
type Health struct {
	// Connected says whether there is a connection now, Since from when on that is so.
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	// Server is the URL last connected to, without credentials.
	Server     string `json:"server,omitempty"`
	Reconnects int    `json:"reconnects"`
	// LastError is the last thing that went wrong with the connection; while there is none, why.
	LastError string           `json:"last_error,omitempty"`
	Consumers []ConsumerHealth `json:"consumers,omitempty"`
}

// ConsumerState is what a consumer is doing.
type ConsumerState string

// The states of a consumer.
const (
	ConsumerStarting     ConsumerState = "starting"     // waiting for a server, looking up the stream, making the durable
	ConsumerRunning      ConsumerState = "running"      // pulling
	ConsumerStandby      ConsumerState = "standby"      // Exclusive: another instance is the active one, or none has a message
	ConsumerDisconnected ConsumerState = "disconnected" // waiting for the connection
	ConsumerStopping     ConsumerState = "stopping"     // waiting for handlers
)

// ConsumerHealth is a snapshot of one running consumer.
type ConsumerHealth struct {
	Stream  string        `json:"stream"`
	Durable string        `json:"durable"`
	State   ConsumerState `json:"state"`
	Since   time.Time     `json:"since"` // of State
	// LastMessage is when a message came last.
	LastMessage time.Time `json:"last_message,omitzero"`
	// What the server knows about the whole group, asked every five seconds: every message up to the sequence AckFloor
	// was settled; Pending were not delivered yet; AckPending were and are not settled, of which the server gives
	// out no more than MaxAckPending.
	AckFloor      uint64 `json:"ack_floor"`
	Pending       uint64 `json:"pending"`
	AckPending    int    `json:"ack_pending"`
	MaxAckPending int    `json:"max_ack_pending"`
	// Held is how many messages wait here or are being handled, Handling the latter alone.
	Held     int `json:"held"`
	Handling int `json:"handling"`
	// BlockedBy is the key of OrderBy for whose failing message most others wait, Blocked how many they are.
	BlockedBy string `json:"blocked_by,omitempty"`
	Blocked   int    `json:"blocked,omitempty"`
	// Removed counts the messages that the stream removed before they were handled, as far as that was seen.
	Removed uint64 `json:"removed,omitempty"`
	// Warning is what keeps the server from delivering, or soon will: AckPending at 80% of MaxAckPending, or a durable
	// that somebody has paused.
	Warning   string `json:"warning,omitempty"`
	LastError string `json:"last_error,omitempty"`
}

// warning says what keeps the server from delivering messages of d, or soon will.
func (d durable) warning() string {
	switch until := d.config.PauseUntil; {
	case until != nil && until.After(time.Now()):
		return "the durable is paused until " + until.Format(time.RFC3339)
	case d.config.MaxAckPending > 0 && 5*d.unacked >= 4*d.config.MaxAckPending:
		return fmt.Sprintf("%d messages are delivered and not settled, and at %d (the durable's max_ack_pending) the server delivers nothing more; messages that wait for a retry count as well",
			d.unacked, d.config.MaxAckPending)
	}
	return ""
}

// Health returns how the Client is.
func (c *Client) Health() Health {
	c.link.mu.Lock()
	h := Health{
		Connected:  c.link.up.Load(),
		Since:      c.link.since,
		Server:     c.link.server,
		Reconnects: c.link.reconnects,
	}
	if c.link.lastErr != nil {
		h.LastError = c.link.lastErr.Error()
	}
	c.link.mu.Unlock()
	c.mu.Lock()
	engines := make([]*engine, 0, len(c.engines))
	for e := range c.engines {
		engines = append(engines, e)
	}
	c.mu.Unlock()
	for _, e := range engines {
		h.Consumers = append(h.Consumers, e.snapshot())
	}
	slices.SortFunc(h.Consumers, func(a, b ConsumerHealth) int {
		return strings.Compare(a.Stream+"."+a.Durable, b.Stream+"."+b.Durable)
	})
	return h
}

func (e *engine) snapshot() ConsumerHealth {
	held, _, _ := e.dispatch.load()
	handling := e.dispatch.inHandlers()
	key, blocked := e.dispatch.blocking()
	if e.exclusive != nil {
		held, handling = e.exclusive.load()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.health
	h.Held, h.Handling, h.BlockedBy, h.Blocked = held, handling, key, blocked
	if ns := e.lastMessage.Load(); ns != 0 {
		h.LastMessage = time.Unix(0, ns)
	}
	return h
}

func (e *engine) setState(s ConsumerState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.health.State, e.health.Since = s, time.Now()
}

// report tells OnError, the log and Health what went wrong.
func (e *engine) report(err error) {
	e.mu.Lock()
	e.health.LastError = err.Error()
	e.mu.Unlock()
	e.logError(err)
	e.reports.add(err)
}

func (e *engine) logError(err error) {
	e.c.log.Warn("natty: consumer", "durable", e.cfg.Durable, "error", err)
}

// reports brings errors to OnError from a goroutine of its own, so that one that blocks holds up neither
// handlers nor the supervision.
type reports struct {
	queue chan error
	quit  chan struct{}
	done  chan struct{}
}

// reportsQueue is how many errors wait for a slow OnError.
const reportsQueue = 256

func newReports(onError func(error), log *slog.Logger) *reports {
	r := &reports{queue: make(chan error, reportsQueue), quit: make(chan struct{}), done: make(chan struct{})}
	if onError == nil {
		close(r.done)
		return r
	}
	tell := func(err error) {
		defer func() {
			if p := recover(); p != nil {
				log.Error("natty: OnError panicked", "panic", p, "stack", string(debug.Stack()))
			}
		}()
		onError(err)
	}
	go func() {
		defer close(r.done)
		for {
			select {
			case err := <-r.queue:
				tell(err)
			case <-r.quit:
				for {
					select {
					case err := <-r.queue:
						tell(err)
					default:
						return
					}
				}
			}
		}
	}()
	return r
}

// add never blocks. What finds no room was logged.
func (r *reports) add(err error) {
	select {
	case r.queue <- err:
	default:
	}
}

// close delivers what is queued, and waits for that as long as an OnError that returns can need.
func (r *reports) close() {
	close(r.quit)
	select {
	case <-r.done:
	case <-time.After(endGrace):
	}
}
