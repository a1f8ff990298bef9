package nattyotel_test

import (
	"context"
	"fmt"
	"log/slog"

	"go.opentelemetry.io/otel/sdk/metric"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattyotel"
	"github.com/natty-go/natty/nattytest"
)

// A service sets up its providers once, usually as the global ones.
func Example() {
	server, err := nattytest.Start()
	if err != nil {
		panic(err)
	}
	defer server.Stop()
	spans := tracetest.NewInMemoryExporter() // an OTLP exporter in a service
	traces := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	meters := metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))

	ctx := context.Background()
	tel, err := nattyotel.New(nattyotel.WithTracerProvider(traces), nattyotel.WithMeterProvider(meters))
	if err != nil {
		panic(err)
	}
	c, err := natty.Connect(ctx, natty.Config{Name: "billing", Servers: []string{server.URL()}},
		natty.WithTracer(tel), natty.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		panic(err)
	}
	defer c.Close(ctx)
	if _, err := tel.Watch(c); err != nil {
		panic(err)
	}

	_, _ = c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	_ = c.Publish(ctx, "orders.17.created", []byte("{}"))
	for _, s := range spans.GetSpans() {
		fmt.Println(s.Name, s.SpanKind)
	}
	// Output: send orders.> producer
}
