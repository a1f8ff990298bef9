package lease

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/kv"
)

// RetryAcquire is the pause after a failed attempt to acquire a key.
var RetryAcquire = backoff.Exp{Min: 20 * time.Millisecond, Max: time.Second}

// releasePause is the pause before the next look at a key whose release was heard of
// and is not stored yet.
var releasePause = backoff.Exp{Min: 2 * time.Millisecond, Max: time.Second}

const (
	// deafPause is the longest pause between two looks of a standby that hears nothing.
	deafPause = 500 * time.Millisecond
	// passing is how long attempts to acquire have failed before that is reported.
	passing = 250 * time.Millisecond
)

// Acquire waits until the key is free, and takes it. It makes a missing bucket. While
// the owner renews, Acquire asks the server nothing: it receives the owner's writes, as
// hints. They may get lost, so a timer as long as the TTL decides when to look at the
// key. Where hints cannot come it looks at least twice a second.
//
// It returns an error when ctx ends, or when waiting cannot help (see Final). Other
// errors are reported.
func (k *Key) Acquire(ctx context.Context, owner string) (*Lease, error) {
	e, err := k.listen()
	if err != nil {
		return nil, k.About(err)
	}
	defer e.close()
	s := standby{key: k, ear: e}
	for {
		began := time.Now()
		now, l, err := s.try(ctx, owner)
		switch {
		case l != nil:
			k.troubles.ResolveAll()
			return l, nil
		case ctx.Err() != nil:
			if jsapi.Code(err) != 0 || s.failure == nil {
				s.failure = err
			}
			err = jsapi.Because(ctx.Err(), s.failure)
		case err == nil:
			err = s.wait(ctx, now)
		case errors.Is(err, kv.ErrRefused): // somebody else was faster
			err = nil
		case Final(err):
		default:
			err = s.failed(ctx, began, err)
		}
		if err != nil {
			return nil, k.About(err)
		}
	}
}

// standby waits for the end of another one's lease.
type standby struct {
	key *Key
	ear *ear

	ready    bool      // the bucket is there
	failures int       // in a row
	failing  time.Time // since when
	failure  error     // the last one

	written time.Time     // when the owner's last write that is known was made
	life    time.Duration // after which it expires
	write   string        // the id of that write

	revision uint64    // as of the last look
	since    time.Time // when a look found that revision first
	vanished time.Time // when a look found no key any more
	reported bool      // that the key does not expire

	looked  time.Time // when the last wait began
	heard   bool      // a hint of the server's since then
	unheard bool      // the key was written, and no hint came

	// expected is the lowest revision that the owner's next write can expect. A hint
	// below it belongs to a write that the server refused, and must not delay the next
	// look.
	expected uint64
	// released is the revision under which the owner released the key. That hint can
	// come before the stream has stored the release: while the key still has this
	// revision, the next look follows soon. looks counts these looks.
	released uint64
	looks    int
}

// try looks at the key, and takes it if it is free. Without a lease and an error
// somebody owns the key, or may still act as if.
func (s *standby) try(ctx context.Context, owner string) (now KeyState, l *Lease, err error) {
	k := s.key
	if !s.ready {
		if err := k.Ready(ctx); err != nil {
			return now, nil, err
		}
		s.ready = true
	}
	look, cancel := context.WithTimeout(ctx, jsapi.APITimeout)
	now, err = k.Look(look)
	cancel()
	if err == nil && now.Owned && s.stuck(now, s.life/10) { // before it is reported
		if changed := k.Ready(ctx); Final(changed) {
			return now, nil, changed
		}
	}
	if err != nil || now.Owned || s.hold(now) > 0 {
		return now, nil, err
	}
	if s.revision != 0 { // it has stood by: the bucket may have been changed, or made again
		if err := k.Ready(ctx); err != nil {
			return now, nil, err
		}
	}
	l, err = k.Take(ctx, owner, now.Revision)
	return now, l, err
}

// hold returns how long the last owner may still act although the key has vanished: the
// bucket was deleted, or purged. A standby that may have missed hints does not know of
// the owner's last renewal, but that was before the key vanished.
func (s *standby) hold(now KeyState) time.Duration {
	if now.Revision != 0 || s.revision == 0 {
		return 0
	}
	if s.vanished.IsZero() {
		s.vanished = time.Now()
	}
	until := s.written.Add(s.life)
	if trust := s.vanished.Add(s.life - s.life/5); (s.looked.IsZero() || s.deaf() != "") && trust.After(until) {
		until = trust
	}
	return time.Until(until)
}

// failed reports an error that may pass, if it does not pass at once, and pauses. The
// attempt that failed began at a time, and may have lasted for most of the TTL.
func (s *standby) failed(ctx context.Context, began time.Time, err error) error {
	if s.failures++; s.failures == 1 {
		s.failing = began
	}
	s.ready, s.failure = false, err
	s.since = time.Time{} // the key may have changed and come back meanwhile
	if pause := RetryAcquire.Wait(ctx, s.failures); pause != nil {
		return jsapi.Because(pause, err)
	}
	if time.Since(s.failing) > passing {
		s.key.trouble(kindOf(err), s.key.About(err))
	}
	return nil
}

// kindOf says what errors have in common that are one trouble.
func kindOf(err error) string {
	if code := jsapi.Code(err); code != 0 {
		return strconv.Itoa(int(code))
	}
	return "acquire"
}

