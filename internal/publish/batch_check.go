package publish

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/subject"
)

// take copies the messages, gives them ids, and checks what needs no server.
func (b *batch) take(msgs []*nats.Msg) error {
	if len(msgs) > maxBatch {
		return b.pub.notSent(msgs[0], b.pub.Invalid("msgs", strconv.Itoa(len(msgs)),
			fmt.Sprintf("are more than the %d of one batch; publish several batches", maxBatch), nil))
	}
	ids, subjects := make(map[string]int, len(msgs)), make(map[string]int, len(msgs))
	for i, m := range msgs {
		if err := b.check(i, m, subjects); err != nil {
			return b.pub.notSent(m, err)
		}
		subjects[m.Subject] = i
		m = Clone(m)
		id := messageID(m.Header)
		if id == "" {
			id = b.pub.IDs.Next()
		} else {
			b.ownIDs = false
		}
		m.Header[jetstream.MsgIDHeader] = []string{id}
		if other, ok := ids[id]; ok {
			return b.pub.notSent(m, b.pub.Invalid(fmt.Sprintf("msgs[%d]", i), id, fmt.Sprintf(
				"is the id of msgs[%d] too, and the server refuses such a batch; give each message its own", other), nil))
		}
		ids[id] = i
		m.Header[headerBatchSequence] = []string{strconv.Itoa(i + 1)}
		delete(m.Header, headerBatchCommit)
		b.msgs = append(b.msgs, m)
	}
	if mutant.HalfBatch {
		b.msgs = b.msgs[:(len(b.msgs)+1)/2]
	}
	b.msgs[len(b.msgs)-1].Header[headerBatchCommit] = []string{"1"}
	b.renew()
	return nil
}

// check refuses message i if it cannot be a part of any batch. subjects are those of
// the messages before it, each with its latest message.
func (b *batch) check(i int, m *nats.Msg, subjects map[string]int) error {
	name := fmt.Sprintf("msgs[%d]", i)
	if m == nil {
		return b.pub.Invalid(name, "", "is nil; give a message", nil)
	}
	if err := b.pub.publishable(m.Subject); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if header(m.Header, jetstream.ExpectedLastMsgIDHeader) != "" {
		return b.pub.Invalid(name, "", "has the header "+jetstream.ExpectedLastMsgIDHeader+
			", which batches cannot have; expect a sequence", nil)
	}
	if reason := impossibleExpectation(i, m, subjects); reason != "" {
		return b.pub.Invalid(name, "", reason, nil)
	}
	return nil
}

// impossibleExpectation says which expectation of message i no state of the stream can
// fulfil. The server would refuse it with a code that is temporary for other messages.
func impossibleExpectation(i int, m *nats.Msg, subjects map[string]int) string {
	if header(m.Header, jetstream.ExpectedLastSeqHeader) != "" && i > 0 {
		return "expects a last sequence of the stream, which only the first message of a batch can; expect it there"
	}
	if header(m.Header, jetstream.ExpectedLastSubjSeqHeader) == "" {
		return ""
	}
	of := cmp.Or(header(m.Header, jetstream.ExpectedLastSubjSeqSubjHeader), m.Subject)
	if other, ok := subjects[of]; ok {
		return fmt.Sprintf("expects a last sequence of %q, which msgs[%d] writes; expect it there", of, other)
	}
	return ""
}

// renew gives the batch another id, so that the server does not mix up two attempts.
func (b *batch) renew() string {
	id := b.pub.IDs.Next()
	for _, m := range b.msgs {
		m.Header[headerBatchID] = []string{id}
	}
	return id
}

// prepare looks up the stream and refuses what the server would refuse: a batch that
// fails halfway takes one of the 50 places that a stream has for batches.
func (b *batch) prepare(ctx context.Context) (err error) {
	if err := b.pub.API.Link.Wait(ctx, time.Time{}); err != nil {
		return err
	}
	if b.stream, err = b.pub.StreamOf(ctx, b.msgs[0]); err != nil {
		return err
	}
	config := &b.stream.Config
	switch {
	case config.NoAck:
		return b.pub.Invalid("stream", config.Name,
			"acknowledges nothing (NoAck), so that nobody can know what it stored; set no_ack to false", nil)
	case !config.AllowAtomicPublish:
		if err := jsapi.AtomicBatches.MissingFrom(b.pub.API.ServerVersion(config.Metadata)); err != nil {
			return err
		}
		return b.pub.Invalid("stream", config.Name,
			"takes no atomic batches; set AllowAtomicPublish with EnsureStream", nil)
	}
	return nil
}

// fit refuses a message that the stream would refuse.
func (b *batch) fit(ctx context.Context) error {
	for i, m := range b.msgs {
		if err := b.fits(ctx, m); err != nil {
			return b.pub.notSent(m, fmt.Errorf("msgs[%d]: %w", i, err))
		}
	}
	return nil
}

// fits checks a message against the stream and its limits.
func (b *batch) fits(ctx context.Context, m *nats.Msg) error {
	config := &b.stream.Config
	if !subject.AnyCovers(config.Subjects, m.Subject) {
		name, err := b.pub.streamName(ctx, m.Subject)
		if err != nil {
			return err
		}
		if name != config.Name {
			return b.pub.Invalid("subject", m.Subject, fmt.Sprintf("is in stream %s and the first message's in %s; "+
				"a batch goes to one stream", name, config.Name), nil)
		}
	}
	n := size(m)
	if limit := b.pub.API.NC.MaxPayload(); int64(n) > limit {
		return tooLarge(n, "the server", limit, "max_payload")
	}
	if limit := config.MaxMsgSize; limit > 0 && n > int(limit) {
		return tooLargeFor(config, n)
	}
	if n := n - len(m.Data); n > MaxHeader { // the server does not say whose headers
		return fmt.Errorf("%w: its headers have %d bytes, and a stream stores %d; carry less in them",
			ErrTooLarge, n, MaxHeader)
	}
	return nil
}
