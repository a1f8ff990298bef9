package respmux

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// ErrInbox says that the server refuses the subscription for answers, so that none can
// come. That ends when somebody grants the permission.
var ErrInbox = errors.New("the server refuses the subscription for its answers")

// Inbox is a subscription for answers. When the server refuses it, the Inbox subscribes
// again until the server accepts it. nats.go does not do that on a living connection.
type Inbox struct {
	nc      *nats.Conn
	subject string
	receive nats.MsgHandler
	changed func(err error)

	err      atomic.Pointer[error] // why there is no subscription, or nil
	refusals atomic.Uint64         // how many there were

	life context.Context //nolint:containedctx // ends with Stop
	end  context.CancelFunc

	// mu guards what follows.
	mu       sync.Mutex
	sub      *nats.Subscription
	retrying bool // a goroutine subscribes again
}

// Subscribe makes an Inbox. It calls changed with an ErrInbox once the server has
// refused the subscription, and with nil once it has accepted it again.
func Subscribe(nc *nats.Conn, subject string, receive nats.MsgHandler, changed func(err error)) (*Inbox, error) {
	in := &Inbox{nc: nc, subject: subject, receive: receive, changed: changed}
	in.life, in.end = context.WithCancel(context.Background())
	return in, in.subscribe()
}

// subscribe replaces the subscription.
func (in *Inbox) subscribe() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.life.Err() != nil {
		return nil
	}
	if in.sub != nil {
		_ = in.sub.Unsubscribe() // fails only on a closed connection
	}
	sub, err := in.nc.Subscribe(in.subject, in.receive)
	if err != nil {
		return err
	}
	in.sub = sub
	// Those who ask bound what can arrive. A limit here could only lose answers.
	return sub.SetPendingLimits(-1, -1)
}

// Err returns an ErrInbox while the server refuses the subscription. It takes no lock.
func (in *Inbox) Err() error {
	if err := in.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Refused notes that the server has refused a subscription to a subject. The subject is
// empty if the server did not say which: then a new subscription shows whether it was
// this one.
func (in *Inbox) Refused(subject string, err error) {
	if subject != "" && subject != in.subject {
		return
	}
	in.refusals.Add(1)
	in.mu.Lock()
	started := !in.retrying && in.life.Err() == nil
	in.retrying = in.retrying || started
	in.mu.Unlock()
	if started {
		go in.retry(subject != "", err)
	}
}

const (
	// Pauses between attempts to subscribe grow between these.
	minInboxPause, maxInboxPause = 50 * time.Millisecond, 5 * time.Second
	// refusalGrace is how long a refusal takes at most from nats.go's reader to Refused.
	refusalGrace = 50 * time.Millisecond
)

// retry subscribes until the server accepts it. certain says that the server has refused
// this subscription.
func (in *Inbox) retry(certain bool, err error) {
	if certain {
		in.setErr(err)
	}
	for pause := minInboxPause; ; pause = min(2*pause, maxInboxPause) {
		in.sleep(pause + rand.N(pause/4))
		before := in.refusals.Load()
		accepted := in.subscribe() == nil && in.flush() == nil
		in.sleep(refusalGrace)
		if in.life.Err() != nil {
			return
		}
		in.mu.Lock()
		refused := in.refusals.Load() != before
		over := accepted && !refused
		in.retrying = !over
		in.mu.Unlock()
		if over {
			in.setErr(nil)
			return
		}
		if refused {
			in.setErr(err)
		}
	}
}

// flush waits until the server has read the subscription.
func (in *Inbox) flush() error {
	ctx, cancel := context.WithTimeout(in.life, maxInboxPause)
	defer cancel()
	return in.nc.FlushWithContext(ctx)
}

func (in *Inbox) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-in.life.Done():
	}
}

// setErr notes what the server says, and passes on what is new.
func (in *Inbox) setErr(err error) {
	if (err == nil) == (in.Err() == nil) {
		return
	}
	if err == nil {
		in.err.Store(nil)
	} else {
		err = fmt.Errorf("%w; allow this user to subscribe to %q: %w", ErrInbox, in.permission(), err)
		in.err.Store(&err)
	}
	in.changed(err)
}

// permission is the subject to allow: the part at the end is another one for each inbox.
func (in *Inbox) permission() string {
	tokens := strings.Split(in.subject, ".")
	return strings.Join(append(tokens[:max(1, len(tokens)-2)], ">"), ".")
}

// End stops subscribing again, and returns the subscription, which is the caller's now.
func (in *Inbox) End() *nats.Subscription {
	in.end()
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.sub
}
