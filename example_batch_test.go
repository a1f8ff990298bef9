package natty_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

func ExampleClient_PublishBatch() {
	c, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", AllowAtomicPublish: true}); err != nil {
		panic(err)
	}

	// No error: both are stored.
	fmt.Println(c.PublishBatch(ctx, []*nats.Msg{
		{Subject: "orders.new", Data: []byte("order 1")},
		{Subject: "orders.paid", Data: []byte("order 1")},
	}))

	// One that cannot be stored keeps the others from it.
	err := c.PublishBatch(ctx, []*nats.Msg{
		{Subject: "orders.new", Data: []byte("order 2")},
		{Subject: "invoices.new", Data: []byte("order 2")},
	})
	fmt.Println(errors.Is(err, natty.ErrNoStream), errors.Is(err, natty.ErrOutcomeUnknown))
	// Output:
	// <nil>
	// true false
}
