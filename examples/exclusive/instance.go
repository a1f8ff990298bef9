package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

// instanceStream is what an instance learns from its environment, beside what setup.Server reads.
const instanceStream = "EXCLUSIVE_STREAM"

// instance is the whole of each of the two processes: a service that handles numbers until it is told to stop.
func instance(ctx context.Context, name, stream string, in io.Reader, out io.Writer) (err error) {
	ctx, stop := instances.UntilTold(ctx, in)
	defer stop()
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
