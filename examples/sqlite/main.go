// Command sqlite writes the readings of meters from a stream into a SQLite database, a transaction for each batch. Every
// reading is there once, though the consumer is restarted half-way and a whole batch comes again after it was committed;
// the readings that the database refuses become dead letters, and do not hold up the others.
//
//	go run ./examples/sqlite [-db file]
//
// Without -db the database is in a temporary folder, and removed at the end. It brings its own server, with TLS. To use
// another one set NATS_URL, and where that server asks for them NATTY_CA, NATTY_CERT and NATTY_KEY (PEM files). The streams
// have names of their own in every run and are deleted at the end.
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

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	db := flag.String("db", "", "write into this database and keep it")
	flag.Parse()
	err := run(ctx, flag.Args(), *db, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sqlite:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends with an error unless every reading is in the database, or a dead letter.
func run(ctx context.Context, args []string, file string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about a second
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	if file == "" {
		dir, err := os.MkdirTemp("", "natty-sqlite-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // it is a temporary one
		file = filepath.Join(dir, "readings.db")
	}
	cfg, stopServer, err := setup.Server("sqlite")
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

	name := "SQLITE-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	stream, err := client.EnsureStream(cleanup, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".readings"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name+"-DEAD")) }()
	if _, err := client.EnsureStream(cleanup, jetstream.StreamConfig{Name: name + "-DEAD", Subjects: []string{name + ".dead"}}); err != nil {
		return err
	}

	t := &tally{seen: map[uint64]int{}}
	if err := publish(ctx, client, name+".readings", t); err != nil {
		return err
	}
	fmt.Fprintf(out, "published %d readings to stream %s\n", len(t.published), name)
	if err := process(ctx, client, stream, file, t, out); err != nil {
		return err
	}
	return t.print(cleanup, client, file, name, out)
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The failures to come are made on purpose, and are read from the dead letters: they need not be in a log too.
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// publish stores some readings, and takes note of the sequences that the server stored them under.
func publish(ctx context.Context, p natty.Publisher, subject string, t *tally) error {
	for i := range readings {
		data := fmt.Appendf(nil, `{"meter":"M-%02d","kwh":%.1f}`, i%20, float64(i)/4)
		switch i {
		case 99, 249, 399:
			data = []byte(`{"meter":"M-19","kwh":-1}`) // the database refuses it
		case 200:
			data = []byte(`no reading`)
		}
		stored, err := p.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: data})
		if err != nil {
			return err
		}
		t.published = append(t.published, stored.Sequence)
	}
	return nil
}

// process runs the service until it is restarted half-way, and again until the server has nothing left for it.
func process(ctx context.Context, c *natty.Client, stream jetstream.Stream, file string, t *tally, out io.Writer) error {
	name := stream.CachedInfo().Config.Name
	half, restart := context.WithCancel(ctx)
	defer restart()
	t.half = restart
	// Both return nil also when ctx has ended, with readings left.
	if err := errors.Join(serve(half, c, name, file, t, out), ctx.Err()); err != nil {
		return err
	}
	fmt.Fprintf(out, "restarting the consumer: %d readings are handled\n", len(t.seen))

	rest, finish := context.WithCancel(ctx)
	defer finish()
	go finishWhenDone(rest, stream, finish)
	return errors.Join(serve(rest, c, name, file, t, out), ctx.Err())
}

// serve is the service: it writes what comes into the database, until ctx ends.
func serve(ctx context.Context, c *natty.Client, name, file string, t *tally, out io.Writer) (err error) {
	s, err := open(ctx, file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return c.ProcessBatch(ctx, natty.BatchConfig{
		ConsumerConfig: natty.ConsumerConfig{
			Stream:     name,
			Durable:    durable,
			DeadLetter: name + ".dead",                            // what the database refuses goes there
			Backoff:    natty.Backoff{Min: 50 * time.Millisecond}, // what failed comes again after this
			OnError:    func(err error) { t.printError(out, err) },
		},
		Size:    50,                    // a transaction for as many,
		MaxWait: 50 * time.Millisecond, // or for those that came in this time
	}, func(ctx context.Context, msgs []*nats.Msg) error {
		return t.note(msgs, s.insert(ctx, msgs))
	})
}

// finishWhenDone calls finish when every message of the stream has been acknowledged.
func finishWhenDone(ctx context.Context, stream jetstream.Stream, finish func()) {
	defer finish()
	for ctx.Err() == nil {
		// After an error the question is asked again, and ctx bounds how long.
		consumer, err := stream.Consumer(ctx, durable)
		if err == nil && consumer.CachedInfo().NumPending == 0 && consumer.CachedInfo().NumAckPending == 0 {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}
