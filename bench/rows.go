package main

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

// row is one line of the table: the same work done with natty and with nats.go.
type row struct {
	name        string
	target      float64 // the least ratio of natty's throughput to raw's; 0: for information only
	maxAllocs   float64 // the most allocations a message with natty; 0: for information only
	messages    int     // per measurement: for about half a second
	rawMessages int     // of the raw side; 0: the same
	prefilled   bool    // the stream holds the messages before the clock runs
	natty, raw  side
}

// side does a row's work for t.messages messages, and calls t.done after the last one.
type side func(ctx context.Context, t *trial) error

var rows = append([]row{
	// The same on both sides: its distance from 1 is the error of the other ratios.
	{name: "raw vs raw", messages: 5_000, natty: publishers(1, rawPublish), raw: publishers(1, rawPublish)},
	{name: "Publish x1", target: 0.97, messages: 5_000, natty: publishers(1, nattyPublish), raw: publishers(1, rawPublish)},
	{name: "x1, both ids", messages: 5_000, natty: publishers(1, nattyPublish), raw: publishers(1, rawPublishWithID)},
	{name: "Publish x64", target: 1.00, messages: 30_000, natty: publishers(64, nattyPublish), raw: publishers(64, rawPublish)},
	{
		name: "Process", target: 1.00, maxAllocs: 8, messages: 100_000, prefilled: true,
		natty: process(oneByOne, nothing), raw: consume(nothing),
	},
	{
		name: "Process x64", target: 1.00, maxAllocs: 8, messages: 100_000, prefilled: true,
		natty: process(by64, nothing), raw: consumeWorkers(64),
	},
	{name: "1 ms", messages: 500, prefilled: true, natty: process(oneByOne, oneMillisecond), raw: consume(oneMillisecond)},
	{ // 64 times the other side's messages, so that both take about as long
		name: "1 ms x64", target: 50, messages: 64 * 1000, rawMessages: 1000, prefilled: true,
		natty: process(by64, oneMillisecond), raw: consume(oneMillisecond),
	},
	{name: "Exclusive", target: 1.5, messages: 150_000, prefilled: true, natty: process(alone, nothing), raw: consume(nothing)},
	{name: "Excl, AckNone", target: 0.85, messages: 150_000, prefilled: true, natty: process(alone, nothing), raw: consumeAckNone},
	{name: "Excl, pinned", messages: 150_000, prefilled: true, natty: process(alone, nothing), raw: consumePinned},
	{name: "ProcessBatch", target: 1.00, messages: 100_000, prefilled: true, natty: processBatch(500), raw: fetch(500)},
	{name: "KV Get", target: 0.95, messages: 5_000, natty: keys(nattyGet), raw: keys(rawGet)},
	{name: "KV Put", target: 0.95, messages: 5_000, natty: keys(nattyPut), raw: keys(rawPut)},
	{name: "KV Put, ids", messages: 5_000, natty: keys(nattyPut), raw: keys(rawPutWithID)},
}, writerRows...)

var (
	oneByOne natty.ConsumerConfig
	by64     = natty.ConsumerConfig{Concurrency: 64}
	alone    = natty.ConsumerConfig{Exclusive: true}
)

// publishers divides the messages among n goroutines.
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

// rawPublishWithID has the server store the message once, as natty always does.
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

// The work of a handler for one message.
func nothing()        {}
func oneMillisecond() { time.Sleep(time.Millisecond) }

func process(cfg natty.ConsumerConfig, work func()) side {
	return func(ctx context.Context, t *trial) error {
		return t.untilCounted(ctx, func(ctx context.Context, c *counter) error {
			cfg := cfg // several sides run at once
			cfg.Subjects, cfg.Durable = []string{subject}, t.durable
			return t.natty.Process(ctx, cfg, func(context.Context, *nats.Msg) error {
				work()
				c.count()
				return nil
			})
		})
	}
}

func processBatch(size int) side {
	return func(ctx context.Context, t *trial) error {
		return t.untilCounted(ctx, func(ctx context.Context, c *counter) error {
			cfg := natty.BatchConfig{Size: min(size, t.messages)} // a batch that cannot fill would wait
			cfg.Subjects, cfg.Durable = []string{subject}, t.durable
			return t.natty.ProcessBatch(ctx, cfg, func(_ context.Context, msgs []*nats.Msg) error {
				for range msgs {
					c.count()
				}
				return nil
			})
		})
	}
}

