package natty

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publish stores data in the stream that holds subject. See PublishMsg.
func (c *Client) Publish(ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt) error {
	_, err := c.publish(ctx, &nats.Msg{Subject: subject, Data: data, Header: make(nats.Header, 1)}, opts)
	return err
}

// PublishMsg stores msg in the stream that holds its subject. A nil error means that the server
// acknowledged it. msg and its headers are not written to; its Reply is not sent.
//
// The message gets a Nats-Msg-Id unless the caller set one (in the headers, or with
// jetstream.WithMsgID). When an outcome is unknown, because the connection was lost or no answer
// came, it is sent again with the same id until ctx ends (Config.PublishTimeout when ctx has no deadline),
// so that the server stores it once. It is not sent again beyond the stream's duplicate window.
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
	if err := publishable(msg.Subject); err != nil {
		return nil, p.failed(err)
	}
	if err := p.apply(opts); err != nil {
		return nil, p.failed(err)
	}
	if p.id = header(msg.Header, jetstream.MsgIDHeader); p.id == "" {
		p.id, p.ownID = c.ids.next(), true
		msg.Header[jetstream.MsgIDHeader] = []string{p.id}
	}
	return p.run(ctx)
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
	ownID    bool // natty made the id: a duplicate can only be ourselves
	unknown  bool // it may be stored
	deadline time.Time
	first    time.Time               // when it was first sent
	stream   *jetstream.StreamConfig // where it goes, once looked up
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
	_, err := p.c.js.PublishMsg(ended, p.msg, opts...)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return &ConfigError{Field: "opts", Reason: "refused by nats.go", Err: err}
}

// Every attempt waits longer for its answer than the one before. The first is short, since an answer that
// does not come at all (a leader that died, a NoAck stream) is found out only by waiting.
var attemptTimeout = Backoff{Min: 500 * time.Millisecond, Max: 4 * time.Second}

// retryPause is the pause before sending again.
var retryPause = Backoff{Min: 5 * time.Millisecond, Max: 250 * time.Millisecond}

// run sends until the outcome is known, or time is up.
func (p *publication) run(ctx context.Context) (*jetstream.PubAck, error) {
	if _, ok := ctx.Deadline(); !ok {
		p.deadline = time.Now().Add(p.c.cfg.PublishTimeout)
	}
	var last error // why the attempt before this one did not do
	for n := 1; ; n++ {
		if err := p.ready(ctx, last); err != nil {
			return nil, p.failed(err)
		}
		ack, err := p.attempt(ctx, attemptTimeout.base(n))
		if err == nil {
			if p.ownID {
				ack.Duplicate = false
			}
			return ack, nil
		}
		ack, err, again := p.judge(ctx, err)
		if !again {
			if err != nil {
				return nil, p.failed(err)
			}
			return ack, nil
		}
		last = err
		if err := p.pause(ctx, retryPause.delay(n)); err != nil {
			return nil, p.failed(fmt.Errorf("%w: %w", err, last))
		}
	}
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
	if err := p.lookUp(ctx); err != nil {
		return fmt.Errorf("%w: %w", last, err)
	}
	if p.stream.NoAck {
		return &ConfigError{Field: "stream", Value: p.stream.Name, Reason: "acknowledges nothing (NoAck), so that nobody can know what it stored; set no_ack to false, or publish with Conn().Publish"}
	}
	// A tenth is left for the way to the server and for clocks.
	if window := p.stream.Duplicates; time.Since(p.first) > window-window/10 {
		return fmt.Errorf("not sent again beyond the duplicate window (%v) of stream %q: %w", window, p.stream.Name, last)
	}
	return nil
}

