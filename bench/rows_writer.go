package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

// writerRows compare the Writer with nats.go's asynchronous publishing. Each has its
// default window: 4096 messages, and 4000.
var writerRows = []row{
	{name: "x64, both ids", target: 1.10, messages: 30_000, natty: publishers(64, nattyPublish), raw: publishers(64, rawPublishWithID)},
	{name: "Writer", target: 1.20, messages: 100_000, natty: nattyWriter(natty.WriterConfig{}), raw: rawAsync(asyncWithID)},
	{name: "AtLeastOnce", target: 1.00, messages: 150_000, natty: nattyWriter(natty.WriterConfig{AtLeastOnce: true}), raw: rawAsync(async)},
}

func nattyWriter(cfg natty.WriterConfig) side {
	return func(ctx context.Context, t *trial) error {
		w, err := t.natty.NewWriter(cfg)
		if err != nil {
			return err
		}
		msg := &nats.Msg{Subject: subject, Data: payload}
		for range t.messages {
			if err := w.Write(ctx, msg); err != nil {
				return errors.Join(err, w.Close(ctx))
			}
		}
		if err := w.Flush(ctx); err != nil {
			return errors.Join(err, w.Close(ctx))
		}
		t.done()
		return w.Close(ctx)
	}
}

// stall makes nats.go wait for room in its window, as the Writer does. Without it a
// full window is an error after 200 ms.
var stall = jetstream.WithStallWait(time.Minute)

func asyncWithID(js jetstream.JetStream) error {
	_, err := js.PublishMsgAsync(&nats.Msg{
		Subject: subject, Data: payload,
		Header: nats.Header{jetstream.MsgIDHeader: {"bench-" + strconv.FormatInt(ids.Add(1), 36)}},
	}, stall)
	return err
}

func async(js jetstream.JetStream) error {
	_, err := js.PublishAsync(subject, payload, stall)
	return err
}

// rawAsync publishes and waits until all is acknowledged. Failures reach only the error
// handler, so that it has to collect them.
func rawAsync(publish func(jetstream.JetStream) error) side {
	return func(ctx context.Context, t *trial) error {
		failed := make(chan error, 1)
		js, err := jetstream.New(t.js.Conn(), jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) {
			select {
			case failed <- err:
			default:
			}
		}))
		if err != nil {
			return err
		}
		defer js.CleanupPublisher()
		for range t.messages {
			if err := publish(js); err != nil {
				return err
			}
		}
		select {
		case <-js.PublishAsyncComplete():
		case <-ctx.Done():
			return ctx.Err()
		}
		t.done()
		select {
		case err := <-failed:
			return err
		default:
			return nil
		}
	}
}
