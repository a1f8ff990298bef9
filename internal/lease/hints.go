package lease

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/kv"
)

// ear hears the writes of a key, as hints: from the server, and from this process. A
// hint may get lost, and may be of a write that the server refuses.
type ear struct {
	hints   chan *nats.Msg // a nil one says that refused has changed
	domain  bool           // there is no subscription
	refused atomic.Pointer[string]
	close   func()
}

// listen returns an ear for the writes of k.
func (k *Key) listen() (*ear, error) {
	e, api, target := newEar(), k.kv().API, k.kv().KeyTarget(k.Bucket, k.Key)
	leave := k.keys.enter(k.Subject, e)
	// A leaf node delivers what is published to a subject of another domain's API to
	// subscribers at the leaf, and then no more to the domain itself: a subscription
	// would swallow the writes of all clients there. And at the domain's own servers it
	// hears nothing.
	if e.domain = strings.HasPrefix(target, "$JS."); e.domain {
		e.close = leave
		return e, nil
	}
	ignore := api.Link.OnRefusal(func(r conn.Refusal) {
		if r.Subscribe && (r.Subject == target || r.Subject == "") {
			why := r.Err.Error()
			e.refused.Store(&why)
			e.hear(nil)
		}
	})
	sub, err := api.NC.Subscribe(target, e.hear)
	if err != nil {
		leave()
		ignore()
		return nil, fmt.Errorf("%w: %w", conn.ErrClosed, err)
	}
	e.close = func() {
		leave()
		ignore()
		_ = sub.Unsubscribe() // fails only on a closed connection, where it has no purpose
	}
	return e, nil
}

func newEar() *ear { return &ear{hints: make(chan *nats.Msg, 64)} }

func (e *ear) hear(m *nats.Msg) {
	select {
	case e.hints <- m:
	default: // there is enough to look at
	}
}

// deaf says why the server's hints cannot come; "" if they can.
func (e *ear) deaf() string {
	if e.domain {
		return "a key of another JetStream domain cannot be listened to"
	}
	if why := e.refused.Load(); why != nil {
		return "the server refuses the subscription: " + *why
	}
	return ""
}

// enter lets an ear hear the writes that this process makes under a subject. A
// connection with NoEcho hears of them in no other way.
func (ks *Keys) enter(subject string, e *ear) (leave func()) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	ks.waiting[subject] = append(ks.waiting[subject], e)
	return func() {
		ks.mu.Lock()
		defer ks.mu.Unlock()
		left := slices.DeleteFunc(ks.waiting[subject], func(x *ear) bool { return x == e })
		if ks.waiting[subject] = left; len(left) == 0 {
			delete(ks.waiting, subject)
		}
	}
}

// tell lets those who wait in this process hear of a write.
func (ks *Keys) tell(subject string, w *kv.Write) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if len(ks.waiting[subject]) == 0 {
		return
	}
	hint := &nats.Msg{Header: nats.Header{
		headerLease:                         {w.ID},
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(w.Expected, 10)},
	}}
	if op := w.Header.Get(kv.HeaderOperation); op != "" {
		hint.Header.Set(kv.HeaderOperation, op)
	}
	for _, e := range ks.waiting[subject] {
		e.hear(hint)
	}
}
