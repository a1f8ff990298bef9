package faulttest_test

import (
	"context"
	"errors"
	"fmt"
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

// behindProxy returns a client behind a proxy and one that goes around it, with an empty bucket "b".
func behindProxy(t *testing.T) (c, direct *natty.Client, proxy *nattytest.Link) {
	t.Helper()
	node := nattytest.Server(t)
	direct, proxy = testkit.ConnectTo(t, node.URL()), nattytest.Proxy(t, node.URL())
	// When an account's last stream is deleted the server removes their folder at times from under the next one.
	testkit.Ensure(t, direct, "STAYS", "stays")
	testkit.Bucket(t, direct, jetstream.KeyValueConfig{Bucket: "b"})
	return testkit.ConnectTo(t, proxy.URL()), direct, proxy
}

// loseAnswer does a write whose answer is lost with the connection once stored says that it is stored; then meanwhile happens,
// before the client connects again.
func loseAnswer(t *testing.T, proxy *nattytest.Link, write func() error, stored func() bool, meanwhile func()) error {
	t.Helper()
	proxy.FreezeReplies()
	done := make(chan error, 1)
	go func() { done <- write() }()
	testkit.Eventually(t, stored, "the write is stored")
	proxy.Refuse(true)
	proxy.Cut()
	proxy.Thaw()
	meanwhile()
	proxy.Refuse(false)
	return testkit.Receive(t, done)
}

func TestALostAnswerToCreateIsFoundOutAbout(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(c *natty.Client) error{
		"of a new key": func(*natty.Client) error { return nil },
		"of a deleted key": func(c *natty.Client) error {
			return errors.Join(c.Put(testkit.Ctx(t), "b", "k", nil), c.Delete(testkit.Ctx(t), "b", "k"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, direct, proxy := behindProxy(t)
			require.NoError(t, before(direct))
			err := loseAnswer(t, proxy,
				func() error { return c.Create(testkit.Ctx(t), "b", "k", []byte("mine"), time.Minute) },
				thawedUntilStored(t, proxy, direct, 0), func() {})
			require.NoError(t, err)
			assert.Equal(t, "mine", string(testkit.LastMessage(t, direct, "b", "k").Data))
			assert.Equal(t, "60s", testkit.TTLOf(t, direct, "b", "k"))
		})
	}
}

func TestACreateThatWasLostOnItsWayToADeletedKeyIsMadeAgain(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", nil))
	require.NoError(t, direct.Delete(testkit.Ctx(t), "b", "k"))
	proxy.Freeze()
	done := make(chan error, 1)
	go func() { done <- c.Create(testkit.Ctx(t), "b", "k", []byte("mine")) }()
	<-time.After(700 * time.Millisecond) // beyond the first attempt
	proxy.Cut()
	proxy.Thaw()
	require.NoError(t, testkit.Receive(t, done))
	assert.Equal(t, "mine", string(testkit.LastMessage(t, direct, "b", "k").Data))
}

func TestALostAnswerToCreateOfAKeyThatIsGoneAgainIsASuccess(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	err := loseAnswer(t, proxy,
		func() error { return c.Create(testkit.Ctx(t), "b", "k", []byte("mine")) },
		func() bool { return testkit.RevisionOf(t, direct, "b", "k") > 0 },
		func() { assert.NoError(t, direct.Delete(testkit.Ctx(t), "b", "k")) })
	require.NoError(t, err)
	assert.True(t, testkit.IsKeyGone(testkit.Ctx(t), direct, "b", "k"), "it is not made a second time")
}

func TestALostAnswerThatNobodyCanFindIsUnknown(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	err := loseAnswer(t, proxy,
		func() error { return c.Create(testkit.Ctx(t), "b", "k", []byte("mine")) },
		func() bool { return testkit.RevisionOf(t, direct, "b", "k") > 0 },
		func() { assert.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte("theirs"))) })
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Equal(t, "theirs", string(testkit.LastMessage(t, direct, "b", "k").Data))
}

// Its key is gone when it looks, and another's when it comes to write once more.
func TestACreateThatMayHaveBeenDoneIsNotRefused(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	for n := 0; ; n++ {
		require.Less(t, n, 20, "the other one comes in time")
		key := fmt.Sprint("k", n)
		reads := 0
		sub, err := direct.Conn().Subscribe("$JS.API.STREAM.MSG.GET.KV_b", func(*nats.Msg) {
			if reads++; reads == 1 { // it looks for what it has written
				assert.NoError(t, direct.Conn().Publish("$KV.b."+key, []byte("theirs")))
			}
		})
		require.NoError(t, err)
		err = loseAnswer(t, proxy,
			func() error { return c.Create(testkit.Ctx(t), "b", key, []byte("mine")) },
			func() bool { v, err := direct.Get(testkit.Ctx(t), "b", key); return err == nil && string(v) == "mine" },
			func() {
				require.NoError(t, direct.Delete(testkit.Ctx(t), "b", key))
				proxy.Delay(20 * time.Millisecond) // so that there is time after its look
			})
		proxy.Delay(0)
		require.NoError(t, sub.Unsubscribe())
		if err != nil {
			require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
			return
		}
	}
}

