package natty_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// batchStream makes a stream that takes batches.
func batchStream(t *testing.T, c *natty.Client, cfg jetstream.StreamConfig) jetstream.Stream {
	t.Helper()
	cfg.Name, cfg.AllowAtomicPublish = "S", true
	if cfg.Subjects == nil {
		cfg.Subjects = []string{"s.>"}
	}
	s, err := c.EnsureStream(testCtx(t), cfg)
	require.NoError(t, err)
	return s
}

// messages makes n messages of s.0, s.1, s.2 with one body.
func messages(n int, body string) []*nats.Msg {
	msgs := make([]*nats.Msg, n)
	for i := range msgs {
		msgs[i] = &nats.Msg{Subject: fmt.Sprintf("s.%d", i%3), Data: []byte(body)}
	}
	return msgs
}

func TestBatchIsStoredWholeAndInOrder(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := batchStream(t, c, jetstream.StreamConfig{})
	require.NoError(t, c.PublishBatch(testCtx(t), nil), "an empty one does nothing")
	for _, n := range []int{1, 2, 1000} {
		before := stored(t, s)
		msgs := messages(n, "b")
		msgs[0].Header = nats.Header{"Mine": {"1"}}
		msgs[0].Reply = "r"
		require.NoError(t, c.PublishBatch(testCtx(t), msgs))
		assert.EqualValues(t, n, stored(t, s)-before)
		assert.Equal(t, nats.Header{"Mine": {"1"}}, msgs[0].Header, "the caller's headers are left alone")
		assert.Equal(t, "r", msgs[0].Reply)
		for i := range n {
			m, err := s.GetMsg(testCtx(t), before+uint64(i)+1)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("s.%d", i%3), m.Subject)
			require.NotEmpty(t, m.Header.Get("Nats-Msg-Id"))
		}
	}
}

func TestBatchThatCannotWorkIsRefusedBeforeAnythingIsSent(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.MaxPayload = 2000 }))
	c := connectTo(t, node.URL())
	s := batchStream(t, c, jetstream.StreamConfig{MaxMsgSize: 1000})
	ensure(t, c, "PLAIN", "plain")
	_, err := c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: "SILENT", Subjects: []string{"silent"}, NoAck: true})
	require.NoError(t, err)
	a := func() *nats.Msg { return nats.NewMsg("s.a") }
	withID := func(id string) *nats.Msg { return &nats.Msg{Subject: "s.a", Header: nats.Header{"Nats-Msg-Id": {id}}} }
	for name, test := range map[string]struct {
		msgs []*nats.Msg
		want string
		is   error
	}{
		"nil message":         {[]*nats.Msg{a(), nil}, "msgs[1]: is nil", nil},
		"wildcard":            {[]*nats.Msg{a(), nats.NewMsg("s.*")}, "msgs[1]: natty: subject \"s.*\": holds a wildcard", nil},
		"too many":            {messages(1001, ""), "more than the 1000", nil},
		"one id twice":        {[]*nats.Msg{withID("x"), a(), withID("x")}, "is the id of msgs[0] too", nil},
		"two streams":         {[]*nats.Msg{a(), nats.NewMsg("plain")}, "is in stream PLAIN and the first message's in S", nil},
		"no stream":           {[]*nats.Msg{a(), nats.NewMsg("nowhere")}, "EnsureStream", natty.ErrNoStream},
		"no stream at all":    {[]*nats.Msg{nats.NewMsg("nowhere")}, "", natty.ErrNoStream},
		"not allowed":         {[]*nats.Msg{nats.NewMsg("plain")}, "set AllowAtomicPublish", nil},
		"no acknowledgements": {[]*nats.Msg{nats.NewMsg("silent")}, "NoAck", nil},
		"over the stream's":   {[]*nats.Msg{a(), {Subject: "s.a", Data: make([]byte, 1000)}}, "max_msg_size", natty.ErrTooLarge},
		"over the server's":   {[]*nats.Msg{a(), {Subject: "s.a", Data: make([]byte, 2000)}}, "max_payload", natty.ErrTooLarge},
		"expects too late":    {[]*nats.Msg{a(), {Subject: "s.b", Header: nats.Header{"Nats-Expected-Last-Sequence": {"0"}}}}, "only the first message of a batch can", nil},
		"expects in vain":     {[]*nats.Msg{a(), {Subject: "s.a", Header: nats.Header{"Nats-Expected-Last-Subject-Sequence": {"0"}}}}, `msgs[1]: expects a last sequence of "s.a", which msgs[0] writes`, nil},
		"of another subject":  {[]*nats.Msg{a(), {Subject: "s.b", Header: nats.Header{"Nats-Expected-Last-Subject-Sequence": {"0"}, "Nats-Expected-Last-Subject-Sequence-Subject": {"s.a"}}}}, "which msgs[0] writes", nil},
		"expects an id":       {[]*nats.Msg{{Subject: "s.a", Header: nats.Header{"Nats-Expected-Last-Msg-Id": {"x"}}}}, "expect a sequence", nil},
	} {
		err := c.PublishBatch(testCtx(t), test.msgs)
		var failed *natty.PublishError
		require.ErrorAs(t, err, &failed, name)
		assert.False(t, failed.Unknown, name)
		assert.Empty(t, failed.MsgID, name)
		assert.Contains(t, err.Error(), test.want, name)
		if test.is != nil {
			require.ErrorIs(t, err, test.is, name)
		} else {
			var config *natty.ConfigError
			require.ErrorAs(t, err, &config, name)
		}
	}
	assert.Zero(t, stored(t, s))
}

