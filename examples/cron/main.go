// Command cron runs a job at regular times on two nodes of a service, of which one does it. That one leaves half-way, and the other
// goes on where it was.
//
//	go run ./examples/cron
//
// It brings its own server, with TLS. To use another one set NATS_URL, and where that server asks for them NATTY_CA,
// NATTY_CERT and NATTY_KEY (PEM files). The bucket has a name of its own in every run and is deleted at the end.
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

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

const (
	ticks = 40                    // how often the job is due before the program ends,
	every = 50 * time.Millisecond // and when
)

// names of the nodes.
var names = []string{"A", "B"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cron:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends with an error unless the job was done once whenever it was due.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about three seconds
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("cron")
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

	bucket := "CRON-" + rand.Text()[:8] // of the election; another one is for what the nodes have done
	defer func() {
		err = errors.Join(err, client.DeleteBucket(cleanup, bucket), client.DeleteBucket(cleanup, bucket+"-DONE"))
	}()
	// An interrupt does not cut this short: what an instance made while the bucket is deleted would be left behind.
	if _, err := client.EnsureBucket(cleanup, jetstream.KeyValueConfig{Bucket: bucket, TTL: 10 * time.Second}); err != nil {
		return err
	}
	a := &account{out: out, changed: make(chan struct{}, 1)}
	if err := story(ctx, cfg, bucket, a); err != nil {
		return err
	}
	return a.print()
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// story runs the two nodes, and half-way lets the one leave that does the job.
func story(ctx context.Context, cfg natty.Config, bucket string, a *account) error {
	ctx, end := context.WithCancelCause(ctx) // of everything, when a node fails
	defer end(nil)
	began := time.Now()
	leave := map[string]context.CancelFunc{}
	var running sync.WaitGroup
	for _, name := range names {
		node := node{name: name, bucket: bucket, began: began, a: a}
		ctx, cancel := context.WithCancel(ctx)
		leave[name] = cancel
		running.Go(func() {
			defer cancel()
			if err := node.run(ctx, cfg); err != nil {
				end(err)
			}
		})
	}
	err := a.follow(ctx, ticks/2)
	if err == nil {
		leave[a.leaver()]()
		err = a.follow(ctx, ticks)
	}
	end(nil)
	running.Wait()
	return err
}
