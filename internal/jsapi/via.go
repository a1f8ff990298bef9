package jsapi

import (
	"context"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/conn"
)

// attempt is one attempt of Persist. It ends as soon as the server refuses a request
// that nats.go has sent for it: nats.go itself would wait for an answer until ctx ends.
type attempt struct {
	link   *conn.Link
	cancel context.CancelCauseFunc

	mu   sync.Mutex // guards what follows
	sent map[string]struct{}
	stop func() // the watch for refusals; nil until Via
	over bool
}

type attemptKey struct{}

// try calls call once. A refusal of the server takes the place of the error that it led
// to.
func (a *Client) try(ctx context.Context, call func(ctx context.Context) error) error {
	if err := a.Mux.Err(); err != nil {
		return err // nats.go's inbox is refused where ours is
	}
	at := &attempt{link: a.Link}
	ctx, at.cancel = context.WithCancelCause(ctx)
	defer at.end()
	err := call(context.WithValue(ctx, attemptKey{}, at))
	if err == nil {
		return nil
	}
	if r, ok := context.Cause(ctx).(*refusedError); ok { //nolint:errorlint // set by refused, as it is
		return r.error
	}
	return err
}

// refusedError ends an attempt.
type refusedError struct{ error }

// Via returns nats.go's JetStream for one attempt of Persist, whose ctx must be given. A
// request that the server refuses then ends the attempt at once, with an error that
// names the missing permission. With another ctx it returns JS.
func (a *Client) Via(ctx context.Context) jetstream.JetStream {
	at, ok := ctx.Value(attemptKey{}).(*attempt)
	if !ok {
		return a.JS
	}
	trace := jetstream.WithClientTrace(&jetstream.ClientTrace{
		RequestSent: func(subject string, _ []byte) { at.sends(subject) },
	})
	var (
		js   jetstream.JetStream
		err  error
		opts = a.JS.Options()
	)
	if opts.Domain != "" {
		js, err = jetstream.NewWithDomain(a.NC, opts.Domain, trace)
	} else {
		js, err = jetstream.NewWithAPIPrefix(a.NC, strings.TrimSuffix(a.Prefix, "."), trace)
	}
	if err != nil {
		return a.JS
	}
	return js
}

// sends notes a subject before nats.go sends to it. What nats.go returns may send more
// when the attempt is over.
func (at *attempt) sends(subject string) {
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.over {
		return
	}
	if at.stop == nil {
		at.sent, at.stop = map[string]struct{}{}, at.link.OnRefusal(at.refused)
	}
	at.sent[subject] = struct{}{}
}

func (at *attempt) refused(r conn.Refusal) {
	if r.Subscribe {
		return
	}
	at.mu.Lock()
	defer at.mu.Unlock()
	if _, mine := at.sent[r.Subject]; mine {
		at.cancel(&refusedError{r.Err})
	}
}

func (at *attempt) end() {
	at.cancel(nil)
	at.mu.Lock()
	defer at.mu.Unlock()
	at.over = true
	if at.stop != nil {
		at.stop()
	}
}
