package natty

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// leg is a watch from one interruption to the next.
type leg struct {
	*watch
	name     string // of the consumer
	inbox    string
	answers  chan *nats.Msg
	lost     <-chan struct{} // closed when the connection is not what it was
	heard    time.Time
	request  int    // the number of the pull request under way
	owed     int    // what it may still bring; 0: there is none
	next     uint64 // consumer sequence
	pending  uint64 // messages until it has caught up
	caughtUp bool
	verify   <-chan time.Time // nil where nothing vanishes without a word
}

func (l *leg) run(ctx context.Context) error {
	if err := l.c.link.wait(ctx, time.Time{}); err != nil {
		return err
	}
	_, l.lost = l.c.link.watch()
	resumed := l.stale == nil && !l.created.IsZero()
	if !resumed {
		if err := l.begin(ctx); err != nil {
			return err
		}
	}
	l.inbox = l.c.nc.NewInbox() + "."
	// Room for all that a request can bring: messages, a heartbeat each second, its end.
	l.answers = make(chan *nats.Msg, watchBatch+2*int(watchExpiry/watchHeartbeat))
	sub, err := l.c.nc.ChanSubscribe(l.inbox+"*", l.answers)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only on a closed connection
	if err := l.consume(ctx, resumed); err != nil {
		return err
	}
	defer l.deleteConsumer()
	if resumed {
		if err := l.resume(ctx); err != nil {
			return err
		}
	}
	return l.follow(ctx)
}

// begin prepares for everything that there is. It looks at the stream before there is a consumer, and resume after that: so
// one that is replaced in between is found out sooner or later.
func (l *leg) begin(ctx context.Context) error {
	info, err := l.info(ctx, false)
	if err != nil {
		return err
	}
	if !l.created.IsZero() {
		l.startAnew(info.Created.Equal(l.created))
	}
	l.created = info.Created
	l.heed(info)
	return nil
}

// startAnew expects everything once more: of a bucket that has lost its end, of another one of the same name, or because
// that did not work the last time.
func (l *leg) startAnew(same bool) {
	maps.Copy(l.stale, l.known)
	if !same {
		for key := range l.stale {
			l.stale[key] = 0 // revisions say nothing any more
		}
	}
	clear(l.known)
	l.last = 0
}

// resume makes sure that the consumer, which begins behind the last revision, is the old bucket's, and reports what has
// vanished from that.
func (l *leg) resume(ctx context.Context) error {
	info, err := l.info(ctx, len(l.known) > 0)
	switch {
	case err != nil:
		return err
	case !info.Created.Equal(l.created) || info.State.LastSeq < l.last:
		l.stale = map[string]uint64{}
		return errAnew
	case !l.reportVanished(info):
		return errStopped
	}
	l.heed(info)
	return nil
}

// heed sees to the buckets whose keys vanish without a word.
func (l *leg) heed(info *watchedInfo) {
	if cfg := info.Config; (cfg.MaxAge > 0 || cfg.AllowMsgTTL) && cfg.SubjectDeleteMarkerTTL == 0 {
		l.verify = time.After(verifyEvery)
	}
}

// watchedInfo is a stream's state, with a page of its subjects.
type watchedInfo struct {
	streamInfo
	Total int `json:"total"`
}

// info asks for the stream's state, with the subjects that are watched if they are asked for.
func (l *leg) info(ctx context.Context, subjects bool) (*watchedInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout.Max)
	defer cancel()
	var all watchedInfo
	for first := true; first || len(all.State.Subjects) < all.Total; first = false {
		var request any
		if subjects {
			request = map[string]any{"subjects_filter": l.filter, "offset": len(all.State.Subjects)}
		}
		data, err := l.c.api(ctx, "STREAM.INFO."+bucketPrefix+l.bucket, request)
		if err != nil {
			return nil, err
		}
		var page watchedInfo
		if err := json.Unmarshal(data, &page); err != nil {
			return nil, err
		}
		if first {
			all = page
			continue
		}
		if len(page.State.Subjects) == 0 {
			break
		}
		maps.Copy(all.State.Subjects, page.State.Subjects)
	}
	return &all, nil
}

// reportVanished reports the known keys that the bucket has no message of any more, as of info: those that were written
// since are not in question.
func (l *leg) reportVanished(info *watchedInfo) bool {
	for key, revision := range l.known {
		if _, there := info.State.Subjects[keySubject(l.bucket, key)]; there || revision > info.State.LastSeq {
			continue
		}
		if !l.vanished(key, info.State.LastSeq) {
			return false
		}
	}
	return true
}

func (l *leg) vanished(key string, revision uint64) bool {
	delete(l.known, key)
	return l.yield(&keyEntry{bucket: l.bucket, key: key, revision: revision, created: time.Now(), op: jetstream.KeyValuePurge})
}

