package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
)

// maxRetries bounds the goroutines that send again. Each pauses after a failed attempt,
// so that a full window does not overload a server in trouble.
const maxRetries = 64

// fullPause is the pause after an attempt that found the stream full.
var fullPause = backoff.Exp{Min: 20 * time.Millisecond, Max: 500 * time.Millisecond}

// retry is a message that is sent again.
type retry struct {
	s    *slot // s.retry is another one, or nil, once the outcome is known
	p    *publication
	err  error // of the first attempt, until it is classified
	busy bool  // a goroutine uses p and err
}

// publication moves a message out of its slot, with its memory: the slot may hold
// another message before the retry has ended.
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
		pub: w.pub, msg: msg, id: s.id, ownID: s.ownID, repeat: w.cfg.AtLeastOnce,
		deadline: s.sent.Add(w.cfg.Timeout), first: s.sent, streams: &w.streams, attempts: 1,
	}
}

// retryLocked queues a message to be sent again, with the error of its first attempt.
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
			err = nil // the acknowledgement of an earlier attempt
		}
		again := w.conclude(r, pause > 0, err)
		w.logFailure()
		if again {
			_ = backoff.Sleep(w.life, pause) // the next message has its turn
		}
	}
}

// nextRetry returns nil when the goroutine is to end.
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
		r.p.stopWaiting() // the answer to its first attempt has arrived
	}
	w.retries = nil
	w.retrying--
	w.idleLocked()
	return nil
}

// attempt classifies the first attempt's error, or sends the message again. It returns
// the pause before the next attempt, or 0 and the outcome.
func (r *retry) attempt(ctx context.Context) (pause time.Duration, err error) {
	p, first := r.p, r.err
	r.err = nil
	if first != nil {
		_, err = p.classify(ctx, first)
		p.last = retryReason(err)
	}
	// Without an answer it is sent again at once: a lost connection needs no pause.
	silent := errors.Is(first, errSilent) || errors.Is(first, nats.ErrDisconnected)
	if first == nil || silent && time.Until(p.deadline) > leastAttempt {
		_, err = p.try(ctx)
	}
	if retryReason(err) != nil {
		pause, err = retryPause.Delay(p.attempts), p.last
	} else if errors.Is(err, ErrStreamFull) {
		pause = fullPause.Delay(p.attempts)
	}
	if pause > 0 && time.Until(p.deadline) < pause+leastAttempt {
		return 0, fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return pause, err
}

// conclude queues a message again or records its outcome. It reports whether it queued
// it.
func (w *Writer) conclude(r *retry, again bool, err error) bool {
	w.mu.Lock()
	defer w.unlock()
	r.busy = false
	switch {
	case r.s.retry != r: // its outcome is known already
		if again {
			r.p.stopWaiting()
		}
		return false
	case again:
		w.retries = append(w.retries, r)
		return true
	case err == nil:
		w.concludeLocked(r.s, Result{MsgID: r.p.id})
		w.settleLocked(r.s)
	default:
		w.failLocked(r.s, r.p, r.p.failed(err))
	}
	return false
}
