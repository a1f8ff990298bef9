package natty

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publish stores data in the stream that holds subject. See PublishMsg.
func (c *Client) Publish(ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt) error {
	o := outgoings.Get().(*outgoing) //nolint:forcetypeassert,errcheck // the pool holds nothing else
	defer o.release()
	o.msg.Subject, o.msg.Data = subject, data
	p := publication{c: c, msg: &o.msg, slot: o.id[:]}
	_, err := p.publish(ctx, opts)
	return err
}

// outgoing is a message of Publish, used again for the next one: nats.go has copied it into its buffer when it
// returns, and what is made for each message anew is a large part of what a publish costs here.
type outgoing struct {
	msg    nats.Msg
	header nats.Header
	id     [1]string // what the header holds
}

var outgoings = sync.Pool{New: func() any {
	o := &outgoing{header: make(nats.Header, 1)}
	o.msg.Header = o.header
	return o
}}

func (o *outgoing) release() {
	clear(o.header)
	o.msg = nats.Msg{Header: o.header}
	outgoings.Put(o)
}

// PublishMsg stores msg in the stream that holds its subject. A nil error means that the server
// acknowledged it. msg and its headers are not written to; its Reply is not sent.
//
// The message gets a Nats-Msg-Id unless the caller set one (in the headers, or with
// jetstream.WithMsgID). When an outcome is unknown, because the connection was lost or no answer
// came, it is sent again with the same id until ctx ends (Config.PublishTimeout when ctx has no deadline),
// so that the server stores it once. It is not sent again beyond the stream's duplicate window, which natty
// asks the server for: without permission for $JS.API.STREAM.NAMES and $JS.API.STREAM.INFO.* it is not sent
// again at all. PubAck.Duplicate says that a message with the caller's id was there before; when this call had to
// send more than once, that may be its own.
//
// Every error is a *PublishError. It matches ErrOutcomeUnknown if the message may be stored all the same.
// Final answers come back at once: ErrNoStream, ErrTooLarge, ErrStreamFull, ErrClosed, nats.ErrPermissionViolation, a
// *ConfigError for a subject that cannot be published to or a stream that does not acknowledge, and the
// server's error for an expectation that does not hold (jetstream.WithExpectLastSequence and the like).
// jetstream.WithRetryAttempts and WithRetryWait have no effect.
func (c *Client) PublishMsg(ctx context.Context, msg *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if msg == nil {
		return nil, &PublishError{Err: &ConfigError{Field: "msg", Reason: "is nil; give a message"}}
	}
	return c.publish(ctx, copyForSending(msg), opts)
}

// publish sends msg, which is its own.
func (c *Client) publish(ctx context.Context, msg *nats.Msg, opts []jetstream.PublishOpt) (*jetstream.PubAck, error) {
	p := publication{c: c, msg: msg}
	return p.publish(ctx, opts)
}

