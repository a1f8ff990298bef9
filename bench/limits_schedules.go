package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

// scheduleLimits are the limits of a stream with many schedules.
var scheduleLimits = []limit{{name: "schedules", most: 1, unit: "s", schedules: 10_000}}

// runSchedules measures how long it takes to list a stream's schedules: with Schedules,
// and with a consumer of the messages that hold them.
func (l limit) runSchedules(ctx context.Context, url, stream string) (took [2]float64, err error) {
	setup, err := prepare(ctx, url)
	if err != nil {
		return took, err
	}
	defer setup.close(ctx)
	c, err := connect(ctx, url, "natty")
	if err != nil {
		return took, err
	}
	defer c.close(ctx)
	config := jetstream.StreamConfig{Name: stream, Subjects: []string{stream + ".due"}, AllowMsgSchedules: true}
	if _, err := c.natty.EnsureStream(ctx, config); err != nil {
		return took, err
	}
	defer func() { err = errors.Join(err, setup.js.DeleteStream(context.WithoutCancel(ctx), stream)) }()
	if err := fillSchedules(ctx, c.natty, stream, l.schedules); err != nil {
		return took, fmt.Errorf("make the schedules: %w", err)
	}
	for i, list := range []func(context.Context, client, string, int) (int, error){listed, consumed} {
		side := [...]string{"natty", "raw"}[i]
		label(ctx, l.name, side, func(ctx context.Context) {
			var n int
			start := time.Now()
			n, err = list(ctx, c, stream, l.schedules)
			took[i] = time.Since(start).Seconds()
			if err == nil && n != l.schedules {
				err = fmt.Errorf("%d schedules are listed, and there are %d", n, l.schedules)
			}
		})
		if err != nil {
			return took, fmt.Errorf("%s: %w", side, err)
		}
	}
	return took, nil
}

func fillSchedules(ctx context.Context, c *natty.Client, stream string, n int) error {
	work, at := make(chan int), time.Now().Add(time.Hour)
	var makers sync.WaitGroup
	errs := make(chan error, 64)
	for range cap(errs) {
		makers.Go(func() {
			var err error
			for i := range work {
				err = errors.Join(err, c.Schedule(ctx, natty.Schedule{
					ID: strconv.Itoa(i), At: at, Msg: &nats.Msg{Subject: stream + ".due", Data: payload},
				}))
			}
			errs <- err
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	makers.Wait()
	close(errs)
	var err error
	for e := range errs {
		err = errors.Join(err, e)
	}
	return err
}

func listed(ctx context.Context, c client, stream string, _ int) (n int, err error) {
	for _, err := range c.natty.Schedules(ctx, stream) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// consumed reads as many messages as there are schedules. It would miss those that are
// replaced meanwhile.
func consumed(ctx context.Context, c client, stream string, schedules int) (n int, err error) {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return 0, err
	}
	batch, err := consumer.Fetch(schedules)
	if err != nil {
		return 0, err
	}
	for range batch.Messages() {
		n++
	}
	return n, batch.Error()
}
