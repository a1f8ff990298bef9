// Package publish stores messages in streams and finds out what became of each: single
// publishes, atomic batches, and Writers, which do not wait for each answer. It knows
// nothing of consumers, and of keys only the prefix of their subjects.
//
//   - publish.go: one publish, from the call to its outcome
//   - message.go: the message as it is sent, and its id
//   - outcome.go: the tables that say what each error of a publish means
//   - lookup.go: questions to the server where an error alone does not say enough
//   - readback.go: whether an earlier attempt of a conditional publish was stored
//   - batch.go, batch_check.go, batch_attempt.go: atomic batches
//   - batch_resolve.go: whether a batch that is refused was stored before
//   - writer.go, writer_window.go: a Writer's messages on their way out and in its window
//   - writer_retry.go, writer_failures.go: messages sent again, and messages that failed
//   - writer_flush.go: Flush, Close and a Writer's state
//   - trace.go: who follows messages on their way out
package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/expiry"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/respmux"
	"github.com/natty-go/natty/internal/subject"
)

// Publisher stores messages in streams.
type Publisher struct {
	API     *jsapi.Client
	IDs     *IDs
	Timeout time.Duration // of a call whose ctx has no deadline
	Domain  string        // of JetStream
	Log     *slog.Logger
	Tracer  Tracer // follows each message; or nil

	// Invalid makes the error for an argument that can never work.
	Invalid func(field, value, reason string, cause error) error
	// Failed makes the error for a message that was not acknowledged.
	Failed func(subject, msgID string, unknown bool, cause error) error
}

// Publish stores data in the stream that holds subject.
func (pub *Publisher) Publish(
	ctx context.Context, subject string, data []byte, opts ...jetstream.PublishOpt,
) error {
	o := outgoings.Get().(*outgoing) //nolint:forcetypeassert,errcheck // the pool holds nothing else
	defer o.release()
	o.msg.Subject, o.msg.Data = subject, data
	p := publication{pub: pub, msg: &o.msg, idValue: o.id[:]}
	_, err := p.publish(ctx, opts)
	return err
}

// PublishMsg stores msg, which must not be used by the caller any more: see Clone.
func (pub *Publisher) PublishMsg(
	ctx context.Context, msg *nats.Msg, opts []jetstream.PublishOpt,
) (*jetstream.PubAck, error) {
	p := publication{pub: pub, msg: msg}
	return p.publish(ctx, opts)
}

// publishable refuses a subject that cannot be published to.
func (pub *Publisher) publishable(s string) error {
	if reason := subject.Unpublishable(s); reason != "" {
		return pub.Invalid("subject", s, reason, nil)
	}
	return nil
}

// notSent makes the caller's error about a message, or nil, that was not sent.
func (pub *Publisher) notSent(m *nats.Msg, err error) error {
	if m == nil {
		m = &nats.Msg{}
	}
	return pub.Failed(m.Subject, "", false, err)
}

// publication is one message on its way to being stored.
type publication struct {
	pub      *Publisher
	msg      *nats.Msg
	id       string
	idValue  []string // memory for the id in the headers; nil: to be allocated
	ownID    bool     // natty made the id, so that a duplicate is this publication's own
	unknown  bool     // the message may be stored
	cuts     cuts     // connections that the server ended
	repeat   bool     // it may be stored twice: a Writer with AtLeastOnce
	deadline time.Time
	first    time.Time             // when the message was first sent
	stream   *jetstream.StreamInfo // that stores it; nil until looked up
	looked   time.Time             // when the server's answer with stream was there
	streams  *streams              // a Writer's recent lookups, or nil
	attempts int
	last     error // why the latest attempt failed

	// waiter is set while an answer may still arrive. After an attempt without an
	// answer the next one shares it, so that a late answer to either of them counts.
	waiter *respmux.Waiter
	token  uint64
}

func (p *publication) publish(ctx context.Context, opts []jetstream.PublishOpt) (*jetstream.PubAck, error) {
	tracer := p.pub.Tracer
	if tracer != nil {
		ctx = tracer.PublishStart(ctx, p.msg)
	}
	ack, err := p.store(ctx, opts)
	if err != nil {
		ack, err = nil, p.failed(err)
	}
	if tracer != nil {
		tracer.PublishEnd(ctx, resultOf(p.id, ack, err))
	}
	return ack, err
}

