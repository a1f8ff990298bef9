package kv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/expiry"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/publish"
)

// Write is a compare-and-set of one key. The server stores it only while its fence is
// at the expected revision. The fence is the key itself, or another key of the bucket.
type Write struct {
	Bucket, Key string
	Data        []byte
	Header      nats.Header // in addition to the headers that a Write sets; not changed
	TTL         string      // "": the bucket's
	Fence       string      // Key, or another key
	Expected    uint64      // 0: the fence has no message

	// ID names the write in the header IDHeader, so that a lost answer can be found.
	ID, IDHeader string

	Strays int   // copies without an answer: each may be stored, now or later
	Found  State // the key's last message, after ErrRefused
	reason error // why attempts fail: the last answer, if there was one
}

// ErrRefused reports a Write whose fence has moved: it will not be stored any more.
// Only with Strays may it have been stored before, and overwritten since.
var ErrRefused = errors.New("somebody else has written the key")

// Sender is how a Write is sent.
type Sender struct {
	// Send sends msg for the nth time. With an error it reports whether msg may be
	// stored, and whether no further attempt can succeed.
	Send func(ctx context.Context, msg *nats.Msg, n int) (ack *jetstream.PubAck, unknown, final bool, err error)
	// Late waits for answers that are overdue, if it is not nil. It returns the
	// acknowledgement if a copy is stored, and how many copies were refused.
	Late  func(ctx context.Context) (ack *jetstream.PubAck, refused int)
	Pause backoff.Exp // between attempts
	// Look bounds one look at the key after a failed attempt; a failed look is repeated
	// after the next attempt. 0: no bound, and a failed look ends the Write.
	Look time.Duration
	// Lag reports whether a fence is below its expected revision since the leader has
	// yet to catch up. It needs a bucket with a History of 1, where a revision never
	// falls unless the bucket is another one. May be nil.
	Lag func(ctx context.Context) bool
}

// Write sends w until its outcome is known or ctx ends. After each failed attempt it
// asks the bucket's leader whether w is stored, so w must have the same fence for its
// whole life. It returns the revision under which w is stored, and when w was first
// sent: the server's clock for a TTL starts after that. ErrRefused says that w was
// refused; with any other error and Strays, the outcome is unknown.
func (c *Store) Write(ctx context.Context, w *Write, by Sender) (revision uint64, sent time.Time, err error) {
	msg := w.message(c.KeyTarget(w.Bucket, w.Key))
	for n := 1; ; n++ {
		if ended := c.API.Link.Wait(ctx, time.Time{}); ended != nil {
			return 0, sent, jsapi.Because(ended, err)
		}
		if sent.IsZero() {
			sent = time.Now()
		}
		ack, unknown, final, sendErr := by.Send(ctx, msg, n)
		if sendErr == nil {
			return ack.Sequence, sent, nil
		}
		if unknown {
			w.Strays++
		}
		if err = w.because(sendErr, final); final {
			return 0, sent, err
		}
		switch revision, lookErr := c.resolve(ctx, w, by); {
		case errors.Is(lookErr, ErrRefused):
			if w.Strays > 0 && by.Late != nil {
				ack, refused := by.Late(ctx)
				if ack != nil {
					w.Strays = max(w.Strays-refused-1, 0)
					return ack.Sequence, sent, nil
				}
				w.Strays = max(w.Strays-refused, 0)
			}
			return 0, sent, ErrRefused
		case lookErr != nil:
			return 0, sent, jsapi.Because(err, lookErr)
		case revision > 0:
			w.Strays = max(w.Strays-1, 0) // one of them is stored
			return revision, sent, nil
		}
		if ended := by.Pause.Wait(ctx, n); ended != nil {
			return 0, sent, jsapi.Because(ended, err)
		}
	}
}

// because notes why an attempt failed, and returns why attempts fail.
func (w *Write) because(err error, final bool) error {
	if w.reason == nil || final || !errors.Is(err, context.DeadlineExceeded) {
		w.reason = err // "no answer" says less than an earlier error
	}
	return w.reason
}

