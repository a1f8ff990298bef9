package natty_test

import (
	"context"
	"fmt"

	"github.com/natty-go/natty"
)

type order struct {
	ID   int    `json:"id"`
	Item string `json:"item"`
}

func ExampleJSON() {
	c, stop := exampleClient()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := natty.PublishJSON(ctx, c, "orders.new", order{ID: 1, Item: "one book"}); err != nil {
		panic(err)
	}

	// What is not an order in JSON goes to the dead letter at once, if there is one, and never to the handler.
	err := c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"orders.>"}},
		natty.JSON(func(ctx context.Context, o order) error {
			d, _ := natty.DeliveryFrom(ctx)
			fmt.Printf("order %d: %s (sequence %d)\n", o.ID, o.Item, d.Sequence)
			cancel() // for this example: one message is enough
			return nil
		}))
	fmt.Println("ended with", err)
	// Output:
	// order 1: one book (sequence 1)
	// ended with <nil>
}

// csv is a Codec for one-line texts. One for protobuf is in examples/rpc.
type csv struct{}

func (csv) ContentType() string { return "text/csv" }

func (csv) Marshal(v any) ([]byte, error) {
	o, ok := v.(order)
	if !ok {
		return nil, fmt.Errorf("expected an order")
	}
	return fmt.Appendf(nil, "%d,%s", o.ID, o.Item), nil
}

func (csv) Unmarshal(data []byte, v any) error {
	o, ok := v.(*order)
	if !ok {
		return fmt.Errorf("expected room for an order")
	}
	_, err := fmt.Sscanf(string(data), "%d,%s", &o.ID, &o.Item)
	return err
}

func ExampleTyped() {
	c, stop := exampleClient()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := natty.PublishTyped(ctx, c, csv{}, "orders.new", order{ID: 1, Item: "book"}); err != nil {
		panic(err)
	}
	err := c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"orders.>"}},
		natty.Typed(csv{}, func(_ context.Context, o order) error {
			fmt.Println(o.ID, o.Item)
			cancel()
			return nil
		}))
	fmt.Println("ended with", err)
	// Output:
	// 1 book
	// ended with <nil>
}
