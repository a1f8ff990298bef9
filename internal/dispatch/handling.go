package dispatch

import (
	"context"
	"time"
)

// Outcome is what became of a delivery whose handler has returned; see natty.Outcome.
type Outcome string

// The outcomes of a delivery.
const (
	Acked        Outcome = "acked"
	Retried      Outcome = "retried"
	DeadLettered Outcome = "dead_lettered"
	Terminated   Outcome = "terminated"
	Kept         Outcome = "kept"
	Settled      Outcome = "settled"
	Abandoned    Outcome = "abandoned"
)

// Verdict is the outcome of one delivery; see natty.Verdict.
type Verdict struct {
	Outcome Outcome
	Err     error
	Delay   time.Duration
}

// Handling is one call of a handler that a Tracer follows. The goroutine that has called
// the handler is the only one that uses it.
type Handling struct {
	Ctx      context.Context //nolint:containedctx // the handler's, with what the Tracer added
	Verdicts []Verdict       // of the messages so far, in their order
	Messages int
}

// Add adds the verdict of the next message. It reports whether that was the last one.
func (h *Handling) Add(v Verdict) (complete bool) {
	h.Verdicts = append(h.Verdicts, v)
	return len(h.Verdicts) == h.Messages
}
