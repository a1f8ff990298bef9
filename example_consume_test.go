package natty_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// exampleClient connects to a server of its own that has the stream ORDERS.
func exampleClient() (c *natty.Client, stop func()) {
	server, err := nattytest.Start()
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	c, err = natty.Connect(ctx, natty.Config{Name: "billing", Servers: []string{server.URL()}}, quiet)
	if err != nil {
		panic(err)
	}
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}); err != nil {
		panic(err)
	}
	return c, func() {
		if err := errors.Join(c.Close(ctx), server.Close()); err != nil {
			panic(err)
		}
	}
}

func ExampleClient_Process() {
	c, stop := exampleClient()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := c.Publish(ctx, "orders.new", []byte("order 1")); err != nil {
		panic(err)
	}

	err := c.Process(ctx, natty.ConsumerConfig{
		Subjects:    []string{"orders.>"},
		Concurrency: 4,
		Backoff:     natty.Backoff{Min: 10 * time.Millisecond},
	}, func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		fmt.Printf("%s, attempt %d\n", msg.Data, d.Attempt)
		if d.Attempt == 1 {
			return errors.New("the bank is busy") // it comes again
		}
		cancel() // for this example: one message is enough
		return nil
	})
	fmt.Println("ended with", err)
	// Output:
	// order 1, attempt 1
	// order 1, attempt 2
	// ended with <nil>
}

func ExampleClient_Consume() {
	c, stop := exampleClient()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := c.Publish(ctx, "orders.new", []byte("order 1")); err != nil {
		panic(err)
	}

	errs := make(chan error, 16) // what panics and what is mended is reported here
	err := c.Consume(ctx, "orders.>", errs, func(msg *nats.Msg) {
		fmt.Printf("%s\n", msg.Data) // acknowledged on return
		cancel()
	})
	fmt.Println("ended with", err)
	// Output:
	// order 1
	// ended with <nil>
}

func ExamplePermanent() {
	handler := func(_ context.Context, msg *nats.Msg) error {
		if len(msg.Data) == 0 {
			return natty.Permanent(errors.New("an order without content will never work"))
		}
		return natty.RetryAfter(time.Minute, errors.New("the shop is closed"))
	}
	// A handler can be tested without a server.
	ctx := natty.WithDelivery(context.Background(), natty.Delivery{Stream: "ORDERS", Attempt: 1})
	fmt.Println(handler(ctx, &nats.Msg{}))
	fmt.Println(handler(ctx, &nats.Msg{Data: []byte("order 1")}))
	// Output:
	// an order without content will never work
	// the shop is closed
}