// header returns a header's first value without canonicalising the name.
func header(h nats.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// publication is one message on its way to being stored.
type publication struct {
	c        *Client
	msg      *nats.Msg
	id       string
	slot     []string // room for the id in the headers
	ownID    bool     // natty made the id: a duplicate can only be ourselves
	unknown  bool     // it may be stored
	repeat   bool     // it may be stored twice: a Writer's, with AtLeastOnce
	deadline time.Time
	first    time.Time             // when it was first sent
	stream   *jetstream.StreamInfo // where it goes, once looked up
	streams  *streams              // looked up by others a moment ago; or nil
	attempts int
	last     error // why the attempt before this one did not do

	// waiter is there while an answer may still come: attempts that follow a silent one share it, so that a
	// slow answer to any of them counts.
	waiter *ackWaiter
	token  uint64
}

func (p *publication) publish(ctx context.Context, opts []jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if err := publishable(p.msg.Subject); err != nil {
		return nil, p.failed(err)
	}
	if err := p.apply(opts); err != nil {
		return nil, p.failed(err)
	}
	if p.id = header(p.msg.Header, jetstream.MsgIDHeader); p.id == "" {
		p.id, p.ownID = p.c.ids.next(), true
		if p.slot == nil {
			p.slot = make([]string, 1)
		}
		p.slot[0] = p.id
		p.msg.Header[jetstream.MsgIDHeader] = p.slot
	}
	return p.run(ctx)
}

var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// apply lets nats.go write its options into the headers: what they hold cannot be read from outside of
// jetstream. Its PublishMsg does that before it looks at ctx, and sends nothing with one that has ended.
func (p *publication) apply(opts []jetstream.PublishOpt) error {
	if len(opts) == 0 {
		return nil
	}
	if slices.ContainsFunc(opts, func(o jetstream.PublishOpt) bool { return o == nil }) {
		return &ConfigError{Field: "opts", Reason: "holds a nil option; leave it out"}
	}
	_, err := p.c.js.PublishMsg(ended, p.msg, opts...)
	switch {
	case errors.Is(err, context.Canceled):
		return nil
	case err == nil: // a nats.go that this does not work with
		p.unknown = true
		return &ConfigError{Field: "opts", Reason: "this version of nats.go sends although the context has ended; natty does not work with it"}
	}
	return &ConfigError{Field: "opts", Reason: "refused by nats.go", Err: err}
}

// Every attempt waits longer for its answer than the one before. The first is short, since an answer that
// does not come at all (a leader that died, a NoAck stream) is found out only by waiting.
var attemptTimeout = Backoff{Min: 500 * time.Millisecond, Max: 4 * time.Second}

// leastAttempt is how much time an attempt needs to be of use, at a busy server too. With less the next one would only make
// unknown what is known.
const leastAttempt = 250 * time.Millisecond

// retryPause is the pause before sending again.
var retryPause = Backoff{Min: 5 * time.Millisecond, Max: 250 * time.Millisecond}

// run sends until the outcome is known, or time is up.
func (p *publication) run(ctx context.Context) (*jetstream.PubAck, error) {
	if _, ok := ctx.Deadline(); !ok {
		p.deadline = time.Now().Add(p.c.cfg.PublishTimeout)
	}
	ack, err := p.send(ctx)
	if late := p.stopWaiting(); late != nil && err != nil {
		ack, err = late, nil
	}
	if err != nil {
		return nil, p.failed(err)
	}
	if p.ownID {
		ack.Duplicate = false
	}
	return ack, nil
}

func (p *publication) send(ctx context.Context) (*jetstream.PubAck, error) {
	for {
		ack, err := p.try(ctx)
		if _, again := errors.AsType[*againError](err); !again {
			return ack, err
		}
		if err := p.pause(ctx, retryPause.delay(p.attempts)); err != nil {
			return nil, fmt.Errorf("%w: %w", err, p.last)
		}
		if !p.unknown && p.left(ctx) < leastAttempt {
			return nil, fmt.Errorf("%w: %w", context.DeadlineExceeded, p.last)
		}
	}
}

// left is how much time there is. publish has given p a deadline if ctx has none.
func (p *publication) left(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok || !p.deadline.IsZero() && p.deadline.Before(deadline) {
		deadline = p.deadline
	}
	return time.Until(deadline)
}

// try sends once. An *againError asks for another try after a pause.
func (p *publication) try(ctx context.Context) (*jetstream.PubAck, error) {
	if err := p.ready(ctx, p.last); err != nil {
		return nil, err
	}
	p.attempts++
	ack, err := p.attempt(ctx, p.patience())
	if err != nil {
		ack, err = p.judge(ctx, err)
	}
	if again, ok := errors.AsType[*againError](err); ok {
		p.last = again.reason
	} else if p.last != nil && err != nil && errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", err, p.last)
	}
	return ack, err
}

// patience is how long the attempt waits for its answer.
func (p *publication) patience() time.Duration {
	if p.repeat {
		return attemptTimeout.Max // sending again would store a second copy of what is only late
	}
	return attemptTimeout.base(p.attempts)
}

