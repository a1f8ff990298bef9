package natty

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What happens to a message of a Writer that was not acknowledged at once: it becomes a publication, as Publish has them,
// and waits for one of a few goroutines that make one attempt with each, in turn.

// maxRetries bounds these goroutines. That they pause after an attempt that did not do keeps a full window from hammering
// at a server that is in trouble.
const maxRetries = 64

// fullPause is the pause after an attempt that found the stream full.
var fullPause = Backoff{Min: 20 * time.Millisecond, Max: 500 * time.Millisecond}

// retry is a message on its way through them.
type retry struct {
	s    *slot // has another retry, or none, once the outcome is known
	p    *publication
	err  error // what the first attempt came to, until it is judged
	busy bool  // a goroutine has it, and what is above
}

// publication takes a message out of its slot, memory included: the slot may be another's before the retry has ended.
func (w *Writer) publication(s *slot) *publication {
	msg := &nats.Msg{Subject: s.subject, Data: s.data, Header: s.header}
	if s.ownID && len(s.header) == 0 {
		msg.Header = nats.Header{jetstream.MsgIDHeader: {s.id}}
	}
	if len(msg.Header) == 0 {
		msg.Header = nil
	}
	s.data, s.header, s.values = nil, nil, nil
	return &publication{
		c: w.c, msg: msg, id: s.id, ownID: s.ownID, repeat: w.cfg.AtLeastOnce,
		deadline: s.sent.Add(w.cfg.Timeout), first: s.sent, streams: &w.streams, attempts: 1,
	}
}

// retryLocked hands a message over to a retry, with what its first attempt came to.
func (w *Writer) retryLocked(s *slot, p *publication, err error) {
	r := &retry{s: s, p: p, err: err}
	w.awaited--
	s.state, s.retry = slotRetrying, r
	w.retries = append(w.retries, r)
	if w.retrying < maxRetries {
		w.retrying++
		go w.retry()
	}
}

func (w *Writer) retry() {
	for r := w.nextRetry(); r != nil; r = w.nextRetry() {
		pause, err := r.attempt(w.life)
		if pause == 0 && r.p.stopWaiting() != nil {
			err = nil // a good answer came meanwhile
		}
		again := w.conclude(r, pause > 0, err)
		w.logNews()
		if again {
			_ = sleep(w.life, pause) // then it is another's turn
		}
	}
}

// nextRetry returns nil when there is nothing to do any more.
func (w *Writer) nextRetry() *retry {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.retries) > 0 {
		r := w.retries[0]
		w.retries[0] = nil
		w.retries = w.retries[1:]
		if r.s.retry == r {
			r.busy = true
			return r
		}
		r.p.stopWaiting() // the answer to its first attempt came
	}
	w.retries = nil
	w.retrying--
	w.idleLocked()
	return nil
}

// attempt does what is next for a message. It returns the pause before it is to be tried again, or 0 and the outcome.
func (r *retry) attempt(ctx context.Context) (pause time.Duration, err error) {
	p := r.p
	first := r.err
	r.err = nil
	if first != nil {
		_, err = p.judge(ctx, first)
		if again, ok := errors.AsType[*againError](err); ok {
			p.last = again.reason
		}
	}
	// A lost connection needs no pause.
	lost := errors.Is(first, errSilent) || errors.Is(first, nats.ErrDisconnected)
	if first == nil || lost && time.Until(p.deadline) > leastAttempt {
		_, err = p.try(ctx)
	}
	if _, again := errors.AsType[*againError](err); again {
		pause, err = retryPause.delay(p.attempts), p.last
	} else if errors.Is(err, ErrStreamFull) {
		pause = fullPause.delay(p.attempts)
	}
	if pause > 0 && time.Until(p.deadline) < pause+leastAttempt {
		return 0, fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return pause, err
}

// conclude puts a message back that is to be tried again, or takes note of its outcome. It reports whether it was put back.
func (w *Writer) conclude(r *retry, again bool, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.busy = false
	switch {
	case r.s.retry != r: // decided elsewhere
		if again {
			r.p.stopWaiting()
		}
		return false
	case again:
		w.retries = append(w.retries, r)
		return true
	case err == nil:
		w.settleLocked(r.s)
	default:
		w.failLocked(r.s, r.p, r.p.failed(err))
	}
	return false
}

// streams are what was looked up about streams a moment ago: after a lost connection thousands of messages ask for the same.
type streams struct {
	asking chan struct{} // held by the one who asks

	mu    sync.Mutex // guards known
	known []knownStream
}

type knownStream struct {
	info *jetstream.StreamInfo
	at   time.Time
}

// streamIsKnown is how long an answer is used again.
const streamIsKnown = time.Second

// find looks up the stream of p, or takes what was found just now.
func (k *streams) find(ctx context.Context, p *publication) error {
	if k.recall(p) {
		return nil
	}
	bounded, cancel := p.within(ctx)
	defer cancel()
	select {
	case k.asking <- struct{}{}:
	case <-bounded.Done():
		return bounded.Err()
	}
	defer func() { <-k.asking }()
	if k.recall(p) {
		return nil
	}
	if err := p.lookUp(ctx); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = append(k.known, knownStream{p.stream, time.Now()})
	return nil
}

func (k *streams) recall(p *publication) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = slices.DeleteFunc(k.known, func(s knownStream) bool { return time.Since(s.at) > streamIsKnown })
	for _, s := range k.known {
		// How full a subject is was asked for one subject only.
		if config := &s.info.Config; !config.DiscardNewPerSubject &&
			slices.ContainsFunc(config.Subjects, func(f string) bool { return covers(f, p.msg.Subject) }) {
			p.stream = s.info
			return true
		}
	}
	return false
}
