// Package account reads what a NATS account is doing: its streams and consumers, who
// leads, who has which lock, and its dead letters. Every command that shows or judges
// something gets it from here.
//
//   - account.go: the Account, and requests that may be refused
//   - snapshot.go: what there is now, and how fast it changes
//   - read.go: how a Snapshot is read
//   - lease.go: leaders and locks
//   - letters.go: dead letters
//   - findings.go and doctor_*.go: what is wrong
package account

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

// Account reads one account through one connection. It is safe for concurrent use.
type Account struct {
	client   *natty.Client
	js       jetstream.JetStream
	refusals *Refusals
	dead     []string // subjects of dead letters that the user has named

	reading sync.Mutex // held over a whole read; guards last and before
	last    map[string]sample
	before  *Snapshot

	mu    sync.Mutex // guards known
	known map[string]part
}

// New returns the Account of a client, whose connection reports to refusals. It looks
// for dead letters in streams whose last message is one, and on the subjects dead.
func New(c *natty.Client, refusals *Refusals, dead ...string) *Account {
	return &Account{
		client: c, js: c.JetStream(), refusals: refusals, dead: dead,
		last: map[string]sample{}, known: map[string]part{},
	}
}

// Refusals are the subjects to which a user may not publish, as far as the server has
// said. The server does not answer a request that it refuses, so that without them
// each would wait for its timeout.
type Refusals struct {
	mu    sync.Mutex
	calls map[*call]struct{}
}

type call struct {
	api    string // how its subject goes on after the API's prefix
	cancel context.CancelCauseFunc
}

var publishTo = regexp.MustCompile(`(?i)publish to "([^"]+)"`)

// Option returns the option for the connection.
func (r *Refusals) Option() nats.Option {
	return nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		found := publishTo.FindStringSubmatch(fmt.Sprint(err))
		if errors.Is(err, nats.ErrPermissionViolation) && found != nil {
			r.refused(found[1])
		}
	})
}

// RefusedError says that the user may not publish to a subject.
type RefusedError struct{ Subject string }

func (e *RefusedError) Error() string {
	return fmt.Sprintf("this user may not publish to %s; allow it, or use another user", e.Subject)
}

func (r *Refusals) refused(subject string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.calls {
		if strings.HasSuffix(subject, "."+c.api) {
			c.cancel(&RefusedError{subject})
		}
	}
}

// ask runs f, which sends requests to a part of the API, until one is refused.
func (a *Account) ask(ctx context.Context, api string, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &call{api, cancel}
	a.refusals.mu.Lock()
	if a.refusals.calls == nil {
		a.refusals.calls = map[*call]struct{}{}
	}
	a.refusals.calls[c] = struct{}{}
	a.refusals.mu.Unlock()
	defer func() {
		a.refusals.mu.Lock()
		delete(a.refusals.calls, c)
		a.refusals.mu.Unlock()
	}()
	err := f(ctx)
	if refused, ok := errors.AsType[*RefusedError](context.Cause(ctx)); ok && err != nil {
		return refused
	}
	return err
}

// prefix is that of the API's subjects.
func (a *Account) prefix() string {
	switch o := a.js.Options(); {
	case o.APIPrefix != "":
		return strings.TrimSuffix(o.APIPrefix, ".")
	case o.Domain != "":
		return "$JS." + o.Domain + ".API"
	}
	return "$JS.API"
}
