package consumer

import (
	"context"
	"time"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
)

// An exclusive consumer can meet a server that is too old for it while it runs: an
// upgrade was rolled back. The durable lives on there, but the server does not know
// resets, without which messages would be skipped. So the consumer stands still, says
// so, and goes on when the server is upgraded again.

// A consumer that stands still asks about the server once in a PinnedTTL, within these
// bounds.
const (
	minUnsupportedLook = time.Second
	maxUnsupportedLook = 10 * time.Second
)

// heed notes whether the server that described the durable supports what this mode
// needs.
func (x *exclusive) heed(d durable.Durable) error {
	x.version = x.c.api.NC.ConnectedServerVersion()
	missing := jsapi.ExclusiveConsumers.MissingFrom(x.c.api.ServerVersion(d.Config.Metadata))
	switch was := x.unsupported.Swap(missing != nil); {
	case missing != nil && !was:
		missing = x.c.errorf("it stands still until the server is upgraded again: %w", missing)
		if o := x.owner.Load(); o != nil {
			o.lose(missing)
		} else {
			x.unsubscribe()
		}
		x.c.enterState(x.role(), missing)
		x.c.report(missing)
	case missing == nil && was:
		x.c.client.Log.Info("natty: the server supports exclusive consumers again",
			"stream", d.Stream, "durable", d.Name)
		return x.restart()
	}
	return nil
}

// verify makes the next step wait until the server has said which version it has, if
// this may have changed.
func (x *exclusive) verify(ctx context.Context) {
	if x.version != x.c.api.NC.ConnectedServerVersion() {
		x.s.stopLook()
		x.look(ctx, nil)
		x.verifying = true
	}
}

// lookForSupport asks about the server now and then while it is too old.
func (x *exclusive) lookForSupport(ctx context.Context) {
	every := max(minUnsupportedLook, min(x.ttl, maxUnsupportedLook))
	if x.unsupported.Load() && time.Since(x.s.sampled) >= every {
		x.look(ctx, nil)
	}
}
