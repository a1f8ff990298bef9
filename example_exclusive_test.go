package natty_test

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

// Two instances share a durable, and one of them handles everything, in order.
func ExampleClient_Process_exclusive() {
	c, stop := exampleClient()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range 3 {
		if err := c.Publish(ctx, "orders.new", fmt.Append(nil, "order ", i+1)); err != nil {
			panic(err)
		}
	}
	handled := 0
	done := make(chan error)
	for range 2 {
		go func() {
			done <- c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"orders.>"}, Exclusive: true},
				func(_ context.Context, msg *nats.Msg) error {
					fmt.Printf("%s\n", msg.Data)
					if handled++; handled == 3 {
						cancel()
					}
					return nil
				})
		}()
	}
	fmt.Println("ended with", <-done, <-done)
	// Output:
	// order 1
	// order 2
	// order 3
	// ended with <nil> <nil>
}
