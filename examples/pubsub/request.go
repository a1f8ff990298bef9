package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// askBoth asks on a subject of the stream and on one that no stream holds. A message to a stream's subject that wants an
// answer gets one from the stream: "stored", which is mostly there before the service has one. A request takes the first
// answer. So requests have subjects of their own, which no stream holds: here .rpc. beside .stored.
func askBoth(ctx context.Context, nc *nats.Conn, name string, out io.Writer) error {
	for _, subject := range []string{name + ".stored.greeting", name + ".rpc.greeting"} {
		service, err := nc.Subscribe(subject, func(msg *nats.Msg) {
			time.Sleep(250 * time.Millisecond)  // the work
			_ = msg.Respond([]byte("good day")) // without a connection there is no answer
		})
		if err != nil {
			return err
		}
		reply, err := nc.RequestWithContext(ctx, subject, []byte("hello"))
		if err != nil {
			return err
		}
		if err := service.Unsubscribe(); err != nil {
			return err
		}
		who := "the service"
		if strings.Contains(string(reply.Data), `"seq"`) { // a jetstream.PubAck
			who = "the stream"
		}
		fmt.Fprintf(out, "a request to %s was answered by %s: %s\n", strings.TrimPrefix(subject, name), who, reply.Data)
	}
	return nil
}
