package natty_test

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func ExampleService_Run() {
	server, err := nattytest.Start()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	// Usually from a file, with natty.LoadService("service.json").
	service, err := natty.ParseService([]byte(`{
		"name": "billing",
		"servers": ["` + server.URL() + `"],
		"consumers": [
			{"name": "orders", "type": "nats", "nats": {
				"stream_name": "ORDERS", "subjects": ["orders.>"], "create_stream_if_not_exist": true,
				"concurrency": 4, "ack_wait": "30s"
			}}
		]
	}`))
	if err != nil {
		panic(err)
	}
	go publishAnOrder(ctx, service.Config)

	err = service.Run(ctx, map[string]natty.Handler{
		"orders": func(_ context.Context, msg *nats.Msg) error {
			fmt.Printf("%s\n", msg.Data)
			cancel() // for this example: one message is enough
			return nil
		},
	}, quiet)
	fmt.Println("ended with", err)
	// Output:
	// order 1
	// ended with <nil>
}

// publishAnOrder publishes until there is a stream.
func publishAnOrder(ctx context.Context, cfg natty.Config) {
	c, err := natty.Connect(ctx, cfg, quiet)
	if err != nil {
		panic(err)
	}
	defer c.Close(context.Background())
	for c.Publish(ctx, "orders.new", []byte("order 1")) != nil {
		if ctx.Err() != nil {
			return
		}
	}
}

func ExampleParseService() {
	_, err := natty.ParseService([]byte(`{"name": "billing", "consumers": [
		{"name": "orders", "type": "nats", "nats": {"subjcts": ["orders.>"]}}
	]}`))
	fmt.Println(err)
	// Output:
	// natty: consumers[0].nats.subjcts: unknown key; did you mean "subjects"
}