func (p *publication) store(ctx context.Context, opts []jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if err := p.pub.publishable(p.msg.Subject); err != nil {
		return nil, err
	}
	if err := p.apply(opts); err != nil {
		return nil, err
	}
	if p.id = messageID(p.msg.Header); p.id == "" {
		p.id, p.ownID = p.pub.IDs.Next(), true
		if p.idValue == nil {
			p.idValue = make([]string, 1)
		}
		p.idValue[0] = p.id
		p.msg.Header[jetstream.MsgIDHeader] = p.idValue
	}
	if mutant.NoMessageID {
		delete(p.msg.Header, jetstream.MsgIDHeader)
	}
	if _, ok := ctx.Deadline(); !ok {
		p.deadline = time.Now().Add(p.pub.Timeout)
	}
	if mutant.Leaks {
		go func() { select {} }()
	}
	ack, err := p.run(ctx)
	if late := p.stopWaiting(); late != nil && err != nil {
		ack, err = late, nil
	}
	if err == nil && p.ownID {
		ack.Duplicate = false
	}
	return ack, err
}

// failed makes the caller's error.
func (p *publication) failed(err error) error {
	id := ""
	if !p.first.IsZero() {
		id = p.id
	}
	return p.pub.Failed(p.msg.Subject, id, p.unknown, err)
}

var canceledCtx = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// apply lets nats.go write its options into the headers, because options cannot be read
// outside of its package. Its PublishMsg applies them before it looks at ctx, and sends
// nothing with a canceled one.
func (p *publication) apply(opts []jetstream.PublishOpt) error {
	if len(opts) == 0 {
		return nil
	}
	if slices.ContainsFunc(opts, func(o jetstream.PublishOpt) bool { return o == nil }) {
		return p.pub.Invalid("opts", "", "holds a nil option; leave it out", nil)
	}
	_, err := p.pub.API.JS.PublishMsg(canceledCtx, p.msg, opts...)
	switch {
	case errors.Is(err, context.Canceled):
		return nil
	case err == nil: // a nats.go that this does not work with
		p.unknown = true
		return p.pub.Invalid("opts", "", "this version of nats.go sends although the context has ended; "+
			"natty does not work with it", nil)
	}
	return p.pub.Invalid("opts", "", "refused by nats.go", err)
}

// AttemptTimeout is how long an attempt waits for its answer; each one waits longer
// than the one before. The first wait is short, because only waiting reveals that no
// answer will come (a leader that died, a NoAck stream).
var AttemptTimeout = backoff.Exp{Min: 500 * time.Millisecond, Max: 4 * time.Second}

// leastAttempt is the time that an attempt needs to be of use, at a busy server too.
// With less time left, another attempt would only make a known outcome unknown.
const leastAttempt = 250 * time.Millisecond

// retryPause is the pause before the message is sent again.
var retryPause = backoff.Exp{Min: 5 * time.Millisecond, Max: 250 * time.Millisecond}

// run sends the message until its outcome is known or time is up.
func (p *publication) run(ctx context.Context) (*jetstream.PubAck, error) {
	for {
		ack, err := p.try(ctx)
		if retryReason(err) == nil {
			return ack, err
		}
		if mutant.Hurries {
			continue
		}
		if err := p.pause(ctx); err != nil {
			return nil, fmt.Errorf("%w: %w", err, p.last)
		}
		if !p.unknown && p.remaining(ctx) < leastAttempt {
			return nil, fmt.Errorf("%w: %w", context.DeadlineExceeded, p.last)
		}
	}
}

// try sends the message once. A *retryError asks for another attempt after a pause.
func (p *publication) try(ctx context.Context) (*jetstream.PubAck, error) {
	if err := p.ready(ctx); err != nil {
		return nil, err
	}
	p.attempts++
	ack, err := p.attempt(ctx, p.attemptTimeout())
	if err != nil {
		ack, err = p.classify(ctx, err)
	}
	if reason := retryReason(err); reason != nil {
		p.last = reason
	} else if p.last != nil && err != nil && errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", err, p.last)
	}
	return ack, err
}

