package natty_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func ExampleClient_Process() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
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
			return errors.New("the bank is busy") // the server redelivers the message
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

// Two instances share a durable. One of them handles all messages, in order.
func ExampleClient_Process_exclusive() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
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

func ExampleClient_Consume() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := c.Publish(ctx, "orders.new", []byte("order 1")); err != nil {
		panic(err)
	}

	errs := make(chan error, 16) // gets panics, and what failed and was repaired
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

// Middleware can ask what a handler's error means.
func ExampleIsPermanent() {
	counted := func(h natty.Handler) natty.Handler {
		return func(ctx context.Context, msg *nats.Msg) error {
			err := h(ctx, msg)
			switch wait, ok := natty.RetryDelay(err); {
			case natty.IsPermanent(err):
				fmt.Println("will never work:", err)
			case ok:
				fmt.Println("again in", wait)
			}
			return err
		}
	}
	handler := counted(func(_ context.Context, msg *nats.Msg) error {
		if len(msg.Data) == 0 {
			return natty.Permanent(errors.New("an order without content"))
		}
		return natty.RetryAfter(time.Minute, nil)
	})
	_ = handler(context.Background(), &nats.Msg{})
	_ = handler(context.Background(), &nats.Msg{Data: []byte("order 1")})
	// Output:
	// will never work: an order without content
	// again in 1m0s
}

func ExampleNewMux() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, subject := range []string{"orders.new", "orders.paid"} {
		if err := c.Publish(ctx, subject, []byte("order 1")); err != nil {
			panic(err)
		}
	}

	mux := natty.NewMux()
	mux.Handle("orders.new", func(_ context.Context, msg *nats.Msg) error {
		fmt.Printf("%s is new\n", msg.Data)
		return nil
	})
	mux.Handle("orders.*", func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		fmt.Printf("%s: %s\n", msg.Data, d.Subject)
		cancel() // for this example: two messages are enough
		return nil
	})
	err := c.Process(ctx, natty.ConsumerConfig{Durable: "all-orders", Subjects: mux.Subjects()}, mux.Process)
	fmt.Println("ended with", err)
	// Output:
	// order 1 is new
	// order 1: orders.paid
	// ended with <nil>
}

// A handler publishes with the Client that runs it.
func ExampleClientFrom() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := c.Publish(ctx, "orders.new", []byte("order 1")); err != nil {
		panic(err)
	}
	err := c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"orders.new"}},
		func(ctx context.Context, msg *nats.Msg) error {
			defer cancel() // for this example: one message is enough
			own, _ := natty.ClientFrom(ctx)
			return own.Publish(ctx, "orders.seen", msg.Data)
		})
	fmt.Println("ended with", err)
	// Output:
	// ended with <nil>
}

// An event of an account waits for the earlier ones of that account, and for no other.
func ExampleClient_Process_orderBy() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, event := range []string{"ada opens", "bob opens", "ada pays", "bob pays"} {
		if err := c.Publish(ctx, "orders.account", []byte(event)); err != nil {
			panic(err)
		}
	}

	var mu sync.Mutex // guards what follows
	events := map[string][]string{}
	handled := 0
	cfg := natty.ConsumerConfig{
		Subjects: []string{"orders.>"}, Concurrency: 4, Backoff: natty.Backoff{Min: 10 * time.Millisecond},
		OrderBy: func(msg *nats.Msg) string {
			who, _, _ := strings.Cut(string(msg.Data), " ")
			return who
		},
	}
	err := c.Process(ctx, cfg, func(ctx context.Context, msg *nats.Msg) error {
		mu.Lock()
		defer mu.Unlock()
		who, what, _ := strings.Cut(string(msg.Data), " ")
		d, _ := natty.DeliveryFrom(ctx)
		if string(msg.Data) == "ada opens" && d.Attempt == 1 {
			return errors.New("the bank is busy") // "ada pays" waits; the events of bob do not
		}
		events[who] = append(events[who], what)
		if handled++; handled == 4 {
			cancel()
		}
		return nil
	})
	fmt.Println(events["ada"], events["bob"], err)
	// Output:
	// [opens pays] [opens pays] <nil>
}

// A batch handler inserts many messages at once. It can fail some of them only.
func ExampleClient_ProcessBatch() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range 3 {
		if err := c.Publish(ctx, "orders.new", fmt.Append(nil, "order ", i)); err != nil {
			panic(err)
		}
	}

	cfg := natty.BatchConfig{
		ConsumerConfig: natty.ConsumerConfig{
			Subjects: []string{"orders.>"}, Backoff: natty.Backoff{Min: 10 * time.Millisecond},
		},
		Size: 3, MaxWait: 100 * time.Millisecond,
	}
	err := c.ProcessBatch(ctx, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		fmt.Println("insert", len(msgs))
		if len(msgs) == 1 {
			cancel() // for this example: the one that failed is done now
			return nil
		}
		return &natty.PartialError{Errs: map[int]error{1: errors.New("the row is locked")}}
	})
	fmt.Println("ended with", err)
	// Output:
	// insert 3
	// insert 1
	// ended with <nil>
}

