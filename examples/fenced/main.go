// Command fenced shows what becomes of a leader that is paused and does not know it. Two processes write a state while they
// lead: into NATS with Term.Put, and into a storage that knows nothing of NATS and is shown the term's token. The leader is
// paused (SIGSTOP) until the other one has taken over. Then it goes on, and tries to write what it had in its hands:
// everything is refused.
//
//	go run ./examples/fenced
//
// It needs a Unix system. It brings its own server, with TLS. To use another one set NATS_URL, and where that server asks for
// them NATTY_CA, NATTY_CERT and NATTY_KEY (PEM files). The bucket has a name of its own in every run and is deleted at the end.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/signal"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

// enough is how often each leader writes before the story goes on.
const enough = 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if name := instances.Name(); name != "" { // this process is one of the two
		err = instance(ctx, name, os.Stdin, os.Stdout)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fenced:", err)
		os.Exit(1)
	}
}

// run is the program that starts the two instances. It ends with an error if a leader wrote that was none any more.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	if pause == nil {
		return errors.New("this system cannot pause a process")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about four seconds
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("fenced")
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

	a := &account{out: out, stored: &storage{}}
	server := httptest.NewServer(a.stored)
	defer server.Close()
	bucket := "FENCED-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, client.DeleteBucket(cleanup, bucket)) }()
	// An interrupt does not cut this short: what an instance made while the bucket is deleted would be left behind.
	if _, err := client.EnsureBucket(cleanup, jetstream.KeyValueConfig{Bucket: bucket, TTL: time.Second}); err != nil {
		return err
	}
	pair, err := instances.Start(ctx, cfg, out, []string{"A", "B"}, instanceBucket+"="+bucket, instanceStorage+"="+server.URL)
	if err != nil {
		return err
	}
	err = story(ctx, pair, a)
	closeErr := pair.Close()
	if ctx.Err() != nil {
		return ctx.Err() // the reason of all other errors
	}
	if err := errors.Join(err, closeErr); err != nil {
		return err
	}
	if a.inNATS, err = client.Get(ctx, bucket, stateKey); err != nil {
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

// story pauses the leader until the other one has written for a while, and lets both go on.
func story(ctx context.Context, pair *instances.Group, a *account) error {
	if err := pair.Follow(a.note, func() bool { return a.written() >= enough }); err != nil {
		return err
	}
	a.first = a.leader
	fmt.Fprintf(a.out, "pausing %s, the leader\n", a.first)
	if err := pair.Signal(a.first, pause); err != nil {
		return err
	}
	goOn := func() error { return pair.Signal(a.first, resume) }
	defer context.AfterFunc(ctx, func() { _ = goOn() })() // else it would not hear that it is to end
	other := func() bool { return a.leader != a.first && a.written() >= enough }
	if err := pair.Follow(a.note, other); err != nil {
		return errors.Join(err, goOn())
	}
	a.second, a.resumed = a.leader, time.Now()
	fmt.Fprintf(a.out, "%s goes on, and takes itself for the leader\n", a.first)
	if err := goOn(); err != nil {
		return err
	}
	more := a.written() + enough
	if err := pair.Follow(a.note, func() bool { return a.gaveUp == a.first && a.written() >= more }); err != nil {
		return err
	}
	for _, name := range []string{a.first, a.second} { // the one that stands by first
		if err := pair.Stop(name); err != nil {
			return err
		}
		if err := pair.Follow(a.note, func() bool { return a.ended == name }); err != nil {
			return err
		}
	}
	return nil
}
