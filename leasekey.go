package natty

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// headerLease names one write of a lease's key, so that the writer finds out what became of it when the answer is lost.
const headerLease = "Natty-Lease"

// leaseKey is a key that at most one process owns: whoever wrote it last, for as long as the server keeps it. It is
// written by compare-and-set only, and read from the stream's leader only.
type leaseKey struct {
	c              *Client
	bucket, key    string
	stream         string
	subject        string // of the key
	publishSubject string // where it is written to, which differs with a domain or an API prefix
	ttl            time.Duration
	own            bool        // the TTL is the key's own, and not the bucket's
	trouble        func(error) // is told what goes wrong and is not the end of it
}

func (c *Client) leaseKey(bucket, key string, ttl time.Duration, own bool) leaseKey {
	return leaseKey{
		c: c, bucket: bucket, key: key, stream: bucketPrefix + bucket,
		subject: keySubject(bucket, key), publishSubject: c.keyTarget(bucket, key), ttl: ttl, own: own,
		trouble: func(err error) { c.log.Warn("natty: lock", "bucket", bucket, "key", key, "error", err) },
	}
}

// holding is what the key says.
type holding struct {
	revision uint64
	held     bool
	holder   string // the value
	write    string // which write it is
	// age is how long ago it was, as far as this clock and the server's agree.
	age time.Duration
}

// look asks the stream's leader who owns the key.
func (k *leaseKey) look(ctx context.Context) (holding, error) { return k.read(ctx, k.subject) }

// read reads any key of the bucket from the stream's leader.
func (k *leaseKey) read(ctx context.Context, subject string) (holding, error) {
	stored, err := k.c.leaderGet(ctx, k.stream, map[string]string{"last_by_subj": subject})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return holding{}, nil
	}
	if err != nil {
		return holding{}, err
	}
	s := newKeyState(stored)
	return holding{
		revision: s.seq, held: s.live(), holder: string(s.data), write: header(s.header, headerLease),
		age: time.Duration(time.Now().UnixNano() - stored.Time.UnixNano()),
	}, nil
}

// leaseWrite is one write to a lease's bucket, which counts only while the fence stands: the last revision of a key.
type leaseWrite struct {
	id       string
	subject  string // of the key, and where it is written to
	to       string
	data     []byte
	ttl      string // "" for the bucket's
	remove   bool
	fence    string // the subject whose revision
	expected uint64 // must be this one
	// once lets the server drop repetitions that come late, beyond what the fence keeps out.
	once bool
	// strays counts the copies that got no answer, and may still come in.
	strays int
}

// write returns a write of the lease's key that counts if its revision still is expected.
func (k *leaseKey) write(holder string, expected uint64) leaseWrite {
	w := leaseWrite{
		id: k.c.ids.next(), subject: k.subject, to: k.publishSubject, data: []byte(holder), fence: k.subject, expected: expected,
	}
	if k.own {
		w.ttl = k.ttl.String()
	}
	return w
}

// removal returns a write that deletes the lease's key.
func (k *leaseKey) removal(expected uint64) leaseWrite {
	w := k.write("", expected)
	w.data, w.remove = nil, true
	if k.own { // else the marker lives as long as everything in the bucket
		w.ttl = removedTTL.String()
	}
	return w
}

// removedTTL is how long the marker of a released lock stays.
const removedTTL = time.Minute

func (w *leaseWrite) message() *nats.Msg {
	msg := &nats.Msg{Subject: w.to, Data: w.data, Header: nats.Header{
		headerLease:                         {w.id},
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(w.expected, 10)},
	}}
	if w.fence != w.subject {
		msg.Header[jetstream.ExpectedLastSubjSeqSubjHeader] = []string{w.fence}
	}
	if w.ttl != "" {
		msg.Header[jetstream.MsgTTLHeader] = []string{w.ttl}
	}
	if w.remove {
		msg.Header[headerOperation] = []string{"DEL"}
	}
	if w.once {
		msg.Header[jetstream.MsgIDHeader] = []string{w.id}
	}
	return msg
}

// errLost says that a write came too late: its fence has moved.
var errLost = errors.New("somebody else has written the key")

// store makes a write. It returns its revision, and when it was first sent: the server's clock for a TTL starts after
// that. errLost means that it was not made and never will be. An answer that does not come is looked for until ctx ends;
// after that the write may have been made, or still be.
func (k *leaseKey) store(ctx context.Context, w *leaseWrite) (revision uint64, sent time.Time, err error) {
	msg := w.message()
	pause := Backoff{Min: 5 * time.Millisecond, Max: max(k.ttl/20, 5*time.Millisecond)}
	for n := 1; ; n++ {
		if err = k.c.link.wait(ctx, time.Time{}); err != nil {
			return 0, sent, err
		}
		if sent.IsZero() {
			sent = time.Now()
		}
		var ack *jetstream.PubAck
		if ack, err = k.send(ctx, msg, n); err == nil {
			return ack.Sequence, sent, nil
		}
		over := final(err)
		if closed := errors.Is(err, ErrClosed) || errors.Is(err, nats.ErrConnectionClosed); closed || errorCode(err) == 0 && !over {
			w.strays++
		}
		if over {
			return 0, sent, err
		}
		if revision, resolved := k.resolve(ctx, w); resolved != nil {
			return 0, sent, resolved
		} else if revision > 0 {
			w.strays = max(w.strays-1, 0) // one has come in
			return revision, sent, nil
		}
		if ended := sleep(ctx, pause.delay(n)); ended != nil {
			return 0, sent, errors.Join(ended, err)
		}
	}
}

// resolve asks the leader what became of a write: its revision, errLost, or neither, if it is not made and may be yet.
func (k *leaseKey) resolve(ctx context.Context, w *leaseWrite) (revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, max(k.ttl/8, 50*time.Millisecond))
	defer cancel()
	// The fence first: if it has moved, the write has been made by now or never will be.
	fence, err := k.read(ctx, w.fence)
	if err != nil {
		return 0, nil // asked again
	}
	now := fence
	if w.subject != w.fence {
		if now, err = k.read(ctx, w.subject); err != nil {
			return 0, nil // asked again
		}
	}
	switch {
	case now.write == w.id:
		return now.revision, nil
	case fence.revision == w.expected:
		return 0, nil
	case 0 < fence.revision && fence.revision < w.expected:
		return 0, nil // a new leader, which has yet to learn what was there before
	}
	return 0, errLost
}

// final reports an answer to a write that would be the same again: a permission, or a stream that cannot take it.
func final(err error) bool {
	switch errorCode(err) {
	case 0:
		return errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrPermissionViolation) || errors.Is(err, ErrClosed) || errors.Is(err, nats.ErrConnectionClosed)
	case codeWrongLastSeq, codeConcurrentLastSeq, codeDuplicateInFlight, codeSequenceMismatch:
		return false
	}
	return !serverFault(err)
}

// send sends msg for the nth time and waits for the answer: a fraction of the TTL, so that there is time for another try.
func (k *leaseKey) send(ctx context.Context, msg *nats.Msg, n int) (*jetstream.PubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, Backoff{Min: min(attemptTimeout.Min, k.ttl/8), Max: attemptTimeout.Max}.base(n))
	defer cancel()
	answer, err := k.c.acks.requestMsg(ctx, k.c.nc, msg)
	if err != nil {
		return nil, err
	}
	return parseAck(answer)
}
