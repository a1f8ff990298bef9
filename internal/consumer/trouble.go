package consumer

import (
	"time"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/incident"
	"github.com/natty-go/natty/internal/pull"
)

// The kinds of trouble of a supervision. Each is reported once until it is over, however
// its texts alternate.
const (
	troubleAway     = "away"     // the server or the leader of the durable is not there
	troubleRefused  = "refused"  // the server refuses the requests
	troubleTooSmall = "toosmall" // the next message has more bytes than a request may have
	troubleGone     = "gone"     // the durable or its stream was deleted
	troubleDeposed  = "deposed"  // Exclusive: another instance is the active one
)

// troubles is a row of failures: how long to pause after each, and what was reported.
type troubles struct {
	paused      bool // until resume fires
	resume      *time.Timer
	failures    int // since the last progress
	lastFailure time.Time
	reported    incident.Log
}

var retryPull = backoff.Exp{Min: 20 * time.Millisecond, Max: 4 * time.Second}

// pause stops pulling for a moment, longer after each failure without progress.
func (s *supervision) pause() {
	s.failures++
	s.lastFailure = time.Now()
	s.paused = true
	s.resume.Reset(retryPull.Delay(s.failures))
}

// report reports a kind of trouble, once until it is over: a server that is away for an
// hour is one event.
func (s *supervision) report(kind, what string, err error) {
	err = s.c.errorf("%s: %w", what, err)
	if s.reported.Open(kind) {
		s.c.report(err)
	} else {
		s.c.noteError(err)
	}
}

// recovered ends a row of failures.
func (s *supervision) recovered() {
	s.failures = 0
	s.c.pullTrouble.Store(nil)
	if s.reported.ResolveAll() {
		s.c.clearError()
	}
}

// checkRecovery ends a row of failures when the server serves requests again. An answer
// that refuses one is no progress.
func (s *supervision) checkRecovery() {
	if !s.c.puller.LastProgress().After(s.lastFailure) {
		return
	}
	s.failures = 0
	s.c.pullTrouble.Store(nil)
	if time.Since(s.lastFailure) > s.c.pace.calm {
		s.recovered()
	}
}

// kindOf is the kind of trouble that a failure of a request is a sign of.
func kindOf(end pull.End) string {
	switch {
	case end.Away():
		return troubleAway
	case end.TooSmall():
		return troubleTooSmall
	case end.Is("consumer deleted"), end.Is("stream deleted"):
		return troubleGone
	}
	return troubleRefused
}
