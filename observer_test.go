package natty_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
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

// events collects what an Observer is told.
type events chan natty.Event

func observer() (events, natty.Option) {
	ch := make(events, 10_000)
	return ch, natty.WithObserver(natty.ObserverFunc(func(e natty.Event) { ch <- e }))
}

// await returns the next event of a kind for which ok holds, and drops those before it.
func await[E natty.Event](t testing.TB, ch events, ok func(E) bool) E {
	t.Helper()
	for {
		if e, is := testkit.Receive(t, ch).(E); is && ok(e) {
			return e
		}
	}
}

// rest returns the events of a kind that came, after the Client was closed.
func rest[E natty.Event](ch events) (all []E) {
	for len(ch) > 0 {
		if e, ok := (<-ch).(E); ok {
			all = append(all, e)
		}
	}
	return all
}

func TestConnectionIsObserved(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.User("ann", secret))
	host := strings.TrimPrefix(server.URL(), "nats://")
	ch, observed := observer()
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test", Servers: []string{"nats://ann:" + secret + "@" + host}}, testkit.Quiet, observed)
	require.NoError(t, err)
	changed := func() natty.ConnectionEvent {
		return await(t, ch, func(e natty.ConnectionEvent) bool {
			assert.False(t, exposes(fmt.Sprintf("%+v", e)), "%+v", e)
			return e.Err == nil
		})
	}
	first := changed()
	assert.True(t, first.Connected)
	assert.Contains(t, first.Server, host)
	server.Stop()
	assert.False(t, changed().Connected)
	await(t, ch, func(e natty.ConnectionEvent) bool { return e.Err != nil && !e.Connected }) // why
	require.NoError(t, server.Restart())
	assert.True(t, changed().Connected)
	require.NoError(t, c.Close(testkit.Ctx(t)))
	assert.False(t, changed().Connected, "Close waits for what is queued")
	assert.Empty(t, ch)
}

func TestWhyThereIsNoConnectionIsObserved(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t, nattytest.User("ann", "right"))
	ch, observed := observer()
	_, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: []string{server.URL()}, User: "ann", Password: secret}, testkit.Quiet, observed)
	require.ErrorIs(t, err, nats.ErrAuthorization)
	told := rest[natty.ConnectionEvent](ch)
	require.NotEmpty(t, told)
	for _, e := range told {
		assert.False(t, e.Connected)
		require.Error(t, e.Err)
		assert.False(t, exposes(fmt.Sprintf("%+v", e)), "%+v", e)
	}
}

// states returns what a consumer was observed to do, one state after the other.
func states(told []natty.ConsumerEvent) (all []natty.ConsumerState) {
	for _, e := range told {
		if e.Err == nil {
			all = append(all, e.State)
		}
	}
	return all
}

func TestConsumerIsObservedThroughARestart(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	ch, observed := observer()
	c := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}}, observed)
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Fill(t, c, "s.a", 1)
	var once sync.Once
	handled := make(chan struct{})
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Durable: "d", Backoff: natty.Backoff{Min: time.Millisecond}},
		func(context.Context, *nats.Msg) (err error) {
			once.Do(func() { err = testkit.ErrHandler })
			if err == nil {
				close(handled)
			}
			return err
		})
	testkit.Receive(t, handled)
	server.Stop()
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerDisconnected }, "it is disconnected")
	require.NoError(t, server.Restart())
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
	require.NoError(t, stop())
	require.NoError(t, c.Close(testkit.Ctx(t)))
	told := rest[natty.ConsumerEvent](ch)
	assert.Equal(t, []natty.ConsumerState{
		natty.ConsumerStarting, natty.ConsumerRunning, natty.ConsumerDisconnected, natty.ConsumerRunning, natty.ConsumerStopping, natty.ConsumerStopped,
	}, states(told))
	var failed *natty.HandlerError
	for _, e := range told {
		assert.Equal(t, "d", e.Durable)
		if e.Err != nil && failed == nil {
			require.ErrorAs(t, e.Err, &failed)
			assert.Equal(t, "S", e.Stream)
		}
	}
	assert.NotNil(t, failed, "what OnError is told")
}

