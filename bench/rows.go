package main

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

// row is one line of the table: the same work done with natty and with nats.go.
type row struct {
	name       string
	target     float64 // the least ratio of natty's throughput to raw's; 0: for information only
	messages   int     // per measurement: for about half a second
	prefilled  bool    // the stream holds the messages, for a consumer named durable
	natty, raw side
}

// side does a row's work for t.messages messages, and calls t.done when the last one is through.
type side func(ctx context.Context, t *trial) error

var rows = append([]row{
	// The same on both sides: how far from 1 it comes out is how far the others can be trusted.
	{name: "raw vs raw", messages: 5_000, natty: publishers(1, rawPublish), raw: publishers(1, rawPublish)},
	{name: "Publish x1", target: 0.97, messages: 5_000, natty: publishers(1, nattyPublish), raw: publishers(1, rawPublish)},
	{name: "x1, both ids", messages: 5_000, natty: publishers(1, nattyPublish), raw: publishers(1, rawPublishWithID)},
	{name: "Publish x64", target: 1.00, messages: 30_000, natty: publishers(64, nattyPublish), raw: publishers(64, rawPublish)},
	{name: "Process", target: 0.95, messages: 100_000, prefilled: true, natty: nattyProcess(natty.ConsumerConfig{}), raw: rawConsume},
	{name: "Exclusive", target: 1.5, messages: 150_000, prefilled: true, natty: nattyProcess(natty.ConsumerConfig{Exclusive: true}), raw: rawConsume},
	{name: "Process x64", messages: 100_000, prefilled: true, natty: nattyProcess(natty.ConsumerConfig{Concurrency: 64}), raw: rawWorkers(64)},
}, writerRows...)

// publishers shares the messages out to n goroutines.
func publishers(n int, publish func(ctx context.Context, c client) error) side {
	return func(ctx context.Context, t *trial) error {
		var next atomic.Int64
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				for errs[i] == nil && next.Add(1) <= int64(t.messages) {
					errs[i] = publish(ctx, t.client)
				}
			})
		}
		wg.Wait()
		t.done()
		return errors.Join(errs...)
	}
}

func nattyPublish(ctx context.Context, c client) error { return c.natty.Publish(ctx, subject, payload) }

func rawPublish(ctx context.Context, c client) error {
	_, err := c.js.Publish(ctx, subject, payload)
	return err
}

var ids atomic.Int64

// rawPublishWithID asks for what natty does in any case: that the server stores the message once.
func rawPublishWithID(ctx context.Context, c client) error {
	_, err := c.js.Publish(ctx, subject, payload, jetstream.WithMsgID("bench-"+strconv.FormatInt(ids.Add(1), 36)))
	return err
}

// counter calls end when the last message has been counted.
type counter struct {
	left atomic.Int64
	end  func()
}

func (c *counter) count() {
	if c.left.Add(-1) == 0 {
		c.end()
	}
}

func nattyProcess(cfg natty.ConsumerConfig) side {
	return func(ctx context.Context, t *trial) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		c := counter{end: func() { t.done(); cancel() }}
		c.left.Store(int64(t.messages))
		cfg.Subjects, cfg.Durable = []string{subject}, durable
		err := t.natty.Process(ctx, cfg, func(context.Context, *nats.Msg) error {
			c.count()
			return nil
		})
		return errors.Join(err, c.missing(ctx))
	}
}

// missing reports that the consumer ended before the last message.
func (c *counter) missing(ctx context.Context) error {
	if c.left.Load() > 0 {
		return errors.Join(errors.New("ended too early"), ctx.Err())
	}
	return nil
}

// rawConsume is what nats.go offers for the same: its Consume with its defaults, and an Ack for each message.
func rawConsume(ctx context.Context, t *trial) error {
	return consumeRaw(ctx, t, func(msg jetstream.Msg, handled func(jetstream.Msg)) { handled(msg) })
}

// rawWorkers hands what Consume brings to n goroutines.
func rawWorkers(n int) side {
	return func(ctx context.Context, t *trial) error {
		work := make(chan func(), n)
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				for f := range work {
					f()
				}
			})
		}
		defer wg.Wait()
		defer close(work)
		return consumeRaw(ctx, t, func(msg jetstream.Msg, handled func(jetstream.Msg)) {
			work <- func() { handled(msg) }
		})
	}
}

func consumeRaw(ctx context.Context, t *trial, deliver func(jetstream.Msg, func(jetstream.Msg))) error {
	consumer, err := t.js.CreateOrUpdateConsumer(ctx, t.stream, jetstream.ConsumerConfig{
		Durable: durable, FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		return err
	}
	last := make(chan struct{})
	c := counter{end: func() { t.done(); close(last) }}
	c.left.Store(int64(t.messages))
	failed := make(chan error, 1)
	handled := func(msg jetstream.Msg) {
		if err := msg.Ack(); err != nil {
			select {
			case failed <- err:
			default:
			}
			return
		}
		c.count()
	}
	consuming, err := consumer.Consume(func(msg jetstream.Msg) { deliver(msg, handled) })
	if err != nil {
		return err
	}
	closed := consuming.Closed()
	select {
	case <-last:
	case err = <-failed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	consuming.Stop()
	<-closed
	return err
}
