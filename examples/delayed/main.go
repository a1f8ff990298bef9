// Command delayed runs jobs later: some a moment from now, one every second, one each day by the clock of Kolkata. The
// server keeps them, so that none is lost and none is early, though the server is restarted half-way, and the consumer with
// it. One job is put off and one is cancelled before its time.
//
//	go run ./examples/delayed
//
// It brings its own server, with TLS. To use another one, of version 2.12 or later, set NATS_URL, and where that server asks
// for them NATTY_CA, NATTY_CERT and NATTY_KEY (PEM files); that one is not restarted. The stream has a name of its own in
// every run and is deleted at the end.
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

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "delayed:", err)
		os.Exit(1)
	}
}

// run is the whole program. It ends with an error unless every job ran as often as it should, and none before its time.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if err := setup.NoArguments(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // it takes about five seconds
	defer cancel()
	// What is cleaned up must be so after an interrupt too, when ctx has ended.
	cleanup := context.WithoutCancel(ctx)

	cfg, restartServer, stopServer, err := setup.Restartable("delayed")
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

	// The stream keeps the schedules beside the jobs that they have published. In a work queue both are gone when they are
	// done, so that an empty stream says that all is.
	name := "DELAYED-" + rand.Text()[:8]
	defer func() { err = errors.Join(err, setup.DeleteStream(cleanup, client, name)) }()
	// An interrupt does not cut this short: a stream that is half made could not be deleted.
	stream, err := client.EnsureStream(cleanup, jetstream.StreamConfig{
		Name: name, Subjects: []string{name + ".jobs"}, Retention: jetstream.WorkQueuePolicy, AllowMsgSchedules: true,
	})
	if err != nil {
		return err
	}

	account, err := schedule(ctx, client, name, out)
	if err != nil {
		return err
	}
	if err := work(ctx, client, stream, restartServer, account); err != nil {
		return err
	}
	if err := account.print(); err != nil {
		return errors.Join(err, ctx.Err()) // ctx may be the reason
	}
	return nil
}

// connect makes the Client, which a service has one of. Without a server Connect would wait until ctx ends.
func connect(ctx context.Context, cfg natty.Config) (*natty.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The connection is lost on purpose: that need not be in a log.
	return natty.Connect(ctx, cfg, natty.WithLogger(slog.New(slog.DiscardHandler)))
}

// schedule makes the schedules, puts one off, cancels one, and lists what is left.
func schedule(ctx context.Context, c *natty.Client, stream string, out io.Writer) (*account, error) {
	plan, account, err := newPlan(time.Now(), stream+".jobs", out)
	if err != nil {
		return nil, err
	}
	for _, s := range plan {
		// However often, and by how many instances, this is said: there is one schedule for each ID, the last.
		if err := c.Schedule(ctx, s); err != nil {
			return nil, err
		}
	}
	if err := c.Unschedule(ctx, stream, newsletter); err != nil {
		return nil, err
	}
	fmt.Fprintln(out, "scheduled in stream", stream)
	for s, err := range c.Schedules(ctx, stream) {
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(out, "   %-10s  %s\n", s.ID, when(s))
	}
	return account, nil
}

// when says when a schedule publishes its message.
func when(s natty.Schedule) string {
	switch {
	case s.Cron != "":
		return fmt.Sprintf("cron %s in %s", s.Cron, s.TimeZone)
	case s.Every > 0:
		return fmt.Sprintf("every %v", s.Every)
	}
	return "at " + s.At.Local().Format(clock)
}

// work runs the jobs as they come, with a restart half-way. To the consumer they are messages like any other.
func work(ctx context.Context, c *natty.Client, stream jetstream.Stream, restartServer func() error, a *account) error {
	consumer := natty.ConsumerConfig{
		Stream:  stream.CachedInfo().Config.Name, // the jobs: what holds the schedules is not delivered
		Durable: "worker",                        // the server keeps its position: whoever comes with this name goes on there
		OnError: a.printTrouble,
	}
	half, stop := context.WithCancel(ctx)
	defer stop()
	a.whenHalf(stop)
	a.say("running them")
	if err := c.Process(half, consumer, a.handle); err != nil || ctx.Err() != nil {
		return err // after an interrupt there is none, and the account says what did not run
	}

	if err := restarted(ctx, c, stream.CachedInfo().Config.Name, restartServer, a); err != nil {
		return err
	}

	rest, finish := context.WithCancel(ctx)
	defer finish()
	go finishWhenDone(rest, c, stream, a, finish)
	return c.Process(rest, consumer, a.handle)
}

// restarted restarts the server, if that is this program's own, and says what it has kept. An interrupt does not cut it short:
// to clean up needs the connection, which is there again when it returns.
func restarted(ctx context.Context, c *natty.Client, stream string, restartServer func() error, a *account) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if restartServer == nil {
		a.say("restarting the consumer")
	} else {
		a.say("restarting the consumer and the server")
		if err := restartServer(); err != nil {
			return err
		}
	}
	kept := 0
	for _, err := range c.Schedules(ctx, stream) {
		if err != nil {
			return err
		}
		kept++
	}
	a.say(fmt.Sprintf("   the server has kept %d schedules", kept))
	return nil
}

// finishWhenDone ends the schedules that would go on for ever when they have shown that they work, and calls finish when
// there is neither a schedule nor a job left. That is for the server to say: this program would not know what it has missed.
func finishWhenDone(ctx context.Context, c *natty.Client, stream jetstream.Stream, a *account, finish func()) {
	defer finish()
	name := stream.CachedInfo().Config.Name
	for ctx.Err() == nil {
		// After an error all of it is tried again, and ctx bounds how long.
		if a.recurred() && c.Unschedule(ctx, name, backup) == nil && c.Unschedule(ctx, name, report) == nil {
			if info, err := stream.Info(ctx); err == nil && info.State.Msgs == 0 {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}
