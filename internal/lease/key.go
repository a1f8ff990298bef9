package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/incident"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/kv"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/respmux"
)

// headerLease names one write of a lease's key, so that its writer finds out what
// became of it when the answer is lost.
const headerLease = "Natty-Lease"

// Keys makes the keys of one connection. Those who wait in this process learn through it
// what others in this process do.
type Keys struct {
	kv *kv.Store

	mu      sync.Mutex // guards waiting
	waiting map[string][]*ear
}

// New returns the Keys of a Store.
func New(s *kv.Store) *Keys { return &Keys{kv: s, waiting: map[string][]*ear{}} }

// Key is a key that at most one process owns: the one that wrote it last, for as long
// as the server keeps the key. It is written by compare-and-set only, and read from the
// stream's leader only.
type Key struct {
	keys        *Keys
	Bucket, Key string
	Subject     string // differs from where the key is written to, with a domain or an API prefix
	bucket      Bucket
	found       found // by Ready
	ttl         time.Duration
	ownTTL      bool // ttl is the key's own, and not the bucket's

	Events
	troubles *incident.Log
}

// Events are told of what does not end the lease, or the wait for it.
type Events struct {
	// Trouble gets each trouble once until it is over.
	Trouble func(error)
	// Standby is called while somebody else owns the key, after each look at it. deaf
	// says why the end of that lease cannot be heard of; it is "" if it can. May be nil.
	Standby func(deaf string)
}

// Key returns a key of a bucket of leases.
func (ks *Keys) Key(b Bucket, key string, e Events) Key {
	return Key{
		keys: ks, Bucket: b.Name, Key: key, Subject: kv.KeySubject(b.Name, key),
		bucket: b, ttl: b.TTL, ownTTL: b.PerKey, Events: e, troubles: &incident.Log{},
	}
}

func (k *Key) kv() *kv.Store { return k.keys.kv }

// trouble reports an error of a kind, unless it is known already.
func (k *Key) trouble(kind string, err error) {
	if k.troubles.Open(kind) && k.Trouble != nil {
		k.Trouble(err)
	}
}

// Name names the key in errors.
func (k *Key) Name() string { return fmt.Sprintf("key %q of bucket %q", k.Key, k.Bucket) }

// About adds which key an error is about.
func (k *Key) About(err error) error { return jsapi.About(k.Name(), err) }

// KeyState is what the key says.
type KeyState struct {
	Revision uint64
	Owned    bool
	Owner    string // the value
	write    string // the id of the write
	ttl      string // the key's own
	// age is how long ago the write was stored, if this clock and the server's agree.
	age time.Duration
}

// Look asks the stream's leader who owns the key.
func (k *Key) Look(ctx context.Context) (KeyState, error) { return k.lookAt(ctx, k.Key) }

// lookAt is Look for another key of the bucket.
func (k *Key) lookAt(ctx context.Context, key string) (KeyState, error) {
	s, err := k.kv().KeyAtLeader(ctx, k.Bucket, key)
	if err != nil || s.Seq == 0 {
		return KeyState{}, err
	}
	return KeyState{
		Revision: s.Seq, Owned: s.Live(), Owner: string(s.Data), write: s.Header.Get(headerLease),
		ttl: s.Header.Get(jetstream.MsgTTLHeader),
		age: time.Duration(time.Now().UnixNano() - s.Time.UnixNano()),
	}, nil
}

// write returns a write of the lease's key, for which the key must be at revision
// expected.
func (k *Key) write(owner string, expected uint64) *kv.Write {
	w := &kv.Write{
		Bucket: k.Bucket, Key: k.Key, Fence: k.Key, Data: []byte(owner), Expected: expected,
		ID: k.kv().Pub.IDs.Next(), IDHeader: headerLease,
	}
	if k.ownTTL {
		w.TTL = k.ttl.String()
	}
	return w
}

// removal returns a write that deletes the lease's key.
func (k *Key) removal(expected uint64) *kv.Write {
	w := k.write("", expected)
	w.Data, w.Header = nil, nats.Header{kv.HeaderOperation: {"DEL"}}
	if k.ownTTL { // otherwise the marker lives as long as everything in the bucket
		w.TTL = removedTTL.String()
	}
	return w
}

