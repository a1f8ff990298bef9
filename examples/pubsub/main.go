// Command pubsub uses NATS without a stream, beside natty: plain publish and subscribe with several handlers at a time, what
// is lost when nobody listens and what a stream keeps, and requests on a subject that a stream holds.
//
//	go run ./examples/pubsub
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
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

const (
	messages = 100
	handlers = 4
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pubsub:", err)
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

	cfg, stopServer, err := setup.Server("pubsub")
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

	name := "PUBSUB-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	if _, err := client.EnsureStream(cleanup, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".stored.>"}}); err != nil {
		return err
	}

	plain, err := listen(ctx, client.Conn(), name+".plain")
	if err != nil {
		return err
	}
	stored, err := process(ctx, client, name+".stored.numbers")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "published %d before anybody listens and %d after, each to a plain subject and to a stream:\n", messages, messages)
	fmt.Fprintf(out, "%-24s %d\n%-24s %d\n", "plain subscriber got", plain, "natty's consumer got", stored)

	return askBoth(ctx, client.Conn(), name, out)
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// listen publishes before and after it subscribes, and returns how many messages came. A plain message goes to those who
// listen at that moment: nobody keeps it, nobody says that it came, and Publish knows nothing of that.
func listen(ctx context.Context, nc *nats.Conn, subject string) (int64, error) {
	if err := publish(ctx, nc, subject); err != nil {
		return 0, err
	}
	// A subscription's callback runs for one message at a time. A channel lets several handlers have one each. When it
	// is full, nats.go drops what comes: a buffer of its own for each subscription is all that there is.
	incoming := make(chan *nats.Msg, 2*messages)
	sub, err := nc.ChanQueueSubscribe(subject, "handlers", incoming) // other processes of this queue share the messages
	if err != nil {
		return 0, err
	}
	var got atomic.Int64
	all := make(chan struct{})
	var running sync.WaitGroup
	for range handlers {
		running.Go(func() {
			for range incoming {
				if got.Add(1) == messages {
					close(all)
				}
			}
		})
	}
	err = publish(ctx, nc, subject) // the same connection: the server has seen the subscription before
	if err == nil {
		select {
		case <-all:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	err = errors.Join(err, sub.Unsubscribe())
	close(incoming) // nats.go does not send to it any more
	running.Wait()
	return got.Load(), err
}

// publish publishes to those who listen. Flush waits until the server has it, not until anybody else has.
func publish(ctx context.Context, nc *nats.Conn, subject string) error {
	for range messages {
		if err := nc.Publish(subject, []byte("hello")); err != nil {
			return err
		}
	}
	return nc.FlushWithContext(ctx)
}

// process does the same with a stream: what is published before the consumer is there waits for it.
func process(ctx context.Context, c *natty.Client, subject string) (int64, error) {
	publishAll := func() error {
		for range messages {
			if err := c.Publish(ctx, subject, []byte("hello")); err != nil { // nil: it is stored
				return err
			}
		}
		return nil
	}
	if err := publishAll(); err != nil {
		return 0, err
	}
	working, finish := context.WithCancel(ctx)
	defer finish()
	var got atomic.Int64
	var publishing sync.WaitGroup
	var failed error // of publishing
	err := c.Process(working, natty.ConsumerConfig{Subjects: []string{subject}, Concurrency: handlers},
		func(context.Context, *nats.Msg) error {
			switch got.Add(1) {
			case 1: // somebody listens
				publishing.Go(func() {
					if failed = publishAll(); failed != nil {
						finish()
					}
				})
			case 2 * messages:
				finish()
			}
			return nil
		})
	publishing.Wait()
	return got.Load(), errors.Join(err, failed, ctx.Err()) // Process returns nil also when ctx has ended
}
