package faulttest_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
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

// replicated returns a cluster, and a client of it that has made the stream S with
// three replicas.
func replicated(t *testing.T) (*nattytest.Nodes, *natty.Client) {
	t.Helper()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s"}, Replicas: 3,
	})
	require.NoError(t, err)
	return cluster, c
}

func stepDown(t *testing.T, c *natty.Client) {
	t.Helper()
	_, err := c.Conn().Request("$JS.API.CONSUMER.LEADER.STEPDOWN.S.test_s", nil, testkit.Patience)
	require.NoError(t, err)
}

// A new leader does not know who has the pin, and gives it to whoever asks first.
func TestExclusiveInstancesDoNotOverlapWhileTheConsumersLeaderMoves(t *testing.T) {
	t.Parallel()
	const n = 1000
	cluster, c := replicated(t)
	fillAsync(t, c, "s", n)
	log := &chronicle{t: t}
	for i := range 3 {
		client := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
		process(t, client, exclusively("s"), log.handler(i, works(2*time.Millisecond)))
	}
	for i := range 6 {
		before := log.done()
		testkit.Eventually(t, func() bool { return log.done() >= min(before+50, n) }, "it goes on after %d moves", i)
		stepDown(t, c)
	}
	testkit.Eventually(t, func() bool { return log.done() == n }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and acknowledged")
}

// cutOffOwner makes an instance behind a link the active one. Its handler runs until its
// ctx ends, and the time of that is sent.
func cutOffOwner(t *testing.T, link *nattytest.Link, log *chronicle) (ended <-chan time.Time) {
	t.Helper()
	begun, end := make(chan struct{}), make(chan time.Time, 1)
	client := testkit.ConnectTo(t, link.URL())
	process(t, client, exclusively("s"), log.handler(1, func(ctx context.Context, _ *nats.Msg) error {
		close(begun)
		<-ctx.Done()
		end <- time.Now()
		return context.Cause(ctx)
	}))
	testkit.Fill(t, client, "s", 3)
	testkit.Receive(t, begun)
	return end
}

func TestExclusiveInstanceWaitsForAFormerOwnerThatTheServerHasForgotten(t *testing.T) {
	t.Parallel()
	standby := func(t *testing.T, url string, log *chronicle) {
		t.Helper()
		other := testkit.ConnectTo(t, url)
		process(t, other, exclusively("s"), log.handler(2, nil))
		testkit.Eventually(t, func() bool { return testkit.Only(other).State == natty.ConsumerStandby }, "it stands by")
	}
	follows := func(t *testing.T, log *chronicle, ended <-chan time.Time) {
		t.Helper()
		testkit.Eventually(t, func() bool { return log.done() == 3 }, "the other one follows")
		assert.Greater(t, log.by(2)[0].at, testkit.Receive(t, ended), "when the first one has ended")
	}
	t.Run("new leader", func(t *testing.T) {
		t.Parallel()
		cluster, c := replicated(t)
		link := nattytest.Proxy(t, cluster.URLs()[0])
		log := &chronicle{t: t}
		ended := cutOffOwner(t, link, log)
		t.Cleanup(link.Thaw)
		standby(t, cluster.URLs()[1], log)
		link.Freeze()
		stepDown(t, c)
		follows(t, log, ended)
	})
	t.Run("restart", func(t *testing.T) {
		t.Parallel()
		server := nattytest.Server(t)
		testkit.Ensure(t, testkit.ConnectTo(t, server.URL()), "S", "s")
		link := nattytest.Proxy(t, server.URL())
		log := &chronicle{t: t}
		ended := cutOffOwner(t, link, log)
		standby(t, server.URL(), log)
		link.Refuse(true)
		require.NoError(t, server.Restart())
		follows(t, log, ended)
	})
}

func TestExclusiveInstanceWithAHandlerThatGoesOnIsDeposedAndNotRunning(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, c, "S", "s")
	first := testkit.ConnectTo(t, server.URL())
	begun, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	process(t, first, exclusively("s"), func(context.Context, *nats.Msg) error {
		close(begun)
		<-released // whatever its ctx says
		return nil
	})
	t.Cleanup(release)
	testkit.Fill(t, c, "s", 1)
	testkit.Receive(t, begun)
	handled := make(chan struct{}, 1)
	second := testkit.ConnectTo(t, server.URL())
	process(t, second, exclusively("s"), func(context.Context, *nats.Msg) error {
		handled <- struct{}{}
		return nil
	})
	testkit.Eventually(t, func() bool { return testkit.Only(second).State == natty.ConsumerStandby }, "it stands by")
	require.NoError(t, s.UnpinConsumer(testkit.Ctx(t), "test_s", "natty"))
	testkit.Eventually(t, func() bool { return testkit.Only(first).State == natty.ConsumerDeposed }, "it is deposed")
	assert.Equal(t, 1, testkit.Only(first).Handling)
	testkit.Receive(t, handled)
	release()
	testkit.Eventually(t, func() bool { return testkit.Only(first).State == natty.ConsumerStandby }, "it stands by")
}