// untilCounted stops a consumer of natty when t.messages have been counted.
func (t *trial) untilCounted(ctx context.Context, consume func(ctx context.Context, c *counter) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := counter{end: func() { t.done(); cancel() }}
	c.left.Store(int64(t.messages))
	err := consume(ctx, &c)
	if c.left.Load() > 0 {
		return errors.Join(errors.New("ended too early"), err, ctx.Err())
	}
	return err
}

// consume is nats.go's counterpart of Process: Consume with its defaults, and an Ack
// for each message.
func consume(work func()) side {
	return func(ctx context.Context, t *trial) error {
		return consumeRaw(ctx, t, explicit, func(msg jetstream.Msg, handled func(jetstream.Msg)) {
			work()
			handled(msg)
		})
	}
}

// consumeAckNone is Consume without acknowledgements: a process that dies loses its
// messages.
func consumeAckNone(ctx context.Context, t *trial) error {
	return consumeRaw(ctx, t, none, func(msg jetstream.Msg, handled func(jetstream.Msg)) { handled(msg) })
}

// consumePinned uses the same kind of durable as Exclusive and acks every hundredth
// message, without Exclusive's guarantees: nothing resets the durable, and nobody
// checks which instance is active.
func consumePinned(ctx context.Context, t *trial) error {
	return consumeRaw(ctx, t, pinned, func(msg jetstream.Msg, handled func(jetstream.Msg)) { handled(msg) },
		jetstream.PullPriorityGroup(pinned.PriorityGroups[0]), jetstream.PullMaxMessages(10_000))
}

// consumeWorkers passes the messages of Consume to n goroutines.
func consumeWorkers(n int) side {
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
		return consumeRaw(ctx, t, explicit, func(msg jetstream.Msg, handled func(jetstream.Msg)) {
			work <- func() { handled(msg) }
		})
	}
}

func consumeRaw(
	ctx context.Context, t *trial, cfg jetstream.ConsumerConfig, deliver func(jetstream.Msg, func(jetstream.Msg)), opts ...jetstream.PullConsumeOpt,
) error {
	consumer, err := t.consumer(ctx, cfg)
	if err != nil {
		return err
	}
	last := make(chan struct{})
	c := counter{end: func() { t.done(); close(last) }}
	c.left.Store(int64(t.messages))
	failed := make(chan error, 1)
	ack := acknowledge(cfg.AckPolicy, t.messages)
	handled := func(msg jetstream.Msg) {
		if err := ack(msg); err != nil {
			select {
			case failed <- err:
			default:
			}
			return
		}
		c.count()
	}
	consuming, err := consumer.Consume(func(msg jetstream.Msg) { deliver(msg, handled) }, opts...)
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

// acknowledge sends as few acks as a policy needs: with AckAll one for every hundred
// messages, and one for the last.
func acknowledge(policy jetstream.AckPolicy, messages int) func(jetstream.Msg) error {
	switch policy {
	case jetstream.AckNonePolicy:
		return func(jetstream.Msg) error { return nil }
	case jetstream.AckAllPolicy:
		seen := 0
		return func(msg jetstream.Msg) error {
			if seen++; seen%100 != 0 && seen != messages {
				return nil
			}
			return msg.Ack()
		}
	default:
		return jetstream.Msg.Ack
	}
}

// fetch is nats.go's counterpart of ProcessBatch: one Fetch after the other, and an Ack
// for each message.
func fetch(size int) side {
	return func(ctx context.Context, t *trial) error {
		consumer, err := t.consumer(ctx, explicit)
		if err != nil {
			return err
		}
		for left := t.messages; left > 0; {
			batch, err := consumer.Fetch(min(size, left))
			if err != nil {
				return err
			}
			for msg := range batch.Messages() {
				if err := msg.Ack(); err != nil {
					return err
				}
				left--
			}
			if err := errors.Join(batch.Error(), ctx.Err()); err != nil {
				return err
			}
		}
		t.done()
		return nil
	}
}

// The durables of the raw side.
var (
	explicit = jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy}
	none     = jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy}
	pinned   = jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckAllPolicy, MaxAckPending: 20_000,
		PriorityPolicy: jetstream.PriorityPolicyPinned, PriorityGroups: []string{"bench"}, PinnedTTL: 10 * time.Second,
	}
)

// consumer makes the durable for nats.go.
func (t *trial) consumer(ctx context.Context, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	cfg.Durable, cfg.FilterSubject = t.durable, subject
	return t.js.CreateOrUpdateConsumer(ctx, t.stream, cfg)
}
