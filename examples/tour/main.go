// Command tour goes through what natty leaves to nats.go's package jetstream, on the connection that natty keeps: streams
// and consumers, listing, purging, getting, ordered consumers, fetches, iterators, and both ways to publish.
//
//	go run ./examples/tour
//
// It brings its own server, with TLS. To use another one set NATS_URL, and where that server asks for them NATTY_CA,
// NATTY_CERT and NATTY_KEY (PEM files). The stream has a name of its own in every run and is deleted at the end.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tour:", err)
		os.Exit(1)
	}
}

// run is the whole program.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about a second
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("tour")
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

	js := client.JetStream() // nats.go's, on the same connection
	name := "TOUR-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	stream, err := js.CreateStream(cleanup, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".*"}})
	if err != nil {
		return err
	}

	for _, part := range []struct {
		title string
		show  func(ctx context.Context, js jetstream.JetStream, s jetstream.Stream, name string, out io.Writer) error
	}{
		{"publishing", publish},
		{"streams", streams},
		{"consumers", consumers},
		{"fetching", fetch},
		{"iterating", iterate},
		{"in order, without a durable", ordered},
		{"getting and deleting", get},
		{"purging", purge},
	} {
		fmt.Fprintln(out, part.title)
		if err := part.show(ctx, js, stream, name, out); err != nil {
			return fmt.Errorf("%s: %w", part.title, err)
		}
	}
	return nil
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}
