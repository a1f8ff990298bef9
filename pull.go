package natty

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// pullExpiry is how long a pull request waits at the server for messages.
	pullExpiry = 30 * time.Second
	// orderedExpiry is the same where the order of keys is kept: at the end, it is waited for.
	orderedExpiry = 500 * time.Millisecond
	// minHeartbeat is the least idle heartbeat that the server accepts.
	minHeartbeat = 100 * time.Millisecond
)

// puller asks the server for messages of one durable: one request at a time, of a size chosen anew
// each time. It speaks the pull protocol (ADR-13, ADR-37) on a subscription of its own, since nats.go's Fetch and
// Consume both drop at their end what is still on its way, which then waits for AckWait; see
// docs/decisions.md.
type puller struct {
	nc      *nats.Conn
	subject string // of pull requests
	inbox   string // of answers, dot included
	sub     *nats.Subscription
	wish    pullRequest // without Batch
	request pullRequest // the same within the durable's limits
	max     int         // the server's limit on Batch; 0: none
	onMsg   func(*nats.Msg)
	onEnd   func()    // a request has ended, see takeEnd
	sent    time.Time // when the last request was; the supervision's alone
	// answered is told when the last request was sent, at the first sign that the durable has got it. It may be nil.
	answered func(sent time.Time)

	heard atomic.Int64              // when anything came last, Unix nanoseconds
	owed  atomic.Int64              // messages that the request under way may still bring
	asked atomic.Pointer[time.Time] // sent, until there is such a sign

	// mu guards what follows.
	mu  sync.Mutex
	id  uint64  // of the request under way
	end pullEnd // how the last one ended
}

type pullRequest struct {
	Batch     int           `json:"batch"`
	MaxBytes  int           `json:"max_bytes,omitempty"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat,omitempty"`
	// Of a durable with an active client: the group, and what the active one identifies itself with (ADR-42).
	Group string `json:"group,omitempty"`
	Pin   string `json:"id,omitempty"`
}

// pullEnd is the server's reason to end a request early; the zero value is none.
type pullEnd struct {
	status      string
	description string
}

func (e pullEnd) err() error { return fmt.Errorf("pull request ended: %s %s", e.status, e.description) }

// expected reports an end that belongs to normal work: nothing came in time, or the next message is for another
// request.
func (e pullEnd) expected() bool {
	switch e.status {
	case "", "404", "408":
		return true
	}
	return e.is("message size exceeds maxbytes") || e.is("batch completed")
}

// is compares descriptions, in which the protocol hides what a 409 means.
func (e pullEnd) is(description string) bool {
	return strings.HasPrefix(strings.ToLower(e.description), description)
}

// newPuller subscribes for the answers to requests like wish.
func newPuller(c *Client, d durable, wish pullRequest, onMsg func(*nats.Msg), onEnd func()) (*puller, error) {
	p := &puller{
		nc:      c.nc,
		subject: c.cfg.apiPrefix() + "CONSUMER.MSG.NEXT." + d.stream + "." + d.name,
		inbox:   c.nc.NewInbox() + ".",
		wish:    wish,
		onMsg:   onMsg,
		onEnd:   onEnd,
	}
	p.limit(d.config)
	sub, err := c.nc.Subscribe(p.inbox+"*", p.receive)
	if err != nil {
		return nil, fmt.Errorf("natty: subscribe for messages: %w", whenClosed(err))
	}
	p.sub = sub
	// Requests bound what can come: a limit here could only lose it.
	return p, sub.SetPendingLimits(-1, -1)
}

// limit keeps requests within what the durable allows; the server refuses larger ones for ever.
func (p *puller) limit(cfg jetstream.ConsumerConfig) {
	p.request = p.wish
	p.max = cfg.MaxRequestBatch
	if l := cfg.MaxRequestExpires; l > 0 {
		p.request.Expires = min(p.request.Expires, l)
	}
	if l := cfg.MaxRequestMaxBytes; l > 0 {
		p.request.MaxBytes = min(p.request.MaxBytes, l)
	}
	// The server wants a heartbeat of at most half of the expiry.
	p.request.Heartbeat = min(p.request.Heartbeat, p.request.Expires/2)
}

