// Command quickstart takes the orders of a CSV file through a stream, and shows that none is lost on the way, though some
// fail at first and the consumer is restarted half-way.
//
//	go run ./examples/quickstart [orders.csv]
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
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends with an error unless every order was processed.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	orders, file, err := loadOrders(ctx, args)
	if err != nil {
		return err
	}
	// It takes a second or two, with a long file of one's own more.
	ctx, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(len(orders))*packing)
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := findServer()
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

	// A work queue keeps a message until a consumer has acknowledged it.
	name := "QUICKSTART-" + rand.Text()[:8]
	subject := name + ".orders"
	defer func() { err = errors.Join(err, deleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	stream, err := client.EnsureStream(cleanup, jetstream.StreamConfig{
		Name: name, Subjects: []string{subject}, Retention: jetstream.WorkQueuePolicy,
	})
	if err != nil {
		return err
	}

	for _, o := range orders {
		if err := publish(ctx, client, subject, o); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "published %d orders of %s to stream %s\n", len(orders), file, name)

	account := newAccount(orders)
	if err := process(ctx, client, stream, subject, account, out); err != nil {
		return err
	}
	if err := account.print(out); err != nil {
		return errors.Join(err, ctx.Err()) // ctx may be the reason
	}
	return nil
}

// findServer returns how to reach the server of $NATS_URL. Without that it starts one inside this program, which
// asks its clients for certificates.
func findServer() (cfg natty.Config, stop func() error, err error) {
	if os.Getenv("NATS_URL") != "" {
		return natty.Config{ // no Servers: natty takes $NATS_URL
			Name: "quickstart",
			TLS: natty.TLSConfig{
				CAFile: os.Getenv("NATTY_CA"), CertFile: os.Getenv("NATTY_CERT"), KeyFile: os.Getenv("NATTY_KEY"),
			},
		}, func() error { return nil }, nil
	}
	server, err := nattytest.Start(nattytest.ClientCerts())
	if err != nil {
		return natty.Config{}, nil, err
	}
	files := server.Files()
	return natty.Config{
		Name:    "quickstart",
		Servers: []string{server.URL()},
		TLS:     natty.TLSConfig{CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key},
	}, server.Close, nil
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The failures to come are made on purpose, and OnError prints them: they need not be in a log too.
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// deleteStream deletes the stream, if it was made.
func deleteStream(ctx context.Context, c *natty.Client, name string) error {
	err := c.JetStream().DeleteStream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	return err
}

// publish returns nil only when the server has stored the order. With its id as the message's, the server stores it
// once even if it is sent again.
func publish(ctx context.Context, p natty.Publisher, subject string, o order) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return p.Publish(ctx, subject, data, jetstream.WithMsgID(o.ID))
}

// process handles everything in the stream, with a restart half-way.
func process(ctx context.Context, c natty.Consumer, stream jetstream.Stream, subject string, a *account, out io.Writer) error {
	consumer := natty.ConsumerConfig{
		Subjects:    []string{subject},
		Durable:     "packing", // the server keeps its position: whoever comes with this name goes on there
		Concurrency: 4,
		Backoff:     natty.Backoff{Min: 50 * time.Millisecond}, // a failed order comes again after this
		OnError:     func(err error) { printError(out, err) },
	}

	// First half. Process runs until its ctx ends. Then it hands back what no worker has begun, lets the workers
	// finish, and returns: this is what a service does when it is told to stop.
	half, restart := context.WithCancel(ctx)
	defer restart()
	a.whenHandled(len(a.published)/2, restart)
	if err := c.Process(half, consumer, a.handle); err != nil {
		return err
	}
	fmt.Fprintf(out, "restarting the consumer: %d orders are done\n", a.done())

	// Second half: the same durable goes on until the server has nothing left. That is for the server to say: this
	// program would not know what it has missed.
	rest, finish := context.WithCancel(ctx)
	defer finish()
	go finishWhenEmpty(rest, stream, finish)
	return c.Process(rest, consumer, a.handle)
}

// finishWhenEmpty calls finish when every message of the work queue has been acknowledged.
func finishWhenEmpty(ctx context.Context, stream jetstream.Stream, finish func()) {
	defer finish()
	for ctx.Err() == nil {
		// After an error the question is asked again, and ctx bounds how long.
		if info, err := stream.Info(ctx); err == nil && info.State.Msgs == 0 {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// printError prints what went wrong while the consumer ran: what a handler returned, and other trouble.
func printError(out io.Writer, err error) {
	if failed, ok := errors.AsType[*natty.HandlerError](err); ok {
		fmt.Fprintf(out, "   attempt %d: %v\n", failed.Delivery.Attempt, failed.Err)
		return
	}
	fmt.Fprintln(out, "  ", err)
}
