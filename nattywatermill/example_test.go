package nattywatermill_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
	"github.com/natty-go/natty/nattywatermill"
)

// A Router bills orders: it handles orders.new and publishes to bills.new. The first
// attempt fails, and the server redelivers the order. Errors are ignored here for
// brevity.
func Example() {
	server, _ := nattytest.Start() // your servers
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	quiet := natty.WithLogger(slog.New(slog.DiscardHandler))
	client, _ := natty.Connect(ctx, natty.Config{Name: "billing", Servers: []string{server.URL()}}, quiet)
	defer client.Close(context.Background())
	_, _ = client.EnsureStream(ctx, jetstream.StreamConfig{Name: "SHOP", Subjects: []string{"orders.>", "bills.>"}})
	_, _ = client.EnsureStream(ctx, jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}})

	pub, _ := nattywatermill.NewPublisher(client, nattywatermill.PublisherConfig{})
	sub, _ := nattywatermill.NewSubscriber(client, nattywatermill.SubscriberConfig{
		Group: "billing",
		Consumer: natty.ConsumerConfig{
			MaxDeliver: 20, DeadLetter: "dead.billing",
			Backoff: natty.Backoff{Min: 10 * time.Millisecond},
		},
	})

	router, _ := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	router.AddHandler("billing", "orders.new", sub, "bills.new", pub,
		func(msg *message.Message) ([]*message.Message, error) {
			d, _ := natty.DeliveryFrom(msg.Context())
			fmt.Printf("%s, attempt %d\n", msg.Payload, d.Attempt)
			if d.Attempt == 1 {
				return nil, errors.New("the bank is busy") // the Router calls Nack
			}
			bill := message.NewMessage("bill-"+msg.UUID, []byte("bill for "+string(msg.Payload)))
			return message.Messages{bill}, nil
		})
	router.AddConsumerHandler("print", "bills.new", sub, func(msg *message.Message) error {
		fmt.Printf("%s\n", msg.Payload)
		cancel() // for this example: one bill is enough
		return nil
	})
	_ = pub.Publish("orders.new", message.NewMessage("1", []byte("order 1")))
	fmt.Println("ended with", router.Run(ctx)) // it closes sub and pub
	// Output:
	// order 1, attempt 1
	// order 1, attempt 2
	// bill for order 1
	// ended with <nil>
}