// attempt sends once and waits for the answer.
func (p *publication) attempt(ctx context.Context, timeout time.Duration) (*jetstream.PubAck, error) {
	if !p.deadline.IsZero() {
		timeout = min(timeout, time.Until(p.deadline))
	}
	w, token, reply := p.c.acks.expect(p.msg.Subject)
	if p.first.IsZero() {
		p.first = time.Now()
	}
	p.msg.Reply = reply
	if err := p.c.nc.PublishMsg(p.msg); err != nil {
		p.c.acks.abandon(w, token)
		return nil, &sendError{err}
	}
	timer := getTimer(timeout)
	defer putTimer(timer)
	var err error
	select {
	case a := <-w.answer:
		ackWaiters.Put(w)
		return a.read()
	case <-timer.C:
		err = errSilent
	case <-ctx.Done():
		err = ctx.Err()
	}
	if a, ok := p.c.acks.abandon(w, token); ok {
		return a.read()
	}
	return nil, err
}

func (a ackAnswer) read() (*jetstream.PubAck, error) {
	if a.err != nil {
		return nil, a.err
	}
	return parseAck(a.msg)
}

// sendError is an error of nats.go before anything was handed to the network, or while it was.
type sendError struct{ err error }

func (e *sendError) Error() string { return e.err.Error() }
func (e *sendError) Unwrap() error { return e.err }

var errSilent = errors.New("no acknowledgement came")

// judge decides what an attempt's error means. again asks for another attempt, err then says why; otherwise
// err is final, or nil if ack shows that an earlier attempt was stored after all.
func (p *publication) judge(ctx context.Context, err error) (ack *jetstream.PubAck, final error, again bool) { //nolint:revive // again comes last: it says what the others mean
	var sent *sendError
	if errors.As(err, &sent) {
		return p.judgeSend(err)
	}
	switch code := errorCode(err); code {
	case 0:
	case codeDuplicateInFlight, codeConcurrentLastSeq, codeNotAvailable, codeNotLeader, codeNoPeers:
		// Something with the same id, or for the same subject, is being stored: ask again what became of it.
		return nil, err, true
	case codeWrongLastSeq, codeWrongLastID:
		if p.unknown {
			return p.readBack(ctx, err)
		}
		return nil, err, false
	default:
		return nil, p.explain(ctx, code, err), false
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return p.judgeNoResponders(ctx, err)
	case errors.Is(err, errSilent), errors.Is(err, nats.ErrDisconnected):
		p.unknown = true
		return nil, err, true
	case errors.Is(err, nats.ErrConnectionClosed):
		p.unknown = true
		return nil, fmt.Errorf("%w: %w", ErrClosed, err), false
	case ctx.Err() != nil:
		p.unknown = true
		return nil, err, false
	}
	// Refused by permissions, which leaves nothing behind; or answered by something that is not a stream, beside
	// which there may be one.
	p.unknown = p.unknown || errors.Is(err, errNoAck)
	return nil, err, false
}

// judgeSend decides about an error of the sending itself.
func (p *publication) judgeSend(err error) (*jetstream.PubAck, error, bool) { //nolint:revive // as judge
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return nil, fmt.Errorf("%w: %d bytes with headers, and the server takes %d at most; publish less, or raise its max_payload: %w",
			ErrTooLarge, p.size(), p.c.nc.MaxPayload(), err), false
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionDraining):
		return nil, fmt.Errorf("%w: %w", ErrClosed, err), false
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrHeadersNotSupported):
		// Between two connections: nothing was sent.
		return nil, err, true
	case errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrInvalidMsg), errors.Is(err, nats.ErrBadHeaderMsg):
		return nil, &ConfigError{Field: "msg", Reason: "refused by nats.go", Err: err}, false
	}
	p.unknown = true // part of it may have left
	return nil, err, true
}

// judgeNoResponders tells a subject without a stream from a stream without a leader.
func (p *publication) judgeNoResponders(ctx context.Context, err error) (*jetstream.PubAck, error, bool) { //nolint:revive // as judge
	ctx, cancel := p.within(ctx)
	defer cancel()
	streams, lookErr := p.c.streamsOf(ctx, p.msg.Subject)
	if lookErr != nil {
		return nil, fmt.Errorf("%w: %w", err, lookErr), true
	}
	if len(streams) == 0 {
		return nil, fmt.Errorf("%w; make one with EnsureStream, or check the subject: %w", ErrNoStream, err), false
	}
	return nil, err, true
}

