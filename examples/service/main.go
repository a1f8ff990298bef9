// Command service runs the consumers of a service file.
//
//	go run ./examples/service [service.json]
//
// The file beside this program names no servers: for it a server with TLS is started inside the program, with three orders
// for each of its two consumers to handle, and it ends when they are. With a file that names its servers, and under "tls" the
// PEM files where they ask for them, it runs until it is interrupted.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

//go:embed service.json
var ownFile []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

// run is the whole program.
func run(ctx context.Context, args []string, out io.Writer) error {
	service, err := natty.ParseService(ownFile)
	if len(args) > 0 {
		service, err = natty.LoadService(args[0])
	}
	if err != nil {
		return err
	}
	ctx, finish := context.WithCancel(ctx)
	defer finish()
	left := new(atomic.Int64)
	if len(service.Config.Servers) == 0 {
		server, err := nattytest.Start(nattytest.ClientCerts())
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
		files := server.Files()
		service.Config.Servers = []string{server.URL()}
		service.Config.TLS = natty.TLSConfig{CAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key}
		if err := publish(ctx, service.Config); err != nil {
			return err
		}
		left.Store(2 * orders) // two consumers, each of which gets them all
	}
	handler := func(what string) natty.Handler {
		return func(_ context.Context, msg *nats.Msg) error {
			fmt.Fprintf(out, "%s %s\n", what, msg.Data) // returning nil acknowledges the message
			if left.Add(-1) == 0 {
				finish()
			}
			return nil
		}
	}
	return service.Run(ctx, map[string]natty.Handler{"billing": handler("bill"), "stock": handler("take from stock")})
}

const orders = 3

// publish makes the stream and puts the orders into it.
func publish(ctx context.Context, cfg natty.Config) (err error) {
	c, err := natty.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close(context.WithoutCancel(ctx))) }()
	if _, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}); err != nil {
		return err
	}
	for i := range orders {
		if err := c.Publish(ctx, "orders.new", fmt.Appendf(nil, "order %d", i+1)); err != nil {
			return err
		}
	}
	return nil
}
