// Command observability runs a service with traces, metrics and health endpoints through
// an incident: its database stops. README.md beside it explains what to look at.
//
//	go run ./examples/observability            the incident, in a few seconds
//	go run ./examples/observability -serve     the service, until it is interrupted
//
// With -serve, curl does what happens to the database: POST /database/stop and
// /database/start; POST /redrive puts dead letters back.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattyotel"
	"github.com/natty-go/natty/nattyprom"
	"github.com/natty-go/natty/nattytest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "observability:", err)
		os.Exit(1)
	}
}

// run is the whole program.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("observability", flag.ContinueOnError)
	flags.SetOutput(out)
	serve := flags.Bool("serve", false, "run until interrupted, with an order every second")
	listen := flags.String("listen", "127.0.0.1:0", "where to serve metrics and health")
	traces := flags.String("traces", filepath.Join(os.TempDir(), "natty-traces.json"), "the file for traces")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %s", flags.Arg(0))
	}
	s, err := start(ctx, *listen, *traces)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	fmt.Fprintf(out, "metrics  %s/metrics\nhealth   %s/livez, /readyz, /health\ntraces   %s\n\n", s.url, s.url, *traces)
	if *serve {
		return s.serve(ctx)
	}
	return s.incident(ctx, out)
}

// service is what the program runs.
type service struct {
	c        *natty.Client
	database database
	url      string
	traces   string
	cleanup  []func() error // last in, first out
}

// start starts a NATS server, connects to it, and serves metrics and health.
func start(ctx context.Context, listen, traces string) (s *service, err error) {
	s = &service{traces: traces}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	server, err := nattytest.Start(nattytest.ClientCerts())
	if err != nil {
		return s, err
	}
	s.atEnd(server.Close)
	files := server.Files()
	cfg := natty.Config{
		Name: "orders", Servers: []string{server.URL()},
		TLS: natty.TLSConfig{CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key},
	}

	// Traces: to a file here. With OTLP, only the exporter differs.
	file, err := os.Create(traces)
	if err != nil {
		return s, err
	}
	s.atEnd(file.Close)
	exporter, err := stdouttrace.New(stdouttrace.WithWriter(file))
	if err != nil {
		return s, err
	}
	provider := trace.NewTracerProvider(trace.WithSyncer(exporter)) // WithBatcher in a real service
	s.atEnd(func() error { return provider.Shutdown(context.WithoutCancel(ctx)) })
	tel, err := nattyotel.New(nattyotel.WithTracerProvider(provider))
	if err != nil {
		return s, err
	}

	// Metrics.
	m := nattyprom.New()
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)

	s.c, err = natty.Connect(ctx, cfg, natty.WithTracer(tel), natty.WithTracer(m),
		natty.WithLogger(slog.New(slog.DiscardHandler))) // leave it out to see the log
	if err != nil {
		return s, err
	}
	s.atEnd(func() error { return s.c.Close(context.WithoutCancel(ctx)) })
	m.Watch("orders", s.c)
	for name, subject := range map[string]string{"ORDERS": "orders.>", "DEAD": "dead.>"} {
		if _, err := s.c.EnsureStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{subject}}); err != nil {
			return s, err
		}
	}
	return s, s.listen(ctx, listen, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
}

// listen serves metrics and health.
func (s *service) listen(ctx context.Context, address string, metrics http.Handler) error {
	health := natty.HealthHandler(s.c)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /livez", health)
	mux.Handle("GET /readyz", health)
	mux.Handle("GET /health", health)
	mux.HandleFunc("POST /database/stop", func(http.ResponseWriter, *http.Request) { s.database.set(false) })
	mux.HandleFunc("POST /database/start", func(http.ResponseWriter, *http.Request) { s.database.set(true) })
	mux.HandleFunc("POST /redrive", func(w http.ResponseWriter, r *http.Request) {
		n, err := s.c.Redrive(r.Context(), deadSubject, nil)
		fmt.Fprintln(w, n, "put back;", "error:", err)
	})
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	s.url = "http://" + l.Addr().String()
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	s.atEnd(func() error {
		err := server.Close()
		<-done
		return err
	})
	return nil
}

func (s *service) atEnd(f func() error) { s.cleanup = append(s.cleanup, f) }

func (s *service) stop() error {
	var errs []error
	for _, f := range slices.Backward(s.cleanup) {
		errs = append(errs, f())
	}
	s.cleanup = nil
	return errors.Join(errs...)
}
