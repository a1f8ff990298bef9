package faulttest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
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

// anyServer is the server that NATTY_SERVER_URL names, as scripts/server-versions starts it, or else the one of the other tests.
// least fails the test if the server's version should give ErrUnsupported and err is something else, and the reverse.
func anyServer(t *testing.T) (c *natty.Client, least func(minor int, err error)) {
	t.Helper()
	url := os.Getenv("NATTY_SERVER_URL")
	if url == "" {
		url = nattytest.Server(t).URL()
	}
	c = testkit.ConnectTo(t, url)
	var major, has int
	_, err := fmt.Sscanf(c.Health().ServerVersion, "%d.%d.", &major, &has)
	require.NoError(t, err)
	t.Logf("nats-server %s", c.Health().ServerVersion)
	require.Equal(t, 2, major)
	return c, func(minor int, err error) {
		t.Helper()
		if has >= minor {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, natty.ErrUnsupported)
			assert.ErrorContains(t, err, fmt.Sprintf("2.%d", minor))
		}
	}
}

// Each verb works with the oldest server that is supported, or says which version it needs.
func TestEveryVerbWorksWithTheServerOrSaysWhichItNeeds(t *testing.T) {
	t.Parallel()
	c, least := anyServer(t)
	for name, check := range map[string]func(*testing.T, *natty.Client, func(int, error)){
		"consuming": consumingWorks, "keys": keysWork, "leases": leasesWork, "publishing": publishingWorks,
		"schedules": schedulesWork, "exclusive": exclusiveWorks,
	} {
		t.Run(name, func(t *testing.T) { check(t, c, least) })
	}
}

func consumingWorks(t *testing.T, c *natty.Client, _ func(int, error)) {
	testkit.Ensure(t, c, "CONSUMING", "consuming.>")
	testkit.Ensure(t, c, "DEAD", "dead")
	const n = 50
	testkit.Fill(t, c, "consuming.new", n)
	var handled testkit.Tally
	mended := make(chan struct{})
	cfg := natty.ConsumerConfig{
		Subjects: []string{"consuming.>"}, Concurrency: 4, MaxDeliver: 2, DeadLetter: "dead",
		Backoff: natty.Backoff{Min: time.Millisecond},
	}
	first := func(msg *nats.Msg) bool { return string(msg.Data) == "0" }
	stop := testkit.Process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error {
		if first(msg) && !testkit.IsClosed(mended) {
			return errors.New("broken")
		}
		handled.Add(msg)
		return nil
	})
	testkit.Eventually(t, func() bool { return handled.Distinct() == n-1 }, "all others are handled")
	testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) == 1 }, "one is dead-lettered")
	close(mended)
	redriven, err := c.Redrive(testkit.Ctx(t), "dead", nil)
	require.NoError(t, err)
	require.Equal(t, 1, redriven)
	testkit.Eventually(t, func() bool { return handled.Distinct() == n }, "it is handled")
	require.NoError(t, stop())
	require.Zero(t, handled.Repeats())
}

func keysWork(t *testing.T, c *natty.Client, _ func(int, error)) {
	ctx := testkit.Ctx(t)
	require.NoError(t, c.Put(ctx, "keys", "short", []byte("1"), time.Second))
	require.NoError(t, c.Create(ctx, "keys", "long", []byte("1")))
	require.ErrorIs(t, c.Create(ctx, "keys", "long", nil), jetstream.ErrKeyExists)
	e, err := c.GetEntry(ctx, "keys", "long")
	require.NoError(t, err)
	_, err = c.Update(ctx, "keys", "long", []byte("2"), e.Revision())
	require.NoError(t, err)
	for e, err := range c.Watch(ctx, "keys", "short") {
		require.NoError(t, err)
		if e.Operation() != jetstream.KeyValuePut {
			break // it has expired
		}
	}
	keys, err := c.Keys(ctx, "keys")
	require.NoError(t, err)
	require.Equal(t, []string{"long"}, keys)
}

func leasesWork(t *testing.T, c *natty.Client, _ func(int, error)) {
	ctx := testkit.Ctx(t)
	lease, err := c.Lock(ctx, testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err)
	_, err = c.TryLock(ctx, testkit.Door(testkit.LeaseTTL))
	require.ErrorIs(t, err, natty.ErrLocked)
	require.NoError(t, lease.Release(ctx))
	require.NoError(t, c.Lead(ctx, testkit.Electing("a"), func(ctx context.Context, term *natty.Term) error {
		return term.Put(ctx, "job.result", []byte("1"))
	}))
}

func publishingWorks(t *testing.T, c *natty.Client, least func(int, error)) {
	ctx := testkit.Ctx(t)
	s := testkit.Ensure(t, c, "S", "s", "s.>")
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	testkit.Write(t, w, 0, 1000)
	require.NoError(t, w.Flush(ctx))
	for _, duplicate := range []bool{false, true} {
		ack, err := c.PublishMsg(ctx, nats.NewMsg("s"), jetstream.WithMsgID("once"))
		require.NoError(t, err)
		assert.Equal(t, duplicate, ack.Duplicate)
	}
	_, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "S", AllowAtomicPublish: true})
	least(12, err)
	least(12, c.PublishBatch(ctx, testkit.Messages(10, "batch")))
	assert.GreaterOrEqual(t, testkit.Stored(t, s), uint64(1001))
}

func schedulesWork(t *testing.T, c *natty.Client, least func(int, error)) {
	ctx := testkit.Ctx(t)
	_, err := c.EnsureStream(ctx, jetstream.StreamConfig{Name: "SCHEDULES", Subjects: []string{"later"}, AllowMsgSchedules: true})
	least(12, err)
	msg := nats.NewMsg("later")
	least(12, c.Schedule(ctx, natty.Schedule{ID: "once", At: time.Now(), Msg: msg}))
	least(14, c.Schedule(ctx, natty.Schedule{ID: "often", Every: time.Hour, Msg: msg}))
}

func exclusiveWorks(t *testing.T, c *natty.Client, least func(int, error)) {
	testkit.Ensure(t, c, "EXCLUSIVE", "exclusive")
	testkit.Fill(t, c, "exclusive", 1)
	ctx, cancel := context.WithCancel(testkit.Ctx(t))
	defer cancel()
	least(14, c.Process(ctx, natty.ConsumerConfig{Subjects: []string{"exclusive"}, Exclusive: true},
		func(context.Context, *nats.Msg) error {
			cancel()
			return nil
		}))
}
