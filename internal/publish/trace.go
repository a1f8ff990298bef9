package publish

import (
	"context"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Tracer follows messages on their way out; see natty.Tracer.
type Tracer interface {
	PublishStart(ctx context.Context, msg *nats.Msg) context.Context
	PublishEnd(ctx context.Context, r Result)
}

// Result is what became of a message; see natty.PublishResult.
type Result struct {
	MsgID     string
	Stream    string
	Sequence  uint64
	Duplicate bool
	Err       error
}

// resultOf is the result of a message with this id.
func resultOf(id string, ack *jetstream.PubAck, err error) Result {
	r := Result{MsgID: id, Err: err}
	if ack != nil {
		r.Stream, r.Sequence, r.Duplicate = ack.Stream, ack.Sequence, ack.Duplicate
	}
	return r
}

// trace begins to follow the messages of a batch. It returns copies, to which the Tracer
// may add headers, and what ends it.
func (b *batch) trace(ctx context.Context, msgs []*nats.Msg) (copies []*nats.Msg, end func(error)) {
	copies, all := make([]*nats.Msg, len(msgs)), make([]context.Context, len(msgs))
	for i, m := range msgs {
		if m != nil {
			copies[i] = Clone(m)
			all[i] = b.pub.Tracer.PublishStart(ctx, copies[i]) //nolint:fatcontext // one for each message
		}
	}
	return copies, func(err error) {
		for i, m := range copies {
			if m == nil {
				continue
			}
			if len(b.sent) > 0 {
				m = b.msgs[i] // it has an id
			}
			r := resultOf(header(m.Header, jetstream.MsgIDHeader), b.ack, err)
			if b.ack != nil { // it is that of the last one, and nothing else is between them
				r.Sequence -= uint64(len(copies) - 1 - i)
			}
			b.pub.Tracer.PublishEnd(all[i], r)
		}
	}
}

// result is that of a Writer's message that the server acknowledged.
func (s *slot) result(ack *jetstream.PubAck) Result {
	r := resultOf(s.id, ack, nil)
	r.Duplicate = r.Duplicate && !s.ownID
	return r
}

// traced is the outcome of a Writer's message that a Tracer follows.
type traced struct {
	ctx    context.Context //nolint:containedctx // it says which message
	result Result
}

// concludeLocked notes the outcome of a message that a Tracer follows, until unlock.
func (w *Writer) concludeLocked(s *slot, r Result) {
	if s.trace != nil {
		w.traced = append(w.traced, traced{s.trace, r})
		s.trace = nil
	}
}

// unlock unlocks w.mu, and tells the Tracer of outcomes. It needs w.mu free for that,
// because a Tracer may use the Writer. Close waits for it.
func (w *Writer) unlock() {
	all := w.traced
	if len(all) == 0 {
		w.mu.Unlock()
		return
	}
	w.traced = nil
	w.tracing++
	w.mu.Unlock()
	for _, t := range all {
		w.pub.Tracer.PublishEnd(t.ctx, t.result)
	}
	w.mu.Lock()
	w.tracing--
	w.idleLocked()
	w.mu.Unlock()
}