// The server has refused what was behind no marker, and it has not looked yet.
func TestACreateThatIsInterruptedDoesNotSayThatTheKeyExists(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	proxy.Delay(20 * time.Millisecond)
	for n := 0; ; n++ {
		require.Less(t, n, 20, "it is interrupted in time")
		key := fmt.Sprint("k", n)
		require.NoError(t, direct.Put(testkit.Ctx(t), "b", key, nil))
		require.NoError(t, direct.Delete(testkit.Ctx(t), "b", key))
		ctx, cancel := context.WithCancel(testkit.Ctx(t))
		sub, err := direct.Conn().Subscribe("$JS.API.STREAM.MSG.GET.KV_b", func(*nats.Msg) { cancel() })
		require.NoError(t, err)
		err = c.Create(ctx, "b", key, nil)
		cancel()
		require.NoError(t, sub.Unsubscribe())
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
			require.NotErrorIs(t, err, jetstream.ErrKeyExists)
			return
		}
	}
}

func TestALostAnswerToUpdateIsFoundOutAbout(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", []byte("1"), time.Minute))
	revision := testkit.RevisionOf(t, direct, "b", "k")
	var updated uint64
	err := loseAnswer(t, proxy,
		func() (err error) {
			updated, err = c.Update(testkit.Ctx(t), "b", "k", []byte("2"), revision)
			return err
		},
		thawedUntilStored(t, proxy, direct, revision), func() {})
	require.NoError(t, err)
	assert.Equal(t, testkit.RevisionOf(t, direct, "b", "k"), updated)
	assert.Equal(t, revision+1, updated, "it is stored once")
	assert.Equal(t, "60s", testkit.TTLOf(t, direct, "b", "k"))
}

// thawedUntilStored lets the answers to reads through, which come before the write, until the key is stored once more.
func thawedUntilStored(t *testing.T, proxy *nattytest.Link, direct *natty.Client, revision uint64) func() bool {
	return func() bool {
		if testkit.RevisionOf(t, direct, "b", "k") > revision {
			return true
		}
		proxy.Thaw()
		<-time.After(time.Millisecond) // for what waits in the proxy
		proxy.FreezeReplies()
		return false
	}
}

func TestCallsWaitForAConnection(t *testing.T) {
	t.Parallel()
	c, _, proxy := behindProxy(t)
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", []byte("v"), time.Minute))
	proxy.Refuse(true)
	proxy.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Get(ctx, "b", "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, c.Refresh(ctx, "b", "k"), context.DeadlineExceeded)
	_, err = c.Keys(ctx, "b")
	require.ErrorIs(t, err, context.DeadlineExceeded)

	var calls sync.WaitGroup
	for _, call := range []func() error{
		func() error { _, err := c.Get(testkit.Ctx(t), "b", "k"); return err },
		func() error { return c.Put(testkit.Ctx(t), "b", "put", nil, time.Minute) },
		func() error { return c.Create(testkit.Ctx(t), "b", "created", nil) },
		func() error { return c.Delete(testkit.Ctx(t), "b", "deleted") },
		func() error { return c.Refresh(testkit.Ctx(t), "b", "k") },
		func() error { _, err := c.Keys(testkit.Ctx(t), "b"); return err },
		func() error { _, err := c.Status(testkit.Ctx(t), "b"); return err },
	} {
		calls.Go(func() { assert.NoError(t, call()) })
	}
	<-time.After(50 * time.Millisecond)
	proxy.Refuse(false)
	calls.Wait()
}

// The ctx of the caller goes on: nobody has canceled anything.
func TestKeysThatAServerIsSilentAboutEndWithADeadline(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	proxy := nattytest.Proxy(t, server.URL())
	c := testkit.ConnectTo(t, proxy.URL())
	testkit.Bucket(t, c, jetstream.KeyValueConfig{Bucket: "b"})
	proxy.FreezeReplies()
	defer proxy.Thaw()
	_, err := c.Keys(t.Context(), "b")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, context.Canceled)
}

func TestCompareAndSetCountsRightWhileLeadersAreKilled(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	b, err := natty.NewBucket[int](c, natty.BucketConfig{Bucket: "b"})
	require.NoError(t, err)
	require.NoError(t, b.Put(testkit.Ctx(t), "n", 0))
	const workers = 4
	end := make(chan struct{})
	var mu sync.Mutex
	sure, unsure := 0, 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		testkit.Race(workers, func(int) {
			for !testkit.IsClosed(end) {
				err := b.Modify(testkit.Ctx(t), "n", func(n int) (int, error) { return n + 1, nil })
				mu.Lock()
				switch {
				case err == nil:
					sure++
				case errors.Is(err, natty.ErrOutcomeUnknown):
					unsure++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}()
	for range 2 {
		leader := cluster.StreamLeader("KV_b")
		leader.Stop()
		require.NoError(t, leader.Restart())
		cluster.WaitReady()
	}
	close(end)
	testkit.Receive(t, done)
	var n int
	require.NoError(t, b.Modify(testkit.Ctx(t), "n", func(v int) (int, error) { n = v; return v, nil }))
	t.Logf("%d sure, %d unsure, counted %d", sure, unsure, n)
	assert.GreaterOrEqual(t, n, sure)
	assert.LessOrEqual(t, n, sure+unsure)
	assert.Positive(t, sure)
}
