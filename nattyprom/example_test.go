package nattyprom_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattyprom"
	"github.com/natty-go/natty/nattytest"
)

func Example() {
	server, err := nattytest.Start()
	if err != nil {
		panic(err)
	}
	defer server.Stop()
	ctx := context.Background()

	m := nattyprom.New()
	registry := prometheus.NewRegistry() // a service has prometheus.MustRegister(m)
	registry.MustRegister(m)
	c, err := natty.Connect(ctx, natty.Config{Name: "billing", Servers: []string{server.URL()}},
		natty.WithTracer(m), natty.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		panic(err)
	}
	defer c.Close(ctx)
	m.Watch("billing", c)

	_, _ = c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	_ = c.Publish(ctx, "orders.17.created", []byte("{}"))
	n, err := testutil.GatherAndCount(registry, "natty_published_messages_total")
	fmt.Println(n, err)
	// Output: 1 <nil>
}
