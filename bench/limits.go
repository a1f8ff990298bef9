package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// limit is one line of the first table: the CPU time or memory that this process takes
// while it consumes, with natty and with nats.go. It is measured once.
type limit struct {
	name       string
	most       float64 // that natty may take
	unit       string
	backlog    int // messages in the stream
	measure    func(ctx context.Context, w *watch) (float64, error)
	natty, raw side

	// With keys in a bucket in place of a backlog in a stream, copied measures.
	keys   int
	copied func(ctx context.Context, c *copying) (float64, error)

	// With schedules in a stream, the time to list them is measured.
	schedules int
}

// allLimits returns every limit.
func allLimits() []limit { return slices.Concat(limits, keyLimits, scheduleLimits) }

const million = 1_000_000

var limits = []limit{
	{name: "idle x10", most: 0.5, unit: "%", measure: idleCPU, natty: process(oneByOne, nothing), raw: consume(nothing)},
	{ // 500 messages in five seconds; the rest stays at the server
		name: "backlog, slow", most: 64, unit: "MiB", backlog: million, measure: memoryFor(million / 500),
		natty: process(oneByOne, tenMilliseconds), raw: consume(tenMilliseconds),
	},
	{
		name: "backlog, fast", most: 64, unit: "MiB", backlog: million, measure: memoryFor(1),
		natty: process(oneByOne, nothing), raw: consume(nothing),
	},
}

func tenMilliseconds() { time.Sleep(10 * time.Millisecond) }

// watch is one measurement of one side.
type watch struct {
	client
	setup   jetstream.JetStream
	stream  jetstream.Stream
	side    side
	name    string
	backlog int
	idle    time.Duration
}

// trial is the work of the i-th consumer, until it has handled so many messages.
func (w *watch) trial(i, messages int) *trial {
	return &trial{
		client: w.client, stream: w.stream.CachedInfo().Config.Name,
		durable: fmt.Sprintf("%s-%d", w.name, i), messages: messages,
	}
}

// runLimits prints the table of the limits, and returns how many are exceeded.
func runLimits(ctx context.Context, url string, s settings, out io.Writer) (exceeded int, err error) {
	head := true
	for i, l := range allLimits() {
		if !s.row.MatchString(l.name) {
			continue
		}
		if head {
			fmt.Fprintf(out, "what this process takes, measured once\n\n%-14s %10s %10s %10s\n", "", "natty", "raw", "limit")
			head = false
		}
		if s.messages > 0 && l.backlog > 0 {
			l.backlog = s.messages
		}
		if s.messages > 0 && l.keys > 0 {
			l.keys = s.messages
		}
		if s.messages > 0 && l.schedules > 0 {
			l.schedules = s.messages
		}
		// A limit that takes longer than this is stuck.
		limitCtx, cancel := context.WithTimeout(ctx, 5*time.Minute+2*s.idle)
		took, err := l.run(limitCtx, url, fmt.Sprintf("LIMIT-%d", i), s.idle)
		cancel()
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			fmt.Fprintf(out, "%-14s not measured: %v\n", l.name, err)
			continue
		case err != nil:
			return exceeded, fmt.Errorf("%s: %w", l.name, err)
		}
		above := took[0] > l.most
		if above {
			exceeded++
		}
		fmt.Fprintf(out, "%-14s %10.2f %10.2f %10.2f %-3s  %s\n", l.name, took[0], took[1], l.most, l.unit, passOr("above", above))
	}
	if !head {
		fmt.Fprintln(out)
	}
	return exceeded, nil
}

// run measures natty and then nats.go, on one stream.
func (l limit) run(ctx context.Context, url, stream string, idle time.Duration) (took [2]float64, err error) {
	if l.copied != nil {
		return l.runKeys(ctx, url, stream)
	}
	if l.schedules > 0 {
		return l.runSchedules(ctx, url, stream)
	}
	setup, err := prepare(ctx, url)
	if err != nil {
		return took, err
	}
	defer setup.close(ctx)
	w := &watch{setup: setup.js, backlog: l.backlog, idle: idle}
	if w.stream, err = createStream(ctx, setup.js, stream); err != nil {
		return took, err
	}
	defer func() { err = errors.Join(err, setup.js.DeleteStream(context.WithoutCancel(ctx), stream)) }()
	if err := fill(ctx, setup.js, l.backlog); err != nil {
		return took, fmt.Errorf("fill the stream: %w", err)
	}
	for i, side := range []side{l.natty, l.raw} {
		w.side, w.name = side, [...]string{"natty", "raw"}[i]
		label(ctx, l.name, w.name, func(ctx context.Context) {
			if w.client, err = connect(ctx, url, w.name); err == nil {
				debug.FreeOSMemory() // so that no number includes earlier memory, or its release
				took[i], err = l.measure(ctx, w)
				w.close(ctx)
			}
		})
		if err != nil {
			return took, fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return took, nil
}

// idleCPU returns the CPU time that ten consumers without messages take, in percent of
// one core.
func idleCPU(ctx context.Context, w *watch) (float64, error) {
	if _, err := cpuTime(); err != nil {
		return 0, err
	}
	const consumers = 10
	ended := make(chan error, consumers)
	for i := range consumers {
		go func() { ended <- w.side(ctx, w.trial(i, 1)) }()
	}
	for i := range consumers {
		if err := w.awaitPull(ctx, i, ended); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	before, _ := cpuTime()
	select {
	case <-time.After(w.idle):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := cpuTime()
	took := time.Since(start)
	// The message that ends the consumers proves that all of them were running.
	err = errors.Join(err, fill(ctx, w.setup, 1))
	for range consumers {
		err = errors.Join(err, <-ended)
	}
	return 100 * (after - before).Seconds() / took.Seconds(), errors.Join(err, w.stream.Purge(ctx))
}

// awaitPull waits until the server has a request for messages from the i-th consumer.
func (w *watch) awaitPull(ctx context.Context, i int, ended <-chan error) error {
	for {
		consumer, err := w.stream.Consumer(ctx, w.trial(i, 1).durable)
		switch {
		case err == nil && consumer.CachedInfo().NumWaiting > 0:
			return nil
		case err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound):
			return err
		}
		select {
		case err := <-ended:
			return errors.Join(errors.New("a consumer ended too early"), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// memoryFor measures how many MiB of memory the process takes at its peak, beyond those
// of the idle process, while it handles one message in oneOf of the backlog.
func memoryFor(oneOf int) func(context.Context, *watch) (float64, error) {
	return func(ctx context.Context, w *watch) (float64, error) {
		idle, err := restartPeak()
		if err != nil {
			return 0, err
		}
		if err := w.side(ctx, w.trial(0, max(w.backlog/oneOf, 1))); err != nil {
			return 0, err
		}
		peak, err := peakMemory()
		return float64(peak-idle) / (1 << 20), err
	}
}
