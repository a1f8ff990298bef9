package faulttest_test

import (
	"context"
	"strings"
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

// group returns two clients, of an older and a newer version of a service.
func group(t *testing.T) (older, newer *natty.Client) {
	t.Helper()
	url := nattytest.Server(t).URL()
	older, newer = testkit.ConnectTo(t, url), testkit.ConnectTo(t, url)
	for name, subject := range map[string]string{"S": "s.>", "DEAD": "dead.>"} {
		_, err := older.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: name, Subjects: []string{subject}})
		require.NoError(t, err)
	}
	return older, newer
}

func inState(c *natty.Client, s natty.ConsumerState) func() bool {
	return func() bool { return testkit.Only(c).State == s }
}

// The durable has no filters, and neither these nor the stream's subjects say what comes.
func TestMessagesOfASubjectThatTheStreamHasLostAreNotReturnedInSilence(t *testing.T) {
	t.Parallel()
	for name, exclusive := range map[string]bool{"shared": false, "exclusive": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.OnServer(t)
			testkit.Ensure(t, c, "S", "a", "b")
			whole := natty.ConsumerConfig{Stream: "S", Durable: "d", Exclusive: exclusive}
			stop := testkit.Process(t, c, whole, func(context.Context, *nats.Msg) error { return nil })
			testkit.Eventually(t, func() bool { h := testkit.Only(c); return h.Replicas == 1 && h.State != natty.ConsumerStarting }, "the durable is made")
			require.NoError(t, stop())
			testkit.Fill(t, c, "b", 2)
			_, err := c.JetStream().UpdateStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"a"}})
			require.NoError(t, err)

			onError, told := testkit.OnError()
			some := natty.ConsumerConfig{Subjects: []string{"a"}, Durable: "d", Exclusive: exclusive, OnError: onError}
			stop = testkit.Process(t, c, some, func(_ context.Context, m *nats.Msg) error {
				assert.Equal(t, "a", m.Subject)
				return nil
			})
			if exclusive {
				require.ErrorContains(t, testkit.Receive(t, told), "no longer the active instance")
			}
			require.ErrorContains(t, testkit.Receive(t, told), "also receives b, which this instance does not ask for (a)")
			testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).Warning, "also receives b") }, "Health says so, too")
			require.Never(t, func() bool { return len(told) > 0 }, 2*time.Second, 50*time.Millisecond, "once")
			require.NoError(t, stop())

			var seen testkit.Tally
			testkit.Process(t, c, whole, func(_ context.Context, m *nats.Msg) error { seen.Add(m); return nil })
			testkit.Eventually(t, func() bool { return seen.Distinct() == 2 }, "who asks for all gets them")
		})
	}
}

// Only instances of the older version are left: what they did not ask for must wait.
func TestMessagesThatAnInstanceDidNotAskForWaitForOneThatDid(t *testing.T) {
	t.Parallel()
	older, newer := group(t)
	onError, told := testkit.OnError()
	cfg := natty.ConsumerConfig{Subjects: []string{"s.a", "s.b"}, Durable: "d"}
	stop := testkit.Process(t, newer, cfg, func(context.Context, *nats.Msg) error { return nil })
	testkit.Eventually(t, inState(newer, natty.ConsumerRunning), "it runs")
	require.NoError(t, stop())

	var byOlder testkit.Tally
	old := natty.ConsumerConfig{Subjects: []string{"s.a"}, Durable: "d", OnError: onError}
	testkit.Process(t, older, old, func(_ context.Context, m *nats.Msg) error {
		byOlder.Add(m)
		return nil
	})
	require.ErrorContains(t, testkit.Receive(t, told), "also receives s.b")
	testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(older).Warning, "s.b") }, "Health says so, too")
	const n = 5
	var deliveries atomic.Int64
	for range n {
		require.NoError(t, older.Publish(testkit.Ctx(t), "s.b", []byte("b")))
	}
	require.NoError(t, older.Publish(testkit.Ctx(t), "s.a", []byte("a")))
	testkit.Eventually(t, func() bool {
		cons, err := older.JetStream().Consumer(testkit.Ctx(t), "S", "d")
		if err != nil {
			return false
		}
		deliveries.Store(int64(cons.CachedInfo().Delivered.Consumer))
		return deliveries.Load() > 3*n
	}, "each is returned twice or more")
	testkit.Eventually(t, func() bool { return byOlder.Distinct() == 1 }, "what it asked for comes all the same")

	// The newer version is back. What failed nowhere is not at its end.
	cfg.MaxDeliver, cfg.DeadLetter, cfg.Backoff = 2, "dead.s", natty.Backoff{Min: time.Millisecond, Max: time.Millisecond}
	var calls, handled atomic.Int64
	var failed testkit.Tally
	testkit.Process(t, newer, cfg, func(ctx context.Context, m *nats.Msg) error {
		calls.Add(1)
		d, _ := natty.DeliveryFrom(ctx)
		if first := failed.Add(&nats.Msg{Data: []byte(time.Duration(d.Sequence).String())}) == 1; first {
			return testkit.ErrHandler
		}
		handled.Add(1)
		return nil
	})
	testkit.Eventually(t, func() bool { return handled.Load() == n }, "all are handled at their second attempt")
	assert.EqualValues(t, 2*n, calls.Load())
	assert.Empty(t, testkit.Letters(t, newer, "dead.s"))
	assert.Equal(t, map[string]int{"a": 1}, byOlder.Counts())
	assert.Empty(t, told, "told once")
}

// The instance that asked for less gives the pin back, and asks for it no more.
func TestExclusiveInstanceThatDidNotAskForAllStandsBy(t *testing.T) {
	t.Parallel()
	older, newer := group(t)
	onError, told := testkit.OnError()
	old := exclusively("s.a")
	old.Durable, old.OnError = "d", onError
	var byOlder, byNewer testkit.Tally
	handler := func(y *testkit.Tally) natty.Handler {
		return func(_ context.Context, m *nats.Msg) error {
			y.Add(m)
			return nil
		}
	}
	process(t, older, old, handler(&byOlder))
	require.NoError(t, older.Publish(testkit.Ctx(t), "s.a", []byte("first")))
	testkit.Eventually(t, inState(older, natty.ConsumerRunning), "it is active")

	cfg := old
	cfg.Subjects, cfg.OnError = []string{"s.a", "s.b"}, nil
	process(t, newer, cfg, handler(&byNewer))
	testkit.Eventually(t, inState(newer, natty.ConsumerStandby), "it stands by")
	for _, body := range []string{"b", "a"} {
		require.NoError(t, older.Publish(testkit.Ctx(t), "s."+body, []byte(body)))
	}
	testkit.Eventually(t, func() bool { return byNewer.Distinct() == 2 }, "the newer one is active")
	assert.Equal(t, map[string]int{"first": 1}, byOlder.Counts())
	assert.Equal(t, map[string]int{"a": 1, "b": 1}, byNewer.Counts())
	testkit.Eventually(t, inState(older, natty.ConsumerStandby), "it stands by")
	testkit.Eventually(t, func() bool { return testkit.Only(older).Warning != "" }, "and says why")
	for err := range told {
		if testkit.Only(older).Warning != "" && assert.Error(t, err) {
			break
		}
	}
}
