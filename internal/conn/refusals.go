package conn

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// Refusal is the server's notice that it ignored something that was sent.
type Refusal struct {
	// Subscribe says that a subscription was refused, and not a message.
	Subscribe bool
	// Subject is the subject of the message or the subscription. It is empty if the
	// server does not say which subscription it was: max_subs is exceeded.
	Subject string
	Err     error
}

// The texts are the protocol here: a notice has no code.
var (
	deniedPublish   = regexp.MustCompile(`(?i)permissions violation for publish to "([^"]+)"`)
	deniedSubscribe = regexp.MustCompile(`(?i)permissions violation for subscription to "([^"]+)"`)
)

// refusalOf reads an error that nats.go reports.
func refusalOf(err error) (r Refusal, ok bool) {
	if errors.Is(err, nats.ErrMaxSubscriptionsExceeded) {
		return Refusal{Subscribe: true, Err: err}, true
	}
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return r, false
	}
	if m := deniedPublish.FindStringSubmatch(err.Error()); m != nil {
		return Refusal{Subject: m[1], Err: err}, true
	}
	if m := deniedSubscribe.FindStringSubmatch(err.Error()); m != nil {
		return Refusal{Subscribe: true, Subject: m[1], Err: err}, true
	}
	return r, false
}

// kind is what refusals have in common that are one trouble. Each message has an ack
// subject of its own.
func (r Refusal) kind() string {
	prefix, subject := "publish ", r.Subject
	if r.Subscribe {
		prefix = "subscribe "
	}
	if tokens := strings.Split(subject, "."); strings.HasPrefix(subject, "$JS.ACK.") && len(tokens) >= 9 {
		subject = strings.Join(tokens[:4], ".")
		if len(tokens) >= 11 { // with a domain and an account
			subject = strings.Join(tokens[2:6], ".")
		}
	}
	return prefix + subject
}

// refusals knows who wants to hear of refusals, and which were reported.
type refusals struct {
	mu       sync.Mutex
	next     int
	watchers map[int]func(Refusal)
	reported map[string]struct{} // kinds since the last new connection
}

// OnRefusal calls f for every refusal until stop is called, and perhaps once more
// meanwhile. f must not block.
func (l *Link) OnRefusal(f func(Refusal)) (stop func()) {
	r := &l.refusals
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watchers == nil {
		r.watchers = map[int]func(Refusal){}
	}
	id := r.next
	r.next++
	r.watchers[id] = f
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, id)
	}
}

// maxKinds bounds the memory for what was reported.
const maxKinds = 1000

// refuse passes a refusal on, and reports whether its kind is news.
func (l *Link) refuse(refusal Refusal) (news bool) {
	r, kind := &l.refusals, refusal.kind()
	r.mu.Lock()
	watchers := slices.Collect(maps.Values(r.watchers))
	_, known := r.reported[kind]
	if len(r.reported) >= maxKinds || r.reported == nil {
		r.reported = map[string]struct{}{}
	}
	r.reported[kind] = struct{}{}
	r.mu.Unlock()
	for _, f := range watchers {
		f(refusal)
	}
	return !known
}

// forgetRefusals makes every refusal news again: a new connection may have other
// permissions.
func (l *Link) forgetRefusals() {
	l.refusals.mu.Lock()
	defer l.refusals.mu.Unlock()
	clear(l.refusals.reported)
}