func TestConsumerThatCannotWorkIsObservedToStop(t *testing.T) {
	t.Parallel()
	ch, observed := observer()
	c := testkit.Connect(t, natty.Config{Servers: []string{nattytest.Server(t).URL()}}, observed)
	err := c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"none"}, Durable: "d"}, func(context.Context, *nats.Msg) error { return nil })
	require.ErrorIs(t, err, natty.ErrNoStream)
	last := await(t, ch, func(e natty.ConsumerEvent) bool { return e.State == natty.ConsumerStopped })
	assert.Equal(t, err, last.Err)
}

func TestStandbyIsNotObservedToRunWhenItConnectsAgain(t *testing.T) {
	t.Parallel()
	ch, observed := observer()
	link := nattytest.Proxy(t, nattytest.Server(t).URL())
	c := testkit.Connect(t, natty.Config{Servers: []string{link.URL()}}, observed)
	testkit.Ensure(t, c, "S", "s.>")
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Exclusive: true}, func(context.Context, *nats.Msg) error { return nil })
	in := func(s natty.ConsumerState) {
		t.Helper()
		e := await(t, ch, func(e natty.ConsumerEvent) bool { return e.Err == nil && e.State != natty.ConsumerStarting })
		assert.Equal(t, s, e.State)
	}
	in(natty.ConsumerStandby)
	link.Refuse(true) // else it may be over before the consumer has seen it
	link.Cut()
	in(natty.ConsumerDisconnected)
	link.Refuse(false)
	in(natty.ConsumerStandby)
	require.NoError(t, stop())
	in(natty.ConsumerStopping)
	in(natty.ConsumerStopped)
}

// election returns the health of the one election that runs.
func election(c *natty.Client) natty.ElectionHealth {
	if h := c.Health().Elections; len(h) == 1 {
		return h[0]
	}
	return natty.ElectionHealth{}
}

func TestElectionAndDepositionAreObserved(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	ch, observed := observer()
	c := testkit.Connect(t, natty.Config{Servers: []string{link.URL()}}, observed)
	ignore := make(chan struct{})
	notice := sync.OnceFunc(func() { close(ignore) })
	first := testkit.Lead(t, c, testkit.Electing("first"), func(ctx context.Context, _ *natty.Term) error { <-ignore; <-ctx.Done(); return nil })
	t.Cleanup(notice)
	change := func(e natty.ElectionEvent) bool { return e.Err == nil || !e.Leading }
	elected := await(t, ch, change)
	assert.NotZero(t, elected.Token)
	assert.Equal(t, natty.ElectionEvent{Bucket: "elections", Key: "job", NodeName: "first", Leading: true, Token: elected.Token}, elected)
	h := election(c)
	assert.WithinDuration(t, time.Now(), h.Since, testkit.Patience)
	assert.Equal(t, natty.ElectionHealth{Bucket: "elections", Key: "job", NodeName: "first", Leading: true, Since: h.Since, Token: elected.Token}, h)

	ch2, observed2 := observer()
	c2 := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}}, observed2)
	second := testkit.Lead(t, c2, testkit.Electing("second"), func(ctx context.Context, _ *natty.Term) error { <-ctx.Done(); return nil })
	testkit.Eventually(t, func() bool { return election(c2).NodeName == "second" }, "it stands by")
	assert.False(t, election(c2).Leading)
	link.Freeze()
	over := await(t, ch, change)
	assert.False(t, over.Leading)
	assert.Equal(t, elected.Token, over.Token)
	require.ErrorIs(t, over.Err, natty.ErrDeposed, "at once, though the leader goes on")
	assert.False(t, election(c).Leading)
	assert.Zero(t, election(c).Token)
	assert.Equal(t, over.Err.Error(), election(c).LastError)

	assert.True(t, await(t, ch2, change).Leading)
	require.NoError(t, second())
	given := await(t, ch2, change)
	assert.False(t, given.Leading)
	require.NoError(t, given.Err, "it was given back")
	assert.Empty(t, c2.Health().Elections)
	link.Thaw()
	notice()
	assert.True(t, await(t, ch, change).Leading, "in its next term")
	assert.Empty(t, election(c).LastError)
	require.NoError(t, first())
}

