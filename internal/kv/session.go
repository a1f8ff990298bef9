package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/mutant"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/pull"
	"github.com/natty-go/natty/internal/respmux"
)

// session is a watch from one interruption to the next, on one consumer. catchup.go has
// the rest of it: how it finds out that everything has come.
type session struct {
	*Watcher
	patience    time.Duration            // with a request
	consumer    string                   // its name
	limits      jetstream.ConsumerConfig // of its requests
	inbox       string
	answers     chan *nats.Msg
	lost        <-chan struct{} // closed when the connection changes
	refused     chan error      // gets why the server refuses the requests or their answers; buffered
	reached     bool            // something has come to the inbox
	heard       time.Time       // when the last message came
	silence     time.Duration   // without a heartbeat that ends the session
	request     int             // the number of the pull request under way
	asked       time.Time       // when it was sent
	brought     bool            // it has brought a message
	outstanding int             // messages it may still bring; 0: there is no request
	next        uint64          // the consumer sequence of the next message

	resumed     bool   // it goes on behind the last revision of an earlier session
	begun       uint64 // the stream's last revision when the session began
	exact       bool   // without a write since begun, what there was then is all there is
	caughtUp    bool
	behind      bool // it had not reached the stream's end when it last looked
	looks       int  // so many times
	verifying   bool // it looks for keys that have vanished, though it has caught up
	listing     sync.WaitGroup
	lists       <-chan listed       // brings a list; nil: none is under way
	list        *listing            // what has come is compared with it
	queued      int                 // answers that came before list, and wait
	end         uint64              // the last revision as of list, or of what proved that it is not needed
	missing     map[string]struct{} // keys of list that have yet to come
	listed      time.Time
	listingTook time.Duration
	verify      <-chan time.Time // nil if no key vanishes without a marker
	heeded      time.Time        // when the stream's settings were read
}