// resolve asks the leader for the outcome of w: its revision, ErrRefused, or neither
// while it is not stored and still may be.
func (c *Store) resolve(ctx context.Context, w *Write, by Sender) (revision uint64, err error) {
	if by.Look > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, by.Look)
		defer cancel()
		defer func() {
			if !errors.Is(err, ErrRefused) {
				err = nil // the next attempt looks again
			}
		}()
	}
	// The fence comes first: if it has moved, w is stored by now or never will be.
	fence, err := c.KeyAtLeader(ctx, w.Bucket, w.Fence)
	if err != nil {
		return 0, err
	}
	key := fence
	if w.Fence != w.Key {
		if key, err = c.KeyAtLeader(ctx, w.Bucket, w.Key); err != nil {
			return 0, err
		}
	}
	switch {
	case key.Header.Get(w.IDHeader) == w.ID:
		return key.Seq, nil
	case fence.Seq == w.Expected:
		return 0, nil
	case by.Lag != nil && 0 < fence.Seq && fence.Seq < w.Expected && by.Lag(ctx):
		return 0, nil
	}
	w.Found = key
	return 0, ErrRefused
}

func (w *Write) message(to string) *nats.Msg {
	h := maps.Clone(w.Header)
	if h == nil {
		h = make(nats.Header, 3)
	}
	h[w.IDHeader] = []string{w.ID}
	if w.TTL != "" {
		h[jetstream.MsgTTLHeader] = []string{w.TTL}
	}
	fenced := w.Fence != w.Key
	if mutant.BlindWrites && !fenced || mutant.NoFence && fenced {
		return &nats.Msg{Subject: to, Data: w.Data, Header: h}
	}
	h[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(w.Expected, 10)}
	if fenced {
		h[jetstream.ExpectedLastSubjSeqSubjHeader] = []string{KeySubject(w.Bucket, w.Fence)}
	}
	return &nats.Msg{Subject: to, Data: w.Data, Header: h}
}

// swap is a Write for a caller of the Client, who knows revisions of values only:
// markers may come and go under it.
type swap struct {
	Write
	c    *Store
	want uint64 // the key's revision; 0: the key is not there
	// create makes ErrKeyExists of a key that has another revision, in place of what
	// Store.Changed makes.
	create bool

	first    time.Time         // when it was first sent
	moved    bool              // it was sent again behind another message, under the same id
	attempts *publish.Attempts // of the running Write
}

var (
	swapPause  = backoff.Exp{Min: 2 * time.Millisecond, Max: 250 * time.Millisecond}
	retryPause = backoff.Exp{Min: 5 * time.Millisecond, Max: 250 * time.Millisecond}
)

// leastAttempt is how much time a further attempt needs. With less it would mostly turn
// a known outcome into an unknown one.
const leastAttempt = 250 * time.Millisecond

// run writes behind last, the key's last message as far as it is known. If the server
// says that another one is the last, run looks: a marker that comes or goes changes
// nothing about a key that is not there (nats.go's Create fails on that 1 time in 9).
func (w *swap) run(ctx context.Context, last State) (uint64, error) {
	ctx, cancel := jsapi.WithTimeout(ctx, w.c.Pub.Timeout)
	defer cancel()
	w.ID, w.IDHeader, w.Expected = w.c.Pub.IDs.Next(), jetstream.MsgIDHeader, last.Seq
	defer func() {
		if w.attempts != nil {
			w.attempts.Close()
		}
	}()
	for n := 1; ; n++ {
		revision, _, err := w.c.Write(ctx, &w.Write, Sender{Send: w.send, Late: w.late, Pause: retryPause})
		switch unknown := w.Strays > 0; {
		case err == nil:
			return revision, nil
		case !errors.Is(err, ErrRefused):
			return 0, w.failed(err)
		case unknown && (w.want != 0 || w.Found.Live()):
			return 0, w.failed(w.reason)
		case unknown:
			// The key is not there: w was never stored, or is gone again. The server
			// knows which, by the id, and stores w in the first case.
			w.moved = true
		case w.Found.revision() == w.want:
			w.ID = w.c.Pub.IDs.Next()
		case w.create:
			return 0, KeyError(w.Bucket, w.Key, jetstream.ErrKeyExists)
		default:
			return 0, w.c.Changed(w.Bucket, w.Key, w.Found.revision(), w.want)
		}
		w.Expected = w.Found.Seq
		if ended := swapPause.Wait(ctx, n); ended != nil {
			return 0, jsapi.Because(ended, w.failed(w.reason))
		}
	}
}

func (w *swap) failed(err error) error {
	return w.c.Pub.Failed(w.c.KeyTarget(w.Bucket, w.Key), w.ID, w.Strays > 0, err)
}

