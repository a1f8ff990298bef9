package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

// count counts once, under the lock. When the lock is lost before it has written anything, it begins again.
func count(ctx context.Context, c *natty.Client, bucket string, a *account) error {
	for {
		lease, err := c.Lock(ctx, lockOf(bucket)) // waits
		if err != nil {
			return err
		}
		began := time.Now()
		err = a.counter.add(lease.Context(), lease.Token())
		a.note(held{token: lease.Token(), began: began, end: time.Now()}, err == nil) // while the lock is held
		// The next one has it at once. That the lock had been lost before is in err already.
		if lost := lease.Release(context.WithoutCancel(ctx)); lost != nil && !errors.Is(lost, natty.ErrDeposed) {
			return lost
		}
		if !errors.Is(err, natty.ErrDeposed) {
			return err
		}
	}
}

// counter is a file that says how often was counted, and under which lock last.
type counter struct{ file string }

// add reads, changes and writes the file, for which it takes a moment. ctx ends when the lock may soon be somebody else's.
// A process that is paused right before it writes cannot see that: the token can, since it grows with every owner.
func (c counter) add(ctx context.Context, token uint64) error {
	n, last, err := c.read()
	if err != nil {
		return err
	}
	select {
	case <-time.After(time.Millisecond):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if token < last {
		return fmt.Errorf("token %d comes after %d: %w", token, last, natty.ErrDeposed)
	}
	return os.WriteFile(c.file, fmt.Appendf(nil, "%d %d\n", n+1, token), 0o600)
}

// read returns zeros if there is no file.
func (c counter) read() (n int, token uint64, err error) {
	data, err := os.ReadFile(c.file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, 0, nil
	}
	if err == nil {
		_, err = fmt.Sscan(string(data), &n, &token)
	}
	return n, token, err
}

// instanceBucket is what the process that dies learns from its environment, beside what setup.Server reads.
const instanceBucket = "LOCK_BUCKET"

// instance is the whole of the process that dies: it takes the lock and does not give it back.
func instance(ctx context.Context, name, bucket string, in io.Reader, out io.Writer) (err error) {
	ctx, stop := instances.UntilTold(ctx, in)
	defer stop()
	cfg, stopServer, err := setup.Server(name) // the owner that the lock names
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	client, err := connect(ctx, cfg)
	if err != nil && ctx.Err() != nil {
		return nil // told to stop already
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()
	if _, err := client.Lock(ctx, lockOf(bucket)); err != nil {
		return err
	}
	fmt.Fprintln(out, name, "locked")
	<-ctx.Done()
	return nil // Close releases the lock, if it comes to that
}
