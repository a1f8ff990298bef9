package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/micro"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

// instanceSubject is what an instance learns from its environment, beside what setup.Server reads.
const instanceSubject = "RPC_SUBJECT"

// instance is the whole of each of the two processes: a service that squares numbers until it is told to stop.
func instance(ctx context.Context, name, subject string, in io.Reader, out io.Writer) (err error) {
	ctx, stop := instances.UntilTold(ctx, in)
	defer stop()
	cfg, stopServer, err := setup.Server("rpc-" + name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	client, err := connect(ctx, cfg)
	if err != nil && ctx.Err() != nil {
		return nil // told to stop already
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()

	// Instances of one service share its requests: each goes to one of them.
	service, err := micro.AddService(client.Conn(), micro.Config{Name: "squares", Version: "1.0.0"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.Stop()) }() // finishes what it has begun
	err = service.AddEndpoint("square", micro.HandlerFunc(func(r micro.Request) { square(name, r) }), micro.WithEndpointSubject(subject))
	if err != nil {
		return err
	}
	if err := client.Conn().Flush(); err != nil { // the server has the subscription
		return err
	}
	fmt.Fprintln(out, name, "ready")
	<-ctx.Done()
	return nil
}

// square answers one request.
func square(name string, r micro.Request) {
	var number wrapperspb.Int64Value
	if err := proto.Unmarshal(r.Data(), &number); err != nil {
		_ = r.Error("400", "not a protobuf message of an Int64Value", nil)
		return
	}
	time.Sleep(2 * time.Millisecond) // the work
	data, err := proto.Marshal(wrapperspb.Int64(number.GetValue() * number.GetValue()))
	if err != nil {
		_ = r.Error("500", "cannot be encoded", nil)
		return
	}
	// Without a connection there is no answer, and the client asks again.
	_ = r.Respond(data, micro.WithHeaders(micro.Headers{"Instance": {name}}))
}
