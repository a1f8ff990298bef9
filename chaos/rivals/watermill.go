package rivals

import (
	"context"

	"github.com/ThreeDotsLabs/watermill"
	wmjetstream "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/jetstream"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/natty-go/natty/chaos/procs"
)

// connectWatermill uses watermill-nats with its defaults, and its GroupedConsumer, so
// that two processes share the messages.
func connectWatermill(_ context.Context, cfg procs.WorkerConfig) (*adapter, error) {
	nc, _, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Role == Publisher {
		publisher, err := wmjetstream.NewPublisher(wmjetstream.PublisherConfig{Conn: nc, Logger: watermill.NopLogger{}})
		if err != nil {
			return nil, err
		}
		return &adapter{
			publish: func(_ context.Context, id string) error {
				return publisher.Publish(Stream, message.NewMessage(id, []byte(id)))
			},
			close: func() { _ = publisher.Close() }, // the process ends anyway
		}, nil
	}
	subscriber, err := wmjetstream.NewSubscriber(wmjetstream.SubscriberConfig{
		Conn: nc, Logger: watermill.NopLogger{}, ResourceInitializer: wmjetstream.GroupedConsumer(durable),
	})
	if err != nil {
		return nil, err
	}
	return &adapter{
		consume: func(ctx context.Context, handle func(id string)) error {
			// The subscription ends with Close, after what is being handled.
			messages, err := subscriber.Subscribe(context.WithoutCancel(ctx), Stream)
			if err != nil {
				return err
			}
			for {
				select {
				case <-ctx.Done():
					return nil
				case m, more := <-messages:
					if !more {
						return nil
					}
					handle(string(m.Payload))
					m.Ack()
				}
			}
		},
		close: func() { _ = subscriber.Close() }, // as above
	}, nil
}
