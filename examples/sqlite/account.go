package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

const (
	readings = 500
	durable  = "database"
	// powerFails says which batch is committed and not acknowledged.
	powerFails = 3
)

// tally keeps account of what was published and of what became of it. One batch is handled at a time.
type tally struct {
	published []uint64 // sequences
	batches   int
	seen      map[uint64]int // how often each sequence was handled
	half      func()         // called when half of them are handled
	failure   string         // the last that was printed
}

// note takes note of a batch, and of one batch it says that it failed, although it is committed: as when the power fails
// before the acknowledgement.
func (t *tally) note(msgs []*nats.Msg, err error) error {
	if _, isPartial := errors.AsType[*natty.PartialError](err); err != nil && !isPartial {
		return err
	}
	for _, msg := range msgs {
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		t.seen[meta.Sequence.Stream]++
	}
	t.batches++
	if t.batches == powerFails {
		return errors.New("the power failed between the commit and the acknowledgement")
	}
	if len(t.seen) >= readings/2 {
		t.half()
	}
	return err
}

// printError prints what went wrong while the consumer ran. Each message of a batch fails by itself: what they all say is
// printed once. Dead letters are read at the end.
func (t *tally) printError(out io.Writer, err error) {
	if failed, ok := errors.AsType[*natty.HandlerError](err); ok {
		if failed.Final || failed.Err.Error() == t.failure {
			return
		}
		err = failed.Err
	}
	t.failure = err.Error()
	fmt.Fprintln(out, "  ", err)
}

// print writes the account. Its error names what was lost: neither in the database nor a dead letter.
func (t *tally) print(ctx context.Context, c *natty.Client, file, name string, out io.Writer) (err error) {
	s, err := open(ctx, file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	rows, err := s.sequences(ctx, name)
	if err != nil {
		return err
	}
	known := map[uint64]bool{}
	for _, sequence := range rows {
		known[sequence] = true
	}
	dead := 0
	for letter, err := range c.DeadLetters(ctx, name+".dead") {
		if err != nil {
			return err
		}
		dead++
		known[letter.Sequence] = true
		fmt.Fprintf(out, "   dead letter %s: %s\n", letter.Data, letter.Reason)
	}
	twice := 0
	for _, n := range t.seen {
		if n > 1 {
			twice++
		}
	}
	var lost []uint64
	for _, sequence := range t.published {
		if !known[sequence] {
			lost = append(lost, sequence)
		}
	}
	fmt.Fprintf(out, "\npublished             %4d\nbatches               %4d\nhandled twice         %4d\nrows in the database  %4d\ndead-lettered         %4d\nlost                  %4d\n",
		len(t.published), t.batches, twice, len(rows), dead, len(lost))
	if len(lost) > 0 {
		return fmt.Errorf("%d readings were lost, the first of them has sequence %d", len(lost), lost[0])
	}
	return nil
}
