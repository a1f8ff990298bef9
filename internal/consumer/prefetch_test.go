package consumer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/internal/dispatch"
)

func TestPrefetchIsAboutOneSecondOfWork(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		workers, limit int
		perMsg         time.Duration
		want           int
	}{
		{1, 0, 0, 1}, // nothing is known yet
		{64, 0, 0, 64},
		{1, 0, 100 * time.Millisecond, 10},
		{4, 0, 100 * time.Millisecond, 40},
		{4, 0, time.Minute, 4}, // at least one for each
		{1, 0, time.Microsecond, maxPrefetch},
		{1, 25, time.Microsecond, 25},
		{3000, 0, time.Microsecond, 3000},
		{1, 0, 1, maxPrefetch},
	} {
		c := Consumer{cfg: Config{Concurrency: tc.workers, MaxPollRecords: tc.limit}}
		assert.Equal(t, tc.want, c.capacity(dispatch.Flow{PerMsg: tc.perMsg}), "%+v", tc)
	}
}

func TestNoRequestIsMadeForEveryMessageThatLeaves(t *testing.T) {
	t.Parallel()
	c := Consumer{cfg: Config{Concurrency: 1, MaxPollRecords: 100}, queue: dispatch.New(false)}
	for seq := range uint64(100) {
		c.queue.Push(message(seq, 1))
	}
	leave := func(n int) {
		for range n {
			h, _ := c.queue.Next()
			c.queue.Settle(h, 1, false)
		}
	}
	assert.Zero(t, c.room())
	leave(24)
	assert.Zero(t, c.room())
	leave(1)
	assert.Equal(t, 25, c.room())
	h := message(1000, 1)
	h.Size = pullBytes
	c.queue.Push(h)
	assert.Zero(t, c.room(), "whatever the number, bytes are bounded")
}

// flowing is a consumer whose queue holds what the test puts there.
func flowing(cfg Config) *Consumer {
	return &Consumer{cfg: cfg, queue: dispatch.New(cfg.OrderBy != nil)}
}

// push pushes n messages of a size and a key, from a sequence on.
func push(c *Consumer, from uint64, n, size int, key string) {
	for i := range n {
		m := message(from+uint64(i), 1)
		m.Size, m.Key = size, key
		c.queue.Push(m)
	}
}

func byKey(*nats.Msg) string { return "" }

func TestLargeMessagesKeepNoHandlerIdle(t *testing.T) {
	t.Parallel()
	c := flowing(Config{Concurrency: 64})
	push(c, 0, 20, 1<<20, "")
	assert.Equal(t, 44, c.room(), "for the free handlers")
	push(c, 20, 44, 1<<20, "")
	assert.Zero(t, c.room(), "more would wait")
	for range 64 {
		_, _ = c.queue.Next()
	}
	c.cfg.Concurrency = 63
	assert.Zero(t, c.room(), "until the first handler has shown its pace, none wait")
}

func TestOneFreeHandlerOfManyDoesNotWaitForOthers(t *testing.T) {
	t.Parallel()
	c := flowing(Config{Concurrency: 64, MaxPollRecords: 64})
	push(c, 0, 63, 10, "")
	assert.Equal(t, 1, c.room())
}

func TestKeysThatRestKeepNoHandlerIdle(t *testing.T) {
	t.Parallel()
	c := flowing(Config{Concurrency: 4, OrderBy: byKey})
	rest := func(seq uint64, key string, size int) {
		push(c, seq, 1, size, key)
		m, _ := c.queue.Next()
		c.queue.Park(m, m.Again(m.Delivery), 2*time.Second, time.Hour)
	}
	t.Cleanup(func() { c.queue.Close() })
	for seq, key := range []string{"a", "b", "c", "d"} {
		rest(uint64(seq), key, 10)
	}
	assert.Equal(t, 4, c.room(), "slow handlers hold four messages, and all of them rest")
	c.ackLimit.Store(5)
	assert.Equal(t, 1, c.room(), "the server would deliver no more")
	c.ackLimit.Store(0)
	c.cfg.MaxPollRecords = 4
	assert.Zero(t, c.room())
	c.cfg.MaxPollRecords = 0
	rest(9, "e", pullBytes)
	assert.Zero(t, c.room(), "what rests is bounded too")
}

func TestHandlersThatTurnSlowHoldLessBeforeTheyEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := flowing(Config{Concurrency: 2})
		push(c, 0, 1000, 10, "")
		for range 2 {
			m, _ := c.queue.Next()
			c.queue.Settle(m, time.Microsecond, false)
		}
		_, _ = c.queue.Next()
		time.Sleep(time.Minute) // fake time
		assert.Zero(t, c.excess(), "the other handler may be as fast as ever")
		_, _ = c.queue.Next()
		assert.Zero(t, c.excess())
		time.Sleep(100 * time.Millisecond) // fake time
		assert.Equal(t, 996-18, c.excess(), "two of them do 20 in a second")
		c.cfg.OrderBy = byKey
		assert.Zero(t, c.excess(), "returned, they would come out of order")
	})
}

func message(seq uint64, attempt int) *dispatch.Message {
	h := &dispatch.Message{Msg: &nats.Msg{}, Size: 10}
	h.Delivery = dispatch.Delivery{Sequence: seq, Attempt: attempt}
	return h
}