func (s *session) run(ctx context.Context) error {
	if err := s.c.API.Link.Wait(ctx, time.Time{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer s.listing.Wait()
	defer cancel()
	_, s.lost = s.c.API.Link.Watch()
	s.resumed = s.stale == nil && s.last > 0
	if !s.resumed {
		if err := s.begin(ctx); err != nil {
			return err
		}
	}
	s.inbox, s.consumer = s.c.API.NC.NewInbox()+".", s.c.Pub.IDs.Next()
	s.refused = make(chan error, 1)
	defer s.c.API.Link.OnRefusal(s.onRefusal)()
	// Room for all that a request can bring: messages, heartbeats, its end.
	s.answers = make(chan *nats.Msg, watchBatch+2*int(watchExpiry/watchHeartbeat))
	sub, err := s.c.API.NC.ChanSubscribe(s.inbox+"*", s.answers)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only on a closed connection
	nothing, err := s.consume(ctx)
	if err != nil {
		return err
	}
	defer s.deleteConsumer()
	if s.resumed {
		if err := s.resume(ctx); err != nil {
			return err
		}
	}
	s.heard = time.Now()
	if nothing {
		if err := s.advance(ctx, false); err != nil {
			return err
		}
	}
	return s.follow(ctx)
}

// begin prepares for everything that the bucket has. It reads the stream before the
// session makes its consumer, resume reads it afterwards. A stream that is replaced in
// between is noticed either way.
func (s *session) begin(ctx context.Context) error {
	info, err := s.info(ctx)
	if err != nil {
		return err
	}
	if !s.created.IsZero() {
		s.restart(info.Created.Equal(s.created))
	}
	s.created, s.begun = info.Created, info.State.LastSeq
	s.stored = originIn(s.bucket, &info.Config)
	// With replicas the consumer may be on one that lags behind. With a History the
	// server counts wrongly what has yet to come.
	s.exact = info.Config.Replicas == 1 && info.Config.MaxMsgsPerSubject == 1
	s.heed(info)
	return nil
}

// restart expects everything once more: because the bucket lost its end, because it is
// another one of the same name, or because the last restart failed.
func (s *session) restart(same bool) {
	if s.stale == nil {
		s.stale = map[string]uint64{}
	}
	if !mutant.StaleCopies {
		maps.Copy(s.stale, s.known)
	}
	if !same {
		for key := range s.stale {
			s.stale[key] = 0 // the other bucket counts its own revisions
		}
	}
	clear(s.known)
	s.last, s.whole, s.gone = 0, false, map[string]time.Time{}
	s.uncounted = false
}

// resume checks that the consumer, which begins behind the last revision, is one of the
// same bucket.
func (s *session) resume(ctx context.Context) error {
	info, err := s.info(ctx)
	if err != nil {
		return err
	}
	if !info.Created.Equal(s.created) || info.State.LastSeq < s.last {
		return s.replaced()
	}
	s.begun = info.State.LastSeq
	s.heed(info)
	return nil
}

// replaced makes the next session expect everything once more.
func (s *session) replaced() error {
	if s.stale == nil {
		s.stale = map[string]uint64{}
	}
	return errReplaced
}

// consume makes the session's consumer, and reports whether there is nothing for it.
// Without requests the server removes it by itself.
func (s *session) consume(ctx context.Context) (nothing bool, err error) {
	idle := watchExpiry
	if l := s.config.ConsumerLimits.InactiveThreshold; l > 0 {
		idle = min(idle, l)
	}
	config := map[string]any{
		"name": s.consumer, "deliver_policy": "last_per_subject", "filter_subject": s.filter(),
		"headers_only": s.headersOnly, "ack_policy": "none", "replay_policy": "instant",
		"mem_storage": true, "num_replicas": 1, "inactive_threshold": idle,
	}
	if s.resumed {
		config["deliver_policy"], config["opt_start_seq"] = "by_start_sequence", s.last+1
	}
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	stream := StreamName(s.bucket)
	// With the filter in its subject, this request can be allowed for some keys only.
	data, err := s.c.API.Call(ctx, "CONSUMER.CREATE."+stream+"."+s.consumer+"."+s.filter(),
		map[string]any{"stream_name": stream, "config": config, "action": "create"})
	if err != nil {
		return false, err
	}
	var made struct {
		Pending uint64                   `json:"num_pending"`
		Config  jetstream.ConsumerConfig `json:"config"`
	}
	if err := json.Unmarshal(data, &made); err != nil {
		return false, err
	}
	s.limits, s.next, s.ran = made.Config, 1, true
	s.progress()
	return made.Pending == 0, nil
}

// deleteConsumer does not wait for the answer: the server removes the consumer in any
// case.
func (s *session) deleteConsumer() {
	if s.c.API.Link.Up() {
		_ = s.c.API.NC.Publish(s.c.API.Prefix+"CONSUMER.DELETE."+StreamName(s.bucket)+"."+s.consumer, nil)
	}
}

// follow passes on messages until something ends the session.
func (s *session) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		if s.outstanding == 0 {
			if err := s.pull(); err != nil {
				return err
			}
		}
		m, err := s.receive(ctx)
		if err != nil {
			return err
		}
		if m == nil {
			continue
		}
		s.heard, s.reached, s.deaf = time.Now(), true, false
		queued := s.queued > 0
		s.queued = max(0, s.queued-1)
		if token, ok := strings.CutPrefix(m.Subject, s.inbox); ok {
			err = s.status(ctx, token, m, queued)
		} else {
			err = s.message(ctx, m)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// receive returns the next message, or nil after anything else that has happened. A
// message that is there comes first: the caller of Watch may have been slow.
func (s *session) receive(ctx context.Context) (*nats.Msg, error) {
	select {
	case m := <-s.answers:
		return m, nil
	case l := <-s.lists:
		return nil, s.compare(ctx, l)
	default:
	}
	timer := publish.GetTimer(s.silence - time.Since(s.heard))
	defer publish.PutTimer(timer)
	select {
	case m := <-s.answers:
		return m, nil
	case l := <-s.lists:
		return nil, s.compare(ctx, l)
	case <-s.verify:
		s.verifying, s.verify = true, nil
		return nil, nil //nolint:nilnil // documented
	case <-s.lost:
		return nil, errLink
	case err := <-s.refused:
		if s.reached && errors.Is(err, respmux.ErrInbox) {
			return nil, nil //nolint:nilnil // it was another subscription
		}
		return nil, err
	case <-timer.C:
		return nil, errHeartbeats
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// onRefusal notes what the server refuses of this session. Where the server does not say
// which subscription it refuses, it may be this one's.
func (s *session) onRefusal(r conn.Refusal) {
	var err error
	switch {
	case r.Subscribe && r.Subject == "":
		err = fmt.Errorf("%w: %w", respmux.ErrInbox, r.Err)
	case r.Subscribe && r.Subject == s.inbox+"*":
		err = fmt.Errorf("%w; allow this user to subscribe to %q: %w", respmux.ErrInbox, r.Subject, r.Err)
	case !r.Subscribe && r.Subject == s.pullSubject():
		err = fmt.Errorf("allow this user to publish to %q: %w", r.Subject, r.Err)
	default:
		return
	}
	select {
	case s.refused <- err:
	default: // one is enough
	}
}

func (s *session) pullSubject() string {
	return s.c.API.Prefix + "CONSUMER.MSG.NEXT." + StreamName(s.bucket) + "." + s.consumer
}

// pull asks for messages, within what the server allows the consumer.
func (s *session) pull() error {
	s.request++
	request := pull.Request{
		Batch: watchBatch, MaxBytes: max(watchBytes, 2*int(s.c.API.NC.MaxPayload())), Expires: watchExpiry,
	}
	if l := s.limits.MaxRequestBatch; l > 0 {
		request.Batch = min(request.Batch, l)
	}
	if l := s.limits.MaxRequestMaxBytes; l > 0 {
		request.MaxBytes = min(request.MaxBytes, l)
	}
	if l := s.limits.MaxRequestExpires; l > 0 {
		request.Expires = min(request.Expires, l)
	}
	// The server accepts a heartbeat of at most half of the expiry.
	request.Heartbeat = min(watchHeartbeat, request.Expires/2)
	s.silence = 2*request.Heartbeat + watchHeartbeat/2
	s.outstanding, s.brought, s.asked = request.Batch, false, time.Now()
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	return s.c.API.NC.PublishRequest(s.pullSubject(), s.inbox+strconv.Itoa(s.request), body)
}

// status handles a heartbeat, or the end of a pull request. It was queued if it came
// before the list that it may be compared with.
func (s *session) status(ctx context.Context, token string, m *nats.Msg, queued bool) error {
	if token != strconv.Itoa(s.request) {
		return nil // of a request that has ended
	}
	end := pull.End{
		Status: m.Header.Get("Status"), Description: m.Header.Get("Description"),
		Brought: s.outstanding < watchBatch,
	}
	switch {
	case end.Status == "100":
		return s.advance(ctx, !queued)
	case end.Expected() && (s.brought || time.Since(s.asked) > watchHeartbeat/2):
		s.outstanding = 0
		s.lookAtSettings(ctx)
		return nil
	}
	// One that ends at once and brings nothing would do so again.
	return fmt.Errorf("%w: %w", errPullEnded, end.Err())
}

// message passes on an entry.
func (s *session) message(ctx context.Context, m *nats.Msg) error {
	meta, err := m.Metadata()
	key, ours := strings.CutPrefix(m.Subject, KeySubject(s.stored, ""))
	if err != nil || !ours || meta.Sequence.Consumer != s.next {
		return errGap
	}
	s.progress()
	s.next++
	s.outstanding--
	s.brought = true
	e := &entry{
		bucket: s.bucket, key: key, value: m.Data, revision: meta.Sequence.Stream, delta: meta.NumPending,
		created: meta.Timestamp, op: operation(m.Header),
	}
	switch {
	case !s.pass(e):
		return errStopped
	case meta.NumPending == 0, s.worthALook(e.revision):
		return s.advance(ctx, false)
	}
	return nil
}

// pass yields an entry unless it was seen before: a replica that lags behind delivers
// from an earlier revision than it was asked to.
func (s *session) pass(e *entry) bool {
	was, stale := s.stale[e.key]
	delete(s.stale, e.key)
	delete(s.missing, e.key)
	if e.revision <= s.last {
		return true
	}
	s.last = e.revision
	if e.op == jetstream.KeyValuePut {
		s.known[e.key] = e.revision
		delete(s.gone, e.key)
	} else {
		delete(s.known, e.key)
		if !s.uncounted {
			s.gone[e.key] = e.created
			s.forgetMarkers()
		}
	}
	if stale && was == e.revision {
		return true
	}
	return s.Yield(e)
}
