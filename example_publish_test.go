package natty_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func ExampleClient_Publish() {
	server, err := nattytest.Start() // or a NATS server of your own
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := natty.Connect(ctx, natty.Config{Name: "shop", Servers: []string{server.URL()}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}); err != nil {
		fmt.Println(err)
		return
	}

	// No error: it is stored.
	fmt.Println(c.Publish(ctx, "orders.new", []byte("one book")))

	// A final error comes at once.
	err = c.Publish(ctx, "invoices.new", []byte("one book"))
	fmt.Println(errors.Is(err, natty.ErrNoStream), errors.Is(err, natty.ErrOutcomeUnknown))
	// Output:
	// <nil>
	// true false
}

func ExampleClient_EnsureStream() {
	server, err := nattytest.Start() // or a NATS server of your own
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := natty.Connect(ctx, natty.Config{Name: "shop", Servers: []string{server.URL()}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)

	stream, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, MaxAge: time.Hour})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(stream.CachedInfo().Config.MaxAge)

	// What is not set stays as it is.
	stream, err = c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, MaxMsgs: 1000})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(stream.CachedInfo().Config.MaxAge, stream.CachedInfo().Config.MaxMsgs)

	// What cannot be changed is an error that lists the differences.
	_, err = c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Storage: jetstream.MemoryStorage})
	var drift *natty.DriftError
	fmt.Println(errors.As(err, &drift), drift.Differences)
	// Output:
	// 1h0m0s
	// 1h0m0s 1000
	// true [{storage "file" "memory"}]
}
