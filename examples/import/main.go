// Command import writes the rows of a CSV file into a stream, with a Writer and a progress bar, and then all of them again:
// nothing is stored a second time. The rows that the stream refuses are counted, and do not hold up the others.
//
//	go run ./examples/import [-rows n] [file.csv]
//
// Without a file it makes one, in a temporary folder, of which a few rows are too long. It brings its own server, with TLS. To
// use another one set NATS_URL, and where that server asks for them NATTY_CA, NATTY_CERT and NATTY_KEY (PEM files). The
// stream has a name of its own in every run and is deleted at the end.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	rows := flag.Int("rows", 100_000, "without a file: how many rows to make")
	flag.Parse()
	err := run(ctx, flag.Args(), *rows, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "import:", err)
		os.Exit(1)
	}
}

// longest is what the stream takes of a row.
const longest = 16 << 10

// run is the whole program. It ends with an error unless every row is stored, and once.
func run(ctx context.Context, args []string, rows int, out io.Writer) (err error) {
	src, remove, err := findSource(args, rows)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	// It takes a few seconds, with a long file of one's own more: a megabyte a second would be slow.
	ctx, cancel := context.WithTimeout(ctx, time.Minute+2*time.Duration(src.size)*time.Microsecond)
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("import")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	client, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(cleanup)) }()
	fmt.Fprintln(out, "connected to", client.Health().Server)

	name := "IMPORT-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	stream, err := client.EnsureStream(cleanup, jetstream.StreamConfig{
		Name: name, Subjects: []string{name + ".rows"}, MaxMsgSize: longest,
		Duplicates: time.Hour, // an import that is repeated within this time stores nothing twice
	})
	if err != nil {
		return err
	}

	var imports []*tally
	for _, title := range []string{"importing " + filepath.Base(src.file) + " into stream " + name, "importing it again"} {
		fmt.Fprintln(out, title)
		t, imported := importFile(ctx, client, stream, src, out)
		if t != nil {
			imports = append(imports, t)
		}
		if err = imported; err != nil {
			break
		}
	}
	return errors.Join(err, account(out, src, imports))
}

// findSource returns the file that was named on the command line, or one that it makes, which remove removes.
func findSource(args []string, rows int) (src source, remove func() error, err error) {
	remove = func() error { return nil }
	switch len(args) {
	case 0:
		dir, err := os.MkdirTemp("", "natty-import-")
		if err != nil {
			return source{}, remove, err
		}
		remove = func() error { return os.RemoveAll(dir) }
		src, err = makeSource(filepath.Join(dir, "rows.csv"), rows)
		if err != nil {
			return source{}, remove, errors.Join(err, remove())
		}
		return src, remove, nil
	case 1:
		info, err := os.Stat(args[0])
		if err != nil {
			return source{}, remove, fmt.Errorf("%w; name a CSV file whose first line has the names of the columns, or none", err)
		}
		return source{file: args[0], size: info.Size()}, remove, nil
	}
	return source{}, remove, fmt.Errorf("%d arguments; usage: import [-rows n] [file.csv]", len(args))
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The failures to come are told to OnError, and printed: they need not be in a log too.
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// importFile writes every row of the file. What it has written has an outcome when it returns, after an interrupt too. The
// tally is nil if it could not begin.
func importFile(ctx context.Context, c *natty.Client, stream jetstream.Stream, src source, out io.Writer) (*tally, error) {
	rows, err := openRows(ctx, src.file, stream.CachedInfo().Config.Subjects[0])
	if err != nil {
		return nil, err
	}
	defer rows.close()
	before, err := stream.Info(ctx)
	if err != nil {
		return nil, err
	}
	t := &tally{}
	w, err := c.NewWriter(natty.WriterConfig{OnError: t.fail})
	if err != nil {
		return nil, err
	}

	b := newBar(out, src.size)
	err = writeAll(ctx, w, rows, t, b)
	if err == nil {
		// What it returns is told to OnError too, row by row; but for ctx, which is looked at below.
		w.Flush(ctx) //nolint:errcheck // see above
	}
	t.took = time.Since(b.begin)
	b.end(rows.offset(), t.read)

	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	w.Close(ending) //nolint:errcheck // as Flush; and it waits until OnError has been told
	if ctx.Err() != nil {
		err = ctx.Err() // the reason for what Write says
	}
	t.printFailures(out)
	after, stillThere := stream.Info(ending)
	if stillThere != nil {
		return nil, errors.Join(err, stillThere)
	}
	t.stored = int(after.State.Msgs - before.State.Msgs)
	return t, err
}

// writeAll writes the rows without waiting for their acknowledgements.
func writeAll(ctx context.Context, w *natty.Writer, rows *rows, t *tally, b *bar) error {
	for {
		msg, err := rows.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// It waits only while thousands are on their way.
		switch err := w.Write(ctx, msg); {
		case errors.Is(err, natty.ErrTooLarge): // for the server, so that it was not sent; OnError is not told
			t.fail(msg, err)
		case err != nil:
			return err
		}
		t.read++
		b.update(rows.offset(), t.read)
	}
}