// lookUp learns the settings of the stream that holds the subject.
func (p *publication) lookUp(ctx context.Context) error {
	if p.stream != nil {
		return nil
	}
	ctx, cancel := p.within(ctx)
	defer cancel()
	streams, err := p.c.streamsOf(ctx, p.msg.Subject)
	if err != nil {
		return fmt.Errorf("cannot look up the stream: %w", err)
	}
	if len(streams) == 0 {
		return ErrNoStream
	}
	var info struct {
		Config jetstream.StreamConfig `json:"config"`
	}
	if err := p.c.query(ctx, "STREAM.INFO."+streams[0], nil, &info); err != nil {
		return fmt.Errorf("cannot look up stream %q: %w", streams[0], err)
	}
	p.stream = &info.Config
	return nil
}

// readBack finds out whether a conditional publish that was sent before is what makes its own
// repetition fail: the server compares expected sequences before it looks for duplicates. The message it
// would have stored is the first one of its subject behind the expected sequence.
func (p *publication) readBack(ctx context.Context, refused error) (*jetstream.PubAck, error, bool) { //nolint:revive // as judge
	ctx, cancel := p.within(ctx)
	defer cancel()
	if err := p.lookUp(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", refused, err), false
	}
	requests := []any{map[string]any{"last_by_subj": p.msg.Subject}}
	for _, name := range []string{jetstream.ExpectedLastSubjSeqHeader, jetstream.ExpectedLastSeqHeader} {
		if seq, err := strconv.ParseUint(header(p.msg.Header, name), 10, 64); err == nil {
			requests = append(requests, map[string]any{"seq": seq + 1, "next_by_subj": p.msg.Subject})
		}
	}
	for _, request := range requests {
		stored, err := p.c.leaderGet(ctx, p.stream.Name, request)
		if err != nil {
			continue
		}
		h, err := nats.DecodeHeadersMsg(stored.Header)
		if err == nil && header(h, jetstream.MsgIDHeader) == p.id {
			return &jetstream.PubAck{Stream: p.stream.Name, Sequence: stored.Sequence}, nil, false
		}
	}
	// Not to be seen: never stored, or stored and removed since. The error says that it is not known.
	return nil, refused, false
}

// explain gives the server's refusal its natty name.
func (p *publication) explain(ctx context.Context, code jetstream.ErrorCode, err error) error {
	switch code {
	case codeMsgTooLarge:
		if lookErr := p.lookUp(ctx); lookErr != nil {
			return fmt.Errorf("%w: %d bytes with headers: %w: %w", ErrTooLarge, p.size(), err, lookErr)
		}
		return fmt.Errorf("%w: %d bytes with headers, and stream %q takes %d at most; publish less, or raise its max_msg_size: %w",
			ErrTooLarge, p.size(), p.stream.Name, p.stream.MaxMsgSize, err)
	case codeStoreFailed:
		// The code also stands for a disk that fails. Only a stream that discards new messages refuses
		// them for its limits.
		if lookErr := p.lookUp(ctx); lookErr != nil || p.stream.Discard != jetstream.DiscardNew {
			return errors.Join(err, lookErr)
		}
		return fmt.Errorf("%w: %q; raise its limits, or remove messages: %w", ErrStreamFull, p.stream.Name, err)
	case codeAccountLimit, codeNoMemory, codeNoStorage:
		return fmt.Errorf("%w; raise the limits of the account or the server, or remove messages: %w", ErrStreamFull, err)
	}
	return err
}

// size is what the server's limits count: headers and data.
func (p *publication) size() int {
	return p.msg.Size() - len(p.msg.Subject) - len(p.msg.Reply)
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
