package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

const subject = "bench.orders"

// payload is the body of every message.
var payload = make([]byte, 128)

// client is natty or nats.go on a connection of its own, made before the clock runs.
type client struct {
	natty *natty.Client
	js    jetstream.JetStream
}

// trial is one measurement of one side.
type trial struct {
	client
	stream   string
	durable  string
	messages int
	start    time.Time
	took     time.Duration
	verified bool // the side has checked its own work
}

// done stops the clock. A side calls it when its last message is done; its cleanup is
// not measured.
func (t *trial) done() { t.took = time.Since(t.start) }

// sample is what a trial measured.
type sample struct {
	perSecond float64
	mallocs   float64 // per message, in this process
}

// result has the medians of a row's rounds.
type result struct {
	row        row
	natty, raw sample
	ratio      float64 // of the throughputs within one round
	low, high  float64 // the middle half of the ratios
}

func (r *result) below() bool { return r.ratio < r.row.target }
func (r *result) above() bool { return r.row.maxAllocs > 0 && r.natty.mallocs > r.row.maxAllocs }

// measure runs a row. The sides take turns, and who begins changes from round to round:
// other load on the machine then hits both. For the same reason the ratio is taken
// within each round.
func measure(ctx context.Context, url string, r row, rounds int) (*result, error) {
	setup, err := prepare(ctx, url)
	if err != nil {
		return nil, err
	}
	defer setup.close(ctx)
	sides := []struct {
		name     string
		f        side
		messages int
		client   client
		samples  []sample
	}{{name: "natty", f: r.natty, messages: r.messages}, {name: "raw", f: r.raw, messages: cmp.Or(r.rawMessages, r.messages)}}
	defer func() {
		for _, s := range sides {
			s.client.close(ctx)
		}
	}()
	for i := range sides {
		s := &sides[i]
		// A connection's goroutines inherit the labels of the goroutine that makes it.
		label(ctx, r.name, s.name, func(ctx context.Context) { s.client, err = connect(ctx, url, s.name) })
		if err != nil {
			return nil, err
		}
	}
	for n := range rounds {
		for i := range sides {
			s := &sides[(i+n)%2]
			// Each stream has its own name: one that is made just after another of the
			// same name was deleted may find that one's messages.
			t := &trial{client: s.client, stream: fmt.Sprintf("BENCH-%d-%s", n, s.name), durable: "bench", messages: s.messages}
			one, err := t.run(ctx, setup.js, r.prefilled, func() (err error) {
				label(ctx, r.name, s.name, func(ctx context.Context) { err = s.f(ctx, t) })
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			s.samples = append(s.samples, one)
		}
	}
	return summarize(r, sides[0].samples, sides[1].samples), nil
}

// prepare returns the client that makes and fills streams.
func prepare(ctx context.Context, url string) (client, error) {
	c, err := connect(ctx, url, "setup")
	if err != nil {
		return c, err
	}
	// One stream stays. A moment after an account's last stream is deleted, the server
	// removes its folder, and with it what the next stream has stored.
	if _, err := c.js.CreateStream(ctx, jetstream.StreamConfig{Name: "STAYS"}); err != nil {
		c.close(ctx)
		return c, err
	}
	return c, nil
}

func label(ctx context.Context, row, side string, f func(context.Context)) {
	pprof.Do(ctx, pprof.Labels("row", row, "side", side), f)
}

func connect(ctx context.Context, url, side string) (client, error) {
	if side == "natty" {
		c, err := natty.Connect(ctx, natty.Config{Name: "bench", Servers: []string{url}}, natty.WithLogger(slog.New(slog.DiscardHandler)))
		if err != nil {
			return client{}, err
		}
		return client{natty: c, js: c.JetStream()}, nil
	}
	nc, err := nats.Connect(url, nats.Name("bench"))
	if err != nil {
		return client{}, err
	}
	js, err := jetstream.New(nc)
	return client{js: js}, err
}

func (c client) close(ctx context.Context) {
	switch {
	case c.natty != nil:
		_ = c.natty.Close(ctx) // nothing is in flight
	case c.js != nil: // nil if it was never connected
		c.js.Conn().Close()
	}
}

// run measures one side once, on a stream made for it, and checks that every message
// was counted.
func (t *trial) run(ctx context.Context, setup jetstream.JetStream, prefilled bool, f func() error) (s sample, err error) {
	stream, err := createStream(ctx, setup, t.stream)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, setup.DeleteStream(context.WithoutCancel(ctx), t.stream)) }()
	if prefilled {
		if err := fill(ctx, setup, t.messages); err != nil {
			return s, fmt.Errorf("fill the stream: %w", err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	t.start = time.Now()
	err = f()
	runtime.ReadMemStats(&after)
	if err != nil {
		return s, err
	}
	if !t.verified {
		if err := t.verify(ctx, stream, prefilled); err != nil {
			return s, err
		}
	}
	n := float64(t.messages)
	return sample{perSecond: n / t.took.Seconds(), mallocs: float64(after.Mallocs-before.Mallocs) / n}, nil
}

func createStream(ctx context.Context, js jetstream.JetStream, name string) (jetstream.Stream, error) {
	return js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{"bench.>"}})
}

// fill puts n messages into the stream.
func fill(ctx context.Context, js jetstream.JetStream, n int) error {
	js, err := jetstream.New(js.Conn(), jetstream.WithPublishAsyncMaxPending(4000))
	if err != nil {
		return err
	}
	for range n {
		if _, err := js.PublishAsync(subject, payload, jetstream.WithStallWait(time.Minute)); err != nil {
			return err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// verify asks the server whether all messages were stored, and acknowledged if they
// were consumed.
func (t *trial) verify(ctx context.Context, stream jetstream.Stream, consumed bool) error {
	info, err := stream.Info(ctx)
	if err != nil {
		return err
	}
	if info.State.Msgs != uint64(t.messages) {
		return fmt.Errorf("%d of %d messages are in the stream", info.State.Msgs, t.messages)
	}
	if !consumed {
		return nil
	}
	consumer, err := stream.Consumer(ctx, t.durable)
	if err != nil {
		return err
	}
	for {
		info, err := consumer.Info(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("acknowledgements are missing: %w", err)
		case info.NumPending == 0 && info.NumAckPending == 0:
			return nil
		}
		time.Sleep(5 * time.Millisecond) // the server is still reading acknowledgements
	}
}

func summarize(r row, natty, raw []sample) *result {
	res := &result{row: r, natty: median(natty), raw: median(raw)}
	var ratios []float64
	for i := range natty {
		ratios = append(ratios, natty[i].perSecond/raw[i].perSecond)
	}
	res.ratio, res.low, res.high = quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75)
	return res
}

func median(samples []sample) sample {
	var perSecond, mallocs []float64
	for _, s := range samples {
		perSecond = append(perSecond, s.perSecond)
		mallocs = append(mallocs, s.mallocs)
	}
	return sample{perSecond: quantile(perSecond, 0.5), mallocs: quantile(mallocs, 0.5)}
}

// quantile interpolates between the two nearest values.
func quantile(values []float64, q float64) float64 {
	values = slices.Sorted(slices.Values(values))
	at := q * float64(len(values)-1)
	i := int(at)
	if i+1 == len(values) {
		return values[i]
	}
	return values[i] + (at-float64(i))*(values[i+1]-values[i])
}

func printHead(out io.Writer, rounds int) {
	fmt.Fprintf(out, "medians of %d rounds, %d B messages, %d CPUs\n\n", rounds, len(payload), runtime.GOMAXPROCS(0))
	fmt.Fprintf(out, "%-14s %10s %10s %7s %13s %7s  %-6s %14s %5s\n",
		"", "natty/s", "raw/s", "ratio", "middle half", "target", "", "allocs/message", "most")
}

func (r *result) print(out io.Writer) {
	target, mark := "-", ""
	if r.row.target > 0 {
		target, mark = fmt.Sprintf("%.2f", r.row.target), passOr("below", r.below())
	}
	most := ""
	if r.row.maxAllocs > 0 {
		most = fmt.Sprintf("%5.0f  %s", r.row.maxAllocs, passOr("above", r.above()))
	}
	line := fmt.Sprintf("%-14s %10.0f %10.0f %7.3f %13s %7s  %-6s %14s %s",
		r.row.name, r.natty.perSecond, r.raw.perSecond, r.ratio, fmt.Sprintf("%.3f - %.3f", r.low, r.high), target, mark,
		fmt.Sprintf("%.1f vs %.1f", r.natty.mallocs, r.raw.mallocs), most)
	fmt.Fprintln(out, strings.TrimRight(line, " "))
}

// passOr marks a number that has a target or a limit.
func passOr(missed string, is bool) string {
	if is {
		return missed
	}
	return "PASS"
}
