// Command liveconfig changes the configuration of three services while they run. Each has a copy of it, which it reads without
// asking anybody and which follows within milliseconds. When the services lose the server, they go on with what they
// have, and know how old it is.
//
//	go run ./examples/liveconfig
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
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

const (
	services = 3
	changes  = 20
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "liveconfig:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends with an error unless every service had a configuration all the time, and saw every change.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about five seconds
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("liveconfig")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	operator, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, operator.Close(cleanup)) }()
	fmt.Fprintln(out, "connected to", operator.Health().Server)

	bucket := "LIVECONFIG-" + rand.Text()[:8] // the first change makes it
	defer func() { err = errors.Join(err, operator.DeleteBucket(cleanup, bucket)) }()
	settings, err := natty.NewBucket[limits](operator, natty.BucketConfig{Bucket: bucket})
	if err != nil {
		return err
	}
	a := &account{}
	// It is not interrupted: a bucket cannot be deleted while it is being made.
	if err := a.change(cleanup, settings); err != nil {
		return err
	}
	err = story(ctx, cfg, settings, bucket, a, out)
	if ctx.Err() != nil {
		return ctx.Err() // the reason of all other errors
	}
	if err != nil {
		return err
	}
	return a.print(out)
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config, opts ...natty.Option) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return natty.Connect(ctx, cfg, append(opts, natty.WithLogger(slog.New(slog.DiscardHandler)))...)
}

// story changes the configuration while the services run, cuts them off, changes it once more, and mends the network.
func story(ctx context.Context, cfg natty.Config, settings *natty.Bucket[limits], bucket string, a *account, out io.Writer) (err error) {
	network := &network{}
	defer func() {
		for _, s := range a.services {
			err = errors.Join(err, s.close())
		}
	}()
	for i := range services {
		s, err := start(ctx, cfg, bucket, fmt.Sprintf("service-%d", i+1), network)
		if err != nil {
			return err
		}
		a.services = append(a.services, s)
	}
	fmt.Fprintf(out, "%d services run, each with a copy of the configuration\n", services)
	for range changes {
		if err := a.follow(ctx, settings); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "changed it %d times: the slowest service had it %.1f ms after the operator began\n", changes, ms(a.slowest))

	network.set(false)
	fmt.Fprintln(out, "the services have lost the server, and the operator changes the configuration")
	if err := a.change(ctx, settings); err != nil {
		return err
	}
	first := a.services[0]
	if err := wait(ctx, func() bool { return first.copied.Age() > 1500*time.Millisecond }); err != nil {
		return err
	}
	fmt.Fprintln(out, "   asking the server:", first.ask(ctx))
	have, _ := first.copied.Get(key)
	fmt.Fprintf(out, "   reading the copy:  %+v, %.1f s old\n", have, first.copied.Age().Seconds())

	network.set(true)
	mended := time.Now()
	if err := a.seen(ctx); err != nil {
		return err
	}
	a.caughtUp = time.Since(mended)
	fmt.Fprintf(out, "the network is mended: all services had the change %.0f ms after that\n", ms(a.caughtUp))
	return nil
}