// What failed for good is stored as a dead letter. When the fault is mended, it is put back.
func ExampleClient_Redrive() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}}); err != nil {
		panic(err)
	}
	if err := c.Publish(ctx, "orders.new", []byte("order 1")); err != nil {
		panic(err)
	}

	dead, redriven := make(chan error, 1), make(chan []byte, 1)
	cfg := natty.ConsumerConfig{
		Subjects: []string{"orders.>"}, DeadLetter: "dead.orders",
		OnError: func(err error) { dead <- err }, // the dead letter is stored by then
	}
	go func() { // the operator
		fmt.Println(<-dead != nil)
		for letter, err := range c.DeadLetters(ctx, "dead.orders") {
			fmt.Printf("%s: %s, %v\n", letter.Data, letter.Reason, err)
		}
		n, err := c.Redrive(ctx, "dead.orders", func(l natty.DeadLetter) bool { return l.Reason == "no such customer" })
		fmt.Printf("redriven: %d, %v, %s\n", n, err, <-redriven)
		cancel() // for this example: one message is enough
	}()
	err := c.Process(ctx, cfg, func(ctx context.Context, msg *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); d.Redrives == 0 {
			return natty.Permanent(errors.New("no such customer"))
		}
		redriven <- msg.Data
		return nil
	})
	fmt.Println("ended with", err)
	// Output:
	// true
	// order 1: no such customer, <nil>
	// redriven: 1, <nil>, order 1
	// ended with <nil>
}

// DeadLetters reads the dead letters of a subject, and changes nothing.
func ExampleClient_DeadLetters() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "DEAD", Subjects: []string{"dead.>"}}); err != nil {
		panic(err)
	}
	if err := c.Publish(ctx, "orders.new", []byte("order 1")); err != nil {
		panic(err)
	}

	cfg := natty.ConsumerConfig{
		Subjects: []string{"orders.>"}, DeadLetter: "dead.orders",
		OnError: func(error) { cancel() }, // for this example: one letter is enough
	}
	err := c.Process(ctx, cfg, func(context.Context, *nats.Msg) error {
		return natty.Permanent(errors.New("no such customer"))
	})
	fmt.Println("ended with", err)

	for letter, err := range c.DeadLetters(context.Background(), "dead.>") {
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s on %s, of stream %s: %s\n", letter.Data, letter.Subject, letter.Stream, letter.Reason)
	}
	// Output:
	// ended with <nil>
	// order 1 on orders.new, of stream ORDERS: no such customer
}

// Middleware runs around every handler of the Client, the first one outermost.
func ExampleWithMiddleware() {
	server, stop := exampleServer() // or a NATS server of your own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	named := func(next natty.Handler) natty.Handler {
		return func(ctx context.Context, msg *nats.Msg) error {
			err := next(ctx, msg)
			fmt.Println(msg.Subject, "ended with", err)
			return err
		}
	}
	c, err := natty.Connect(ctx, natty.Config{Name: "shop", Servers: []string{server}},
		natty.WithMiddleware(named), natty.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		panic(err)
	}
	defer c.Close(context.Background())
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}); err != nil {
		panic(err)
	}
	if err := c.Publish(ctx, "orders.new", []byte("order 1")); err != nil {
		panic(err)
	}
	err = c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"orders.>"}},
		func(_ context.Context, msg *nats.Msg) error {
			fmt.Printf("%s\n", msg.Data)
			cancel() // for this example: one message is enough
			return nil
		})
	if err != nil {
		panic(err)
	}
	// Output:
	// order 1
	// orders.new ended with <nil>
}

func ExampleService_Run() {
	server, err := nattytest.Start() // or a NATS server of your own
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
	go publishAnOrder(ctx, service.Config) // what another service would do

	err = service.Run(ctx, map[string]natty.Handler{
		"orders": func(_ context.Context, msg *nats.Msg) error {
			fmt.Printf("%s\n", msg.Data)
			cancel() // for this example: one message is enough
			return nil
		},
	}, natty.WithLogger(slog.New(slog.DiscardHandler)))
	fmt.Println("ended with", err)
	// Output:
	// order 1
	// ended with <nil>
}

// publishAnOrder publishes until there is a stream.
func publishAnOrder(ctx context.Context, cfg natty.Config) {
	c, err := natty.Connect(ctx, cfg, testkit.Quiet)
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
