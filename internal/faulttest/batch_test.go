package faulttest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// verifyBatches counts the messages of each body, and compares them with what PublishBatch said.
func verifyBatches(t *testing.T, s jetstream.Stream, size int, results map[string]error) {
	t.Helper()
	count := map[string]int{}
	info, err := s.Info(testkit.Ctx(t))
	require.NoError(t, err)
	last, run := "", 0
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && seq > 0; seq++ {
		m, err := s.GetMsg(testkit.Ctx(t), seq)
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
			for i := next.Add(1); !testkit.IsClosed(end); i = next.Add(1) {
				limit := testkit.Patience
				if i%5 == 0 {
					limit = rand.N(hurry)
				}
				body := fmt.Sprint("b", i)
				msgs := testkit.Messages(size, body)
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
			s := testkit.BatchStream(t, testkit.ConnectTo(t, node.URL()), jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
			proxy := nattytest.Proxy(t, node.URL())
			c := testkit.ConnectTo(t, proxy.URL())
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
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	s := testkit.BatchStream(t, c, jetstream.StreamConfig{Replicas: 3})
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
	verifyBatches(t, s, 5, testkit.Receive(t, done))
}
