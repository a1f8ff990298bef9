// Package pull fetches messages of one durable by the pull protocol (ADR-13, ADR-37,
// ADR-42): one request at a time, within the durable's limits. It owns the subscription
// for the answers and knows how each request ended. It knows nothing of durables beyond
// their limits, and nothing of what becomes of the messages.
package pull

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

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/respmux"
)

// Times of pull requests.
const (
	// Expiry is how long a pull request waits at the server for messages. Heartbeats show
	// that the server still has it. So an idle consumer costs one request in this time.
	Expiry = 2 * time.Minute
	// Brief is how long a brief request waits at least, MaxBrief at most; see PullBriefly.
	Brief    = 500 * time.Millisecond
	MaxBrief = 2 * time.Second
	// MinHeartbeat is the shortest idle heartbeat that the server accepts.
	MinHeartbeat = 100 * time.Millisecond
)

// Puller requests messages of one durable: one request at a time, of a size that the
// caller chooses each time. It has a subscription of its own, because nats.go's Fetch
// and Consume drop messages that are still on their way when they end, and the server
// redelivers those only after AckWait; see docs/decisions.md.
type Puller struct {
	nc      *nats.Conn
	subject string // of pull requests
	inbox   string // of answers, with the dot at its end; like answers, changed under mu
	answers *respmux.Inbox
	unwatch func()  // no more refusals
	wish    Request // without Batch
	limits  jetstream.ConsumerConfig
	current Request // the last one that was sent
	max     int     // MaxBytes is at least as large; it grows when a message does not fit
	onMsg   func(*nats.Msg)
	onEnd   func() // called when a request has ended, see TakeEnd

	// Sent is when the last request was sent. Only the goroutine that sends may use it.
	Sent time.Time
	// Answered is called with the time of the last request at the first sign that the
	// durable has received it. It may be nil.
	Answered func(sent time.Time)
	// Heard is when the server last sent anything, in Unix nanoseconds.
	Heard atomic.Int64

	outstanding atomic.Int64              // messages that the current request may still bring
	asked       atomic.Int64              // messages that the current request asked for
	unanswered  atomic.Pointer[time.Time] // when it was sent, until Answered is called
	progress    atomic.Int64              // see LastProgress
	group       atomic.Uint64             // see Deliveries
	generation  atomic.Int64              // of the subscription

	// serial is held while onMsg and onEnd run. It is free, unless a subscription that
	// was replaced still brings messages.
	serial sync.Mutex

	// mu guards what follows.
	mu    sync.Mutex
	id    uint64 // of the current request
	touch bool   // it is one of Touch's
	sent  time.Time
	end   End // how the last request ended
}

// New makes a Puller that sends requests like wish to a subject, and subscribes for the
// answers. onMsg is called for one message after the other. onEnd may be called beside
// it, after a refusal.
func New(
	nc *nats.Conn, link *conn.Link, subject string, limits jetstream.ConsumerConfig, wish Request,
	onMsg func(*nats.Msg), onEnd func(),
) (*Puller, error) {
	p := &Puller{nc: nc, subject: subject, wish: wish, limits: limits, onMsg: onMsg, onEnd: onEnd}
	if err := p.subscribe(); err != nil {
		return nil, err
	}
	p.unwatch = link.OnRefusal(func(r conn.Refusal) {
		switch {
		case r.Subscribe:
			p.currentInbox().Refused(r.Subject, r.Err)
		case r.Subject == p.subject:
			p.refused(fmt.Errorf("allow this user to publish to %q: %w", p.subject, r.Err))
		}
	})
	return p, nil
}

// subscribe begins to listen on an inbox of its own.
func (p *Puller) subscribe() error {
	inbox := p.nc.NewInbox() + "."
	generation := p.generation.Add(1)
	answers, err := respmux.Subscribe(p.nc, inbox+"*",
		func(m *nats.Msg) { p.receive(generation, inbox, m) },
		func(err error) {
			if err != nil && generation == p.generation.Load() {
				p.refused(err)
			}
		})
	if err != nil {
		return fmt.Errorf("natty: subscribe for messages: %w", jsapi.WhenClosed(err))
	}
	p.mu.Lock()
	p.inbox, p.answers = inbox, answers
	p.mu.Unlock()
	return nil
}

