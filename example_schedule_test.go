package natty_test

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

func ExampleClient_Schedule() {
	c, stop := exampleClient()
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
		ID: "report", Cron: "0 30 6 * * *", TimeZone: "Europe/Berlin", // at half past six
		Msg: nats.NewMsg("orders.report"),
	}
	// Every instance may say so: it is one schedule all the same.
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
