package setup

import (
	"context"
	"errors"
	"os"
	"time"
)

// File is a file whose reading ends with a ctx, also while it is a pipe into which nobody writes.
type File struct {
	*os.File

	ctx  context.Context //nolint:containedctx // io.Reader has none
	stop func() bool
}

// Open opens a file that the user names. To open a named pipe takes until somebody opens it for writing; that, too, ends with
// ctx.
func Open(ctx context.Context, name string) (*File, error) {
	type result struct {
		file *os.File
		err  error
	}
	opened := make(chan result, 1)
	go func() {
		f, err := os.Open(name)
		opened <- result{f, err}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, r.err
		}
		// It ends a Read that waits. A regular file refuses it, and there no Read waits.
		stop := context.AfterFunc(ctx, func() { _ = r.file.SetReadDeadline(time.Now()) })
		return &File{r.file, ctx, stop}, nil
	case <-ctx.Done(): // the program is about to end, and with it what still waits
		return nil, ctx.Err()
	}
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = f.ctx.Err()
	}
	return n, err
}

// Close implements io.Closer.
func (f *File) Close() error {
	f.stop()
	return f.File.Close()
}