// ready waits for a connection, and refuses to send again what could be stored twice.
func (p *publication) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.pub.API.Link.Wait(ctx, p.deadline); err != nil {
		return err
	}
	if err := p.pub.API.Mux.Err(); err != nil {
		return err // nobody could learn whether it is stored
	}
	if !p.unknown {
		return nil
	}
	if p.stream == nil {
		switch err := p.lookUpRecent(ctx); {
		case err != nil && p.repeat:
			return nil
		case err != nil:
			return fmt.Errorf("not sent again, since it cannot be known whether "+
				"the server would still notice: %w: %w", err, p.last)
		}
	}
	if config := &p.stream.Config; config.NoAck {
		return p.pub.Invalid("stream", config.Name, "acknowledges nothing (NoAck), so that nobody can know what "+
			"it stored; set no_ack to false, or publish with Conn().Publish", nil)
	}
	if p.repeat {
		return nil
	}
	return insideWindow(&p.stream.Config, p.first, p.last)
}

// insideWindow returns an error if the server may no longer recognize a repetition of
// what was first sent at that time. A tenth of the window is left for latency and clocks.
func insideWindow(stream *jetstream.StreamConfig, first time.Time, last error) error {
	if window := stream.Duplicates; expiry.Elapsed(first) > window-window/10 {
		return fmt.Errorf("not sent again beyond the duplicate window (%v) of stream %q: %w",
			window, stream.Name, last)
	}
	return nil
}

// attemptTimeout is how long the attempt that begins now may wait for its answer.
func (p *publication) attemptTimeout() time.Duration {
	timeout := AttemptTimeout.Base(p.attempts)
	if mutant.Hurries {
		return time.Millisecond / 10
	}
	if p.repeat { // sending again would store a second copy of what is only late
		timeout = AttemptTimeout.Max
	}
	if !p.deadline.IsZero() {
		timeout = min(timeout, time.Until(p.deadline))
	}
	return timeout
}

// attempt sends the message and waits for an answer.
func (p *publication) attempt(ctx context.Context, timeout time.Duration) (*jetstream.PubAck, error) {
	if p.first.IsZero() {
		p.first = time.Now()
	}
	if p.waiter == nil {
		p.waiter, p.token, p.msg.Reply = p.pub.API.Mux.Expect(p.msg.Subject, size(p.msg))
	}
	select {
	case a := <-p.waiter.Answer: // to an earlier attempt
		return p.receive(a)
	default:
	}
	if err := p.pub.API.NC.PublishMsg(p.msg); err != nil {
		return nil, &sendError{err}
	}
	timer := GetTimer(timeout)
	defer PutTimer(timer)
	select {
	case a := <-p.waiter.Answer:
		return p.receive(a)
	case <-timer.C:
		return nil, errSilent
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// receive reads the one answer that a waiter gets.
func (p *publication) receive(a respmux.Answer) (*jetstream.PubAck, error) {
	p.waiter.Free()
	p.waiter = nil
	if a.Err != nil {
		p.cuts.behind = a.Behind
		return nil, a.Err
	}
	return respmux.ParseAck(a.Msg)
}

// stopWaiting abandons the waiter. It returns an acknowledgement that has arrived
// meanwhile, or nil.
func (p *publication) stopWaiting() *jetstream.PubAck {
	if p.waiter == nil {
		return nil
	}
	a, ok := p.pub.API.Mux.Abandon(p.waiter, p.token)
	p.waiter = nil
	if !ok || a.Err != nil {
		return nil
	}
	ack, _ := respmux.ParseAck(a.Msg) // nil with an error
	return ack
}

// remaining is how much time is left. store sets p.deadline where ctx has none.
func (p *publication) remaining(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok || !p.deadline.IsZero() && p.deadline.Before(deadline) {
		deadline = p.deadline
	}
	return time.Until(deadline)
}

// within bounds ctx by the publication's deadline.
func (p *publication) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.deadline.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, p.deadline)
}

func (p *publication) pause(ctx context.Context) error {
	ctx, cancel := p.within(ctx)
	defer cancel()
	return retryPause.Wait(ctx, p.attempts)
}

var timers = sync.Pool{New: func() any { return time.NewTimer(time.Hour) }}

// GetTimer returns a pooled timer that fires after d. See PutTimer.
func GetTimer(d time.Duration) *time.Timer {
	t := timers.Get().(*time.Timer) //nolint:forcetypeassert,errcheck // the pool holds nothing else
	t.Reset(d)
	return t
}

// PutTimer returns a timer to the pool. Since Go 1.23 a stopped timer's channel is empty.
func PutTimer(t *time.Timer) {
	t.Stop()
	timers.Put(t)
}
