// Package respmux owns the answers of the server on their way to whoever waits for them:
// one subscription for all requests of a connection, as nats.go has one for its own. It
// knows subjects and answers. It does not know what was asked, what an answer means, or
// whether a request is sent again. inbox.go keeps the subscription alive.
package respmux

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Mux brings each answer to the publish or request that waits for it. nats.go's own
// multiplexer does so under the lock of the whole connection, which slows down many
// publishing goroutines; see docs/decisions.md.
type Mux struct {
	inbox  *Inbox
	Prefix string // of the reply subjects, with the dot

	// routes has each Route under its key. The map is replaced under mu, never changed.
	routes atomic.Pointer[map[string]Route]

	// mu guards what follows. It is never held while sending.
	mu      sync.Mutex
	next    uint64
	pending map[uint64]*Waiter
}

// Waiter waits for one answer. Whoever takes it out of pending sends it exactly one. So
// one who stops waiting knows whether an answer is still to come.
type Waiter struct {
	subject string
	size    int         // of the message
	Answer  chan Answer // buffered: sending an answer never blocks
}

// Answer is the server's message, or the reason why there is none.
type Answer struct {
	Msg *nats.Msg
	Err error
	// Behind is, with an Err for all, the largest size of those who began to wait later.
	Behind int
}

var waiters = sync.Pool{New: func() any { return &Waiter{Answer: make(chan Answer, 1)} }}

// Free returns a waiter that has had its answer to the pool.
func (w *Waiter) Free() { waiters.Put(w) }

