package natty_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
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
		return testkit.Receive(t, done)
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func batchOf(subject string) natty.BatchConfig {
	return natty.BatchConfig{ConsumerConfig: natty.ConsumerConfig{Subjects: []string{subject}, Backoff: natty.Backoff{Min: time.Millisecond}}}
}

func TestFailedBatchComesBackWhole(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 50)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait = 25, 50*time.Millisecond
	report, errs := testkit.OnError()
	cfg.OnError = report
	var tries, seen testkit.Tally
	var first atomic.Bool
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		assert.LessOrEqual(t, len(msgs), 25)
		for _, m := range msgs {
			tries.Add(m)
		}
		if first.CompareAndSwap(false, true) {
			panic(testkit.ErrHandler)
		}
		for _, m := range msgs {
			seen.Add(m)
		}
		return nil
	})
	testkit.Eventually(t, func() bool { return seen.Distinct() == 50 }, "all are handled")
	assert.Equal(t, 25, tries.Repeats())
	var failed *natty.HandlerError
	require.ErrorAs(t, testkit.Receive(t, errs), &failed)
	assert.Contains(t, string(failed.Stack), "processbatch_test.go")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and acknowledged")
}

func TestBatchCanHaveAVerdictForEachMessage(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	testkit.Fill(t, c, "s", 10)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait, cfg.DeadLetter = 10, 100*time.Millisecond, "dead"
	var tries testkit.Tally
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		partial := &natty.PartialError{Errs: map[int]error{}}
		for i, m := range msgs {
			n := tries.Add(m)
			switch {
			case string(m.Data) == "3":
				partial.Errs[i] = natty.Permanent(testkit.ErrHandler)
			case string(m.Data) == "7" && n == 1:
				partial.Errs[i] = testkit.ErrHandler
			}
		}
		if len(partial.Errs) > 0 {
			return fmt.Errorf("insert: %w", partial)
		}
		return nil
	})
	testkit.Eventually(t, func() bool { return tries.Distinct() == 10 && tries.Repeats() == 1 }, "one is tried again")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are settled")
	dead := testkit.Letters(t, c, "dead")
	require.Len(t, dead, 1)
	assert.Equal(t, "3", string(dead[0].Data))
}

func TestBatchWaitsNoLongerThanMaxWait(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait = 1000, 200*time.Millisecond
	sizes := make(chan int, 10)
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error { sizes <- len(msgs); return nil })
	start := time.Now()
	testkit.Fill(t, c, "s", 3)
	got := testkit.Receive(t, sizes)
	assert.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
	for got < 3 { // a slow machine
		got += testkit.Receive(t, sizes)
	}
	assert.Equal(t, 3, got)
}

func TestFullBatchDoesNotWait(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 100)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait, cfg.Concurrency = 10, time.Hour, 3
	var seen testkit.Tally
	stop := processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		assert.Len(t, msgs, 10)
		for _, m := range msgs {
			seen.Add(m)
		}
		return nil
	})
	testkit.Eventually(t, func() bool { return seen.Distinct() == 100 }, "all are handled")
	require.NoError(t, stop())
	assert.Zero(t, seen.Repeats())
}

func TestShutdownHandsBackAnUnfinishedBatch(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Fill(t, c, "s", 5)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait, cfg.AckWait = 10, time.Hour, time.Hour
	stop := processBatch(t, c, cfg, func(context.Context, []*nats.Msg) error { return nil })
	testkit.Eventually(t, func() bool { return testkit.Only(c).Held == 5 }, "five wait for more")
	require.NoError(t, stop())
	var seen testkit.Tally
	cfg.MaxWait = time.Millisecond
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		for _, m := range msgs {
			seen.Add(m)
		}
		return nil
	})
	testkit.Eventually(t, func() bool { return seen.Distinct() == 5 }, "they come again at once")
}

func TestBatchThatCannotBecomeFullDoesNotWait(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		most, size, n int
	}{
		"max_poll_records":   {most: 10, n: 30},
		"large messages":     {size: 1000 << 10, n: 24},
		"server's own limit": {n: 30},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.ConnectTo(t, nattytest.Server(t).URL())
			s := testkit.Ensure(t, c, "S", "s")
			cfg := batchOf("s")
			cfg.Durable, cfg.MaxPollRecords, cfg.Size, cfg.MaxWait = "d", test.most, 1000, time.Hour
			if test.most+test.size == 0 {
				_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{
					Durable: "d", FilterSubject: "s", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 10,
				})
				require.NoError(t, err)
			}
			for range test.n {
				require.NoError(t, c.Publish(testkit.Ctx(t), "s", make([]byte, test.size)))
			}
			var handled atomic.Int64
			processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
				handled.Add(int64(len(msgs)))
				return nil
			})
			testkit.Eventually(t, func() bool { return handled.Load() >= 10 }, "the first batch is handled")
			if test.size == 0 {
				testkit.Eventually(t, func() bool { return handled.Load() == 30 }, "and so are the others")
			}
		})
	}
}

func TestBatchThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	h := func(context.Context, []*nats.Msg) error { return nil }
	for field, f := range map[string]func(*natty.BatchConfig){
		"OrderBy": func(c *natty.BatchConfig) { c.OrderBy = testkit.KeyOf },
		"Size":    func(c *natty.BatchConfig) { c.Size = -1 },
		"MaxWait": func(c *natty.BatchConfig) { c.MaxWait = -1 },
	} {
		cfg := batchOf("s")
		f(&cfg)
		var bad *natty.ConfigError
		require.ErrorAs(t, c.ProcessBatch(testkit.Ctx(t), cfg, h), &bad)
		assert.Equal(t, field, bad.Field)
	}
	require.Error(t, c.ProcessBatch(testkit.Ctx(t), batchOf("s"), nil))
}

func TestBatchErrorAcknowledgesNothingThatWasNotAccepted(t *testing.T) {
	t.Parallel()
	plain := errors.New("the database is gone")
	row := func(i int, err error) error { return &natty.PartialError{Errs: map[int]error{i: err}} }
	final := natty.Permanent(testkit.ErrHandler)
	for name, tc := range map[string]struct {
		outcome  func() error
		failed   []string // of the messages 0, 1, 2
		dead     []string
		contains string
	}{
		"an index behind the end": {func() error { return row(3, final) }, []string{"0", "1", "2"}, nil, "index 3"},
		"a negative index":        {func() error { return row(-1, final) }, []string{"0", "1", "2"}, nil, "index -1"},
		"wrapped":                 {func() error { return fmt.Errorf("insert: %w", row(1, testkit.ErrHandler)) }, []string{"1"}, nil, "no"},
		"marked":                  {func() error { return natty.Permanent(row(1, testkit.ErrHandler)) }, nil, []string{"1"}, "no"},
		"joined with another": {func() error { return errors.Join(row(1, testkit.ErrHandler), row(2, testkit.ErrHandler)) },
			[]string{"1", "2"}, nil, "no"},
		"joined with a plain error": {func() error { return errors.Join(row(1, final), plain) }, []string{"0", "2"}, []string{"1"}, "gone"},
		"in a panic":                {func() error { panic(row(1, final)) }, []string{"0", "1", "2"}, nil, "panic"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.ConnectTo(t, nattytest.Server(t).URL())
			testkit.Ensure(t, c, "S", "s")
			testkit.Ensure(t, c, "DEAD", "dead")
			testkit.Fill(t, c, "s", 3)
			cfg := batchOf("s")
			cfg.Size, cfg.MaxWait, cfg.DeadLetter = 3, time.Minute, "dead"
			cfg.Backoff = natty.Backoff{Min: time.Hour, Max: time.Hour}
			report, errs := testkit.OnError()
			cfg.OnError = report
			processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error { return tc.outcome() })
			var failed []string
			for range len(tc.failed) + len(tc.dead) {
				var f *natty.HandlerError
				require.ErrorAs(t, testkit.Receive(t, errs), &f)
				require.ErrorContains(t, f, tc.contains)
				if !f.Final {
					failed = append(failed, strconv.FormatUint(f.Delivery.Sequence-1, 10))
				}
			}
			assert.ElementsMatch(t, tc.failed, failed)
			var dead []string
			for _, l := range testkit.Letters(t, c, "dead") {
				dead = append(dead, string(l.Data))
			}
			assert.ElementsMatch(t, tc.dead, dead)
			testkit.Eventually(t, func() bool {
				unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
				return unacked == len(tc.failed) && waiting == 0
			}, "the others are acknowledged")
		})
	}
}

func TestBatchWhoseMessagesTheHandlerReplacedFailsWhole(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	testkit.Fill(t, c, "s", 3)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait, cfg.DeadLetter = 3, time.Minute, "dead"
	cfg.Backoff = natty.Backoff{Min: time.Hour, Max: time.Hour}
	report, errs := testkit.OnError()
	cfg.OnError = report
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		msgs[1] = nats.NewMsg("another")
		return &natty.PartialError{Errs: map[int]error{1: natty.Permanent(testkit.ErrHandler)}}
	})
	for range 3 {
		var failed *natty.HandlerError
		require.ErrorAs(t, testkit.Receive(t, errs), &failed)
		assert.False(t, failed.Final)
		require.ErrorContains(t, failed, "put other messages into its batch")
	}
	unacked, waiting := testkit.AckPending(t, c, "S", "test_s")
	assert.Equal(t, 3, unacked)
	assert.Zero(t, waiting)
	assert.Empty(t, testkit.Letters(t, c, "dead"))
}

func TestHandlerMaySortItsBatch(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	testkit.Ensure(t, c, "DEAD", "dead")
	testkit.Fill(t, c, "s", 3)
	cfg := batchOf("s")
	cfg.Size, cfg.MaxWait, cfg.DeadLetter = 3, time.Minute, "dead"
	processBatch(t, c, cfg, func(_ context.Context, msgs []*nats.Msg) error {
		slices.Reverse(msgs)
		return &natty.PartialError{Errs: map[int]error{0: natty.Permanent(testkit.ErrHandler)}}
	})
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "all are settled")
	letters := testkit.Letters(t, c, "dead")
	require.Len(t, letters, 1)
	assert.Equal(t, "2", string(letters[0].Data), "the first of the slice as it was left")
}