func TestLossOfALockIsObserved(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	ch, observed := observer()
	c := testkit.Connect(t, natty.Config{Servers: []string{link.URL()}}, observed)
	given, err := c.Lock(testkit.Ctx(t), natty.LockConfig{Bucket: "locks", Key: "other"})
	require.NoError(t, err)
	require.NoError(t, given.Release(testkit.Ctx(t)))
	l, err := c.Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err)
	link.Freeze()
	lost := await(t, ch, func(natty.LockEvent) bool { return true })
	require.ErrorIs(t, lost.Err, natty.ErrDeposed)
	assert.Equal(t, natty.LockEvent{Bucket: "locks", Key: "door", Owner: "test", Token: l.Token(), Err: lost.Err}, lost)
	link.Thaw()
	require.ErrorIs(t, l.Release(testkit.Ctx(t)), natty.ErrDeposed)
}

func TestObserverThatBlocksHoldsUpNothing(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	var log logged
	free, blocked := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(free) })
	var once sync.Once
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "test", Servers: []string{server.URL()}}, natty.WithLogger(log.logger()),
		natty.WithObserver(natty.ObserverFunc(func(natty.Event) { once.Do(func() { close(blocked) }); <-free })))
	require.NoError(t, err)
	testkit.Receive(t, blocked)
	testkit.Ensure(t, c, "S", "s.>")
	const n = 300 // more than wait for an Observer
	testkit.Fill(t, c, "s.a", n)
	var ok testkit.Tally
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Concurrency: 4, Backoff: natty.Backoff{Min: time.Millisecond}},
		func(ctx context.Context, msg *nats.Msg) error {
			if d, _ := natty.DeliveryFrom(ctx); d.Attempt == 1 {
				return testkit.ErrHandler
			}
			ok.Add(msg)
			return nil
		})
	testkit.Eventually(t, func() bool { return ok.Distinct() == n }, "all is handled")
	require.NoError(t, stop())
	assert.NotZero(t, c.Health().EventsDropped)
	assert.Equal(t, 1, strings.Count(log.String(), `"msg":"natty: a callback is too slow`), "which is logged once")
	require.NoError(t, c.Close(testkit.Ctx(t)))
}

func TestObserverThatPanicsIsToldTheRest(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	var log logged
	ch := make(events, 100)
	c := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}}, natty.WithLogger(log.logger()),
		natty.WithObserver(natty.ObserverFunc(func(e natty.Event) { ch <- e; panic("no") })))
	await(t, ch, func(e natty.ConnectionEvent) bool { return e.Connected })
	require.NoError(t, c.Conn().ForceReconnect())
	await(t, ch, func(e natty.ConnectionEvent) bool { return !e.Connected })
	await(t, ch, func(e natty.ConnectionEvent) bool { return e.Connected })
	assert.Contains(t, log.String(), "observer_test.go", "where it panicked")
}

func TestKeyThatNeverExpiresIsNotWaitedForInSilence(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	ch, observed := observer()
	c := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}}, observed)
	cfg := testkit.Electing("a")
	cfg.BucketTTL = time.Second
	require.NoError(t, c.Lead(testkit.Ctx(t), cfg, func(context.Context, *natty.Term) error { return nil }))
	ack, err := c.JetStream().PublishMsg(testkit.Ctx(t), &nats.Msg{
		Subject: "$KV.elections.job", Data: []byte("by hand"), Header: nats.Header{jetstream.MsgTTLHeader: {"never"}},
	})
	require.NoError(t, err)
	testkit.Lead(t, c, cfg, func(ctx context.Context, _ *natty.Term) error { <-ctx.Done(); return nil })
	stuck := await(t, ch, func(e natty.ElectionEvent) bool { return e.Err != nil })
	assert.False(t, stuck.Leading)
	assert.Zero(t, stuck.Token)
	for _, part := range []string{`key "job" of bucket "elections"`, fmt.Sprintf("revision %d ", ack.Sequence), "delete the key"} {
		require.ErrorContains(t, stuck.Err, part)
	}
	assert.Equal(t, stuck.Err.Error(), election(c).LastError)
	require.NoError(t, c.Delete(testkit.Ctx(t), "elections", "job"))
	assert.True(t, await(t, ch, func(natty.ElectionEvent) bool { return true }).Leading, "and it is told of once")
}
