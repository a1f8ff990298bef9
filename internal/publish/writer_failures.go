package publish

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/callback"
)

// failLocked records that a message failed. With an OnError the message keeps its slot
// until OnError has returned: a slow one fills the window, and no report is dropped.
func (w *Writer) failLocked(s *slot, p *publication, err error) {
	w.concludeLocked(s, Result{MsgID: p.id, Err: err})
	if w.failures.n == 0 {
		w.unlogged = err
	}
	w.failures.add(err)
	w.failed++
	w.lastErr = err
	if w.cfg.OnError == nil {
		w.settleLocked(s)
		return
	}
	// A copy, because an attempt that is stuck in a write may still use the message.
	msg := &nats.Msg{Subject: p.msg.Subject, Data: slices.Clone(p.msg.Data), Header: maps.Clone(p.msg.Header)}
	w.reports = append(w.reports, report{s, msg, err})
	if !w.reporting {
		w.reporting = true
		go callback.Loop(w.reportNext)
	}
	w.unlinkLocked(s)
	s.state = slotFailed
}

// logFailure logs the first failure since a Flush. It needs w.mu free, because the log
// may be written with a Writer.
func (w *Writer) logFailure() {
	w.mu.Lock()
	err := w.unlogged
	w.unlogged = nil
	w.mu.Unlock()
	if err != nil {
		w.pub.Log.Warn("natty: a Writer's message failed; more that fail before the next Flush are not logged",
			"error", err)
	}
}

// report is a failure on its way to OnError.
type report struct {
	s   *slot
	msg *nats.Msg
	err error
}

// reportNext calls OnError for the next failure. It returns false when there is none.
func (w *Writer) reportNext() (more bool) {
	w.mu.Lock()
	if len(w.reports) == 0 {
		w.reports, w.reporting = nil, false
		w.idleLocked()
		w.mu.Unlock()
		return false
	}
	r := w.reports[0]
	w.reports[0] = report{}
	w.reports = w.reports[1:]
	w.mu.Unlock()
	onError := func() error {
		w.cfg.OnError(r.msg, r.err)
		return nil
	}
	callback.Call(onError, func(stack []byte, err error) {
		if stack != nil {
			w.pub.Log.Error("natty: OnError of a Writer panicked",
				"panic", strings.TrimPrefix(err.Error(), "panic: "), "stack", string(stack))
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.vacateLocked(r.s)
		w.wakeLocked()
	})
	return true
}

// keptFailures is how many errors a Flush returns at most. It counts the others.
const keptFailures = 20

// failures are the first errors, and how many there were.
type failures struct {
	kept []error
	n    int
}

func (f *failures) add(errs ...error) {
	f.n += len(errs)
	f.kept = append(f.kept, errs[:min(len(errs), keptFailures-len(f.kept))]...)
}

func (f *failures) merge(g failures) {
	n := f.n + g.n
	f.add(g.kept...)
	f.n = n
}

func (f *failures) err() error {
	errs := slices.Clone(f.kept)
	if more := f.n - len(f.kept); more > 0 {
		errs = append(errs, fmt.Errorf("natty: and %d more messages failed", more))
	}
	return errors.Join(errs...)
}