func (w *swap) send(ctx context.Context, msg *nats.Msg, n int) (
	ack *jetstream.PubAck, unknown, final bool, err error,
) {
	if err := w.mayRepeat(ctx); err != nil {
		return nil, false, true, err
	}
	if w.attempts == nil || w.attempts.Msg() != msg {
		if w.attempts != nil {
			w.attempts.Close()
		}
		w.attempts = w.c.Pub.NewAttempts(msg)
	}
	ack, unknown, final, err = w.attempts.Try(ctx, publish.AttemptTimeout.Base(n))
	if jsapi.Code(err) == jsapi.CodeWrongLastSeq {
		// To nats.go this code says that the key exists, which is not known yet. So
		// only its text is kept.
		return nil, unknown, false, errors.New(err.Error())
	}
	return ack, unknown, final, err
}

// late waits for answers that are overdue, as on a busy server: they tell a write that
// was refused from one that was stored and overwritten since.
func (w *swap) late(ctx context.Context) (ack *jetstream.PubAck, refused int) {
	return w.attempts.Late(ctx, publish.AttemptTimeout.Max)
}

// mayRepeat returns nil if it is safe and of use to send w, maybe again.
func (w *swap) mayRepeat(ctx context.Context) error {
	switch {
	case w.first.IsZero():
		w.first = time.Now()
	case w.Strays == 0:
		if deadline, _ := ctx.Deadline(); time.Until(deadline) < leastAttempt {
			return jsapi.Because(context.DeadlineExceeded, w.reason)
		}
	case w.Expected == 0 || w.moved:
		// The expected revision does not keep a second copy out, so the id has to.
		state, err := w.c.lookAtBucket(ctx, w.Bucket)
		if err != nil {
			return fmt.Errorf("not sent again, since it cannot be known whether the server would still notice: %w: %w",
				err, w.reason)
		}
		// A tenth is left for the way to the server and for clocks.
		if window := state.window; expiry.Elapsed(w.first) > window-window/10 {
			return fmt.Errorf("not sent again beyond the duplicate window (%v) of stream %q: %w",
				window, StreamName(w.Bucket), w.reason)
		}
	}
	return nil
}

// State is the last message of a key, a value or a marker that there is none. The zero
// State says that the key has no message.
type State struct {
	Seq    uint64
	Header nats.Header
	Data   []byte
	Time   time.Time // when it was stored, by the server's clock
	op     jetstream.KeyValueOp
}

// KeyAtLeader reads a key from the bucket's leader, for decisions. A key without a
// message is no error.
func (c *Store) KeyAtLeader(ctx context.Context, bucket, key string) (State, error) {
	m, err := c.API.LeaderGet(ctx, StreamName(bucket), lastOf(bucket, key))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return State{}, nil
	case err != nil:
		return State{}, err
	}
	return stateOf(m), nil
}

// lastOf is the request for a key's last message.
func lastOf(bucket, key string) any {
	return map[string]string{"last_by_subj": KeySubject(bucket, key)}
}

func stateOf(m *jsapi.StoredMsg) State {
	h, _ := nats.DecodeHeadersMsg(m.Header) // without headers it is a value
	return State{Seq: m.Sequence, Header: h, Data: m.Data, Time: m.Time, op: operation(h)}
}

// Live reports whether the key is there.
func (s State) Live() bool { return s.Seq != 0 && s.op == jetstream.KeyValuePut }

// revision is 0 for a key that is not there.
func (s State) revision() uint64 {
	if s.Live() {
		return s.Seq
	}
	return 0
}

// ttl is the key's own TTL; a marker's is not.
func (s State) ttl() string {
	if s.Live() {
		return s.Header.Get(jetstream.MsgTTLHeader)
	}
	return ""
}

// ownHeader returns the headers that are not the server's.
func (s State) ownHeader() nats.Header {
	h := maps.Clone(s.Header)
	maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.HasPrefix(name, "Nats-") })
	return h
}

// operation says what a bucket's message does to its key.
func operation(h nats.Header) jetstream.KeyValueOp {
	if len(h) == 0 {
		return jetstream.KeyValuePut
	}
	switch h.Get(HeaderOperation) {
	case "DEL":
		return jetstream.KeyValueDelete
	case "PURGE":
		return jetstream.KeyValuePurge
	}
	switch h.Get(jetstream.MarkerReasonHeader) {
	case "":
		return jetstream.KeyValuePut
	case "Remove":
		return jetstream.KeyValueDelete
	}
	return jetstream.KeyValuePurge // it expired, or was purged
}
