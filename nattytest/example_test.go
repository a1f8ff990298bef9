package nattytest_test

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/nattytest"
)

func ExampleStart() {
	node, err := nattytest.Start()
	if err != nil {
		panic(err)
	}
	defer node.Close()
	nc, err := nats.Connect(node.URL())
	if err != nil {
		panic(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		panic(err)
	}
	ack, err := js.Publish(ctx, "orders.new", []byte("one"))
	if err != nil {
		panic(err)
	}
	fmt.Println("stored as", ack.Sequence, "in", ack.Stream)
	// Output: stored as 1 in ORDERS
}
