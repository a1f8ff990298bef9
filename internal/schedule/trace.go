package schedule

import (
	"context"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/publish"
)

// Put makes a schedule, or replaces the one with its ID.
//
// A schedule is one message on its way out, however many requests it takes to store it.
// So the Tracer follows s.Msg here, and Pub has none. The headers that it adds go to the
// message that the server publishes later.
func (k *Keeper) Put(ctx context.Context, s Schedule) error {
	asked := s.Msg.Header
	if k.Tracer == nil {
		return k.store(ctx, s, asked)
	}
	s.Msg = publish.Clone(s.Msg)
	ctx = k.Tracer.PublishStart(ctx, s.Msg)
	err := k.store(ctx, s, asked)
	k.Tracer.PublishEnd(ctx, publish.Result{Err: err})
	return err
}

// propagation are the headers of the W3C in which traces go from process to process.
var propagation = []string{"traceparent", "tracestate", "baggage"}

// withoutTrace returns the headers of a schedule without those that a Tracer has added.
// They differ each time: with them, no schedule would be the same as the one before.
// asked are the headers that the caller gave, added are those that the Tracer gives now.
func withoutTrace(h, asked, added nats.Header) nats.Header {
	plain := make(nats.Header, len(h))
	for name, values := range h {
		_, mine := asked[name]
		_, traced := added[name]
		if mine || !traced && !slices.Contains(propagation, name) {
			plain[name] = values
		}
	}
	return plain
}
