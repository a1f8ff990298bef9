// Command rpc asks a service of two processes for squares, with requests and replies in protobuf. Half-way one of the two is
// killed, with requests in its hands: they are asked again, and answered by the other one. What came out is published to a
// stream, in protobuf too, and read from there by a typed handler.
//
//	go run ./examples/rpc
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
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

const (
	requests = 400 // one for each of the numbers 1, 2, 3…
	askers   = 8   // requests at a time
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if name := instances.Name(); name != "" { // this process is one of the two
		err = instance(ctx, name, os.Getenv(instanceSubject), os.Stdin, os.Stdout)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "rpc:", err)
		os.Exit(1)
	}
}

// run is the program that starts the two instances and asks them. It ends with an error unless every request was answered.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about two seconds
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("rpc")
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

	name := "RPC-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// Requests have a subject that no stream holds: a stream would answer them too, and first (see examples/pubsub).
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	if _, err := client.EnsureStream(cleanup, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".squares"}}); err != nil {
		return err
	}

	services, err := instances.Start(ctx, cfg, out, []string{"A", "B"}, instanceSubject+"="+name+".rpc.square")
	if err != nil {
		return err
	}
	a := &account{by: map[string]int{}}
	ready := 0
	if err = services.Follow(func(string, string) { ready++ }, func() bool { return ready == 2 }); err == nil {
		err = askAll(ctx, client, name, services, a, out)
	}
	closeErr := services.Close()
	if ctx.Err() != nil {
		return ctx.Err() // the reason of all other errors
	}
	if err := errors.Join(err, closeErr); err != nil {
		return err
	}
	if err := readAll(ctx, client, name+".squares", a); err != nil {
		return err
	}
	return a.print(out)
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// askAll asks for each number's square, several at a time, and publishes the answers. Half-way it kills an instance.
func askAll(ctx context.Context, c *natty.Client, name string, services *instances.Group, a *account, out io.Writer) error {
	numbers := make(chan int64)
	errs := make(chan error, askers)
	var asking sync.WaitGroup
	for range askers {
		asking.Go(func() {
			for n := range numbers {
				answer, err := ask(ctx, c.Conn(), name+".rpc.square", wrapperspb.Int64(n))
				if err == nil {
					a.note(answer)
					err = natty.PublishTyped(ctx, c, protobuf[*wrapperspb.Int64Value]{}, name+".squares", answer.square)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	err := func() error {
		defer asking.Wait()
		defer close(numbers)
		for n := int64(1); n <= requests; n++ {
			if n == requests/2 {
				fmt.Fprintln(out, "killing A, with requests in its hands")
				if err := services.Kill("A"); err != nil {
					return err
				}
			}
			select {
			case numbers <- n:
			case err := <-errs:
				return err
			}
		}
		return nil
	}()
	close(errs)
	return errors.Join(err, <-errs)
}

// readAll reads the squares back from the stream, until all are there.
func readAll(ctx context.Context, c natty.Consumer, subject string, a *account) error {
	reading, finish := context.WithCancel(ctx)
	defer finish()
	handler := natty.Typed(protobuf[*wrapperspb.Int64Value]{}, func(_ context.Context, square *wrapperspb.Int64Value) error {
		if a.store(square.GetValue()) == requests {
			finish()
		}
		return nil
	})
	// Process returns nil also when ctx has ended.
	return errors.Join(c.Process(reading, natty.ConsumerConfig{Subjects: []string{subject}, Durable: "reader"}, handler), ctx.Err())
}
