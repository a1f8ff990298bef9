package kv

import (
	"context"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// This file decides when a session has seen everything. The consumer delivers the last
// message of each key as of its beginning. A key that is overwritten meanwhile comes
// later, as a new message. So neither a count of what has come nor a number of the
// server's of what has yet to come (which History and concurrent writes falsify) proves
// that every key has come. Proof is one of these:
//   - The stream's last revision has come: all before it came first.
//   - Nothing was written since the session began, and the consumer has delivered what
//     there was then.
//   - Every key that the bucket's leader lists has come.
//
// Whether a key has vanished without a marker is decided by the leader's list too, or by
// the number of its keys.

// worthALook reports whether the session may be complete although the server has more
// for it: under a steady load it always has.
func (s *session) worthALook(revision uint64) bool {
	switch {
	case s.caughtUp:
		return false
	case s.list == nil:
		return revision >= s.begun
	}
	return len(s.missing) == 0 || s.next%watchBatch == 0
}

// advance is called when nothing more seems to come: idle says that the server had
// nothing to deliver.
func (s *session) advance(ctx context.Context, idle bool) error {
	if !s.caughtUp || s.verifying {
		if err := s.catchUp(ctx, idle); err != nil {
			return err
		}
	}
	if s.caughtUp && s.Synced != nil && !s.Synced(time.Now()) {
		return errStopped
	}
	return nil
}

// catchUp finds out whether everything has come, and reports the keys that have
// vanished without a marker.
func (s *session) catchUp(ctx context.Context, idle bool) error {
	vanish := s.verifying || len(s.stale) > 0 || s.resumed && len(s.known) > 0
	var sure bool
	switch {
	case s.list != nil:
		sure = s.compared(ctx, idle, vanish)
	case s.lists == nil:
		var err error
		if sure, err = s.look(ctx, idle, vanish); err != nil {
			return err
		}
	}
	switch {
	case !sure:
		return nil
	case vanish && !s.reportVanished():
		return errStopped
	}
	s.done()
	return nil
}

// look reports whether everything is proven to have come without a list. If not, it
// begins one. While others write, this session is at the end now and then: the number of
// keys may spare the list.
func (s *session) look(ctx context.Context, idle, vanish bool) (sure bool, err error) {
	if sure, err = s.proven(ctx, vanish); sure || err != nil {
		return sure, err
	}
	if vanish && s.behind && !idle && s.looks < maxLooks {
		s.looks++
		return false, nil
	}
	s.listKeys(ctx)
	return false, nil
}

// compared reports whether what has come can be compared with the list: every key of it
// has come, and so has what is older than the list.
func (s *session) compared(ctx context.Context, idle, vanish bool) bool {
	if len(s.missing) > 0 {
		if s.lists == nil && (idle || time.Since(s.listed) > compareEvery) {
			s.listKeys(ctx)
		}
		return false
	}
	return !vanish || s.last >= s.end || idle
}

// proven reports whether everything has come, and no key has vanished, as far as that
// can be known without a list of the keys.
func (s *session) proven(ctx context.Context, vanish bool) (bool, error) {
	if !vanish && (s.whole || s.Synced == nil) { // nobody asks
		return true, nil
	}
	info, err := s.info(ctx)
	if err != nil {
		return false, err
	}
	if !info.Created.Equal(s.created) {
		return false, s.replaced()
	}
	end := info.State.LastSeq
	s.behind = s.last < end
	switch {
	case !s.behind && s.counted(info):
		s.end = end
		return true, nil
	case vanish:
		return false, nil
	}
	return !s.behind || s.exact && end == s.begun, nil
}

// counted reports whether the stream has as many keys as have come to this watch. It
// has no others then, if its last revision has come too, and none has vanished.
func (s *session) counted(info *page) bool {
	if s.keys != ">" || s.uncounted {
		return false
	}
	life := info.Config.SubjectDeleteMarkerTTL // of a marker
	if age := info.Config.MaxAge; life == 0 || age > 0 && age < life {
		life = age
	}
	if life > 0 {
		before := info.TimeStamp.Add(-life)
		maps.DeleteFunc(s.gone, func(_ string, at time.Time) bool { return at.Before(before) })
	}
	return info.State.NumSubjects == uint64(len(s.known)+len(s.gone))
}

// listKeys begins to list the keys that the leader has. The list comes through s.lists,
// since that of a large bucket takes seconds.
func (s *session) listKeys(ctx context.Context) {
	lists := make(chan listed, 1)
	s.lists = lists
	s.listing.Go(func() {
		began := time.Now()
		all, err := list(KeySubject(s.stored, ""), func(offset int) (*page, error) { return s.page(ctx, offset) })
		lists <- listed{all, err, time.Since(began)}
	})
}

// listed is the outcome of listKeys.
type listed struct {
	*listing
	err  error
	took time.Duration
}

// compare notes which keys of a list have yet to come.
func (s *session) compare(ctx context.Context, l listed) error {
	s.lists, s.listed, s.listingTook, s.queued = nil, time.Now(), l.took, len(s.answers)
	switch {
	case l.err != nil:
		return l.err
	case !l.first.Created.Equal(s.created):
		return s.replaced()
	case s.caughtUp && !s.verifying: // everything has come in the meantime
		return nil
	}
	s.list, s.missing, s.end = l.listing, map[string]struct{}{}, l.first.State.LastSeq
	if !s.whole {
		for key := range l.keys {
			_, known := s.known[key]
			if _, gone := s.gone[key]; !known && !gone {
				s.missing[key] = struct{}{}
			}
		}
	}
	return s.advance(ctx, false)
}

// done notes that everything has come by now.
func (s *session) done() {
	s.caughtUp, s.verifying, s.resumed, s.whole = true, false, false, true
	s.stale, s.list, s.missing, s.looks = nil, nil, nil, 0
	s.forgetMarkers()
	if s.verify == nil {
		s.verifyLater()
	}
}

// maxLooks is how often the number of the keys is looked at before they are listed.
const maxLooks = 20

// maxMarkers is how many markers a watch remembers at least. It never remembers more
// than keys.
const maxMarkers = 1000

// forgetMarkers keeps the memory for markers within bounds.
func (s *session) forgetMarkers() {
	if s.whole && (s.uncounted || len(s.gone) > max(maxMarkers, len(s.known))) {
		s.uncounted, s.gone = true, nil
	}
}

// verifyLater starts the timer for the next look at a bucket whose keys vanish without
// a marker.
func (s *session) verifyLater() {
	if cfg := s.config; (cfg.MaxAge > 0 || cfg.AllowMsgTTL) && cfg.SubjectDeleteMarkerTTL == 0 {
		s.verify = time.After(max(verifyEvery, 10*s.listingTook))
	}
}

// heed takes over the settings of the stream, which decide whether its keys vanish
// without a marker.
func (s *session) heed(info *page) {
	s.config, s.heeded = info.Config, time.Now()
	s.verifyLater()
}

// lookAtSettings asks whether somebody has changed the bucket so that its keys vanish
// without a marker: it got a TTL, or lost its markers. Without an answer, the next look
// finds out.
func (s *session) lookAtSettings(ctx context.Context) {
	if s.verify != nil || !s.caughtUp || time.Since(s.heeded) < watchExpiry/2 {
		return
	}
	if info, err := s.info(ctx); err == nil && info.Created.Equal(s.created) {
		s.heed(info)
	}
}

// reportVanished reports the keys that should be there, and are not in the list of the
// leader; without a list, all that have come are there. A key that was written since
// then has not vanished.
func (s *session) reportVanished() bool {
	there := func(key string) bool {
		if s.list == nil {
			return false
		}
		_, there := s.list.keys[key]
		return there
	}
	for key := range s.stale {
		delete(s.stale, key)
		if !there(key) && !s.vanished(key, s.end) {
			return false
		}
	}
	if s.list == nil {
		return true
	}
	maps.DeleteFunc(s.gone, func(key string, _ time.Time) bool { return !there(key) })
	for key, revision := range s.known {
		if there(key) || revision > s.end {
			continue
		}
		if !s.vanished(key, s.end) {
			return false
		}
	}
	return true
}

func (s *session) vanished(key string, revision uint64) bool {
	delete(s.known, key)
	return s.Yield(&entry{
		bucket: s.bucket, key: key, revision: revision, created: time.Now(), op: jetstream.KeyValuePurge,
	})
}