// wait returns when it is time for a look at the key, which was like now before.
func (s *standby) wait(ctx context.Context, now KeyState) error {
	s.failures, s.failure = 0, nil
	if now.Revision == 0 { // meanwhile there may be another owner
		return backoff.Sleep(ctx, min(s.hold(now), deafPause))
	}
	s.learn(now)
	s.key.troubles.ResolveAll()
	s.reportStuck(now)
	if s.key.Standby != nil {
		s.key.Standby(s.deaf())
	}
	timer := time.NewTimer(s.left())
	defer timer.Stop()
	_, changed := s.key.kv().API.Link.Watch()
	for {
		select {
		case m := <-s.ear.hints:
			if m != nil && m.Header.Get(kv.HeaderOperation) != "" {
				if s.heedRelease(m) {
					return nil
				}
			} else if m == nil || s.heed(m) {
				timer.Reset(s.left())
			}
		case <-timer.C:
			return nil
		case <-changed: // hints may have got lost
			s.since, s.looked = time.Time{}, time.Time{}
			s.ear.refused.Store(nil) // the new connection subscribes again
			return s.key.kv().API.Link.Wait(ctx, time.Time{})
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// learn takes note of what a look has found.
func (s *standby) learn(now KeyState) {
	s.vanished = time.Time{}
	if now.Revision < s.revision { // the bucket is another one
		s.expected, s.released = 0, 0
	}
	if now.Revision != s.revision {
		s.revision, s.reported, s.since = now.Revision, false, time.Time{}
		// With hints the owner's renewals come in time. One that comes at the moment of
		// the look proves nothing.
		known := now.write != "" && now.write == s.write && !s.written.IsZero() // by its hint
		silent := !known && !s.looked.IsZero() && time.Since(s.looked) >= s.life/2
		s.unheard = !s.heard && (s.unheard || silent)
		if !known {
			s.life = s.key.lifeOf(now)
			s.written = time.Now().Add(-min(max(now.age, 0), s.life))
			s.write = now.write
		}
	}
	if s.since.IsZero() {
		s.since = time.Now()
	}
	s.expected = max(s.expected, now.Revision)
	if now.Revision == s.released {
		s.looks++
	}
	s.looked, s.heard = time.Now(), false
}

// lifeOf returns how long a write of the key lives. Another owner may have asked for
// another TTL.
func (k *Key) lifeOf(now KeyState) time.Duration {
	own, err := time.ParseDuration(now.ttl)
	switch {
	case err == nil && own > 0 && k.found.maxAge > 0:
		return min(own, k.found.maxAge)
	case err == nil && own > 0:
		return own
	case k.found.maxAge > 0 && now.ttl != kv.TTLNever:
		return k.found.maxAge
	}
	return k.ttl
}

// neverExpires reports a value that stays until somebody deletes it.
func (k *Key) neverExpires(now KeyState) bool {
	return now.ttl == kv.TTLNever || now.ttl == "" && k.found.maxAge == 0
}

// stuck reports whether the key should have expired long ago, which was not reported
// yet; or whether it will be so soon.
func (s *standby) stuck(now KeyState, soon time.Duration) bool {
	return !s.reported && now.Revision == s.revision && !s.since.IsZero() && time.Since(s.since) > 2*s.life-soon
}

// reportStuck reports a key that does not expire. Without the report, Acquire would
// wait for ever in silence.
func (s *standby) reportStuck(now KeyState) {
	if !s.stuck(now, 0) {
		return
	}
	s.reported = true
	k := s.key
	why := "the server should have removed it: the servers that keep the bucket may lack a majority, and the key " +
		"is free once they have one again"
	if k.neverExpires(now) {
		why = "it was put there by hand, or by another program, without a TTL; delete the key"
	}
	k.trouble("stuck", fmt.Errorf("natty: %s does not expire: it has had revision %d for %v, though nobody renews it; %s",
		k.Name(), now.Revision, time.Since(s.since).Round(time.Second), why))
}

// heedRelease takes note that the owner may have released the key. It reports whether
// that is news.
func (s *standby) heedRelease(m *nats.Msg) bool {
	expected, err := strconv.ParseUint(m.Header.Get(jetstream.ExpectedLastSubjSeqHeader), 10, 64)
	if err == nil && expected < s.expected {
		return false
	}
	s.heard = s.heard || m.Sub != nil
	s.released, s.looks = expected, 0
	return true
}

// heed takes note of a write that may be the owner's. It reports whether it may. Other
// programs renew without a condition.
func (s *standby) heed(m *nats.Msg) bool {
	if condition := m.Header.Get(jetstream.ExpectedLastSubjSeqHeader); condition != "" {
		expected, err := strconv.ParseUint(condition, 10, 64)
		if err != nil || expected < s.expected {
			return false
		}
		s.expected = expected + 1
	}
	s.heard = s.heard || m.Sub != nil
	s.write, s.written = m.Header.Get(headerLease), time.Now()
	return true
}

// deaf says why no hints come; "" if they may.
func (s *standby) deaf() string {
	if why := s.ear.deaf(); why != "" || !s.unheard {
		return why
	}
	return "the owner's writes are not heard here"
}

// left is the time until the next look: when the owner's last write expires, and after
// that a little later, since the server may be late.
func (s *standby) left() time.Duration {
	left := time.Until(s.written.Add(s.life))
	switch {
	case left > 0:
	case s.reported && s.deaf() == "": // a change comes as a hint, or is not urgent
		left = min(s.life, s.key.ttl)
	default:
		left = max(s.life/40, 25*time.Millisecond)
	}
	if s.deaf() != "" {
		left = min(left, s.key.ttl/4, deafPause)
	}
	if s.revision == s.released && s.released != 0 {
		left = min(left, releasePause.Delay(s.looks))
	}
	return left
}