// New subscribes to answers.
func New(nc *nats.Conn) (*Mux, error) {
	mux := &Mux{Prefix: nc.NewInbox() + ".", pending: map[uint64]*Waiter{}}
	inbox, err := Subscribe(nc, mux.Prefix+"*", mux.receive, func(err error) {
		if err != nil {
			mux.Fail("", err)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("natty: subscribe for acknowledgements: %w", err)
	}
	mux.inbox = inbox
	return mux, nil
}

// Err returns an ErrInbox while no answer can come, because the server refuses the
// subscription. It takes no lock.
func (mux *Mux) Err() error { return mux.inbox.Err() }

// Refused notes that the server has refused a subscription; see Inbox.
func (mux *Mux) Refused(subject string, err error) { mux.inbox.Refused(subject, err) }

// Expect registers a message of a size to a subject. It returns the waiter, token and
// reply subject.
func (mux *Mux) Expect(subject string, size int) (*Waiter, uint64, string) {
	w := waiters.Get().(*Waiter) //nolint:forcetypeassert,errcheck // the pool holds nothing else
	w.subject, w.size = subject, size
	mux.mu.Lock()
	mux.next++
	token := mux.next
	mux.pending[token] = w
	mux.mu.Unlock()
	return w, token, mux.Prefix + strconv.FormatUint(token, 36)
}

// Abandon stops waiting and frees the waiter. It returns an answer that came just
// before.
func (mux *Mux) Abandon(w *Waiter, token uint64) (Answer, bool) {
	defer w.Free()
	if mux.take(token) != nil {
		return Answer{}, false
	}
	return <-w.Answer, true
}

// take removes the waiter of a token. It returns nil if somebody else already did.
func (mux *Mux) take(token uint64) *Waiter {
	mux.mu.Lock()
	defer mux.mu.Unlock()
	w := mux.pending[token]
	delete(mux.pending, token)
	return w
}

// Request sends data and waits for the answer until ctx ends. As publishes do, it
// learns of a lost connection and of a refusal at once.
func (mux *Mux) Request(ctx context.Context, nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	return mux.RequestMsg(ctx, nc, &nats.Msg{Subject: subject, Data: data})
}

// RequestMsg is Request for a message with headers. It sets the message's Reply.
func (mux *Mux) RequestMsg(ctx context.Context, nc *nats.Conn, msg *nats.Msg) (*nats.Msg, error) {
	if err := mux.Err(); err != nil {
		return nil, err
	}
	w, token, reply := mux.Expect(msg.Subject, 0)
	msg.Reply = reply
	err := nc.PublishMsg(msg)
	if err == nil {
		select {
		case answer := <-w.Answer:
			w.Free()
			return answer.Msg, answer.Err
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if answer, ok := mux.Abandon(w, token); ok {
		return answer.Msg, answer.Err
	}
	return nil, err
}

// Route receives the answers to many messages of one sender.
type Route interface {
	Receive(token string, m *nats.Msg)
	// Fail says that the messages to a subject, or all for "", get no answer.
	Fail(subject string, err error)
}

// Attach registers r for the answers to reply subjects of the form prefix, key, dash,
// token. No two Routes ever have the same key.
func (mux *Mux) Attach(r Route) (key string) {
	mux.mu.Lock()
	defer mux.mu.Unlock()
	mux.next++
	key = strconv.FormatUint(mux.next, 36)
	routes := map[string]Route{key: r}
	maps.Copy(routes, mux.attached())
	mux.routes.Store(&routes)
	return key
}

// Detach removes the Route of a key.
func (mux *Mux) Detach(key string) {
	mux.mu.Lock()
	defer mux.mu.Unlock()
	routes := maps.Clone(mux.attached())
	delete(routes, key)
	mux.routes.Store(&routes)
}

func (mux *Mux) attached() map[string]Route {
	if routes := mux.routes.Load(); routes != nil {
		return *routes
	}
	return nil
}

func (mux *Mux) receive(m *nats.Msg) {
	text := m.Subject[len(mux.Prefix):]
	if key, token, ok := strings.Cut(text, "-"); ok {
		if r := mux.attached()[key]; r != nil {
			r.Receive(token, m)
		}
		return
	}
	token, err := strconv.ParseUint(text, 36, 64)
	if err != nil {
		return
	}
	if w := mux.take(token); w != nil {
		w.Answer <- Answer{Msg: m}
	}
}

// Fail ends the waiting for answers to messages to a subject, or to all for "", with
// err.
func (mux *Mux) Fail(subject string, err error) {
	mux.mu.Lock()
	var failed []uint64
	waiting := mux.pending
	if subject == "" {
		mux.pending = map[uint64]*Waiter{}
	}
	for token, w := range waiting {
		if subject == "" || w.subject == subject {
			failed = append(failed, token)
		}
	}
	slices.Sort(failed)
	behind := 0
	for _, token := range slices.Backward(failed) {
		w := waiting[token]
		delete(waiting, token)
		behindThis := behind
		behind = max(behind, w.size)
		w.Answer <- Answer{Err: err, Behind: behindThis} // never blocks
	}
	mux.mu.Unlock()
	for _, r := range mux.attached() {
		r.Fail(subject, err)
	}
}

// Close ends all waiting, and the subscription.
func (mux *Mux) Close() {
	mux.Fail("", nats.ErrConnectionClosed)
	_ = mux.inbox.End().Unsubscribe() // fails only on a closed connection, where it has no purpose
}

// errNoAck says that the answer came from something that is not a stream.
var errNoAck = errors.New("the answer is no acknowledgement of a stream; " +
	"a service may be listening on the subject")

// NoResponders reports whether m is the server's notice that nobody listens.
func NoResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && m.Header.Get("Status") == "503"
}

// ParseAck reads the server's answer to a publish.
func ParseAck(m *nats.Msg) (*jetstream.PubAck, error) {
	if NoResponders(m) {
		return nil, nats.ErrNoResponders
	}
	if stream, sequence, ok := parsePlainAck(m.Data); ok {
		return &jetstream.PubAck{Stream: string(stream), Sequence: sequence}, nil
	}
	var resp struct {
		Error *jetstream.APIError `json:"error"`
		jetstream.PubAck
	}
	if err := json.Unmarshal(m.Data, &resp); err != nil {
		return nil, errNoAck
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	if resp.Stream == "" {
		return nil, errNoAck
	}
	return &resp.PubAck, nil
}

// IsPlainAck reports whether data is an acknowledgement with nothing but a stream and a
// sequence. It may say no where ParseAck says yes.
func IsPlainAck(data []byte) bool {
	_, _, ok := parsePlainAck(data)
	return ok
}

// parsePlainAck reads {"stream":"S","seq":1}, which nearly every answer looks like. At
// a hundred thousand answers a second encoding/json would be a large part of a
// publish's cost. It allocates nothing: stream is a part of data. It refuses a sequence
// of twenty digits, which might not fit.
func parsePlainAck(data []byte) (stream []byte, sequence uint64, ok bool) {
	data, begun := bytes.CutPrefix(data, []byte(`{"stream":"`))
	stream, data, named := bytes.Cut(data, []byte(`"`))
	data, more := bytes.CutPrefix(data, []byte(","))
	data, numbered := bytes.CutPrefix(bytes.TrimPrefix(data, []byte(" ")), []byte(`"seq":`))
	digits, ended := bytes.CutSuffix(data, []byte("}"))
	if !begun || !named || !more || !numbered || !ended || len(stream) == 0 {
		return nil, 0, false
	}
	for _, c := range stream {
		if c < ' ' || c > '~' || c == '\\' { // JSON may write it in another way
			return nil, 0, false
		}
	}
	sequence, ok = parseSequence(digits)
	return stream, sequence, ok
}

func parseSequence(digits []byte) (sequence uint64, ok bool) {
	if len(digits) == 0 || len(digits) > 19 || digits[0] == '0' { // JSON allows no leading zeros
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		sequence = sequence*10 + uint64(c-'0')
	}
	return sequence, true
}