func TestBatchWithAnIDThatTheStreamHasIsRefusedWhole(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := batchStream(t, c, jetstream.StreamConfig{})
	require.NoError(t, c.Publish(testCtx(t), "s.a", nil, jetstream.WithMsgID("x")))
	msgs := messages(3, "b")
	msgs[1].Header = nats.Header{"Nats-Msg-Id": {"x"}}
	err := c.PublishBatch(testCtx(t), msgs)
	require.ErrorContains(t, err, "has one of the ids already")
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.EqualValues(t, 1, stored(t, s))
}

func TestBatchForAFullStreamIsRefusedWhole(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	s := batchStream(t, c, jetstream.StreamConfig{MaxMsgs: 5, Discard: jetstream.DiscardNew})
	require.NoError(t, c.PublishBatch(testCtx(t), messages(4, "b")))
	err := c.PublishBatch(testCtx(t), messages(2, "b"))
	require.ErrorIs(t, err, natty.ErrStreamFull)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.EqualValues(t, 4, stored(t, s))
}

// The server has fifty places for batches, which one that was begun and not committed would hold for ten seconds.
func TestBatchesThatFailLeaveNoPlaceTakenOnTheServer(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := connectTo(t, node.URL())
	batchStream(t, c, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	proxy := nattytest.Proxy(t, node.URL())
	held := connectTo(t, proxy.URL())
	proxy.Delay(100 * time.Millisecond)
	var all sync.WaitGroup
	for range 60 {
		all.Go(func() {
			// Time to look the stream up (two round trips) and to send the first message, and not to commit.
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond+rand.N(100*time.Millisecond))
			defer cancel()
			assert.Error(t, held.PublishBatch(ctx, messages(3, "late")))
		})
	}
	all.Wait()
	proxy.Delay(0)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for range 40 {
		all.Go(func() { assert.NoError(t, c.PublishBatch(ctx, messages(3, "now"))) })
	}
	all.Wait()
}

// verifyBatches counts the messages of each body, and compares them with what PublishBatch said.
func verifyBatches(t *testing.T, s jetstream.Stream, size int, results map[string]error) {
	t.Helper()
	count := map[string]int{}
	info, err := s.Info(testCtx(t))
	require.NoError(t, err)
	last, run := "", 0
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && seq > 0; seq++ {
		m, err := s.GetMsg(testCtx(t), seq)
		require.NoError(t, err)
		if body := string(m.Data); body != last {
			require.Zero(t, run%size, "batches are not mixed")
			last, run = body, 0
		}
		run++
		count[string(m.Data)]++
	}
	stored, unknown := 0, 0
	for body, err := range results {
		switch {
		case err == nil:
			stored++
			assert.Equal(t, size, count[body], "said to be stored: %s", body)
		case assert.ErrorAs(t, err, new(*natty.PublishError)) && errors.Is(err, natty.ErrOutcomeUnknown):
			unknown++
			assert.Contains(t, []int{0, size}, count[body], "unknown: %s", body)
		default:
			assert.Zero(t, count[body], "said not to be stored: %s: %v", body, err)
		}
	}
	t.Logf("%d batches: %d stored, %d unknown", len(results), stored, unknown)
	assert.NotZero(t, stored)
}

// stormBatches publishes batches until end is closed. Every fifth has so little time that some fail.
func stormBatches(t *testing.T, c *natty.Client, size int, own bool, hurry time.Duration, end <-chan struct{}) map[string]error {
	t.Helper()
	var mu sync.Mutex
	results := map[string]error{}
	var next atomic.Int64
	var publishers sync.WaitGroup
	for range 8 {
		publishers.Go(func() {
			for i := next.Add(1); !isClosed(end); i = next.Add(1) {
				limit := patience
				if i%5 == 0 {
					limit = rand.N(hurry)
				}
				body := fmt.Sprint("b", i)
				msgs := messages(size, body)
				for j, m := range msgs {
					if own {
						m.Header = nats.Header{"Nats-Msg-Id": {fmt.Sprintf("%s-%d", body, j)}}
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				err := c.PublishBatch(ctx, msgs)
				cancel()
				assert.True(t, err == nil || i%5 == 0, "%v", err)
				mu.Lock()
				results[body] = err
				mu.Unlock()
			}
		})
	}
	publishers.Wait()
	return results
}

func TestBatchesThroughAConnectionThatKeepsBreakingAreStoredOnceOrNotAtAll(t *testing.T) {
	t.Parallel()
	for name, own := range map[string]bool{"natty's ids": false, "ids of the caller": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := nattytest.Server(t)
			// In memory: a file store syncs each batch to disk, so that few would come between two cuts.
			s := batchStream(t, connectTo(t, node.URL()), jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
			proxy := nattytest.Proxy(t, node.URL())
			c := connectTo(t, proxy.URL())
			cuts, end := 0, make(chan struct{})
			stop := during(100*time.Millisecond, 400*time.Millisecond, func() {
				if !c.Conn().IsConnected() {
					return
				}
				proxy.Cut()
				if cuts++; cuts == 10 {
					close(end)
				}
			})
			results := stormBatches(t, c, 5, own, 5*time.Millisecond, end)
			stop()
			verifyBatches(t, s, 5, results)
		})
	}
}

func TestBatchesWhileLeadersAreKilledAreStoredOnceOrNotAtAll(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := connect(t, natty.Config{Servers: cluster.URLs()})
	s := batchStream(t, c, jetstream.StreamConfig{Replicas: 3})
	done, end := make(chan map[string]error, 1), make(chan struct{})
	go func() { done <- stormBatches(t, c, 5, false, 20*time.Millisecond, end) }()
	stop := sync.OnceFunc(func() { close(end) })
	defer stop()
	for range 2 {
		leader := cluster.StreamLeader("S")
		leader.Stop()
		require.NoError(t, leader.Restart())
		cluster.WaitReady()
	}
	stop()
	verifyBatches(t, s, 5, receive(t, done))
}
