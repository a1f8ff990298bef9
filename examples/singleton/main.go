// Command singleton runs a job that may run once only, on three processes: one is elected to do it, and the others stand by. The
// leader is stopped, or killed, and the next one does it; and so once more.
//
//	go run ./examples/singleton [-kill]
//
// Stopped, a leader gives the leadership back, and the next one starts at once. Killed, it cannot, and the server waits for as
// long as a lease lasts, which is two seconds here.
//
// It brings its own server, with TLS. To use another one set NATS_URL, and where that server asks for them NATTY_CA,
// NATTY_CERT and NATTY_KEY (PEM files). The bucket has a name of its own in every run and is deleted at the end.
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
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

// names of the instances.
var names = []string{"A", "B", "C"}

// enough is how many steps of the job each leader does before it is ended.
const enough = 50

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if name := instances.Name(); name != "" { // this process is one of the three
		err = instance(ctx, name, os.Getenv(instanceBucket), os.Stdin, os.Stdout)
	} else {
		kill := flag.Bool("kill", false, "kill the leaders instead of stopping them")
		flag.Parse()
		err = run(ctx, flag.Args(), *kill, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "singleton:", err)
		os.Exit(1)
	}
}

// run is the program that starts the instances. It ends with an error if two of them ever worked at the same time.
func run(ctx context.Context, args []string, kill bool, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about two seconds, with -kill some five
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("singleton")
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

	bucket := "SINGLETON-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, client.DeleteBucket(cleanup, bucket)) }()
	// An interrupt does not cut this short: what an instance made while the bucket is deleted would be left behind.
	if _, err := client.EnsureBucket(cleanup, jetstream.KeyValueConfig{Bucket: bucket, TTL: 2 * time.Second}); err != nil {
		return err
	}
	group, err := instances.Start(ctx, cfg, out, names, instanceBucket+"="+bucket)
	if err != nil {
		return err
	}
	a := &account{out: out, terms: map[uint64]int{}}
	err = story(group, a, kill)
	closeErr := group.Close()
	if ctx.Err() != nil {
		return ctx.Err() // the reason of all other errors
	}
	if err := errors.Join(err, closeErr); err != nil {
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

// story ends one leader after the other, when it has worked for a while, until the last one has.
func story(group *instances.Group, a *account, kill bool) error {
	if err := group.Follow(a.note, func() bool { return a.ready == len(names) }); err != nil {
		return err
	}
	for left := len(names); ; left-- {
		if err := group.Follow(a.note, a.worked); err != nil || left == 1 {
			return err
		}
		end, what := group.Stop, "stopping %s, the leader\n"
		if kill {
			end, what = group.Kill, "killing %s, the leader\n"
		}
		fmt.Fprintf(a.out, what, a.leader)
		a.ended, a.endedAt = a.leader, time.Now()
		if err := end(a.leader); err != nil {
			return err
		}
	}
}
