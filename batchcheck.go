package natty

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// take copies the messages, gives them ids and checks what can be checked without the server.
func (b *batch) take(msgs []*nats.Msg) error {
	wrong := func(i int, err error) error {
		e := &PublishError{Err: err}
		if m := msgs[i]; m != nil {
			e.Subject = m.Subject
		}
		return e
	}
	if len(msgs) > maxBatch {
		return wrong(0, &ConfigError{Field: "msgs", Value: strconv.Itoa(len(msgs)), Reason: fmt.Sprintf("are more than the %d of one batch; publish several batches", maxBatch)})
	}
	seen, wrote := make(map[string]int, len(msgs)), make(map[string]int, len(msgs))
	for i, m := range msgs {
		if m == nil {
			return wrong(i, &ConfigError{Field: fmt.Sprintf("msgs[%d]", i), Reason: "is nil; give a message"})
		}
		if err := publishable(m.Subject); err != nil {
			return wrong(i, fmt.Errorf("msgs[%d]: %w", i, err))
		}
		if header(m.Header, jetstream.ExpectedLastMsgIDHeader) != "" {
			return wrong(i, &ConfigError{Field: fmt.Sprintf("msgs[%d]", i), Reason: "has the header " + jetstream.ExpectedLastMsgIDHeader + ", which batches cannot have; expect a sequence"})
		}
		if reason := expectsInVain(m, i, wrote); reason != "" {
			return wrong(i, &ConfigError{Field: fmt.Sprintf("msgs[%d]", i), Reason: reason})
		}
		wrote[m.Subject] = i
		m = copyForSending(m)
		id := header(m.Header, jetstream.MsgIDHeader)
		if id == "" {
			id = b.c.ids.next()
			m.Header[jetstream.MsgIDHeader] = []string{id}
		} else {
			b.own = false
		}
		if other, ok := seen[id]; ok {
			return wrong(i, &ConfigError{Field: fmt.Sprintf("msgs[%d]", i), Value: id, Reason: fmt.Sprintf("is the id of msgs[%d] too, and the server refuses such a batch; give each message its own", other)})
		}
		seen[id] = i
		m.Header[headerBatchSequence] = []string{strconv.Itoa(i + 1)}
		delete(m.Header, headerBatchCommit)
		b.msgs = append(b.msgs, m)
	}
	b.msgs[len(b.msgs)-1].Header[headerBatchCommit] = []string{"1"}
	b.name()
	return nil
}

// expectsInVain says which expectation of message i the server refuses whatever the stream holds, with the code of a conflict that
// passes. wrote are the subjects of the messages before it, and the last of them.
func expectsInVain(m *nats.Msg, i int, wrote map[string]int) string {
	if header(m.Header, jetstream.ExpectedLastSeqHeader) != "" && i > 0 {
		return "expects a last sequence of the stream, which only the first message of a batch can; expect it there"
	}
	if header(m.Header, jetstream.ExpectedLastSubjSeqHeader) == "" {
		return ""
	}
	of := cmp.Or(header(m.Header, jetstream.ExpectedLastSubjSeqSubjHeader), m.Subject)
	if other, ok := wrote[of]; ok {
		return fmt.Sprintf("expects a last sequence of %q, which msgs[%d] writes; expect it there", of, other)
	}
	return ""
}

// name gives the batch another id. An attempt that has failed must not be mixed up with the next one.
func (b *batch) name() string {
	id := b.c.ids.next()
	for _, m := range b.msgs {
		m.Header[headerBatchID] = []string{id}
	}
	return id
}

// prepare looks the stream up, and refuses what it would refuse: a batch that was begun holds one of the stream's 50 places.
func (b *batch) prepare(ctx context.Context) error {
	if err := b.c.link.wait(ctx, time.Time{}); err != nil {
		return err
	}
	p := publication{c: b.c, msg: b.msgs[0]}
	if err := p.lookUp(ctx); err != nil {
		return err
	}
	b.stream = p.stream
	config := &p.stream.Config
	switch {
	case config.NoAck:
		return &ConfigError{Field: "stream", Value: config.Name, Reason: "acknowledges nothing (NoAck), so that nobody can know what it stored; set no_ack to false"}
	case !config.AllowAtomicPublish:
		if err := atomicBatches.missingFrom(b.c.serverVersion(config.Metadata)); err != nil {
			return err
		}
		return &ConfigError{Field: "stream", Value: config.Name, Reason: "takes no atomic batches; set AllowAtomicPublish with EnsureStream"}
	}
	for i, m := range b.msgs {
		if err := b.fits(ctx, m); err != nil {
			return &PublishError{Subject: m.Subject, Err: fmt.Errorf("msgs[%d]: %w", i, err)}
		}
	}
	return nil
}

// fits checks one message against the stream and its limits.
func (b *batch) fits(ctx context.Context, m *nats.Msg) error {
	config := &b.stream.Config
	if !slices.ContainsFunc(config.Subjects, func(s string) bool { return covers(s, m.Subject) }) {
		streams, err := b.c.streamsOf(ctx, m.Subject)
		if err != nil {
			return fmt.Errorf("cannot look up the stream: %w", err)
		}
		if len(streams) == 0 {
			return fmt.Errorf("%w; make one with EnsureStream, or check the subject", ErrNoStream)
		}
		if streams[0] != config.Name {
			return &ConfigError{Field: "subject", Value: m.Subject, Reason: fmt.Sprintf("is in stream %s and the first message's in %s; a batch goes to one stream", streams[0], config.Name)}
		}
	}
	p := publication{msg: m}
	size := p.size()
	if most := b.c.nc.MaxPayload(); int64(size) > most {
		return fmt.Errorf("%w: %d bytes with headers, and the server takes %d at most; publish less, or raise its max_payload", ErrTooLarge, size, most)
	}
	if most := config.MaxMsgSize; most > 0 && size > int(most) {
		return fmt.Errorf("%w: %d bytes with headers, and stream %q takes %d at most; publish less, or raise its max_msg_size", ErrTooLarge, size, config.Name, most)
	}
	return nil
}