func (p *Puller) currentInbox() *respmux.Inbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers
}

// refused ends the current request: it did not reach the server, or its messages cannot
// reach this client.
func (p *Puller) refused(err error) {
	p.mu.Lock()
	pulling := p.outstanding.Swap(0) > 0
	if pulling {
		p.end = End{Refusal: err}
	}
	p.mu.Unlock()
	if pulling {
		p.onEnd()
	}
}

// Renew forgets the current request, which may still wait at the server: it listens on
// another inbox from now on, and the server drops the request as soon as nobody listens
// to its inbox. Without that, the requests of a connection that is lost again and again
// pile up. Messages that are on their way to the former inbox are still received.
func (p *Puller) Renew() error {
	p.Forget()
	former := p.currentInbox()
	if err := p.subscribe(); err != nil {
		return err
	}
	if sub := former.End(); sub.Drain() != nil {
		_ = sub.Unsubscribe()
	}
	return nil
}

// Pull sends a request for up to n messages. No other request may be outstanding.
func (p *Puller) Pull(n int) error {
	req := p.request(n, p.wish.Expires, p.wish.Heartbeat)
	return p.send(req, req.Batch)
}

// PullBriefly is Pull with a request that the server ends after d, or after MaxBrief.
func (p *Puller) PullBriefly(n int, d time.Duration) error {
	req := p.request(n, min(p.wish.Expires, d, MaxBrief), 0)
	return p.send(req, req.Batch)
}

// Brief reports that the last request was one of PullBriefly's.
func (p *Puller) Brief() bool { return p.current.Expires <= MaxBrief }

// Touch shows the server that this client is there. It sends a request that no message
// fits in, so that it brings none. No other request may be outstanding; this one does
// not count.
func (p *Puller) Touch() error {
	return p.send(p.tooSmall(p.wish.Expires, p.wish.Heartbeat), 0)
}

// tooSmall returns a request that no message fits in.
func (p *Puller) tooSmall(expires, heartbeat time.Duration) Request {
	req := p.request(1, expires, heartbeat)
	req.MaxBytes = 1
	return req
}

// Until returns when the server ends the last request, unless it has ended already.
func (p *Puller) Until() time.Time { return p.Sent.Add(p.current.Expires) }

// Sweep makes the server drop the requests that nobody listens to any more. It does so
// when another one comes, so this sends one that brings nothing and ends at once.
func (p *Puller) Sweep() error {
	body, err := json.Marshal(p.tooSmall(time.Millisecond, 0))
	if err != nil {
		return err
	}
	p.mu.Lock()
	reply := p.inbox + "-" // no request's number: the answer is for nobody
	p.mu.Unlock()
	return p.nc.PublishRequest(p.subject, reply, body)
}

