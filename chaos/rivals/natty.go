package rivals

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/procs"
	"github.com/natty-go/natty/chaos/work"
)

// connectNatty uses natty with its defaults.
func connectNatty(ctx context.Context, cfg procs.WorkerConfig) (*adapter, error) {
	c, err := natty.Connect(ctx, work.Config(cfg.Name, cfg.Servers, cfg.Files),
		natty.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		return nil, err
	}
	var failed *natty.PublishError // the last publish
	var failedID string
	return &adapter{
		publish: func(_ context.Context, id string) error {
			var opts []jetstream.PublishOpt
			if failedID == id && failed != nil && failed.MsgID != "" {
				opts = append(opts, jetstream.WithMsgID(failed.MsgID))
			}
			err := c.Publish(context.Background(), Stream, []byte(id), opts...)
			failed, _ = errors.AsType[*natty.PublishError](err)
			failedID = id
			return err
		},
		consume: func(ctx context.Context, handle func(id string)) error {
			return c.Process(ctx, natty.ConsumerConfig{Stream: Stream, Durable: durable, Subjects: []string{Stream}},
				func(_ context.Context, msg *nats.Msg) error {
					handle(string(msg.Data))
					return nil
				})
		},
		lead: func(ctx context.Context, elected func() func()) error {
			cfg := natty.AsLeaderConfig{Bucket: Bucket, Key: key, NodeName: cfg.Name, BucketTTL: TTL}
			return c.Lead(ctx, cfg, func(ctx context.Context, _ *natty.Term) error {
				deposed := elected()
				defer deposed()
				<-ctx.Done()
				return nil
			})
		},
		close: func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_ = c.Close(ctx) // the process ends anyway
		},
	}, nil
}
