// Command exclusive runs two processes that share an exclusive consumer: one handles everything, in order, and the other
// stands by. Half-way the active one is stopped, or killed, and the other goes on.
//
//	go run ./examples/exclusive [-kill]
//
// Stopped, it hands over at once. Killed, it cannot, and the server waits ten seconds for it.
//
// It brings its own server, with TLS. To use another one (2.14 or later) set NATS_URL, and where that server asks for them
// NATTY_CA, NATTY_CERT and NATTY_KEY (PEM files). The stream has a name of its own in every run and is deleted at the end.
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
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

// numbers is how many messages there are: 1, 2, 3…
const numbers = 400

// names of the instances.
var names = []string{"A", "B"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if name := instances.Name(); name != "" { // this process is one of the two
		err = instance(ctx, name, os.Getenv(instanceStream), os.Stdin, os.Stdout)
	} else {
		kill := flag.Bool("kill", false, "kill the active instance instead of stopping it")
		flag.Parse()
		err = run(ctx, flag.Args(), *kill, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "exclusive:", err)
		os.Exit(1)
	}
}

// run is the program that starts the two instances. It ends with an error unless every number was handled, in order.
func run(ctx context.Context, args []string, kill bool, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about two seconds, with -kill some twelve
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("exclusive")
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

	name := "EXCLUSIVE-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	if _, err := client.EnsureStream(cleanup, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".numbers"}}); err != nil {
		return err
	}

	pair, err := instances.Start(ctx, cfg, out, names, instanceStream+"="+name)
	if err != nil {
		return err
	}
	a := &account{out: out, by: map[string]int{}}
	err = story(ctx, client, name+".numbers", pair, a, kill)
	closeErr := pair.Close()
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

// story publishes the numbers when both instances stand by, ends the active one half-way, and waits for the rest.
func story(ctx context.Context, p natty.Publisher, subject string, pair *instances.Group, a *account, kill bool) error {
	if err := pair.Follow(a.note, func() bool { return a.ready == len(names) }); err != nil {
		return err
	}
	for n := 1; n <= numbers; n++ {
		if err := p.Publish(ctx, subject, []byte(strconv.Itoa(n))); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.out, "published the numbers 1 to %d\n", numbers)
	if err := pair.Follow(a.note, func() bool { return a.last >= numbers/2 }); err != nil {
		return err
	}
	end, what := pair.Stop, "stopping %s: it finishes what it has begun, and hands over\n"
	if kill {
		end, what = pair.Kill, "killing %s: the server waits ten seconds for it before another one may follow\n"
	}
	fmt.Fprintf(a.out, what, a.active)
	a.ended = time.Now()
	if err := end(a.active); err != nil {
		return err
	}
	return pair.Follow(a.note, func() bool { return a.last == numbers })
}