// consume makes the leg's consumer, which the server removes by itself when it hears nothing more.
func (l *leg) consume(ctx context.Context, resumed bool) error {
	l.name = l.c.ids.next()
	config := map[string]any{
		"name": l.name, "deliver_policy": "last_per_subject", "filter_subject": l.filter, "headers_only": l.headersOnly,
		"ack_policy": "none", "replay_policy": "instant",
		"mem_storage": true, "num_replicas": 1, "inactive_threshold": watchExpiry,
	}
	if resumed {
		config["deliver_policy"], config["opt_start_seq"] = "by_start_sequence", l.last+1
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout.Max)
	defer cancel()
	stream := bucketPrefix + l.bucket
	data, err := l.c.api(ctx, "CONSUMER.CREATE."+stream+"."+l.name,
		map[string]any{"stream_name": stream, "config": config, "action": "create"})
	if err != nil {
		return err
	}
	var made struct {
		Pending uint64 `json:"num_pending"`
	}
	if err := json.Unmarshal(data, &made); err != nil {
		return err
	}
	l.pending, l.next = made.Pending, 1
	return nil
}

// deleteConsumer asks for it and does not wait: the server removes it in any case.
func (l *leg) deleteConsumer() {
	if l.c.link.up.Load() {
		_ = l.c.nc.Publish(l.c.cfg.apiPrefix()+"CONSUMER.DELETE."+bucketPrefix+l.bucket+"."+l.name, nil)
	}
}

// follow passes on what comes, until something ends the leg.
func (l *leg) follow(ctx context.Context) error {
	l.heard = time.Now()
	if l.pending == 0 {
		if err := l.catchUp(); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		if l.owed == 0 {
			if err := l.pull(); err != nil {
				return err
			}
		}
		m, err := l.receive(ctx)
		switch {
		case err != nil:
			return err
		case m == nil:
			info, err := l.info(ctx, true)
			if err != nil {
				return err
			}
			if !l.reportVanished(info) {
				return errStopped
			}
			l.verify = time.After(verifyEvery)
			continue
		}
		l.heard = time.Now()
		if token, ok := strings.CutPrefix(m.Subject, l.inbox); ok {
			err = l.status(token, m)
		} else {
			err = l.message(m)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// receive returns what comes next; nil when it is time to verify. What has come is received first: the caller of Watch
// may have taken its time.
func (l *leg) receive(ctx context.Context) (*nats.Msg, error) {
	select {
	case m := <-l.answers:
		return m, nil
	default:
	}
	timer := getTimer(watchSilence - time.Since(l.heard))
	defer putTimer(timer)
	select {
	case m := <-l.answers:
		return m, nil
	case <-l.verify:
		return nil, nil //nolint:nilnil // documented
	case <-l.lost:
		return nil, errLink
	case <-timer.C:
		return nil, errHeartbeats
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *leg) pull() error {
	l.request++
	l.owed = watchBatch
	body, err := json.Marshal(pullRequest{
		Batch: watchBatch, MaxBytes: max(watchBytes, 2*int(l.c.nc.MaxPayload())), Expires: watchExpiry, Heartbeat: watchHeartbeat,
	})
	if err != nil {
		return err
	}
	return l.c.nc.PublishRequest(l.c.cfg.apiPrefix()+"CONSUMER.MSG.NEXT."+bucketPrefix+l.bucket+"."+l.name,
		l.inbox+fmt.Sprint(l.request), body)
}

// status heeds a heartbeat, or the end of a pull request.
func (l *leg) status(token string, m *nats.Msg) error {
	if token != fmt.Sprint(l.request) {
		return nil // of one that has ended
	}
	end := pullEnd{status: header(m.Header, "Status"), description: header(m.Header, "Description")}
	switch {
	case end.status == "100":
		return l.inSync()
	case end.expected():
		l.owed = 0
		return nil
	}
	return fmt.Errorf("%w: %w", errPullEnded, end.err())
}

// message passes on an entry.
func (l *leg) message(m *nats.Msg) error {
	meta, err := m.Metadata()
	key, ours := strings.CutPrefix(m.Subject, keySubject(l.bucket, ""))
	if err != nil || !ours || meta.Sequence.Consumer != l.next {
		return errGap
	}
	l.next++
	l.owed--
	if l.pending > 0 {
		l.pending--
	}
	if meta.NumPending == 0 {
		l.pending = 0
	}
	e := &keyEntry{
		bucket: l.bucket, key: key, value: m.Data, revision: meta.Sequence.Stream, delta: meta.NumPending,
		created: meta.Timestamp, op: operation(m.Header),
	}
	if !l.pass(e) {
		return errStopped
	}
	switch {
	case !l.caughtUp && l.pending == 0:
		return l.catchUp()
	case meta.NumPending == 0:
		return l.inSync()
	}
	return nil
}

// pass yields an entry unless it is known: a replica that lags behind begins earlier than it was asked to.
func (l *leg) pass(e *keyEntry) bool {
	was, stale := l.stale[e.key]
	delete(l.stale, e.key)
	if e.revision <= l.last {
		return true
	}
	l.last = e.revision
	if e.op == jetstream.KeyValuePut {
		l.known[e.key] = e.revision
	} else {
		delete(l.known, e.key)
	}
	if stale && was == e.revision {
		return true
	}
	return l.yield(e)
}

// catchUp is called when everything that there was has come.
func (l *leg) catchUp() error {
	l.caughtUp = true
	for key := range l.stale {
		if !l.vanished(key, l.last) {
			return errStopped
		}
	}
	l.stale = nil
	return l.inSync()
}

// inSync notes that the watch has now seen all that there is.
func (l *leg) inSync() error {
	if l.caughtUp && l.synced != nil && !l.synced(time.Now()) {
		return errStopped
	}
	return nil
}