// removedTTL is how long the marker of a released lock stays.
const removedTTL = time.Minute

// fenced returns a write of another key of the bucket. The server also drops its late
// repetitions, by the message id: the fence alone lets them in.
func (k *Key) fenced(key string, data []byte, fence string, expected uint64) *kv.Write {
	id := k.kv().Pub.IDs.Next()
	return &kv.Write{
		Bucket: k.Bucket, Key: key, Data: data, TTL: kv.TTLNever, Fence: fence, Expected: expected,
		ID: id, IDHeader: headerLease, Header: nats.Header{jetstream.MsgIDHeader: {id}},
	}
}

// store makes a write, see kv.Store.Write. A lost answer is looked for until ctx ends.
func (k *Key) store(ctx context.Context, w *kv.Write) (revision uint64, sent time.Time, err error) {
	revision, sent, err = k.kv().Write(ctx, w, kv.Sender{
		Send:  k.send,
		Pause: backoff.Exp{Min: 5 * time.Millisecond, Max: max(k.ttl/20, 5*time.Millisecond)},
		Look:  max(k.ttl/8, 50*time.Millisecond),
		Lag:   func(ctx context.Context) bool { return k.stillThere(ctx) == nil },
	})
	if err == nil && w.Key == k.Key {
		k.keys.tell(k.Subject, w)
	}
	return revision, sent, err
}

// send waits for the answer for a fraction of the TTL, so that there is time for
// another attempt.
func (k *Key) send(ctx context.Context, msg *nats.Msg, n int) (
	ack *jetstream.PubAck, unknown, final bool, err error,
) {
	timeout := publish.AttemptTimeout
	timeout.Min = min(timeout.Min, k.ttl/8)
	ctx, cancel := context.WithTimeout(ctx, timeout.Base(n))
	defer cancel()
	answer, err := k.kv().API.Mux.RequestMsg(ctx, k.kv().API.NC, msg)
	if err == nil {
		ack, err = respmux.ParseAck(answer)
	}
	if err == nil {
		return ack, false, false, nil
	}
	final = isFinal(err)
	return nil, isClosed(err) || jsapi.Code(err) == 0 && !final, final, k.explain(msg, err)
}

// explain says of a write that is over a limit how large it is.
func (k *Key) explain(msg *nats.Msg, err error) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return fmt.Errorf("%w: %d bytes, and the server takes %d at most, headers included: %w",
			publish.ErrTooLarge, len(msg.Data), k.kv().API.NC.MaxPayload(), err)
	}
	if jsapi.Code(err) == jsapi.CodeMsgTooLarge {
		return fmt.Errorf("%w: %d bytes, and with headers that is over the max_msg_size of the bucket's stream: %w",
			publish.ErrTooLarge, len(msg.Data), err)
	}
	return err
}

// isFinal reports an error of a write or a read that would be the same again: a
// permission, or a stream that cannot take the write. The owner of an account or a
// stream that is full may make room.
func isFinal(err error) bool {
	switch code := jsapi.Code(err); code {
	case 0:
		if errors.Is(err, respmux.ErrInbox) { // the Client goes on trying to subscribe
			return false
		}
		return errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrPermissionViolation) || isClosed(err)
	case jsapi.CodeWrongLastSeq, jsapi.CodeConcurrentLastSeq, jsapi.CodeDuplicateInFlight,
		jsapi.CodeSequenceMismatch, jsapi.CodeAccountLimit, codeMaxStreams,
		jsapi.CodeNoTTLs: // the bucket was replaced by another one
		return false
	default:
		return !jsapi.ServerFault(err) && !jsapi.Missing(err)
	}
}

// codeMaxStreams says that the account may have no further stream.
const codeMaxStreams jetstream.ErrorCode = 10027

// Final reports an error that waiting does not change: a configuration that cannot
// work, a missing permission, a closed connection.
func Final(err error) bool {
	_, refused := errors.AsType[*hopelessError](err)
	return refused || isFinal(err)
}

// hopelessError says that a configuration cannot work.
type hopelessError struct{ error }

func (e *hopelessError) Unwrap() error { return e.error }

func hopeless(err error) error { return &hopelessError{err} }

func isClosed(err error) bool {
	return errors.Is(err, conn.ErrClosed) || errors.Is(err, nats.ErrConnectionClosed)
}