// pull sends a request for up to n messages. There must be none under way.
func (p *puller) pull(n int) error {
	if p.max > 0 {
		n = min(n, p.max)
	}
	req := p.request
	req.Batch = n
	return p.send(req, n)
}

// touch sends a request that no message fits in: it brings nothing, and shows the server that this client is there.
// There must be none under way; it counts as none itself.
func (p *puller) touch() error {
	req := p.request
	req.Batch, req.MaxBytes = 1, 1
	return p.send(req, 0)
}

// send sends a request that may bring n messages.
func (p *puller) send(req pullRequest, n int) error {
	p.mu.Lock()
	p.id++
	p.end = pullEnd{}
	reply := p.inbox + strconv.FormatUint(p.id, 36)
	p.mu.Unlock()
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	sent := time.Now()
	p.sent = sent
	p.asked.Store(&sent)
	p.owed.Store(int64(n))
	if err := p.nc.PublishRequest(p.subject, reply, body); err != nil {
		p.owed.Store(0)
		return err
	}
	return nil
}

// receive sorts what the server sends: messages have their own subject, everything else comes on the inbox.
func (p *puller) receive(m *nats.Msg) {
	p.heard.Store(time.Now().UnixNano())
	if token, ok := strings.CutPrefix(m.Subject, p.inbox); ok {
		p.status(token, m)
		return
	}
	if p.owed.Load() > 0 { // else it belongs to a request that was given up
		p.answer()
	}
	p.onMsg(m)
	if p.owed.Add(-1) <= 0 {
		p.onEnd()
	}
}

func (p *puller) status(token string, m *nats.Msg) {
	end := pullEnd{status: m.Header.Get("Status"), description: m.Header.Get("Description")}
	heartbeat := end.status == "100"
	id, err := strconv.ParseUint(token, 36, 64)
	p.mu.Lock()
	current := err == nil && id == p.id
	if current && !heartbeat {
		p.end = end
		p.owed.Store(0)
	}
	p.mu.Unlock()
	if !current {
		return
	}
	if heartbeat || end.expected() {
		p.answer()
	}
	if !heartbeat {
		p.onEnd()
	}
}

// answer takes note that the last request has got to the durable.
func (p *puller) answer() {
	if p.answered == nil {
		return
	}
	if sent := p.asked.Load(); sent != nil && p.asked.CompareAndSwap(sent, nil) {
		p.answered(*sent)
	}
}

// takeEnd returns how the last request ended, once.
func (p *puller) takeEnd() pullEnd {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := p.end
	p.end = pullEnd{}
	return end
}

// idle reports that no request is under way.
func (p *puller) idle() bool { return p.owed.Load() <= 0 }

// forget gives up the request under way, after a loss of the connection or of the server's interest in it.
func (p *puller) forget() { p.owed.Store(0) }

// silent reports that a request is under way and the server has missed two heartbeats.
func (p *puller) silent() bool {
	if p.idle() {
		return false
	}
	since := min(time.Since(p.sent), time.Since(p.lastHeard()))
	if p.request.Heartbeat == 0 { // too short for any: it should have ended
		return since > p.request.Expires+2*defaultHeartbeat
	}
	return since > 2*p.request.Heartbeat+p.request.Heartbeat/2
}

func (p *puller) lastHeard() time.Time { return time.Unix(0, p.heard.Load()) }

// stop ends the subscription. What is on its way is still received; the channel is closed after that. Without a
// connection it ends at once.
func (p *puller) stop(up bool) <-chan struct{} {
	done := make(chan struct{})
	ended := sync.OnceFunc(func() { close(done) })
	p.sub.SetClosedHandler(func(string) { ended() })
	if up && p.sub.Drain() == nil {
		return done
	}
	// Nothing is on its way. Draining would wait for a connection; and with the connection the subscription may have
	// been closed before there was a handler.
	_ = p.sub.Unsubscribe()
	ended()
	return done
}
