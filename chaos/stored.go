package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// readStored writes down the messages, dead letters and keys that there are.
func (r *run) readStored(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	for stream, filter := range map[string]string{work.Work: "w.>", work.Full: "full.>"} {
		if err := r.readStream(ctx, stream, filter); err != nil {
			return err
		}
	}
	for letter, err := range r.admin.DeadLetters(ctx, work.DeadLetters) {
		if err != nil {
			return err
		}
		r.log.Add(history.Event{
			What: history.Letter, ID: string(letter.Data), Subject: letter.Subject, Seq: letter.Sequence, Text: letter.Reason,
		})
	}
	bucket, err := r.admin.JetStream().KeyValue(ctx, work.Settings)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	keys, err := r.admin.Keys(ctx, work.Settings)
	if err != nil {
		return err
	}
	for _, key := range keys {
		entry, err := bucket.Get(ctx, key)
		if err != nil {
			return err
		}
		r.log.Add(history.Event{What: history.Bucket, Key: key, Text: string(entry.Value())})
	}
	return nil
}

// readStream writes down the messages of a stream.
func (r *run) readStream(ctx context.Context, stream, filter string) error {
	consumer, err := r.admin.JetStream().OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}})
	if err != nil {
		return err
	}
	info, err := consumer.Info(ctx)
	if err != nil || info.NumPending == 0 {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		e := history.Event{
			What: history.Stored, At: history.FromWall(meta.Timestamp), Who: "stream",
			ID: string(m.Data()), Subject: m.Subject(), Seq: meta.Sequence.Stream,
		}
		if n, err := strconv.ParseInt(m.Headers().Get("Natty-Redrives"), 10, 64); err == nil {
			e.What, e.N = history.Redriven, n
		}
		r.log.Add(e)
		if meta.NumPending == 0 {
			return nil
		}
	}
}

// watchTerms writes down what leaders store with their terms, until stop is called. A
// leader that was deposed does not learn what becomes of what it has sent.
func (r *run) watchTerms(ctx context.Context) (stop func()) {
	if r.roles != nil && !slices.Contains(r.roles, "lead") {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for ctx.Err() == nil {
			r.followTerms(ctx)
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

func (r *run) followTerms(ctx context.Context) {
	for entry, err := range r.admin.Watch(ctx, work.Elections, work.TermKey) {
		if err != nil { // nobody has led yet, or a fault of the servers is in the way
			wait(ctx, time.Second)
			return
		}
		var token int64
		if _, err := fmt.Sscan(string(entry.Value()), &token); err == nil {
			r.log.Add(history.Event{What: history.Wrote, Op: work.Leading, Seq: entry.Revision(), N: token})
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
