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

// A bucket is a stream, and a key the last message of a subject of it (ADR-8).
const (
	bucketPrefix = "KV_"  // of the stream's name
	keyPrefix    = "$KV." // of the subject, before the bucket's name and the key

	headerOperation = "KV-Operation"
)

// ttlNever is the TTL of a key that outlives its bucket's.
const ttlNever = "never"

func keySubject(bucket, key string) string { return keyPrefix + bucket + "." + key }

// keyTarget is the subject to publish a key to: another domain's or account's is reached through its API.
func (c *Client) keyTarget(bucket, key string) string {
	if c.cfg.Domain == "" && c.cfg.APIPrefix == "" {
		return keySubject(bucket, key)
	}
	return c.cfg.apiPrefix() + keySubject(bucket, key)
}

// Get returns the value of a key. It is fast, and in a replicated bucket it may be answered by a replica that has not seen
// the last write yet; Update, Refresh, Create and Bucket.Modify look for themselves, at the bucket's leader. A missing key is
// jetstream.ErrKeyNotFound, a missing bucket jetstream.ErrBucketNotFound. Without a deadline in ctx it takes at most 5s.
func (c *Client) Get(ctx context.Context, bucket, key string) ([]byte, error) {
	if err := validKey(bucket, key); err != nil {
		return nil, err
	}
	var value []byte
	err := c.persist(ctx, func(ctx context.Context) (err error) {
		value, err = c.getKey(ctx, bucket, key)
		return err
	})
	if err != nil {
		return nil, keyError(bucket, key, err)
	}
	return value, nil
}

// getKey reads a key once, from any replica if the bucket allows that.
func (c *Client) getKey(ctx context.Context, bucket, key string) ([]byte, error) {
	msg, err := c.request(ctx, "DIRECT.GET."+bucketPrefix+bucket+"."+keySubject(bucket, key), nil)
	if errors.Is(err, nats.ErrNoResponders) {
		// Not allowed by this bucket, no bucket, or no leader: one that has an answer will tell.
		return c.getKeyFromLeader(ctx, bucket, key)
	}
	if err != nil {
		return nil, err
	}
	switch status := header(msg.Header, "Status"); {
	case status == "404", status == "" && operation(msg.Header) != jetstream.KeyValuePut:
		return nil, jetstream.ErrKeyNotFound
	case status != "":
		return nil, fmt.Errorf("the server refused the read: %s %s", status, header(msg.Header, "Description"))
	}
	return msg.Data, nil
}

func (c *Client) getKeyFromLeader(ctx context.Context, bucket, key string) ([]byte, error) {
	m, err := c.leaderGetOnce(ctx, bucketPrefix+bucket, map[string]any{"last_by_subj": keySubject(bucket, key)})
	if err != nil {
		return nil, err
	}
	if s := newKeyState(m); s.live() {
		return s.data, nil
	}
	return nil, jetstream.ErrKeyNotFound
}