// send sends a request that may bring n messages, unless they could not reach this
// client: then it returns a respmux.ErrInbox.
func (p *Puller) send(req Request, n int) error {
	if err := p.currentInbox().Err(); err != nil {
		return err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	sent := time.Now()
	p.mu.Lock()
	p.id++
	p.end, p.touch, p.sent = End{}, n == 0, sent
	reply := p.inbox + strconv.FormatUint(p.id, 36)
	p.mu.Unlock()
	p.Sent, p.current = sent, req
	p.unanswered.Store(&sent)
	p.asked.Store(int64(n))
	p.outstanding.Store(int64(n))
	if err := p.nc.PublishRequest(p.subject, reply, body); err != nil {
		p.outstanding.Store(0)
		return err
	}
	return nil
}

// receive takes what the server sends to an inbox. Messages have a subject of their own;
// a status has the inbox's.
func (p *Puller) receive(generation int64, inbox string, m *nats.Msg) {
	p.serial.Lock()
	defer p.serial.Unlock()
	now := time.Now().UnixNano()
	p.Heard.Store(now)
	if token, ok := strings.CutPrefix(m.Subject, inbox); ok {
		p.status(inbox, token, m)
		return
	}
	p.progress.Store(now)
	if p.outstanding.Load() > 0 { // else it belongs to a request that was forgotten
		p.answered()
	}
	p.onMsg(m)
	if generation != p.generation.Load() {
		return
	}
	if p.outstanding.Add(-1) <= 0 {
		p.onEnd()
	}
}

// status takes a heartbeat, or the end of a request. One of an earlier request changes
// nothing.
func (p *Puller) status(inbox, token string, m *nats.Msg) {
	end := endOf(m.Header.Get("Status"), m.Header.Get("Description"))
	heartbeat := end.Status == "100"
	id, err := strconv.ParseUint(token, 36, 64)
	p.mu.Lock()
	current := err == nil && id == p.id && inbox == p.inbox
	if current && !heartbeat {
		end.Brought = p.outstanding.Load() < p.asked.Load()
		end.After, end.touch = time.Since(p.sent), p.touch
		p.end = end
		p.outstanding.Store(0)
	}
	p.mu.Unlock()
	if !current {
		return
	}
	if heartbeat || end.Expected() {
		p.answered()
		if heartbeat || !end.Fruitless() {
			p.progress.Store(p.Heard.Load())
		}
	}
	if heartbeat {
		if n, err := strconv.ParseUint(m.Header.Get("Nats-Last-Consumer"), 10, 64); err == nil {
			p.group.Store(n + 1)
		}
		return
	}
	p.onEnd()
}

// answered calls Answered, once for each request.
func (p *Puller) answered() {
	if p.Answered == nil {
		return
	}
	if sent := p.unanswered.Load(); sent != nil && p.unanswered.CompareAndSwap(sent, nil) {
		p.Answered(*sent)
	}
}

// TakeEnd returns how the last request ended, once.
func (p *Puller) TakeEnd() End {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := p.end
	p.end = End{}
	return end
}

// Idle reports that no request is outstanding.
func (p *Puller) Idle() bool { return p.outstanding.Load() <= 0 }

// Forget stops waiting for the current request: the connection is lost, or the server
// has dropped the request.
func (p *Puller) Forget() { p.outstanding.Store(0) }

// Silent reports that a request is outstanding, and the server has missed two
// heartbeats.
func (p *Puller) Silent() bool {
	if p.Idle() {
		return false
	}
	since := min(time.Since(p.Sent), time.Since(p.LastHeard()))
	if p.current.Heartbeat == 0 { // too short for heartbeats: it should have ended by itself
		return since > p.current.Expires+10*time.Second
	}
	return since > 2*p.current.Heartbeat+p.current.Heartbeat/2
}

// LastProgress returns when the server last served a request: with a message, a
// heartbeat, or an end that was neither refused nor at once. An answer that refuses is a
// sign of life, and no progress.
func (p *Puller) LastProgress() time.Time { return time.Unix(0, p.progress.Load()) }

// Deliveries returns how many deliveries of the durable there were, to any instance, as
// the last heartbeat says; ok is false before the first.
func (p *Puller) Deliveries() (n uint64, ok bool) {
	n = p.group.Load()
	return n - 1, n > 0
}

// LastHeard returns when the server last sent anything.
func (p *Puller) LastHeard() time.Time { return time.Unix(0, p.Heard.Load()) }

// Stop ends the subscription, and closes the channel when it has ended. With a
// connection (up), messages that are on their way are received first. Without one it
// ends at once.
func (p *Puller) Stop(up bool) <-chan struct{} {
	done := make(chan struct{})
	ended := sync.OnceFunc(func() { close(done) })
	p.unwatch()
	sub := p.currentInbox().End()
	sub.SetClosedHandler(func(string) { ended() })
	if up && sub.Drain() == nil {
		return done
	}
	// Nothing is on its way. Drain would wait for a connection. And if the connection
	// is closed, the subscription may have ended before it had the handler.
	_ = sub.Unsubscribe()
	ended()
	return done
}
