package rivals

import (
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/chaos/procs"
)

// dial connects as the README of nats.go does: with its defaults.
func dial(cfg procs.WorkerConfig) (*nats.Conn, jetstream.JetStream, error) {
	nc, err := nats.Connect(strings.Join(cfg.Servers, ","), nats.RootCAs(cfg.CA), nats.Name(cfg.Name))
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
	}
	return nc, js, err
}

// connectPlain uses nats.go: Publish without options, Consume with Ack, and a lease
// that is renewed with Update.
func connectPlain(_ context.Context, cfg procs.WorkerConfig) (*adapter, error) {
	return plain(cfg, func(string) []jetstream.PublishOpt { return nil })
}

// connectWithIDs is connectPlain with a message id for each message, so that the server
// recognizes a message that is published again.
func connectWithIDs(_ context.Context, cfg procs.WorkerConfig) (*adapter, error) {
	return plain(cfg, func(id string) []jetstream.PublishOpt { return []jetstream.PublishOpt{jetstream.WithMsgID(id)} })
}

func plain(cfg procs.WorkerConfig, opts func(id string) []jetstream.PublishOpt) (*adapter, error) {
	nc, js, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	return &adapter{
		publish: func(_ context.Context, id string) error {
			_, err := js.Publish(context.Background(), Stream, []byte(id), opts(id)...)
			return err
		},
		consume: func(ctx context.Context, handle func(id string)) error { return consumePlain(ctx, js, handle) },
		lead: func(ctx context.Context, elected func() func()) error {
			return hold(ctx, js, cfg.Name, elected, renewWithUpdate, true)
		},
		close: nc.Close,
	}, nil
}

func consumePlain(ctx context.Context, js jetstream.JetStream, handle func(id string)) error {
	c, err := js.CreateOrUpdateConsumer(ctx, Stream, jetstream.ConsumerConfig{
		Durable: durable, AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		return err
	}
	consuming, err := c.Consume(func(msg jetstream.Msg) {
		handle(string(msg.Data()))
		_ = msg.Ack() // as the README has it: if it fails, the server redelivers
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	consuming.Drain()
	select {
	case <-consuming.Closed():
	case <-time.After(10 * time.Second):
	}
	return nil
}

// connectBlind leads with a lease that is renewed with Put, whoever has the key by then.
func connectBlind(_ context.Context, cfg procs.WorkerConfig) (*adapter, error) {
	nc, js, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	return &adapter{
		lead: func(ctx context.Context, elected func() func()) error {
			return hold(ctx, js, cfg.Name, elected, renewWithPut, false)
		},
		close: nc.Close,
	}, nil
}

// renewal writes a key again whose present revision is known. The TTL starts anew.
type renewal func(ctx context.Context, kv jetstream.KeyValue, name string, revision uint64) (uint64, error)

func renewWithUpdate(ctx context.Context, kv jetstream.KeyValue, name string, revision uint64) (uint64, error) {
	return kv.Update(ctx, key, []byte(name), revision)
}

func renewWithPut(ctx context.Context, kv jetstream.KeyValue, name string, _ uint64) (uint64, error) {
	return kv.Put(ctx, key, []byte(name))
}

// hold is the usual election by hand: who creates the key leads, renews the key three
// times within its TTL, and leads until a renewal fails. With release it deletes the key
// when the process ends in good order.
func hold(
	ctx context.Context, js jetstream.JetStream, name string, elected func() func(), renew renewal, release bool,
) error {
	kv, err := js.KeyValue(ctx, Bucket)
	if err != nil {
		return err
	}
	for {
		revision, err := kv.Create(ctx, key, []byte(name))
		if err == nil {
			deposed := elected()
			for err == nil {
				if !sleep(ctx, TTL/3) {
					deposed()
					if release {
						_ = giveUp(ctx, kv, revision) // else the key expires
					}
					return nil
				}
				revision, err = renew(ctx, kv, name, revision)
			}
			deposed()
		}
		if !sleep(ctx, TTL/3) {
			return nil
		}
	}
}

func giveUp(ctx context.Context, kv jetstream.KeyValue, revision uint64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return kv.Delete(ctx, key, jetstream.LastRevision(revision))
}

// sleep returns false if ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	pause(ctx, d)
	return ctx.Err() == nil
}
