package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
)

const deadSubject = "dead.orders"

// database is what the handler depends on.
type database struct {
	mu      sync.Mutex
	stopped bool
	orders  map[string]bool
}

func (d *database) set(up bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = !up
}

func (d *database) store(order string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return errors.New("database: connection refused")
	}
	if d.orders == nil {
		d.orders = map[string]bool{}
	}
	d.orders[order] = true
	return nil
}

func (d *database) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.orders)
}

// process handles orders until ctx ends.
func (s *service) process(ctx context.Context) error {
	cfg := natty.ConsumerConfig{
		Durable: "orders", Subjects: []string{"orders.*"}, MaxDeliver: 3, DeadLetter: deadSubject,
		Backoff: natty.Backoff{Min: 20 * time.Millisecond}, // short, for a short incident
	}
	return s.c.Process(ctx, cfg, func(_ context.Context, msg *nats.Msg) error {
		return s.database.store(string(msg.Data))
	})
}

// serve handles an order every second until ctx ends.
func (s *service) serve(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.process(ctx) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return <-done
		case err := <-done:
			return err
		case <-tick.C:
		}
		if err := s.c.Publish(ctx, "orders.new", fmt.Appendf(nil, "order %d", n)); err != nil && ctx.Err() == nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

// incident goes through the incident that README.md describes.
func (s *service) incident(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	run, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.process(run) }()

	fmt.Fprintln(out, "1. All is well: ten orders come, and are stored.")
	if err := s.publish(ctx, 1, 10); err != nil {
		return err
	}
	if err := s.await(ctx, out, `natty_handled_messages_total{durable="orders",outcome="acked",stream="ORDERS"} 10`); err != nil {
		return err
	}
	fmt.Fprintln(out, "\n2. The database stops, and five more orders come. Each is tried three times.")
	s.database.set(false)
	if err := s.publish(ctx, 11, 15); err != nil {
		return err
	}
	if err := s.await(ctx, out,
		`natty_handled_messages_total{durable="orders",outcome="retried",stream="ORDERS"} 10`,
		`natty_handled_messages_total{durable="orders",outcome="dead_lettered",stream="ORDERS"} 5`,
	); err != nil {
		return err
	}
	fmt.Fprintln(out, "\n3. Is the service itself well? Yes: neither a restart nor less traffic would help.")
	for _, page := range []string{"/livez", "/readyz"} {
		text, err := s.get(ctx, page)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "   GET %-8s %s", page, text)
	}
	fmt.Fprintln(out, "\n4. What failed, and why? The dead letters say it.")
	for l, err := range s.c.DeadLetters(ctx, deadSubject) {
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "   %s: %s, after %d deliveries\n", l.Data, l.Reason, l.Deliveries)
	}
	fmt.Fprintln(out, "\n5. The database is back, and the letters are put back.")
	s.database.set(true)
	n, err := s.c.Redrive(ctx, deadSubject, nil)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "   redriven %d\n", n)
	if err := s.await(ctx, out, `natty_handled_messages_total{durable="orders",outcome="acked",stream="ORDERS"} 15`); err != nil {
		return err
	}
	fmt.Fprintln(out, "\n6. One trace has the whole story of an order.")
	stop()
	if err := <-done; err != nil {
		return err
	}
	if err := s.printLongest(out); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nstored %d of 15 orders\nlost %d\n", s.database.count(), 15-s.database.count())
	return ctx.Err()
}

func (s *service) publish(ctx context.Context, from, to int) error {
	for n := from; n <= to; n++ {
		if err := s.c.Publish(ctx, "orders.new", fmt.Appendf(nil, "order %d", n)); err != nil {
			return err
		}
	}
	return nil
}

// get returns a page of the service's own.
func (s *service) get(ctx context.Context, page string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+page, nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// await scrapes the metrics until these lines are there, and prints them.
func (s *service) await(ctx context.Context, out io.Writer, lines ...string) error {
	for _, line := range lines {
		for {
			text, err := s.get(ctx, "/metrics")
			if err != nil {
				return err
			}
			if strings.Contains(text, line+"\n") {
				break
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
		fmt.Fprintln(out, "  ", line)
	}
	return nil
}

// span is what the exporter writes of a span, as far as it is needed here.
type span struct {
	Name        string
	SpanContext struct{ TraceID, SpanID string }
	Parent      struct{ SpanID string }
	StartTime   time.Time
	Attributes  []struct {
		Key   string
		Value struct{ Value any }
	}
}

// printLongest prints the trace with the most spans.
func (s *service) printLongest(out io.Writer) error {
	file, err := os.Open(s.traces)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	traces := map[string][]span{}
	var longest []span
	for d := json.NewDecoder(bufio.NewReader(file)); ; {
		var one span
		if err := d.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		id := one.SpanContext.TraceID
		if traces[id] = append(traces[id], one); len(traces[id]) > len(longest) {
			longest = traces[id]
		}
	}
	slices.SortFunc(longest, func(a, b span) int { return a.StartTime.Compare(b.StartTime) })
	depth := map[string]int{}
	for _, one := range longest {
		d, known := depth[one.Parent.SpanID]
		if known {
			d++
		}
		depth[one.SpanContext.SpanID] = d
		fmt.Fprintf(out, "   %s%s%s\n", strings.Repeat("  ", d), one.Name, described(one))
	}
	return nil
}

// described returns the attributes of natty's that tell a delivery from another.
func described(s span) (text string) {
	for _, a := range s.Attributes {
		switch a.Key {
		case "natty.attempt", "natty.redrives", "natty.outcome":
			text += fmt.Sprintf("  %s=%v", strings.TrimPrefix(a.Key, "natty."), a.Value.Value)
		}
	}
	return text
}
