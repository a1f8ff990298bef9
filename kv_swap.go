package natty

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
)

// swap is a compare-and-set of one key.
type swap struct {
	c           *Client
	bucket, key string
	data        []byte
	header      nats.Header // beside what a swap needs, or nil
	want        uint64      // the revision that the key must have; 0: it must not be there
	ttl         string      // as in the header
	id          string      // of the message
}

var swapPause = Backoff{Min: 2 * time.Millisecond, Max: 250 * time.Millisecond}

// run writes behind last, which is what is known of the key. Where the server says that it is not the last any more, it
// looks: a marker that comes or goes changes nothing about a key that is not there (nats.go's Create fails on that 1 time
// in 9).
func (w *swap) run(ctx context.Context, last keyState) (uint64, error) {
	ctx, cancel := withDefaultTimeout(ctx, w.c.cfg.PublishTimeout)
	defer cancel()
	w.id = w.c.ids.next()
	unknown := false
	for n := 1; ; n++ {
		ack, err := w.write(ctx, last.seq)
		if err == nil {
			return ack.Sequence, nil
		}
		failed, ok := errors.AsType[*PublishError](err)
		if !ok {
			return 0, err
		}
		// What was sent before may be stored, whatever became of what was sent last.
		unknown = unknown || failed.Unknown
		failed.Unknown, failed.MsgID = unknown, w.id
		// The server's codes decide. 10164 is retried below this.
		if code := errorCode(err); code != codeWrongLastSeq {
			return 0, err
		}
		// To nats.go this code says that the key exists, which is not known yet: only the text is kept.
		failed.Err = errors.New(failed.Err.Error())
		now, lookErr := w.c.keyAtLeader(ctx, w.bucket, w.key)
		switch {
		case lookErr != nil:
			return 0, fmt.Errorf("%w: %w", err, lookErr)
		case unknown && (w.want != 0 || now.live()):
			return 0, err
		case unknown:
			// Nothing is there: it was never stored, or is gone again. The same id once more tells which, and is
			// stored in the first case.
		case now.revision() != w.want:
			return 0, &RevisionError{Bucket: w.bucket, Key: w.key, Have: now.revision(), Want: w.want}
		default:
			w.id = w.c.ids.next()
		}
		last = now
		if ended := sleep(ctx, swapPause.delay(n)); ended != nil {
			return 0, fmt.Errorf("%w: %w", ended, err)
		}
	}
}

func (w *swap) write(ctx context.Context, last uint64) (*jetstream.PubAck, error) {
	h := maps.Clone(w.header)
	if h == nil {
		h = make(nats.Header, 3)
	}
	h[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(last, 10)}
	h[jetstream.MsgIDHeader] = []string{w.id}
	if w.ttl != "" {
		h[jetstream.MsgTTLHeader] = []string{w.ttl}
	}
	return w.c.publish(ctx, &nats.Msg{Subject: w.c.keyTarget(w.bucket, w.key), Data: w.data, Header: h}, nil)
}

// keyState is the last message of a key, a value or a marker that there is none. The zero value: there is no message.
type keyState struct {
	seq    uint64
	op     jetstream.KeyValueOp
	header nats.Header
	data   []byte
}

func newKeyState(m *storedMsg) keyState {
	h, _ := nats.DecodeHeadersMsg(m.Header) // none: a value
	return keyState{seq: m.Sequence, op: operation(h), header: h, data: m.Data}
}

func (s keyState) live() bool { return s.seq != 0 && s.op == jetstream.KeyValuePut }

// revision is 0 for a key that is not there.
func (s keyState) revision() uint64 {
	if s.live() {
		return s.seq
	}
	return 0
}

// ttl is the key's own; a marker's is not.
func (s keyState) ttl() string {
	if s.live() {
		return header(s.header, jetstream.MsgTTLHeader)
	}
	return ""
}

// own are the headers that are not the server's.
func (s keyState) own() nats.Header {
	h := maps.Clone(s.header)
	maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.HasPrefix(name, natsPrefix) })
	return h
}

// operation says what a bucket's message does to its key.
func operation(h nats.Header) jetstream.KeyValueOp {
	if len(h) == 0 {
		return jetstream.KeyValuePut
	}
	switch header(h, headerOperation) {
	case "DEL":
		return jetstream.KeyValueDelete
	case "PURGE":
		return jetstream.KeyValuePurge
	}
	switch header(h, jetstream.MarkerReasonHeader) {
	case "":
		return jetstream.KeyValuePut
	case "Remove":
		return jetstream.KeyValueDelete
	}
	return jetstream.KeyValuePurge // it expired, or was purged
}

// keyAtLeader reads a key from the bucket's leader, for what decides. A key without a message is no error.
func (c *Client) keyAtLeader(ctx context.Context, bucket, key string) (keyState, error) {
	m, err := c.leaderGet(ctx, bucketPrefix+bucket, map[string]any{"last_by_subj": keySubject(bucket, key)})
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return keyState{}, nil
	case err != nil:
		return keyState{}, err
	}
	return newKeyState(m), nil
}
