package natty_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/relistan/go-director"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// One of all instances does the work. Its ctx ends before another one can begin. The server
// rejects what it writes with the term once another one leads.
func ExampleClient_Lead() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx := context.Background()

	cfg := natty.AsLeaderConfig{Bucket: "elections", Key: "nightly", NodeName: "host-1", BucketTTL: 10 * time.Second}
	err := c.Lead(ctx, cfg, func(ctx context.Context, term *natty.Term) error {
		for n := range 3 {
			if err := term.Put(ctx, "nightly.progress", fmt.Append(nil, n)); err != nil {
				return err // ctx has ended, or another one leads
			}
		}
		return nil // Lead returns, and another instance may lead
	})
	fmt.Println("ended with", err)
	progress, err := c.Get(ctx, "elections", "nightly.progress")
	fmt.Println(string(progress), err)
	// Output:
	// ended with <nil>
	// 2 <nil>
}

// A Looper says when the leader works: here three times, at regular times. On every other
// instance the same turns do nothing.
func ExampleClient_AsLeader() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx := context.Background()

	cfg := natty.AsLeaderConfig{
		Bucket: "elections", Key: "report", NodeName: "host-1",
		Looper: director.NewImmediateTimedLooper(3, 20*time.Millisecond, nil),
	}
	err := c.AsLeader(ctx, cfg, func() error {
		fmt.Println("report; host-1 leads:", c.HaveLeader(ctx, "host-1", "elections", "report"))
		return nil
	})
	fmt.Println("ended with", err)
	_, err = c.GetLeader(ctx, "elections", "report")
	fmt.Println("nobody leads:", errors.Is(err, jetstream.ErrKeyNotFound))
	// Output:
	// report; host-1 leads: true
	// report; host-1 leads: true
	// report; host-1 leads: true
	// ended with <nil>
	// nobody leads: true
}

// One process at a time holds the lock. What it does under the lock ends with the lease's
// ctx.
func ExampleClient_Lock() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx := context.Background()

	lease, err := c.Lock(ctx, natty.LockConfig{Bucket: "locks", Key: "printer"})
	if err != nil {
		panic(err)
	}
	printPage := func(ctx context.Context, fencing uint64) { fmt.Println("printing", fencing > 0, ctx.Err()) }
	printPage(lease.Context(), lease.Token())

	// TryLock does not wait.
	_, err = c.TryLock(ctx, natty.LockConfig{Bucket: "locks", Key: "printer"})
	fmt.Println(errors.Is(err, natty.ErrLocked))

	// ErrDeposed would say that somebody else may have had the printer at the end.
	fmt.Println(lease.Release(ctx))
	// Output:
	// printing true <nil>
	// true
	// <nil>
}

// A supervisor asks whether the process lives, and whether it may get traffic.
func ExampleHealthHandler() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	handler := natty.HealthHandler(c) // http.Handle("/livez", handler), and "/readyz", and "/healthz"
	for _, path := range []string{"/livez", "/readyz"} {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Println(path, answer.Code)
	}
	// Output:
	// /livez 200
	// /readyz 200
}

// Health is what HealthHandler answers with, for programs.
func ExampleClient_Health() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	h := c.Health()
	fmt.Println(h.Connected, h.Live(), h.Ready(), h.Explain())
	if err := c.Close(context.Background()); err != nil {
		panic(err)
	}
	fmt.Println(c.Health().Ready() != nil)
	// Output:
	// true <nil> <nil> []
	// true
}

// printer is a Tracer that prints what becomes of each message. nattyotel makes spans, and
// nattyprom counts.
type printer struct{ print func(a ...any) (int, error) }

func (printer) PublishStart(ctx context.Context, msg *nats.Msg) context.Context {
	msg.Header.Set("Request-Id", "17") // goes with the message
	return ctx
}

func (p printer) PublishEnd(_ context.Context, r natty.PublishResult) {
	_, _ = p.print("published in", r.Stream, "at", r.Sequence, r.Err)
}

func (p printer) HandleStart(ctx context.Context, msgs []*nats.Msg, ds []natty.Delivery) context.Context {
	_, _ = p.print("attempt", ds[0].Attempt, "of request", msgs[0].Header.Get("Request-Id"))
	return ctx
}

func (p printer) HandleEnd(_ context.Context, verdicts []natty.Verdict) {
	_, _ = p.print(verdicts[0].Outcome, verdicts[0].Err)
}

// A Tracer has four methods. Here PublishStart adds a header to the message, HandleStart
// reads it, and both ends print what became of the message.
func ExampleWithTracer() {
	server, stop := exampleServer() // or a NATS server of your own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := natty.Connect(ctx, natty.Config{Name: "orders", Servers: []string{server}},
		natty.WithTracer(printer{fmt.Println}), natty.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		panic(err)
	}
	defer c.Close(context.Background())
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}); err != nil {
		panic(err)
	}
	if err := c.Publish(ctx, "orders", []byte("order 1")); err != nil {
		panic(err)
	}
	cfg := natty.ConsumerConfig{Subjects: []string{"orders"}, Backoff: natty.Backoff{Min: 10 * time.Millisecond}}
	err = c.Process(ctx, cfg, func(ctx context.Context, _ *nats.Msg) error {
		if d, _ := natty.DeliveryFrom(ctx); d.Attempt == 1 {
			return errors.New("the bank is busy")
		}
		cancel() // for this example: one message is enough
		return nil
	})
	fmt.Println("ended with", err)
	// Output:
	// published in ORDERS at 1 <nil>
	// attempt 1 of request 17
	// retried the bank is busy
	// attempt 2 of request 17
	// acked <nil>
	// ended with <nil>
}

// A module for metrics would count these events.
func ExampleWithObserver() {
	server, stop := exampleServer() // or a NATS server of your own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	observe := natty.ObserverFunc(func(e natty.Event) {
		switch e := e.(type) {
		case natty.ConnectionEvent:
			fmt.Println("connected:", e.Connected)
		case natty.ElectionEvent:
			fmt.Println(e.NodeName, "leads:", e.Leading)
		default: // later versions may have more kinds
		}
	})
	c, err := natty.Connect(ctx, natty.Config{Name: "orders", Servers: []string{server}},
		natty.WithObserver(observe), natty.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		panic(err)
	}
	err = c.Lead(ctx, natty.AsLeaderConfig{Bucket: "elections", Key: "orders", NodeName: "host-1"},
		func(context.Context, *natty.Term) error { return nil })
	if err != nil {
		panic(err)
	}
	if err := c.Close(ctx); err != nil {
		panic(err)
	}
	// Output:
	// connected: true
	// host-1 leads: true
	// host-1 leads: false
	// connected: false
}

// exampleServer starts a server.
func exampleServer() (url string, stop func()) {
	server, err := nattytest.Start()
	if err != nil {
		panic(err)
	}
	return server.URL(), func() {
		if err := server.Close(); err != nil {
			panic(err)
		}
	}
}