// older relays the API under a prefix. While old is set it answers as a server that was
// rolled back does: it names an older version, and does not know resets.
func older(t *testing.T, c *natty.Client, old *atomic.Bool) (prefix string) {
	t.Helper()
	const relayed = "RELAY.API."
	nc := c.Conn()
	_, err := nc.Subscribe(relayed+">", func(m *nats.Msg) {
		rest := strings.TrimPrefix(m.Subject, relayed)
		switch {
		case old.Load() && strings.HasPrefix(rest, "CONSUMER.RESET."):
		case old.Load() && strings.HasPrefix(rest, "CONSUMER.INFO."):
			answer, err := nc.Request("$JS.API."+rest, m.Data, testkit.Patience)
			if err != nil {
				return // the test has ended
			}
			var info map[string]any
			if err := json.Unmarshal(answer.Data, &info); err != nil {
				t.Error(err)
			}
			if config, ok := info["config"].(map[string]any); ok {
				config["metadata"].(map[string]any)["_nats.ver"] = "2.12.1"
			}
			body, err := json.Marshal(info)
			if err != nil {
				t.Error(err)
			}
			_ = m.Respond(body)
		default:
			_ = nc.PublishMsg(&nats.Msg{Subject: "$JS.API." + rest, Reply: m.Reply, Header: m.Header, Data: m.Data})
		}
	})
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	return strings.TrimSuffix(relayed, ".")
}

func TestExclusiveStandsStillWhileTheServerIsRolledBack(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	var old atomic.Bool
	link := nattytest.Proxy(t, server.URL())
	client := testkit.Connect(t, natty.Config{Servers: []string{link.URL()}, APIPrefix: older(t, c, &old)})
	log := &chronicle{t: t}
	report, errs := testkit.OnError()
	cfg := exclusively("s")
	cfg.OnError = report
	process(t, client, cfg, log.handler(1, nil))
	testkit.Fill(t, c, "s", 10)
	testkit.Eventually(t, func() bool { return log.done() == 10 }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "it runs")
	old.Store(true)
	link.Cut()
	testkit.Eventually(t, func() bool { return testkit.Only(client).State == natty.ConsumerUnsupported }, "it stands still")
	var err error
	for !errors.Is(err, natty.ErrUnsupported) { // others are about the connection
		err = testkit.Receive(t, errs)
	}
	require.ErrorContains(t, err, "exclusive consumers need nats-server 2.14 or newer, and it is 2.12.1")
	testkit.Fill(t, c, "s", 10)
	old.Store(false)
	testkit.Eventually(t, func() bool { return log.done() == 20 }, "it goes on")
	assert.Zero(t, log.repeats())
	assert.Equal(t, natty.ConsumerRunning, testkit.Only(client).State)
}

// On a WorkQueue stream nothing else keeps one version of a service from making the
// durable exclusive under the other, which then ran on and got nothing any more.
func TestInstanceWhoseDurableBecomesExclusiveEnds(t *testing.T) {
	t.Parallel()
	url := nattytest.Server(t).URL()
	c, next := testkit.ConnectTo(t, url), testkit.ConnectTo(t, url)
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s"}, Retention: jetstream.WorkQueuePolicy,
	})
	require.NoError(t, err)
	stop := testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{"s"}},
		func(context.Context, *nats.Msg) error { return nil })
	state := func(s natty.ConsumerState) func() bool {
		return func() bool {
			all := c.Health().Consumers
			return len(all) == 1 && all[0].State == s
		}
	}
	testkit.Eventually(t, state(natty.ConsumerRunning), "it runs")
	var seen testkit.Tally
	processPinned(t, time.Second, next, exclusively("s"), func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Eventually(t, state(natty.ConsumerStopped), "it ends")
	err = stop()
	var drift *natty.DriftError
	require.ErrorAs(t, err, &drift)
	require.ErrorContains(t, err, "priority_policy")
	testkit.Fill(t, next, "s", 5)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 5 }, "the other has all")
}

func TestExclusiveDurableThatSomebodyMakesSharedIsPutRight(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	report, errs := testkit.OnError()
	cfg := exclusively("s")
	cfg.OnError = report
	var seen testkit.Tally
	processPinned(t, time.Second, c, cfg, func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Fill(t, c, "s", 5)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 5 }, "it is active")
	cons, err := s.Consumer(testkit.Ctx(t), testkit.Only(c).Durable)
	require.NoError(t, err)
	config := cons.CachedInfo().Config
	config.PriorityPolicy, config.PriorityGroups, config.PinnedTTL = jetstream.PriorityPolicyNone, nil, 0
	_, err = s.UpdateConsumer(testkit.Ctx(t), config)
	require.NoError(t, err)
	testkit.Fill(t, c, "s", 5)
	var told error
	for told == nil || !strings.Contains(told.Error(), "put right") {
		told = testkit.Receive(t, errs)
	}
	require.ErrorContains(t, told, `priority_policy is "", which was "pinned_client"`)
	testkit.Fill(t, c, "s", 20)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 20 }, "it goes on")
}
