package natty_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// processBatch runs a batch consumer in the background until the end of the test, or stop.
func processBatch(t *testing.T, c *natty.Client, cfg natty.BatchConfig, h natty.BatchHandler) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() {
		err := c.ProcessBatch(ctx, cfg, h)
		done <- err
		done <- err
	}()
	stop = func() error {
		cancel()
		return receive(t, done)
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func batchOf(subject string) natty.BatchConfig {
	return natty.BatchConfig{ConsumerConfig: natty.ConsumerConfig{Subjects: []string{subject}, Backoff: natty.Backoff{Min: time.Millisecond}}}
}

func TestFailedBatchComesBackWhole(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 50)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait = 25, 50*time.Millisecond
	report, errs := onError()
	cfg.OnError = report
	var tries, seen tally
	var first atomic.Bool
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		assert.LessOrEqual(t, len(msgs), 25)
		for _, m := range msgs {
			tries.add(m)
		}
		if first.CompareAndSwap(false, true) {
			panic(errHandler)
		}
		for _, m := range msgs {
			seen.add(m)
		}
		return nil
	})
	eventually(t, func() bool { return seen.distinct() == 50 }, "all are handled")
	assert.Equal(t, 25, tries.repeats())
	var failed *natty.HandlerError
	require.ErrorAs(t, receive(t, errs), &failed)
	assert.Contains(t, string(failed.Stack), "processbatch_test.go")
	eventually(t, settled(c, "S", "test_s"), "and acknowledged")
}

func TestBatchCanHaveAVerdictForEachMessage(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	ensure(t, c, "DEAD", "dead")
	fill(t, c, "s", 10)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait, cfg.DeadLetter = 10, 100*time.Millisecond, "dead"
	var tries tally
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		partial := &natty.PartialError{Errs: map[int]error{}}
		for i, m := range msgs {
			n := tries.add(m)
			switch {
			case string(m.Data) == "3":
				partial.Errs[i] = natty.Permanent(errHandler)
			case string(m.Data) == "7" && n == 1:
				partial.Errs[i] = errHandler
			}
		}
		if len(partial.Errs) > 0 {
			return fmt.Errorf("insert: %w", partial)
		}
		return nil
	})
	eventually(t, func() bool { return tries.distinct() == 10 && tries.repeats() == 1 }, "one is tried again")
	eventually(t, settled(c, "S", "test_s"), "all are settled")
	dead := letters(t, c, "dead")
	require.Len(t, dead, 1)
	assert.Equal(t, "3", string(dead[0].Data))
}

func TestBatchWaitsNoLongerThanMaxWait(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait = 1000, 200*time.Millisecond
	sizes := make(chan int, 10)
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error { sizes <- len(msgs); return nil })
	start := time.Now()
	fill(t, c, "s", 3)
	got := receive(t, sizes)
	assert.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
	for got < 3 { // a slow machine
		got += receive(t, sizes)
	}
	assert.Equal(t, 3, got)
}

func TestFullBatchDoesNotWait(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 100)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait, cfg.Concurrency = 10, time.Hour, 3
	var seen tally
	stop := processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		assert.Len(t, msgs, 10)
		for _, m := range msgs {
			seen.add(m)
		}
		return nil
	})
	eventually(t, func() bool { return seen.distinct() == 100 }, "all are handled")
	require.NoError(t, stop())
	assert.Zero(t, seen.repeats())
}

func TestShutdownHandsBackAnUnfinishedBatch(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	fill(t, c, "s", 5)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait, cfg.AckWait = 10, time.Hour, time.Hour
	stop := processBatch(t, c, cfg, func(context.Context, []*nats.Msg) error { return nil })
	eventually(t, func() bool { return only(c).Held == 5 }, "five wait for more")
	require.NoError(t, stop())
	var seen tally
	cfg.MaxWait = time.Millisecond
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		for _, m := range msgs {
			seen.add(m)
		}
		return nil
	})
	eventually(t, func() bool { return seen.distinct() == 5 }, "they come again at once")
}

func TestBatchThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ensure(t, c, "S", "s")
	h := func(context.Context, []*nats.Msg) error { return nil }
	for field, f := range map[string]func(*natty.BatchConfig){
		"OrderBy": func(c *natty.BatchConfig) { c.OrderBy = keyOf },
		"Size":    func(c *natty.BatchConfig) { c.Size = -1 },
		"MaxWait": func(c *natty.BatchConfig) { c.MaxWait = -1 },
	} {
		cfg := batchOf("s")
		f(&cfg)
		var bad *natty.ConfigError
		require.ErrorAs(t, c.ProcessBatch(testCtx(t), cfg, h), &bad)
		assert.Equal(t, field, bad.Field)
	}
	require.Error(t, c.ProcessBatch(testCtx(t), batchOf("s"), nil))
}
