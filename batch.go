package natty

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of an atomic batch (ADR-50).
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"

	maxBatch = 1000 // the server's default limit
)

// PublishBatch stores all of msgs or none of them, in their order and with nothing in between. A nil error means that the
// server has stored all. An empty batch does nothing.
//
// The messages may have different subjects of one stream, which needs AllowAtomicPublish; 1,000 are the most. They and their
// headers are not written to; their Reply is not sent. Each gets a Nats-Msg-Id unless it has one. When an outcome is unknown
// the batch is sent again with the same ids, until ctx ends (Config.PublishTimeout when ctx has no deadline), and
// not beyond the stream's duplicate window: it is stored once. It needs the permissions that PublishMsg needs to retry,
// and for batches with ids of the caller $JS.API.STREAM.MSG.GET.*.
//
// Every error is a *PublishError with the subject and the id of the message that it is about, or of the first one. If it does not
// match ErrOutcomeUnknown, nothing is stored. To repeat a batch whose outcome is unknown, give its messages ids of your own: an
// id that the stream has already fails the whole batch. Beside the errors of PublishMsg, a *ConfigError names what is wrong
// with the batch or its stream before anything is sent, and ErrUnsupported a server before version 2.12.
func (c *Client) PublishBatch(ctx context.Context, msgs []*nats.Msg) error {
	if len(msgs) == 0 {
		return nil
	}
	b := &batch{c: c, sent: map[string]bool{}, own: true}
	if err := b.take(msgs); err != nil {
		return err
	}
	ctx, cancel := withDefaultTimeout(ctx, c.cfg.PublishTimeout)
	defer cancel()
	if err := b.prepare(ctx); err != nil {
		return b.failed(err)
	}
	return b.failed(b.run(ctx))
}

// batch is a number of messages on their way to being stored together.
type batch struct {
	c       *Client
	msgs    []*nats.Msg // copies
	own     bool        // natty made all ids: a duplicate can only be ourselves
	stream  *jetstream.StreamInfo
	first   time.Time       // when a commit was first sent
	unknown bool            // it may be stored
	sent    map[string]bool // the batch ids of all attempts
}

func (b *batch) failed(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*PublishError](err); ok { // about one of the messages
		return e
	}
	e := &PublishError{Subject: b.msgs[0].Subject, Unknown: b.unknown, Err: err}
	if len(b.sent) > 0 {
		e.MsgID = header(b.msgs[0].Header, jetstream.MsgIDHeader)
	}
	return e
}

// run sends the batch until the outcome is known, or time is up.
func (b *batch) run(ctx context.Context) error {
	var last error // why the attempt before this one did not do
	for n := 1; ; n++ {
		if err := b.ready(ctx, last); err != nil {
			return err
		}
		err := b.judge(ctx, b.attempt(ctx, attemptTimeout.base(n)))
		again, ok := errors.AsType[*againError](err)
		if !ok {
			return err
		}
		last = again.reason
		if err := sleep(ctx, retryPause.delay(n)); err != nil {
			return fmt.Errorf("%w: %w", err, last)
		}
	}
}

// ready waits for a connection, and makes sure that sending again is safe.
func (b *batch) ready(ctx context.Context, last error) error {
	if err := b.c.link.wait(ctx, time.Time{}); err != nil {
		if last != nil {
			return fmt.Errorf("%w: %w", err, last)
		}
		return err
	}
	if window := b.stream.Config.Duplicates; b.unknown && elapsed(b.first) > window-window/10 {
		return fmt.Errorf("not sent again beyond the duplicate window (%v) of stream %q: %w", window, b.stream.Config.Name, last)
	}
	return nil
}

// attempt sends all messages, and waits for the answers to the first, which says whether there is a place for the
// batch, and to the last, which commits it.
func (b *batch) attempt(ctx context.Context, timeout time.Duration) (err error) {
	id := b.name()
	b.sent[id] = true
	a := batchAttempt{b: b}
	committed := false
	defer func() {
		a.abandon()
		if err != nil && !committed {
			b.abort(id)
		}
	}()
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for i, m := range b.msgs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		commit := i == len(b.msgs)-1
		if commit {
			committed = true
			if b.first.IsZero() {
				b.first = time.Now()
			}
		}
		if err := a.send(m); err != nil {
			return &uncommittedError{err, !commit}
		}
		if commit || i == 0 {
			if err := a.await(wait, i); err != nil {
				if ctx.Err() != nil && errors.Is(err, errSilent) {
					err = ctx.Err()
				}
				return &uncommittedError{err, !commit}
			}
		}
	}
	return nil
}

// uncommittedError is how an attempt failed, and whether before the commit was sent.
type uncommittedError struct {
	err  error
	safe bool
}

func (e *uncommittedError) Error() string { return e.err.Error() }
func (e *uncommittedError) Unwrap() error { return e.err }

// batchAttempt are the messages of one attempt, and who waits for answers to them.
type batchAttempt struct {
	b       *batch
	waiters []*ackWaiter // nil: answered
	tokens  []uint64
}

func (a *batchAttempt) send(m *nats.Msg) error {
	w, token, reply := a.b.c.acks.expect(m.Subject)
	a.waiters, a.tokens = append(a.waiters, w), append(a.tokens, token)
	m.Reply = reply
	if err := a.b.c.nc.PublishMsg(m); err != nil {
		return &sendError{err}
	}
	return nil
}

