package testkit

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/consumer"
)

// Process runs c.Process in the background until stop is called. stop returns its
// error.
func Process(t testing.TB, c *natty.Client, cfg natty.ConsumerConfig, h natty.Handler) (stop func() error) {
	t.Helper()
	return RunConsumer(t, c, func(ctx context.Context) error { return c.Process(ctx, cfg, h) })
}

// ProcessAtPace is Process with a consumer for which a minute is a second.
func ProcessAtPace(t testing.TB, c *natty.Client, cfg natty.ConsumerConfig, h natty.Handler) (stop func() error) {
	t.Helper()
	return RunConsumer(t, c, func(ctx context.Context) error {
		return c.Process(consumer.WithPace(ctx, 60), cfg, h)
	})
}

// RunConsumer calls run, which runs a consumer of c, in the background until stop is
// called. stop returns run's error. When the test fails, it logs c's Health.
func RunConsumer(t testing.TB, c *natty.Client, run func(context.Context) error) (stop func() error) {
	t.Helper()
	stop = Background(t, "Process", run)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("when it failed: %+v", c.Health())
		}
	})
	return stop
}

// Tally counts messages by body.
type Tally struct {
	mu sync.Mutex
	n  map[string]int
}

// Add counts msg, and returns how many of its body there were so far.
func (y *Tally) Add(msg *nats.Msg) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.n == nil {
		y.n = map[string]int{}
	}
	y.n[string(msg.Data)]++
	return y.n[string(msg.Data)]
}

// Counts returns how many messages of each body there were.
func (y *Tally) Counts() map[string]int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return maps.Clone(y.n)
}

// Distinct returns how many different bodies there were.
func (y *Tally) Distinct() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return len(y.n)
}

// Repeats returns how many messages were not the first of their body.
func (y *Tally) Repeats() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	r := 0
	for _, n := range y.n {
		r += n - 1
	}
	return r
}

// ErrHandler is the error of a handler that fails.
var ErrHandler = errors.New("handler says no")

// OnError returns a ConsumerConfig.OnError and the channel that it sends to.
func OnError() (func(error), chan error) {
	ch := make(chan error, 10_000)
	return func(err error) { ch <- err }, ch
}

// Only returns the health of c's only consumer that has not ended, or of its only one; or
// a zero one if there is no such consumer.
func Only(c *natty.Client) natty.ConsumerHealth {
	all := c.Health().Consumers
	running := slices.DeleteFunc(slices.Clone(all), func(h natty.ConsumerHealth) bool {
		return h.State == natty.ConsumerStopped
	})
	for _, h := range [][]natty.ConsumerHealth{running, all} {
		if len(h) == 1 {
			return h[0]
		}
	}
	return natty.ConsumerHealth{}
}

// AckPending returns how many messages are delivered and not settled, and how many are
// not delivered yet.
func AckPending(t testing.TB, c *natty.Client, stream, durable string) (unacked, waiting int) {
	t.Helper()
	cons, err := c.JetStream().Consumer(Ctx(t), stream, durable)
	require.NoError(t, err)
	info, err := cons.Info(Ctx(t))
	require.NoError(t, err)
	return info.NumAckPending, int(info.NumPending)
}

// Settled returns a condition: every message of the durable is settled, and there was
// one. A durable that is just being made has none, and answers no requests yet. Use it
// for messages that a consumer has seen: the server may count a new message as pending a
// moment after it has acknowledged the publish.
func Settled(c *natty.Client, stream, durable string) func() bool {
	return func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // a request may be lost
		defer cancel()
		cons, err := c.JetStream().Consumer(ctx, stream, durable)
		if err != nil {
			return false
		}
		info := cons.CachedInfo()
		return info.NumAckPending == 0 && info.NumPending == 0 && info.Delivered.Stream > 0
	}
}

// Letters returns the dead letters of a subject.
func Letters(t testing.TB, c *natty.Client, subject string) []natty.DeadLetter {
	t.Helper()
	var all []natty.DeadLetter
	for l, err := range c.DeadLetters(Ctx(t), subject) {
		require.NoError(t, err)
		all = append(all, l)
	}
	return all
}

// KeyOf is an OrderBy: it returns the key of a body such as "k3-17".
func KeyOf(msg *nats.Msg) string {
	key, _, _ := strings.Cut(string(msg.Data), "-")
	return key
}
