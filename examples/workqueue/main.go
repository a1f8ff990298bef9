// Command workqueue gives jobs to three workers. Some jobs can never be done and some cannot be done for now: both end up
// as dead letters. When the fault is mended, those of the second kind are put back, and are done too.
//
//	go run ./examples/workqueue
//
// It brings its own server, with TLS. To use another one set NATS_URL, and where that server asks for them NATTY_CA,
// NATTY_CERT and NATTY_KEY (PEM files). The streams have names of their own in every run and are deleted at the end.
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
	"github.com/natty-go/natty/examples/internal/setup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "workqueue:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends with an error unless every job was done or is a dead letter.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about a second
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("workqueue")
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

	// A work queue keeps a job until a worker has done it, or its copy is safe among the dead letters. These are in a
	// stream of their own, which keeps them until somebody decides.
	name := "WORKQUEUE-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	queue, err := client.EnsureStream(cleanup, jetstream.StreamConfig{
		Name: name, Subjects: []string{name + ".jobs.*"}, Retention: jetstream.WorkQueuePolicy,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name+"-DEAD")) }()
	if _, err := client.EnsureStream(cleanup, jetstream.StreamConfig{Name: name + "-DEAD", Subjects: []string{name + ".dead"}}); err != nil {
		return err
	}

	return work(ctx, client, queue, name, out)
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The failures to come are made on purpose, and are read from the dead letters: they need not be in a log too.
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// work is the story: submit, let the workers work, look at what they gave up, mend the fault, put back what it was the
// cause of, and let them work again.
func work(ctx context.Context, c *natty.Client, queue jetstream.Stream, name string, out io.Writer) error {
	o := newOffice()
	for _, j := range o.submitted {
		if err := submit(ctx, c, name, j); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "submitted %d jobs to stream %s\n", len(o.submitted), name)

	workers := natty.ConsumerConfig{
		Subjects:    []string{name + ".jobs.*"},
		Durable:     "workers", // other processes that use this name share the work
		Concurrency: 3,
		MaxDeliver:  3, // a failure at the third delivery is final
		DeadLetter:  name + ".dead",
		Backoff:     natty.Backoff{Min: 20 * time.Millisecond}, // a failed job comes again after this, and twice this
		OnError:     func(err error) { printTrouble(out, err) },
	}
	if err := processAll(ctx, c, queue, workers, o.handle); err != nil {
		return err
	}
	fmt.Fprintf(out, "the workers did %d jobs and gave up these:\n", o.done())

	dead, err := deadLetters(ctx, c, name+".dead")
	if err != nil {
		return err
	}
	for _, letter := range dead {
		fmt.Fprintf(out, "   %s %s, attempts %d: %s\n", letter.Subject, letter.Data, letter.Deliveries, letter.Reason)
	}

	o.mend()
	redriven, err := c.Redrive(ctx, name+".dead", func(l natty.DeadLetter) bool { return l.Reason == errMailServer.Error() })
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "the mail server is back: put back %d jobs\n", redriven)
	if err := processAll(ctx, c, queue, workers, o.handle); err != nil {
		return err
	}

	still, err := deadLetters(ctx, c, name+".dead")
	if err != nil {
		return err
	}
	return o.print(out, len(dead), redriven, still)
}

// deadLetters returns what is there now, oldest first.
func deadLetters(ctx context.Context, c *natty.Client, subject string) ([]natty.DeadLetter, error) {
	var all []natty.DeadLetter
	for letter, err := range c.DeadLetters(ctx, subject) {
		if err != nil {
			return nil, err
		}
		all = append(all, letter)
	}
	return all, nil
}

// submit returns nil only when the server has stored the job. With its id as the message's, the server stores it once
// even if it is sent again.
func submit(ctx context.Context, p natty.Publisher, name string, j job) error {
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return p.Publish(ctx, name+".jobs."+j.Kind, data, jetstream.WithMsgID(j.ID))
}

// processAll runs the workers until the queue is empty. A service would run them until it is told to stop.
func processAll(ctx context.Context, c natty.Consumer, queue jetstream.Stream, workers natty.ConsumerConfig, h natty.Handler) error {
	working, finish := context.WithCancel(ctx)
	defer finish()
	go func() {
		defer finish()
		for working.Err() == nil {
			// After an error the question is asked again, and ctx bounds how long.
			if info, err := queue.Info(working); err == nil && info.State.Msgs == 0 {
				return
			}
			select {
			case <-working.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	// Process returns nil also when ctx has ended, with jobs left.
	return errors.Join(c.Process(working, workers, h), ctx.Err())
}

// printTrouble prints what went wrong while the consumer ran, apart from the failures of the handler, which are meant to be.
func printTrouble(out io.Writer, err error) {
	if _, meant := errors.AsType[*natty.HandlerError](err); !meant {
		fmt.Fprintln(out, "  ", err)
	}
}
