package publish

import (
	"context"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
)

// readBack finds out whether an earlier attempt of a conditional publish succeeded and
// so broke the expectation of its own repetition. The message would then be the first
// one of its subject behind the expected sequence.
func (p *publication) readBack(ctx context.Context, refused error) (*jetstream.PubAck, error) {
	ctx, cancel := p.within(ctx)
	defer cancel()
	stored := p.pub.storedSubject(p.msg)
	requests := []any{map[string]any{"last_by_subj": stored}}
	seq, err := strconv.ParseUint(header(p.msg.Header, jetstream.ExpectedLastSubjSeqHeader), 10, 64)
	if err == nil {
		requests = append(requests, map[string]any{"seq": seq + 1, "next_by_subj": stored})
	}
	next, err := strconv.ParseUint(header(p.msg.Header, jetstream.ExpectedLastSeqHeader), 10, 64)
	exact := err == nil
	next++
	if exact {
		requests = append(requests, map[string]any{"seq": next})
	}
	for _, request := range requests {
		m, err := p.pub.API.LeaderGet(ctx, p.stream.Config.Name, request)
		if err != nil {
			continue
		}
		same, own := p.isOwn(m)
		if own {
			return &jetstream.PubAck{Stream: p.stream.Config.Name, Domain: p.pub.Domain, Sequence: m.Sequence}, nil
		}
		if exact && m.Sequence == next && !same {
			p.unknown = false // another message has the only place where it could be
		}
	}
	// It was never stored, or it has been removed since: the outcome remains unknown
	// unless its place is taken.
	return nil, refused
}

// isOwn reports whether a stored message has the id of p's message, and whether it is
// that message itself. A caller may have used the id before: the server forgets it after
// the duplicate window.
func (p *publication) isOwn(m *jsapi.StoredMsg) (same, own bool) {
	h, _ := nats.DecodeHeadersMsg(m.Header) // without headers it is not ours
	same = h.Get(jetstream.MsgIDHeader) == p.id
	return same, same && (p.ownID || !m.Time.Before(p.firstAtServer()))
}

// firstAtServer is when p's message was first sent, or a little earlier, by the clock of
// the server that p.stream came from. It is early by as long as that answer took.
func (p *publication) firstAtServer() time.Time {
	return p.stream.TimeStamp.Add(p.first.Sub(p.looked))
}
