package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/setup"
)

// What an instance learns from its environment, beside NATS_URL and the others that setup.Server reads.
const (
	instanceName   = "EXCLUSIVE_INSTANCE"
	instanceStream = "EXCLUSIVE_STREAM"
)

// instance is the whole of each of the two processes: a service that handles numbers until it is told to stop. That is when
// its standard input ends, which it does also when the process that holds the other end dies.
func instance(ctx context.Context, name, stream string, in io.Reader, out io.Writer) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, in) // an error is an end too
		stop()
	}()
	cfg, stopServer, err := setup.Server("exclusive")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	client, err := connect(ctx, cfg)
	if err != nil && ctx.Err() != nil {
		return nil // told to stop already
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()

	go tellWhenReady(ctx, client, name, out)
	return client.Process(ctx, natty.ConsumerConfig{
		Stream:    stream,
		Durable:   "counter",
		Exclusive: true, // one instance of all that share the durable
	}, func(ctx context.Context, msg *nats.Msg) error {
		select { // the work
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done(): // another instance may follow soon: this one must not go on
			return ctx.Err()
		}
		_, err := fmt.Fprintf(out, "%s %s\n", name, msg.Data)
		return err
	})
}

// tellWhenReady writes that the instance stands by.
func tellWhenReady(ctx context.Context, c *natty.Client, name string, out io.Writer) {
	for ctx.Err() == nil {
		for _, consumer := range c.Health().Consumers {
			if consumer.State == natty.ConsumerStandby {
				fmt.Fprintf(out, "%s ready\n", name)
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}
