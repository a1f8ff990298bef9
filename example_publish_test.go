package natty_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// exampleClient connects to a server of its own that has the stream ORDERS.
func exampleClient() (c *natty.Client, stop func()) {
	server, err := nattytest.Start()
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	c, err = natty.Connect(ctx, natty.Config{Name: "shop", Servers: []string{server.URL()}}, testkit.Quiet)
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

func ExampleConnect() {
	server, err := nattytest.Start() // or a NATS server of your own
	if err != nil {
		panic(err)
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	// Connect waits for a server until ctx ends. What can never work, such as a wrong
	// password, is an error at once.
	c, err := natty.Connect(ctx, natty.Config{
		Name:    "orders",
		Servers: []string{server.URL()}, // default: $NATS_URL
	})
	if err != nil {
		panic(err)
	}
	fmt.Println("connected:", c.Health().Connected)

	// Close waits for running handlers, and until the server has what was sent last.
	if err := c.Close(ctx); err != nil {
		panic(err)
	}
	fmt.Println("connected:", c.Health().Connected)
	// Output:
	// connected: true
	// connected: false
}

func ExampleClient_EnsureStream() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx := context.Background()

	s, err := c.EnsureStream(ctx, jetstream.StreamConfig{
		Name: "INVOICES", Subjects: []string{"invoices.>"}, MaxAge: time.Hour,
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(s.CachedInfo().Config.MaxAge)

	// Settings that are left out keep their values.
	s, err = c.EnsureStream(ctx, jetstream.StreamConfig{
		Name: "INVOICES", Subjects: []string{"invoices.>"}, MaxMsgs: 1000,
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(s.CachedInfo().Config.MaxAge, s.CachedInfo().Config.MaxMsgs)

	// A setting that cannot be changed is an error that lists the differences.
	_, err = c.EnsureStream(ctx, jetstream.StreamConfig{Name: "INVOICES", Storage: jetstream.MemoryStorage})
	var drift *natty.DriftError
	fmt.Println(errors.As(err, &drift), drift.Differences)
	// Output:
	// 1h0m0s
	// 1h0m0s 1000
	// true [{storage "file" "memory"}]
}

func ExampleClient_Publish() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	// No error: the message is stored.
	fmt.Println(c.Publish(ctx, "orders.new", []byte("one book")))

	// A final error comes at once.
	err := c.Publish(ctx, "invoices.new", []byte("one book"))
	fmt.Println(errors.Is(err, natty.ErrNoStream), errors.Is(err, natty.ErrOutcomeUnknown))
	// Output:
	// <nil>
	// true false
}

func ExampleClient_PublishBatch() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx := context.Background()
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", AllowAtomicPublish: true}); err != nil {
		panic(err)
	}

	// No error: both messages are stored.
	fmt.Println(c.PublishBatch(ctx, []*nats.Msg{
		{Subject: "orders.new", Data: []byte("order 1")},
		{Subject: "orders.paid", Data: []byte("order 1")},
	}))

	// If one message cannot be stored, none is.
	err := c.PublishBatch(ctx, []*nats.Msg{
		{Subject: "orders.new", Data: []byte("order 2")},
		{Subject: "invoices.new", Data: []byte("order 2")},
	})
	fmt.Println(errors.Is(err, natty.ErrNoStream), errors.Is(err, natty.ErrOutcomeUnknown))
	// Output:
	// <nil>
	// true false
}

func ExampleClient_NewWriter() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	w, err := c.NewWriter(natty.WriterConfig{OnError: func(msg *nats.Msg, err error) {
		fmt.Println(msg.Subject, errors.Is(err, natty.ErrNoStream))
	}})
	if err != nil {
		panic(err)
	}
	for i := range 1000 {
		if err := w.Write(ctx, &nats.Msg{Subject: "orders.new", Data: fmt.Append(nil, i)}); err != nil {
			panic(err)
		}
	}
	fmt.Println(w.Flush(ctx)) // nil: all of them are stored
	s, err := c.JetStream().Stream(ctx, "ORDERS")
	if err != nil {
		panic(err)
	}
	fmt.Println(s.CachedInfo().State.Msgs)

	// A message that fails goes to OnError. The next Flush, or Close, returns the error.
	if err := w.Write(ctx, nats.NewMsg("invoices.new")); err != nil {
		panic(err)
	}
	fmt.Println(errors.Is(w.Close(ctx), natty.ErrNoStream))
	// Output:
	// <nil>
	// 1000
	// invoices.new true
	// true
}

func ExampleClient_Schedule() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", AllowMsgSchedules: true}); err != nil {
		panic(err)
	}

	reminder := natty.Schedule{
		ID: "remind-1", At: time.Now().Add(50 * time.Millisecond),
		Msg: &nats.Msg{Subject: "orders.remind", Data: []byte("order 1")},
	}
	report := natty.Schedule{
		ID: "report", Cron: "0 30 6 * * *", TimeZone: "Europe/Berlin", // every day at half past six
		Msg: nats.NewMsg("orders.report"),
	}
	// Every instance may do this: there is one schedule for each ID.
	for _, s := range []natty.Schedule{reminder, report} {
		if err := c.Schedule(ctx, s); err != nil {
			panic(err)
		}
	}

	err := c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"orders.>"}}, func(_ context.Context, msg *nats.Msg) error {
		fmt.Printf("%s: %s, early: %v\n", msg.Subject, msg.Data, time.Now().Before(reminder.At))
		cancel() // for this example: one message is enough
		return nil
	})
	fmt.Println("ended with", err)

	ctx = context.Background()
	for s, err := range c.Schedules(ctx, "ORDERS") {
		fmt.Println(s.ID, s.Cron, s.Msg.Subject, err)
	}
	fmt.Println(c.Unschedule(ctx, "ORDERS", "report"))
	// Output:
	// orders.remind: order 1, early: false
	// ended with <nil>
	// report 0 30 6 * * * orders.report <nil>
	// <nil>
}