// Put sets a key, whatever it was. A missing bucket is made: see EnsureBucket for what it is like.
//
// With a ttl the key is gone after that time, unless it is written or refreshed before: whole seconds, at least one, and not
// more than the bucket's own TTL. Without one it lives as long as the bucket lets it, also when it had a TTL before. A bucket
// that was made without markers gets them with the first ttl, see EnsureBucket.
//
// Errors are those of PublishMsg: what is not acknowledged is retried within ctx, and ErrOutcomeUnknown says that the value
// may be stored.
func (c *Client) Put(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error {
	return c.put(ctx, jetstream.KeyValueConfig{Bucket: bucket}, key, data, ttl)
}

// put is Put into a bucket that is made from cfg.
func (c *Client) put(ctx context.Context, cfg jetstream.KeyValueConfig, key string, data []byte, ttl []time.Duration) error {
	if err := validKey(cfg.Bucket, key); err != nil {
		return err
	}
	subject := c.keyTarget(cfg.Bucket, key)
	if len(ttl) == 0 {
		return c.writing(ctx, cfg, func() error { return c.Publish(ctx, subject, data) })
	}
	return c.withTTL(ctx, cfg, ttl, func(ttl string) error {
		_, err := c.publish(ctx, &nats.Msg{Subject: subject, Data: data, Header: nats.Header{jetstream.MsgTTLHeader: {ttl}}}, nil)
		return err
	})
}

// Create sets a key that is not there; of several that try, one succeeds. A key that is there is jetstream.ErrKeyExists. One
// that was deleted or has expired can be created. Otherwise it is like Put.
//
// When an answer is lost, natty finds out from the bucket's leader what became of it. Where that is impossible, because
// another one's value stands there by now, the error matches ErrOutcomeUnknown.
func (c *Client) Create(ctx context.Context, bucket, key string, data []byte, ttl ...time.Duration) error {
	return c.create(ctx, jetstream.KeyValueConfig{Bucket: bucket}, key, data, ttl)
}

func (c *Client) create(ctx context.Context, cfg jetstream.KeyValueConfig, key string, data []byte, ttl []time.Duration) error {
	if err := validKey(cfg.Bucket, key); err != nil {
		return err
	}
	write := func(ttl string) error {
		w := swap{c: c, bucket: cfg.Bucket, key: key, data: data, ttl: ttl}
		_, err := w.run(ctx, keyState{})
		return err
	}
	var err error
	if len(ttl) == 0 {
		err = c.writing(ctx, cfg, func() error { return write("") })
	} else {
		err = c.withTTL(ctx, cfg, ttl, write)
	}
	if _, exists := errors.AsType[*RevisionError](err); exists {
		return keyError(cfg.Bucket, key, jetstream.ErrKeyExists)
	}
	return err
}

// Update sets a key that is still at the revision given, and returns its new one. A key's own TTL is kept, and counts anew.
// A key that has changed is a *RevisionError with both revisions, which matches jetstream.ErrKeyRevisionMismatch, and
// jetstream.ErrKeyNotFound if the key is gone. Revision 0 asks that it is not there. A missing bucket is not made:
// jetstream.ErrBucketNotFound. Lost answers are treated as Create does.
func (c *Client) Update(ctx context.Context, bucket, key string, data []byte, revision uint64) (uint64, error) {
	if err := validKey(bucket, key); err != nil {
		return 0, err
	}
	last, err := c.keyAtLeader(ctx, bucket, key)
	if err != nil {
		return 0, keyError(bucket, key, err)
	}
	if have := last.revision(); have != revision {
		return 0, &RevisionError{Bucket: bucket, Key: key, Have: have, Want: revision}
	}
	return c.replace(ctx, bucket, key, data, last)
}

// replace sets a key that is still as last, and keeps its TTL.
func (c *Client) replace(ctx context.Context, bucket, key string, data []byte, last keyState) (uint64, error) {
	w := swap{c: c, bucket: bucket, key: key, data: data, want: last.revision(), ttl: last.ttl()}
	return w.run(ctx, last)
}

// Refresh begins the life of a key anew, with the TTL that it was given or its bucket's; where there is neither, it does
// nothing. It writes what it has read, and only if nobody has changed the key in between: a *RevisionError says that
// somebody has. The key gets a new revision. One that is gone is jetstream.ErrKeyNotFound.
//
// It refreshes whoever's value is there. To keep a key only as long as it is one's own, use Update with its revision.
func (c *Client) Refresh(ctx context.Context, bucket, key string) error {
	if err := validKey(bucket, key); err != nil {
		return err
	}
	last, err := c.keyAtLeader(ctx, bucket, key)
	if err == nil && !last.live() {
		err = jetstream.ErrKeyNotFound
	}
	if err != nil {
		return keyError(bucket, key, err)
	}
	switch last.ttl() {
	case ttlNever:
		return nil
	case "":
		state, err := c.lookAtBucket(ctx, bucket)
		if err != nil {
			return keyError(bucket, key, err)
		}
		if state.maxAge == 0 {
			return nil
		}
	}
	w := swap{c: c, bucket: bucket, key: key, data: last.data, header: last.own(), want: last.seq, ttl: last.ttl()}
	_, err = w.run(ctx, last)
	return err
}

// Delete takes a key away. One that is not there, or whose bucket is not, is no error.
func (c *Client) Delete(ctx context.Context, bucket, key string) error {
	if err := validKey(bucket, key); err != nil {
		return err
	}
	msg := &nats.Msg{Subject: c.keyTarget(bucket, key), Header: nats.Header{headerOperation: {"DEL"}}}
	if _, err := c.publish(ctx, msg, nil); !errors.Is(err, ErrNoStream) {
		return err
	}
	return nil
}

// Keys returns the keys of a bucket, sorted. Without a deadline in ctx it takes at most 5s.
func (c *Client) Keys(ctx context.Context, bucket string) ([]string, error) {
	if err := validBucket(bucket); err != nil {
		return nil, err
	}
	ctx, cancel := withDefaultTimeout(ctx, apiTimeout)
	defer cancel()
	w := newWatch(c, bucket, ">")
	w.headersOnly = true
	w.yield = func(*keyEntry) bool { return true }
	w.synced = func(time.Time) bool { return false }
	if err := w.run(ctx); err != nil {
		return nil, keyError(bucket, "", err)
	}
	return w.liveKeys(), nil
}

// writing repeats a write after making the bucket that it misses. A cluster may not know for a moment a bucket that has just
// been made.
func (c *Client) writing(ctx context.Context, cfg jetstream.KeyValueConfig, write func() error) error {
	err := write()
	for n := 1; n <= 5 && errors.Is(err, ErrNoStream); n++ {
		if n > 1 {
			if ended := sleep(ctx, createPause.delay(n)); ended != nil {
				return err
			}
		}
		if err := c.makeBucket(ctx, cfg); err != nil {
			return err
		}
		err = write()
	}
	return err
}

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
	for n := 1; ; n++ {
		ack, err := w.write(ctx, last.seq)
		if err == nil {
			return ack.Sequence, nil
		}
		// The server's codes decide. 10164 is retried below this.
		if code := errorCode(err); code != codeWrongLastSeq {
			return 0, err
		}
		unknown := errors.Is(err, ErrOutcomeUnknown)
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

// keyError names the bucket, and the key if there is one, and calls what is missing by its name among buckets.
func keyError(bucket, key string, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("natty: bucket %q: %w", bucket, jetstream.ErrBucketNotFound)
	case errors.Is(err, jetstream.ErrMsgNotFound):
		err = jetstream.ErrKeyNotFound
	}
	if key == "" {
		return fmt.Errorf("natty: bucket %q: %w", bucket, err)
	}
	return fmt.Errorf("natty: key %q of bucket %q: %w", key, bucket, err)
}

// maxKeyLen leaves room on the protocol line for what stands around a key, see maxSubjectLen.
const maxKeyLen = 3000

func validBucket(bucket string) error {
	var wrong string
	switch {
	case bucket == "":
		wrong = "is empty"
	case len(bucketPrefix+bucket) > maxNameLen:
		wrong = fmt.Sprintf("is longer than %d bytes", maxNameLen-len(bucketPrefix))
	case strings.ContainsFunc(bucket, func(r rune) bool { return !isKeyRune(r) || strings.ContainsRune("./=", r) }):
		wrong = "holds something else than letters, digits, - and _"
	default:
		return nil
	}
	return &ConfigError{Field: "bucket", Value: bucket, Reason: wrong + "; name it with letters, digits, - and _"}
}

func validKey(bucket, key string) error {
	if err := validBucket(bucket); err != nil {
		return err
	}
	wrong := wrongKey(key)
	if wrong == "" && strings.ContainsFunc(key, func(r rune) bool { return !isKeyRune(r) }) {
		wrong = "holds something else than letters, digits and - _ = / ."
	}
	if wrong == "" {
		return nil
	}
	return &ConfigError{Field: "key", Value: key, Reason: wrong + "; write it with letters, digits and - _ = /, in parts separated by single dots"}
}

// validKeys checks a pattern of keys.
func validKeys(bucket, keys string) error {
	if err := validBucket(bucket); err != nil {
		return err
	}
	wrong := wrongKey(keys)
	if wrong == "" {
		wrong = validFilter(keys)
	}
	if wrong == "" && strings.ContainsFunc(keys, func(r rune) bool { return !isKeyRune(r) && r != '*' && r != '>' }) {
		wrong = "holds something else than letters, digits, - _ = / . and the wildcards * and >"
	}
	if wrong == "" {
		return nil
	}
	return &ConfigError{Field: "keys", Value: keys, Reason: wrong + `; expected a key, or parts with * for any one and > at the end for all that follow (">" is every key)`}
}

func wrongKey(key string) string {
	switch {
	case key == "":
		return "is empty"
	case len(key) > maxKeyLen:
		return fmt.Sprintf("is longer than %d bytes", maxKeyLen)
	case key[0] == '.' || key[len(key)-1] == '.' || strings.Contains(key, ".."):
		return "has an empty part (a dot at an end, or two in a row)"
	}
	return ""
}

func isKeyRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=/.", r)
}
