package publish

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
)

// resolve finds out, when the server refuses the batch, whether an earlier attempt with
// an unknown outcome stored it. Unless it did, resolve returns refused.
func (b *batch) resolve(ctx context.Context, refused error) error {
	if !b.unknown {
		return refused
	}
	// A stream answers what came on one connection in its order. What was sent on
	// another one may still be on its way, and be stored when it arrives.
	arrived := jsapi.Code(refused) != 0 && b.pub.connection() == b.link
	stored, err := b.find(ctx)
	switch {
	case err != nil:
		return errors.Join(refused, err)
	case stored:
		return nil
	case !arrived:
		return refused
	}
	// The batch is not in the stream. If nothing was removed since, it never was.
	now, err := b.pub.StreamOf(ctx, b.msgs[0])
	if err != nil {
		return errors.Join(refused, err)
	}
	before, after := &b.stream.State, &now.State
	if now.Created.Equal(b.stream.Created) && after.LastSeq-after.Msgs == before.LastSeq-before.Msgs {
		b.unknown = false
	}
	return refused
}

// find reports whether an attempt's messages are in the stream, behind those that were
// there before the first attempt.
func (b *batch) find(ctx context.Context) (bool, error) {
	among, step := b.pub.storedSubject(b.msgs[0]), uint64(1)
	if b.stream.Config.SubjectTransform != nil {
		// They have another subject in the stream. But nothing is between them: of so
		// many messages that follow each other, it is enough to look at one.
		among, step = ">", uint64(len(b.msgs))
	}
	for seq := b.stream.State.LastSeq + step; ; {
		request := map[string]any{"seq": seq, "next_by_subj": among}
		m, err := b.pub.API.LeaderGet(ctx, b.stream.Config.Name, request)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		h, _ := nats.DecodeHeadersMsg(m.Header) // without headers it is not ours
		if b.sent[h.Get(headerBatchID)] {
			return true, nil
		}
		seq = m.Sequence + step
	}
}

// connection is another number for each connection that the Client has had.
func (pub *Publisher) connection() uint64 { return pub.API.NC.Stats().Reconnects }
