// Command ordered handles the events of bank accounts with eight workers: those of one account one at a time and in their
// order, those of different accounts in parallel. Some fail once, and the consumer is restarted half-way.
//
//	go run ./examples/ordered
//
// It brings its own server, with TLS. To use another one set NATS_URL, and where that server asks for them NATTY_CA,
// NATTY_CERT and NATTY_KEY (PEM files). The stream has a name of its own in every run and is deleted at the end.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "ordered:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends with an error unless every event was handled, in order.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about a second
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("ordered")
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

	name := "ORDERED-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	stream, err := client.EnsureStream(cleanup, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".account.>"}})
	if err != nil {
		return err
	}

	bank := newBank()
	for _, e := range bank.events {
		if err := publish(ctx, client, name, e); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "published %d events of %d accounts to stream %s\n", len(bank.events), accounts, name)

	if err := process(ctx, client, stream, name, bank, out); err != nil {
		return err
	}
	return errors.Join(bank.print(out), ctx.Err())
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The failures to come are made on purpose and counted: they need not be in a log too.
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// publish returns nil only when the server has stored the event. The account is in the subject, where the consumer finds it
// without looking into the message.
func publish(ctx context.Context, p natty.Publisher, name string, e event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return p.Publish(ctx, fmt.Sprintf("%s.account.%s.%s", name, e.Account, e.Kind), data)
}

// process handles everything in the stream, with a restart half-way.
func process(ctx context.Context, c natty.Consumer, stream jetstream.Stream, name string, b *bank, out io.Writer) error {
	consumer := natty.ConsumerConfig{
		Subjects:    []string{name + ".account.>"},
		Durable:     "bookkeeping",
		Concurrency: workers,
		// The key is the account, the third token of the subject: NAME.account.A-07.deposit.
		OrderBy: func(msg *nats.Msg) string { return strings.Split(msg.Subject, ".")[2] },
		// A failed event is tried again after this; the later ones of its account wait for it, other accounts do not.
		Backoff: natty.Backoff{Min: 20 * time.Millisecond},
		OnError: func(err error) { printTrouble(out, err) },
	}

	// First half. What no worker has begun is returned to the server, in order.
	half, restart := context.WithCancel(ctx)
	defer restart()
	b.whenHandled(len(b.events)/2, restart)
	start := time.Now()
	if err := c.Process(half, consumer, b.handle); err != nil {
		return err
	}
	fmt.Fprintf(out, "restarting the consumer: %d events are handled\n", b.done())

	// Second half: whoever comes with the durable's name goes on there, here until the server has nothing left.
	rest, finish := context.WithCancel(ctx)
	defer finish()
	go finishWhenDone(rest, stream, consumer.Durable, finish)
	if err := c.Process(rest, consumer, b.handle); err != nil {
		return err
	}
	b.took = time.Since(start)
	return nil
}

// finishWhenDone calls finish when every message of the stream has been acknowledged.
func finishWhenDone(ctx context.Context, stream jetstream.Stream, durable string, finish func()) {
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

// printTrouble prints what went wrong while the consumer ran, apart from the failures of the handler, which are meant to be.
func printTrouble(out io.Writer, err error) {
	if _, meant := errors.AsType[*natty.HandlerError](err); !meant {
		fmt.Fprintln(out, "  ", err)
	}
}
