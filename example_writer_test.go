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

func ExampleClient_NewWriter() {
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
	stream, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		fmt.Println(err)
		return
	}

	w, err := c.NewWriter(natty.WriterConfig{OnError: func(msg *nats.Msg, err error) {
		fmt.Println(msg.Subject, errors.Is(err, natty.ErrNoStream))
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for i := range 1000 {
		if err := w.Write(ctx, &nats.Msg{Subject: "orders.new", Data: fmt.Append(nil, i)}); err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Println(w.Flush(ctx)) // nil: all of them are stored
	info, err := stream.Info(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(info.State.Msgs)

	// What fails is told to OnError, and returned by the next Flush or by Close.
	if err := w.Write(ctx, nats.NewMsg("invoices.new")); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(errors.Is(w.Close(ctx), natty.ErrNoStream))
	// Output:
	// <nil>
	// 1000
	// invoices.new true
	// true
}