func ExampleJSONBatch() {
	type order struct {
		ID int `json:"id"`
	}
	handler := natty.JSONBatch(func(_ context.Context, orders []order) error {
		fmt.Println("insert", orders)
		return &natty.PartialError{Errs: map[int]error{1: errors.New("the customer is locked")}}
	})
	// A handler can be tested without a server. Message 1 is no order: it fails by itself.
	err := handler(context.Background(), []*nats.Msg{
		{Data: []byte(`{"id": 1}`)}, {Data: []byte("?")}, {Data: []byte(`{"id": 3}`)},
	})
	var partial *natty.PartialError
	fmt.Println(errors.As(err, &partial))
	fmt.Println(partial.Errs[0], natty.IsPermanent(partial.Errs[1]), partial.Errs[2])
	// Output:
	// insert [{1} {3}]
	// true
	// <nil> true the customer is locked
}

func ExampleJSON() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type order struct {
		ID   int    `json:"id"`
		Item string `json:"item"`
	}
	if err := natty.PublishJSON(ctx, c, "orders.new", order{ID: 1, Item: "one book"}); err != nil {
		panic(err)
	}

	// A message that is not an order in JSON never reaches the handler. It is dead-lettered
	// at once, if the consumer has a dead-letter subject.
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

// purchase is what csv encodes.
type purchase struct {
	ID   int
	Item string
}

// csv is a Codec for one-line texts. One for protobuf is in examples/rpc.
type csv struct{}

func (csv) ContentType() string { return "text/csv" }

func (csv) Marshal(v any) ([]byte, error) {
	p, ok := v.(purchase)
	if !ok {
		return nil, fmt.Errorf("expected a purchase")
	}
	return fmt.Appendf(nil, "%d,%s", p.ID, p.Item), nil
}

func (csv) Unmarshal(data []byte, v any) error {
	p, ok := v.(*purchase)
	if !ok {
		return fmt.Errorf("expected room for a purchase")
	}
	_, err := fmt.Sscanf(string(data), "%d,%s", &p.ID, &p.Item)
	return err
}

// A Codec has three methods: ContentType, Marshal and Unmarshal. Here csv encodes
//
//	type purchase struct {
//		ID   int
//		Item string
//	}
//
// as "1,book".
func ExampleTyped() {
	c, stop := exampleClient() // natty.Connect, to a server with the stream ORDERS
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := natty.PublishTyped(ctx, c, csv{}, "orders.new", purchase{ID: 1, Item: "book"}); err != nil {
		panic(err)
	}
	err := c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"orders.>"}},
		natty.Typed(csv{}, func(_ context.Context, p purchase) error {
			fmt.Println(p.ID, p.Item)
			cancel() // for this example: one message is enough
			return nil
		}))
	fmt.Println("ended with", err)
	// Output:
	// 1 book
	// ended with <nil>
}

// A handler is a function: WithDelivery gives it the ctx of a message without a server.
func ExampleWithDelivery() {
	handler := func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		if d.Last {
			return natty.Permanent(fmt.Errorf("given up at attempt %d", d.Attempt))
		}
		return natty.RetryAfter(time.Minute, errors.New("the shop is closed"))
	}
	ctx := natty.WithDelivery(context.Background(), natty.Delivery{Attempt: 1})
	fmt.Println(natty.RetryDelay(handler(ctx, &nats.Msg{})))
	ctx = natty.WithDelivery(context.Background(), natty.Delivery{Attempt: 5, Last: true})
	fmt.Println(natty.IsPermanent(handler(ctx, &nats.Msg{})))
	// Output:
	// 1m0s true
	// true
}
