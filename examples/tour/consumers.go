package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// consumers shows how they are made, changed, listed and deleted. natty makes the durables of Process by itself.
func consumers(ctx context.Context, _ jetstream.JetStream, s jetstream.Stream, name string, out io.Writer) error {
	cfg := jetstream.ConsumerConfig{Durable: "shipping", FilterSubject: name + ".paid", AckPolicy: jetstream.AckExplicitPolicy}
	if _, err := s.CreateConsumer(ctx, cfg); err != nil {
		return err
	}
	cfg.AckWait = time.Minute
	shipping, err := s.UpdateConsumer(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "   shipping has", shipping.CachedInfo().NumPending, "before it")
	list := s.ListConsumers(ctx)
	for info := range list.Info() {
		fmt.Fprintf(out, "   listed: %s, AckWait %v\n", info.Name, info.Config.AckWait)
	}
	if list.Err() != nil {
		return list.Err()
	}
	return s.DeleteConsumer(ctx, "shipping") // and where it had got to
}

// ephemeral makes a consumer that the server removes when it was not used for a while.
func ephemeral(ctx context.Context, s jetstream.Stream, subject string) (jetstream.Consumer, error) {
	return s.CreateConsumer(ctx, jetstream.ConsumerConfig{
		FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy, InactiveThreshold: 10 * time.Second,
	})
}

// fetch shows the three forms of a fetch. What one of them receives and nobody acknowledges comes again after AckWait.
func fetch(ctx context.Context, _ jetstream.JetStream, s jetstream.Stream, name string, out io.Writer) error {
	c, err := ephemeral(ctx, s, name+".new")
	if err != nil {
		return err
	}
	for _, form := range []struct {
		what  string
		fetch func() (jetstream.MessageBatch, error)
	}{
		{"ten, waiting for them for up to a second", func() (jetstream.MessageBatch, error) {
			return c.Fetch(10, jetstream.FetchMaxWait(time.Second))
		}},
		{"ten of those that are there now", func() (jetstream.MessageBatch, error) { return c.FetchNoWait(10) }},
		{"what fits into a kilobyte", func() (jetstream.MessageBatch, error) {
			return c.FetchBytes(1024, jetstream.FetchMaxWait(time.Second))
		}},
	} {
		batch, err := form.fetch()
		if err != nil {
			return err
		}
		n := 0
		for msg := range batch.Messages() {
			if err := msg.Ack(); err != nil {
				return err
			}
			n++
		}
		if err := batch.Error(); err != nil {
			return err
		}
		fmt.Fprintf(out, "   %s: %d\n", form.what, n)
	}
	return nil
}

// iterate shows messages one by one as they come, with a buffer that nats.go keeps full. natty's Process has handlers instead.
func iterate(ctx context.Context, _ jetstream.JetStream, s jetstream.Stream, name string, out io.Writer) error {
	c, err := ephemeral(ctx, s, name+".paid")
	if err != nil {
		return err
	}
	messages, err := c.Messages(jetstream.PullMaxMessages(20))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for n := 1; n <= 50; n++ {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		if err := msg.DoubleAck(ctx); err != nil { // Ack does not wait for the server
			return err
		}
	}
	fmt.Fprintln(out, "   50 came, and the server knows that they were handled")
	return nil
}

// ordered shows how to read a stream from its beginning, in order: nothing is acknowledged, nothing kept on the server.
func ordered(ctx context.Context, js jetstream.JetStream, _ jetstream.Stream, name string, out io.Writer) error {
	c, err := js.OrderedConsumer(ctx, name, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	var last uint64
	consuming, err := c.Consume(func(msg jetstream.Msg) {
		meta, err := msg.Metadata()
		if err == nil && meta.Sequence.Stream != last+1 {
			err = errors.New("something was skipped")
		}
		last++
		if err != nil || meta.NumPending == 0 {
			select {
			case done <- err:
			default: // it was told
			}
		}
	})
	if err != nil {
		return err
	}
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	consuming.Stop()
	<-consuming.Closed() // the callback does not run any more
	fmt.Fprintln(out, "   read up to sequence", last)
	return err
}
