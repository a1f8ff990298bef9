package natty

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// acks brings the server's acknowledgements to the publishes that wait for them, over one
// subscription. nats.go's requests do the same under the lock of the whole connection,
// which many publishing goroutines feel; see docs/decisions.md.
type acks struct {
	sub    *nats.Subscription
	prefix string // of the reply subjects, dot included

	// writers are the open Writers by the first part of their tokens. The map is never changed but replaced, under mu.
	writers atomic.Pointer[map[string]*Writer]

	// mu guards what follows. It is never held while sending.
	mu      sync.Mutex
	next    uint64
	pending map[uint64]*ackWaiter
}

// ackWaiter is one publish that waits. Who takes it out of pending owes it exactly one
// answer, so that a waiter that gave up knows whether one is still to come.
type ackWaiter struct {
	subject string
	answer  chan ackAnswer // buffered: answering never blocks
}

type ackAnswer struct {
	msg *nats.Msg
	err error
}

var ackWaiters = sync.Pool{New: func() any { return &ackWaiter{answer: make(chan ackAnswer, 1)} }}

func newAcks(nc *nats.Conn) (*acks, error) {
	a := &acks{prefix: nc.NewInbox() + ".", pending: map[uint64]*ackWaiter{}}
	sub, err := nc.Subscribe(a.prefix+"*", a.receive)
	if err != nil {
		return nil, fmt.Errorf("natty: subscribe for acknowledgements: %w", err)
	}
	a.sub = sub
	// One message per waiting publish at most: a limit could only lose answers.
	return a, sub.SetPendingLimits(-1, -1)
}

// expect registers a publish and returns its waiter, token and reply subject.
func (a *acks) expect(subject string) (*ackWaiter, uint64, string) {
	w := ackWaiters.Get().(*ackWaiter) //nolint:forcetypeassert,errcheck // the pool holds nothing else
	w.subject = subject
	a.mu.Lock()
	a.next++
	token := a.next
	a.pending[token] = w
	a.mu.Unlock()
	return w, token, a.prefix + strconv.FormatUint(token, 36)
}

// abandon stops waiting. An answer that got in just before is returned.
func (a *acks) abandon(w *ackWaiter, token uint64) (ackAnswer, bool) {
	a.mu.Lock()
	_, waiting := a.pending[token]
	delete(a.pending, token)
	a.mu.Unlock()
	defer ackWaiters.Put(w)
	if waiting {
		return ackAnswer{}, false
	}
	return <-w.answer, true
}

// open makes w get the answers to what it sends. The keys of Writers are not used twice.
func (a *acks) open(w *Writer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next++
	w.key = strconv.FormatUint(a.next, 36)
	writers := map[string]*Writer{w.key: w}
	maps.Copy(writers, a.openWriters())
	a.writers.Store(&writers)
}

func (a *acks) leave(w *Writer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	writers := maps.Clone(a.openWriters())
	delete(writers, w.key)
	a.writers.Store(&writers)
}

func (a *acks) openWriters() map[string]*Writer {
	if writers := a.writers.Load(); writers != nil {
		return *writers
	}
	return nil
}

func (a *acks) receive(m *nats.Msg) {
	text := m.Subject[len(a.prefix):]
	if key, token, ok := strings.Cut(text, "-"); ok {
		if w := a.openWriters()[key]; w != nil {
			w.receive(token, m)
		}
		return
	}
	token, err := strconv.ParseUint(text, 36, 64)
	if err != nil {
		return
	}
	a.mu.Lock()
	w := a.pending[token]
	delete(a.pending, token)
	a.mu.Unlock()
	if w != nil {
		w.answer <- ackAnswer{msg: m}
	}
}

// request sends data and waits for the answer, until ctx ends. It shares with publishes that it learns at once of a
// lost connection and of a refusal.
func (a *acks) request(ctx context.Context, nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	return a.requestMsg(ctx, nc, &nats.Msg{Subject: subject, Data: data})
}