// await waits for the answer to message i. That a batch is incomplete is explained by the answer to another message.
func (a *batchAttempt) await(ctx context.Context, i int) error {
	var answer ackAnswer
	select {
	case answer = <-a.waiters[i].answer:
	case <-ctx.Done():
		return errSilent
	}
	ackWaiters.Put(a.waiters[i])
	a.waiters[i] = nil
	err := a.read(answer, i == len(a.b.msgs)-1)
	if errorCode(err) != codeBatchIncomplete {
		return err
	}
	for j, w := range a.waiters {
		if w == nil {
			continue
		}
		early, ok := a.b.c.acks.abandon(w, a.tokens[j])
		a.waiters[j] = nil
		if !ok {
			continue
		}
		if reason := a.read(early, false); reason != nil && errorCode(reason) != codeBatchIncomplete {
			return fmt.Errorf("msgs[%d] (%q): %w", j, a.b.msgs[j].Subject, reason)
		}
	}
	return err
}

// read returns the error in an answer. That to a message which is not the last is empty when all is well.
func (a *batchAttempt) read(answer ackAnswer, commit bool) error {
	switch {
	case answer.err != nil:
		return answer.err
	case !commit && len(answer.msg.Data) == 0 && !isNoResponders(answer.msg):
		return nil
	}
	_, err := parseAck(answer.msg)
	return err
}

// abandon stops waiting.
func (a *batchAttempt) abandon() {
	for i, w := range a.waiters {
		if w != nil {
			a.b.c.acks.abandon(w, a.tokens[i])
		}
	}
}

// abort makes the server forget an attempt that was not committed, where it would hold a place for ten seconds: a
// commit of a kind that there is not, with a sequence that is too far, ends it.
func (b *batch) abort(id string) {
	m := nats.NewMsg(b.msgs[0].Subject)
	m.Header = nats.Header{
		headerBatchID: {id}, headerBatchSequence: {strconv.Itoa(len(b.msgs) + 2)}, headerBatchCommit: {"none"},
	}
	_ = b.c.nc.PublishMsg(m) // without a connection the server finds out by itself
}

// judge decides what an attempt's error means: an *againError if the batch is to be sent again, the final error, or nil
// if it finds that the batch is stored.
func (b *batch) judge(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	failed, ok := errors.AsType[*uncommittedError](err)
	if !ok {
		return err // ctx ended in between
	}
	err = failed.err
	switch code := errorCode(err); code {
	case 0:
	case codeBatchIncomplete, codeBatchTooManyInFlight:
		return &againError{err} // nothing of this attempt is stored
	case codeBatchDuplicate:
		if b.unknown && b.own {
			return nil // the duplicate is an attempt of ours, which was stored whole
		}
		return b.settle(ctx, fmt.Errorf("the stream has one of the ids already: %w", err))
	case codeBatchTooLarge:
		return b.settle(ctx, &ConfigError{Field: "msgs", Value: strconv.Itoa(len(b.msgs)), Reason: "are more than the server takes in one batch; publish several batches", Err: err})
	case codeStoreFailed:
		return b.explainStoreFailed(ctx, err)
	}
	p := publication{c: b.c, msg: b.msgs[0], stream: b.stream}
	p.deadline, _ = ctx.Deadline()
	_, err = p.judge(ctx, err)
	if p.unknown && !failed.safe {
		b.unknown = true
	}
	if _, again := errors.AsType[*againError](err); again || p.unknown || errors.Is(err, ErrClosed) {
		return err
	}
	return b.settle(ctx, err)
}

// explainStoreFailed tells a stream without room for the batch from one that could not store for another reason.
func (b *batch) explainStoreFailed(ctx context.Context, err error) error {
	p := publication{c: b.c, msg: b.msgs[0]}
	if lookErr := p.lookUp(ctx); lookErr != nil {
		return &againError{errors.Join(err, lookErr)}
	}
	bytes := uint64(0)
	for _, m := range b.msgs {
		one := publication{msg: m}
		bytes += uint64(len(m.Subject) + one.size() + recordSize)
	}
	config, state := &p.stream.Config, &p.stream.State
	if config.Discard == jetstream.DiscardNew {
		switch {
		case config.MaxMsgs > 0 && state.Msgs+uint64(len(b.msgs)) > uint64(config.MaxMsgs),
			config.MaxBytes > 0 && state.Bytes+bytes > uint64(config.MaxBytes), config.DiscardNewPerSubject:
			return b.settle(ctx, fmt.Errorf("%w: stream %q has no room for all %d messages; raise its limits, or remove messages: %w", ErrStreamFull, config.Name, len(b.msgs), err))
		}
	}
	return &againError{err}
}

// settle finds out, when the server refused the batch and an earlier attempt may be stored, whether it is. refused is
// returned if it is not, and if that cannot be known.
func (b *batch) settle(ctx context.Context, refused error) error {
	if !b.unknown {
		return refused
	}
	before := &b.stream.State
	request := map[string]any{"seq": before.LastSeq + 1, "next_by_subj": b.msgs[0].Subject}
	for {
		m, err := b.c.leaderGet(ctx, b.stream.Config.Name, request)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return errors.Join(refused, err)
		}
		h, _ := nats.DecodeHeadersMsg(m.Header) // none: not ours
		if b.sent[header(h, headerBatchID)] {
			return nil
		}
		request["seq"] = m.Sequence + 1
	}
	// Not to be seen. If nothing was removed from the stream since, it is not there.
	p := publication{c: b.c, msg: b.msgs[0]}
	if err := p.lookUp(ctx); err != nil {
		return errors.Join(refused, err)
	}
	after := &p.stream.State
	if p.stream.Created.Equal(b.stream.Created) && after.LastSeq-after.Msgs == before.LastSeq-before.Msgs {
		b.unknown = false
	}
	return refused
}
