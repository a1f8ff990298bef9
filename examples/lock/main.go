// Command lock lets four clients change a file that stands only one of them at a time: a counter, which is read, changed and
// written. A process takes the lock too and dies with it: the others wait until the lock expires, and go on. At the end the
// count is exact.
//
//	go run ./examples/lock
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
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

const (
	clients = 4
	each    = 20 // how often each of them counts
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var err error
	if name := instances.Name(); name != "" { // this process is the one that dies
		err = instance(ctx, name, os.Getenv(instanceBucket), os.Stdin, os.Stdout)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lock:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends with an error unless the count is exact.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about four seconds
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, stopServer, err := setup.Server("lock")
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

	dir, err := os.MkdirTemp("", "lock-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bucket := "LOCK-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, client.DeleteBucket(cleanup, bucket)) }()
	// An interrupt does not cut this short: what an instance made while the bucket is deleted would be left behind.
	if _, err := client.EnsureBucket(cleanup, jetstream.KeyValueConfig{Bucket: bucket}); err != nil {
		return err
	}

	a := &account{counter: counter{file: filepath.Join(dir, "count")}}
	if err := story(ctx, cfg, bucket, a, out); err != nil {
		if ctx.Err() != nil {
			return ctx.Err() // the reason of all other errors
		}
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

// lockOf is what everybody who uses the file locks.
func lockOf(bucket string) natty.LockConfig {
	return natty.LockConfig{
		Bucket: bucket,
		Key:    "counter",
		TTL:    2 * time.Second, // how long the lock of a process lasts that has died; the default is ten seconds
	}
}

// story lets the clients count, then has a process die with the lock, and lets them count on.
func story(ctx context.Context, cfg natty.Config, bucket string, a *account, out io.Writer) (err error) {
	var all []*natty.Client
	defer func() {
		for _, c := range all {
			err = errors.Join(err, c.Close(context.WithoutCancel(ctx)))
		}
	}()
	for i := range clients {
		cfg.Name = fmt.Sprintf("client-%d", i+1) // what the lock says about its owner
		c, err := connect(ctx, cfg)
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	if err := countAll(ctx, all, bucket, a); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d clients have counted %d times each, under the lock\n", clients, each/2)

	group, err := instances.Start(ctx, cfg, out, []string{"D"}, instanceBucket+"="+bucket)
	if err != nil {
		return err
	}
	err = die(ctx, group, all[0], bucket, out)
	a.died = time.Now()
	if err = errors.Join(err, group.Close()); err != nil {
		return err
	}
	return countAll(ctx, all, bucket, a)
}

// die waits until the process has the lock, looks at that from here, and kills it.
func die(ctx context.Context, group *instances.Group, c *natty.Client, bucket string, out io.Writer) error {
	locked := false
	if err := group.Follow(func(_, what string) { locked = what == "locked" }, func() bool { return locked }); err != nil {
		return err
	}
	lease, err := c.TryLock(ctx, lockOf(bucket)) // does not wait
	if !errors.Is(err, natty.ErrLocked) {
		if err == nil {
			err = errors.Join(errors.New("the lock of D was given away"), lease.Release(ctx))
		}
		return err
	}
	fmt.Fprintln(out, "TryLock:", err)
	fmt.Fprintln(out, "killing D, which has the lock")
	return group.Kill("D")
}

// countAll lets all clients count at the same time, half of what they are to count.
func countAll(ctx context.Context, all []*natty.Client, bucket string, a *account) error {
	errs := make([]error, len(all))
	var counting sync.WaitGroup
	for i, c := range all {
		counting.Go(func() {
			for n := 0; n < each/2 && errs[i] == nil; n++ {
				errs[i] = count(ctx, c, bucket, a)
			}
		})
	}
	counting.Wait()
	return errors.Join(errs...)
}