// requestMsg is request for a message with headers, whose Reply it sets.
func (a *acks) requestMsg(ctx context.Context, nc *nats.Conn, msg *nats.Msg) (*nats.Msg, error) {
	w, token, reply := a.expect(msg.Subject)
	msg.Reply = reply
	err := nc.PublishMsg(msg)
	if err == nil {
		select {
		case answer := <-w.answer:
			ackWaiters.Put(w)
			return answer.msg, answer.err
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if answer, ok := a.abandon(w, token); ok {
		return answer.msg, answer.err
	}
	return nil, err
}

// fail answers the waiting publishes of a subject with err; all of them for "".
func (a *acks) fail(subject string, err error) {
	a.mu.Lock()
	var failed []*ackWaiter
	for token, w := range a.pending {
		if subject == "" || w.subject == subject {
			failed = append(failed, w)
			delete(a.pending, token)
		}
	}
	a.mu.Unlock()
	for _, w := range failed {
		w.answer <- ackAnswer{err: err}
	}
	for _, w := range a.openWriters() {
		w.fail(subject, err)
	}
}

func (a *acks) close() {
	a.fail("", nats.ErrConnectionClosed)
	_ = a.sub.Unsubscribe() // fails only on a closed connection, where it has no purpose
}

// errNoAck says that something answered that is not a stream.
var errNoAck = errors.New("the answer is no acknowledgement of a stream; a service may be listening on the subject")

// isNoResponders recognises the server's notice that nobody listens.
func isNoResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && header(m.Header, "Status") == "503"
}

// parseAck reads the server's answer to a publish.
func parseAck(m *nats.Msg) (*jetstream.PubAck, error) {
	if isNoResponders(m) {
		return nil, nats.ErrNoResponders
	}
	if ack := parsePlainAck(string(m.Data)); ack != nil {
		return ack, nil
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

// parsePlainAck reads {"stream":"S","seq":1}, as nearly every answer is, or returns nil:
// at a hundred thousand a second encoding/json is a large part of a publish's cost.
func parsePlainAck(s string) *jetstream.PubAck {
	s, ok := strings.CutPrefix(s, `{"stream":"`)
	if !ok {
		return nil
	}
	stream, s, ok := strings.Cut(s, `"`)
	if !ok || stream == "" || strings.ContainsFunc(stream, special) {
		return nil
	}
	s, ok = strings.CutPrefix(s, ",")
	if !ok {
		return nil
	}
	s, ok = strings.CutPrefix(strings.TrimPrefix(s, " "), `"seq":`)
	if !ok {
		return nil
	}
	s, ok = strings.CutSuffix(s, "}")
	if !ok || s == "" || s[0] == '0' {
		return nil // JSON allows no leading zeros
	}
	seq, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return nil
	}
	return &jetstream.PubAck{Stream: stream, Sequence: seq}
}

// isPlainAck reports whether parsePlainAck would read data, without keeping any of it. It may say no for a
// sequence of twenty digits.
func isPlainAck(data []byte) bool {
	data, ok := bytes.CutPrefix(data, []byte(`{"stream":"`))
	if !ok {
		return false
	}
	stream, data, ok := bytes.Cut(data, []byte(`"`))
	if !ok || len(stream) == 0 {
		return false
	}
	for _, c := range stream {
		if special(rune(c)) {
			return false
		}
	}
	data, ok = bytes.CutPrefix(data, []byte(","))
	if !ok {
		return false
	}
	data, ok = bytes.CutPrefix(bytes.TrimPrefix(data, []byte(" ")), []byte(`"seq":`))
	if !ok {
		return false
	}
	data, ok = bytes.CutSuffix(data, []byte("}"))
	if !ok || len(data) == 0 || len(data) > 19 || data[0] == '0' {
		return false
	}
	for _, c := range data {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// special is what JSON writes, or may write, otherwise than it is.
func special(r rune) bool { return r < ' ' || r > '~' || r == '\\' }