// ready waits for a connection, and makes sure that sending (again) is safe.
func (p *publication) ready(ctx context.Context, last error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.c.link.wait(ctx, p.deadline); err != nil {
		return err
	}
	if !p.unknown {
		return nil
	}
	if p.stream == nil {
		switch err := p.lookUpRecent(ctx); {
		case err != nil && p.repeat:
			return nil
		case err != nil:
			return fmt.Errorf("not sent again, since it cannot be known whether the server would still notice: %w: %w", err, last)
		}
	}
	config := &p.stream.Config
	if config.NoAck {
		return &ConfigError{Field: "stream", Value: config.Name, Reason: "acknowledges nothing (NoAck), so that nobody can know what it stored; set no_ack to false, or publish with Conn().Publish"}
	}
	// A tenth is left for the way to the server and for clocks.
	if window := config.Duplicates; !p.repeat && elapsed(p.first) > window-window/10 {
		return fmt.Errorf("not sent again beyond the duplicate window (%v) of stream %q: %w", window, config.Name, last)
	}
	return nil
}

// elapsed is the time since t by the clock that says more: the monotonic one stands still while a machine sleeps,
// the other can be set back.
func elapsed(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// attempt sends once and waits for the answer.
func (p *publication) attempt(ctx context.Context, timeout time.Duration) (*jetstream.PubAck, error) {
	now := time.Now()
	if !p.deadline.IsZero() {
		timeout = min(timeout, p.deadline.Sub(now))
	}
	if p.first.IsZero() {
		p.first = now
	}
	if p.waiter == nil {
		p.waiter, p.token, p.msg.Reply = p.c.acks.expect(p.msg.Subject)
	}
	select {
	case a := <-p.waiter.answer: // to an earlier attempt
		return p.answered(a)
	default:
	}
	if err := p.c.nc.PublishMsg(p.msg); err != nil {
		return nil, &sendError{err}
	}
	timer := getTimer(timeout)
	defer putTimer(timer)
	select {
	case a := <-p.waiter.answer:
		return p.answered(a)
	case <-timer.C:
		return nil, errSilent
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// answered reads the one answer that a waiter gets.
func (p *publication) answered(a ackAnswer) (*jetstream.PubAck, error) {
	ackWaiters.Put(p.waiter)
	p.waiter = nil
	if a.err != nil {
		return nil, a.err
	}
	return parseAck(a.msg)
}

// stopWaiting gives up waiting. An acknowledgement that came meanwhile is returned.
func (p *publication) stopWaiting() *jetstream.PubAck {
	if p.waiter == nil {
		return nil
	}
	a, ok := p.c.acks.abandon(p.waiter, p.token)
	p.waiter = nil
	if !ok || a.err != nil {
		return nil
	}
	ack, err := parseAck(a.msg)
	if err != nil {
		return nil
	}
	return ack
}

// within bounds ctx by the publication's deadline.
func (p *publication) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.deadline.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, p.deadline)
}

func (p *publication) pause(ctx context.Context, d time.Duration) error {
	ctx, cancel := p.within(ctx)
	defer cancel()
	return sleep(ctx, d)
}

func (p *publication) failed(err error) error {
	e := &PublishError{Subject: p.msg.Subject, Unknown: p.unknown, Err: err}
	if !p.first.IsZero() {
		e.MsgID = p.id
	}
	return e
}

// msgIDs makes message ids: a random start for each Client, then a counter. A generator with a lock, as
// nuid's, would be felt by many publishing goroutines, and the server keeps every id in memory for
// the duplicate window, so that they should be short.
type msgIDs struct {
	prefix string
	n      atomic.Uint64
}

func newMsgIDs() *msgIDs {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return &msgIDs{prefix: base64.RawURLEncoding.EncodeToString(b[:])}
}

func (g *msgIDs) next() string { return g.prefix + strconv.FormatUint(g.n.Add(1), 36) }

// append appends the next id to b.
func (g *msgIDs) append(b []byte) []byte {
	return strconv.AppendUint(append(b, g.prefix...), g.n.Add(1), 36)
}

var timers = sync.Pool{New: func() any { return time.NewTimer(time.Hour) }}

func getTimer(d time.Duration) *time.Timer {
	t := timers.Get().(*time.Timer) //nolint:forcetypeassert,errcheck // the pool holds nothing else
	t.Reset(d)
	return t
}

// putTimer gives a timer back. Since Go 1.23 a stopped timer's channel is empty.
func putTimer(t *time.Timer) {
	t.Stop()
	timers.Put(t)
}
