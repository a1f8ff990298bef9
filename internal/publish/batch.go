package publish

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/jsapi"
)

// Headers of an atomic batch (ADR-50).
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"

	maxBatch = 1000 // the server's default limit
)

// PublishBatch stores all of msgs or none of them.
func (pub *Publisher) PublishBatch(ctx context.Context, msgs []*nats.Msg) error {
	b := &batch{pub: pub, sent: map[string]bool{}, ownIDs: true}
	if pub.Tracer == nil {
		return b.publish(ctx, msgs)
	}
	msgs, end := b.trace(ctx, msgs)
	err := b.publish(ctx, msgs)
	end(err)
	return err
}

func (b *batch) publish(ctx context.Context, msgs []*nats.Msg) error {
	if len(msgs) == 0 {
		return nil
	}
	if err := b.take(msgs); err != nil {
		return err
	}
	ctx, cancel := jsapi.WithTimeout(ctx, b.pub.Timeout)
	defer cancel()
	if err := b.prepare(ctx); err != nil {
		return b.failed(err)
	}
	if err := b.fit(ctx); err != nil {
		return err
	}
	return b.failed(b.run(ctx))
}

// batch is a number of messages on their way to being stored together.
type batch struct {
	pub     *Publisher
	msgs    []*nats.Msg           // copies
	ownIDs  bool                  // natty made all ids, so that a duplicate is this batch's own
	stream  *jetstream.StreamInfo // as it was before the first attempt
	first   time.Time             // when a commit was first sent
	unknown bool                  // the batch may be stored
	link    uint64                // the connection of the first attempt that made it so
	sent    map[string]bool       // the batch ids of all attempts
	ack     *jetstream.PubAck     // of the last message, unless the answer was lost
}

// failed makes the caller's error about the batch. It names the first message.
func (b *batch) failed(err error) error {
	if err == nil {
		return nil
	}
	id := ""
	if len(b.sent) > 0 {
		id = header(b.msgs[0].Header, jetstream.MsgIDHeader)
	}
	return b.pub.Failed(b.msgs[0].Subject, id, b.unknown, err)
}

// batchTimeout is how long an attempt waits for each of its two answers, from when the
// server has read what it answers. It grows with the backlog of a server in trouble: a
// batch that is abandoned has to begin again at the backlog's end.
var batchTimeout = backoff.Exp{Min: AttemptTimeout.Min, Max: 30 * time.Second}

// run sends the batch until its outcome is known or time is up.
func (b *batch) run(ctx context.Context) error {
	var last error // why the latest attempt failed
	for n := 1; ; n++ {
		if err := b.ready(ctx, last); err != nil {
			return err
		}
		committed, err := b.attempt(ctx, batchTimeout.Base(n))
		if err != nil {
			err = b.classify(ctx, committed, err)
		}
		if last = retryReason(err); last == nil {
			return err
		}
		if err := retryPause.Wait(ctx, n); err != nil {
			return fmt.Errorf("%w: %w", err, last)
		}
	}
}

// ready waits for a connection, and refuses to send again what could be stored twice.
func (b *batch) ready(ctx context.Context, last error) error {
	if err := b.pub.API.Link.Wait(ctx, time.Time{}); err != nil {
		return jsapi.Because(err, last)
	}
	if !b.unknown {
		return nil
	}
	return insideWindow(&b.stream.Config, b.first, last)
}

// attempt sends all messages. It waits for two answers: to the first message, which
// says whether the stream has a place for the batch, and to the last, which commits it.
// The server stores nothing before it is sent the commit.
func (b *batch) attempt(ctx context.Context, timeout time.Duration) (committed bool, err error) {
	id := b.renew()
	b.sent[id] = true
	if !b.unknown {
		b.link = b.pub.connection()
	}
	a := batchAttempt{b: b}
	defer func() {
		a.abandon()
		if err != nil && !committed {
			b.abort(id)
		}
	}()
	for i, m := range b.msgs {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if committed = i == len(b.msgs)-1; committed && b.first.IsZero() {
			b.first = time.Now()
		}
		if err = a.send(m); err == nil && (committed || i == 0) {
			err = a.await(ctx, i, timeout)
		}
		if err != nil {
			return committed, err
		}
	}
	return true, nil
}

// classify decides what an attempt's error means. It returns a *retryError if the batch
// is to be sent again, else the final error, or nil if it finds that the batch is stored.
func (b *batch) classify(ctx context.Context, committed bool, err error) error {
	code := jsapi.Code(err)
	switch is := batchCodes[code]; {
	case is == passing:
		return &retryError{err}
	case is == conflict && b.unknown && b.ownIDs:
		return nil // an earlier attempt of this batch was stored
	case is == conflict:
		return b.resolve(ctx, fmt.Errorf("the stream has one of the ids already: %w", err))
	case code == jsapi.CodeBatchTooLarge:
		return b.resolve(ctx, b.pub.Invalid("msgs", strconv.Itoa(len(b.msgs)),
			"are more than the server takes in one batch; publish several batches", err))
	case outcomeOfCode(err) == full:
		return b.explainStoreFailed(ctx, err)
	}
	p := publication{pub: b.pub, msg: b.msgs[0], stream: b.stream}
	p.deadline, _ = ctx.Deadline()
	_, err = p.classify(ctx, err)
	if p.unknown && committed {
		b.unknown = true
	}
	if retryReason(err) != nil || p.unknown || errors.Is(err, conn.ErrClosed) {
		return err
	}
	return b.resolve(ctx, err)
}

// explainStoreFailed distinguishes a stream without room for the batch from other
// failures to store.
func (b *batch) explainStoreFailed(ctx context.Context, err error) error {
	stream, lookErr := b.pub.StreamOf(ctx, b.msgs[0])
	if lookErr != nil {
		return &retryError{errors.Join(err, lookErr)}
	}
	bytes := uint64(0)
	for _, m := range b.msgs {
		bytes += recordSize(m.Subject, m)
	}
	// How full the other messages' subjects are was not asked for.
	perSubject := stream.Config.Discard == jetstream.DiscardNew && stream.Config.DiscardNewPerSubject
	if perSubject || limitReached(stream, b.msgs[0].Subject, uint64(len(b.msgs)), bytes) != "" {
		return b.resolve(ctx, fmt.Errorf("%w: stream %q has no room for all %d messages; "+
			"raise its limits, or remove messages: %w", ErrStreamFull, stream.Config.Name, len(b.msgs), err))
	}
	return &retryError{err}
}
