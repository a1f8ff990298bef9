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

// writerRows compare the Writer with nats.go's asynchronous publishing, which has no window by default: what the sender is ahead
// of the server waits in memory. "window" is with one of about the Writer's size, as a program that has to bound its
// memory must set it.
var writerRows = []row{
	{name: "x64, both ids", target: 1.10, messages: 30_000, natty: publishers(64, nattyPublish), raw: publishers(64, rawPublishWithID)},
	{name: "Writer", target: 1.20, messages: 150_000, natty: nattyWriter(natty.WriterConfig{}), raw: rawAsync(asyncWithID)},
	{name: "W. window", messages: 150_000, natty: nattyWriter(natty.WriterConfig{}), raw: rawAsync(asyncWithID, window)},
	{name: "AtLeastOnce", target: 1.00, messages: 200_000, natty: nattyWriter(natty.WriterConfig{AtLeastOnce: true}), raw: rawAsync(async)},
	{name: "ALO window", messages: 200_000, natty: nattyWriter(natty.WriterConfig{AtLeastOnce: true}), raw: rawAsync(async, window)},
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

var window = jetstream.WithPublishAsyncMaxPending(4000)

func asyncWithID(js jetstream.JetStream, opts ...jetstream.PublishOpt) error {
	_, err := js.PublishMsgAsync(&nats.Msg{
		Subject: subject, Data: payload,
		Header: nats.Header{jetstream.MsgIDHeader: {"bench-" + strconv.FormatInt(ids.Add(1), 36)}},
	}, opts...)
	return err
}

func async(js jetstream.JetStream, opts ...jetstream.PublishOpt) error {
	_, err := js.PublishAsync(subject, payload, opts...)
	return err
}

// rawAsync publishes, waits until all is acknowledged, and counts the failures, which nobody tells otherwise.
func rawAsync(publish func(jetstream.JetStream, ...jetstream.PublishOpt) error, opts ...jetstream.JetStreamOpt) side {
	var wait []jetstream.PublishOpt
	if len(opts) > 0 { // a full window is an error after 200 ms otherwise
		wait = append(wait, jetstream.WithStallWait(time.Minute))
	}
	return func(ctx context.Context, t *trial) error {
		failed := make(chan error, 1)
		opts := append([]jetstream.JetStreamOpt{jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) {
			select {
			case failed <- err:
			default:
			}
		})}, opts...)
		js, err := jetstream.New(t.js.Conn(), opts...)
		if err != nil {
			return err
		}
		defer js.CleanupPublisher()
		for range t.messages {
			if err := publish(js, wait...); err != nil {
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
