package main

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

// shown is how many failures are printed.
const shown = 3

// tally keeps account of one import.
type tally struct {
	read   int
	stored int // by how much the stream has grown
	took   time.Duration

	mu       sync.Mutex // guards what follows until the Writer is closed: it calls fail while rows are written
	failed   int
	failures []string // the first of them
}

// fail is OnError: it is called once for each row that is not stored, or may not be.
func (t *tally) fail(msg *nats.Msg, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed++
	if len(t.failures) < shown {
		reason := err.Error()
		if errors.Is(err, natty.ErrTooLarge) {
			reason = fmt.Sprintf("%v: %d bytes", natty.ErrTooLarge, len(msg.Data)) // in short
		}
		t.failures = append(t.failures, fmt.Sprintf("line %s: %s", msg.Header.Get(lineHeader), reason))
	}
}

// printFailures prints the first of the failures: not at once, in the middle of the progress bar.
func (t *tally) printFailures(out io.Writer) {
	for _, f := range t.failures {
		fmt.Fprintln(out, "  ", f)
	}
	if more := t.failed - len(t.failures); more > 0 {
		fmt.Fprintf(out, "   and %d more\n", more)
	}
}

// duplicates are the rows that were in the stream before: a Writer is not told, for it they are stored.
func (t *tally) duplicates() int { return t.read - t.failed - t.stored }

// account prints the account. Its error says what is not stored, or twice: what the first import lost the second would store.
func account(out io.Writer, src source, imports []*tally) error {
	if len(imports) == 0 {
		return nil // why there is none has been said
	}
	fmt.Fprintf(out, "\n            read    stored  duplicates  failed    rows/s\n")
	for i, t := range imports {
		fmt.Fprintf(out, "%-6s  %8d  %8d  %10d  %6d  %8.0f\n", [...]string{"first", "again"}[i],
			t.read, t.stored, t.duplicates(), t.failed, float64(t.read)/t.took.Seconds())
	}
	for _, t := range imports {
		if n := t.failed - src.tooLong; n > 0 {
			return fmt.Errorf("%d rows failed that should be stored", n)
		}
	}
	switch {
	case len(imports) < 2:
		return nil // as above
	case src.own && imports[0].duplicates() != 0:
		return fmt.Errorf("%d rows are not stored, though no two are the same", imports[0].duplicates())
	case imports[1].stored != 0:
		return fmt.Errorf("%d rows were stored when they were imported again, and none should be", imports[1].stored)
	case imports[0].failed < src.tooLong:
		return fmt.Errorf("%d rows are too long, and only %d failed", src.tooLong, imports[0].failed)
	}
	return nil
}
