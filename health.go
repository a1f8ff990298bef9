package natty

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
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
	Elections []ElectionHealth `json:"elections,omitempty"` // of the calls of Lead and AsLeader that run
	Writers   []WriterHealth   `json:"writers,omitempty"`   // in the order in which they were made
	// EventsDropped counts what the Observer was too slow to be told.
	EventsDropped uint64 `json:"events_dropped,omitempty"`
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
	ConsumerStopped      ConsumerState = "stopped"      // at its end; the last that an Observer is told
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

// ElectionHealth is a snapshot of one running call of Lead or AsLeader.
type ElectionHealth struct {
	Bucket   string `json:"bucket"`
	Key      string `json:"key"`
	NodeName string `json:"node_name"`
	// Leading says whether it leads, Since from when on that is so; else it stands by. While it leads, Token is the term's.
	Leading bool      `json:"leading"`
	Since   time.Time `json:"since"`
	Token   uint64    `json:"token,omitempty"`
	// LastError is the last thing that went wrong since it was last elected: why the leadership was lost, or what keeps it
	// from being elected.
	LastError string `json:"last_error,omitempty"`
}

// WriterHealth is a snapshot of one Writer that is not closed.
type WriterHealth struct {
	// Pending messages of PendingBytes are in the window, of MaxPending and MaxPendingBytes that fit: they have no outcome
	// yet, or their failure waits for OnError.
	Pending         int `json:"pending"`
	PendingBytes    int `json:"pending_bytes"`
	MaxPending      int `json:"max_pending"`
	MaxPendingBytes int `json:"max_pending_bytes"`
	// Failed counts the messages that failed, LastError says why the last one did.
	Failed    uint64 `json:"failed,omitempty"`
	LastError string `json:"last_error,omitempty"`
}

// warning says what keeps the server from delivering messages of d, or soon will.
func (d durable) warning() string {
	switch until := d.config.PauseUntil; {
	case until != nil && until.After(time.Now()):
		return "the durable is paused until " + until.Format(time.RFC3339)
	case d.config.PriorityPolicy == jetstream.PriorityPolicyPinned: // its active instance fetches as much as it may
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

		EventsDropped: c.events.count(),
	}
	if c.link.lastErr != nil {
		h.LastError = c.link.lastErr.Error()
	}
	c.link.mu.Unlock()
	c.mu.Lock()
	engines := slices.Collect(maps.Keys(c.engines))
	elections := slices.Collect(maps.Keys(c.terms))
	c.mu.Unlock()
	for _, e := range engines {
		h.Consumers = append(h.Consumers, e.snapshot())
	}
	slices.SortFunc(h.Consumers, func(a, b ConsumerHealth) int {
		return strings.Compare(a.Stream+"."+a.Durable, b.Stream+"."+b.Durable)
	})
	for _, e := range elections {
		h.Elections = append(h.Elections, e.snapshot())
	}
	slices.SortFunc(h.Elections, func(a, b ElectionHealth) int {
		return strings.Compare(a.Bucket+"."+a.Key+"."+a.NodeName, b.Bucket+"."+b.Key+"."+b.NodeName)
	})
	writers := c.acks.openWriters()
	for _, key := range slices.SortedFunc(maps.Keys(writers), byNumber) {
		h.Writers = append(h.Writers, writers[key].snapshot())
	}
	return h
}

// byNumber compares the keys of Writers, which are numbers.
func byNumber(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) }

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

func (e *engine) setState(s ConsumerState) { e.enterState(s, nil) }

// enterState tells Health and the Observer what the consumer is doing now, and why if that is an error.
func (e *engine) enterState(s ConsumerState, why error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.health.State != s {
		e.health.State, e.health.Since = s, time.Now()
		e.observeLocked(why)
	}
}

// observeLocked tells the Observer. e.mu must be held, so that events come in the order of what they say.
func (e *engine) observeLocked(err error) {
	e.c.events.add(ConsumerEvent{Stream: e.health.Stream, Durable: e.health.Durable, State: e.health.State, Err: err})
}

// role is the state while nothing is wrong.
func (e *engine) role() ConsumerState {
	if e.exclusive != nil {
		return e.exclusive.role()
	}
	return ConsumerRunning
}

// report tells OnError, the Observer, the log and Health what went wrong.
func (e *engine) report(err error) {
	e.mu.Lock()
	e.health.LastError = err.Error()
	e.observeLocked(err)
	e.mu.Unlock()
	e.logError(err)
	e.reports.add(err)
}

func (e *engine) logError(err error) {
	e.c.log.Warn("natty: consumer", "durable", e.cfg.Durable, "error", err)
}

// elected tells the log, Health and the Observer of a new term.
func (e *election) elected(token uint64) {
	e.mu.Lock()
	h := &e.health
	h.Leading, h.Token, h.Since, h.LastError = true, token, time.Now(), ""
	e.observeLocked(true, token, nil)
	e.mu.Unlock()
	e.c.log.Info("natty: elected", "bucket", e.cfg.Bucket, "key", e.cfg.Key, "node", e.cfg.NodeName, "token", token)
}

// over tells Health and the Observer that a term is over, once: why is nil when the leadership was given back.
func (e *election) over(token uint64, why error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := &e.health
	if !h.Leading || h.Token != token {
		return
	}
	h.Leading, h.Token, h.Since = false, 0, time.Now()
	if why != nil {
		h.LastError = why.Error()
	}
	e.observeLocked(false, token, why)
}

// trouble tells the log, Health and the Observer what went wrong and did not end the election.
func (e *election) trouble(err error) {
	e.mu.Lock()
	e.health.LastError = err.Error()
	e.observeLocked(e.health.Leading, e.health.Token, err)
	e.mu.Unlock()
	e.c.log.Warn("natty: election", "bucket", e.cfg.Bucket, "key", e.cfg.Key, "error", err)
}

// observeLocked tells the Observer. e.mu must be held, so that events come in the order of what they say.
func (e *election) observeLocked(leading bool, token uint64, err error) {
	e.c.events.add(ElectionEvent{
		Bucket: e.cfg.Bucket, Key: e.cfg.Key, NodeName: e.cfg.NodeName, Leading: leading, Token: token, Err: err,
	})
}

func (w *Writer) snapshot() WriterHealth {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := WriterHealth{
		Pending: w.pending, PendingBytes: w.bytes, MaxPending: w.cfg.MaxPending, MaxPendingBytes: w.cfg.MaxPendingBytes, Failed: w.failed,
	}
	if w.lastErr != nil {
		h.LastError = w.lastErr.Error()
	}
	return h
}

func (e *election) snapshot() ElectionHealth {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.health
}
