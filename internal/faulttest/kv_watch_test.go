package faulttest_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestAWatchGoesOnAtOnceAfterARestart(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", []byte("1")))
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "other", []byte("1")))
	f := testkit.Follow(t, c, "b", ">")
	f.Wants(t, "k=1", "other=1")
	fastest := time.Hour
	for i := range 3 {
		node.Stop()
		require.NoError(t, node.Restart())
		value := fmt.Sprint("again", i)
		require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", []byte(value)))
		put := time.Now()
		f.Wants(t, "k="+value)
		fastest = min(fastest, time.Since(put))
		f.Silent(t)
	}
	assert.Less(t, fastest, 700*time.Millisecond, "it does not wait for heartbeats to be missing; nats.go's is blind for 10 to 20s")
}

func TestAWatchGoesOnAtOnceAfterALostConnection(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	f := testkit.Follow(t, c, "b", ">")
	fastest := time.Hour
	for i := range 3 {
		value := fmt.Sprint(i)
		require.NoError(t, direct.Put(testkit.Ctx(t), "b", "before", []byte(value)))
		f.Wants(t, "before="+value)
		proxy.Cut()
		require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte(value)))
		put := time.Now()
		f.Wants(t, "k="+value)
		fastest = min(fastest, time.Since(put))
	}
	assert.Less(t, fastest, 700*time.Millisecond, "it does not wait for heartbeats to be missing")
}

func TestAWatchGoesOnWhileItsCallerTakesItsTime(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	for i := range 1000 {
		require.NoError(t, direct.Put(testkit.Ctx(t), "b", fmt.Sprint(i), nil))
	}
	n := 0
	for e, err := range c.Watch(testkit.Ctx(t), "b", ">") {
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(n), e.Key())
		if n++; n == 300 {
			proxy.Cut()
			<-time.After(3 * time.Second) // longer than the server may be silent
		}
		if n == 1000 {
			break
		}
	}
}

func TestAWatchOfAFrozenConnectionGoesOn(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte("1")))
	f := testkit.Follow(t, c, "b", ">")
	f.Wants(t, "k=1")
	before := consumersOf(t, direct, "b")
	require.Len(t, before, 1)
	proxy.Freeze()
	require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte("2")))
	<-time.After(4 * time.Second)
	proxy.Thaw()
	f.Wants(t, "k=2")
	require.NoError(t, direct.Put(testkit.Ctx(t), "b", "k", []byte("3")))
	f.Wants(t, "k=3")
	f.Silent(t)
	testkit.Eventually(t, func() bool {
		after := consumersOf(t, direct, "b")
		return len(after) == 1 && after[0] != before[0]
	}, "it has given up the silent consumer, and leaves one behind")
}

func consumersOf(t *testing.T, c *natty.Client, bucket string) (names []string) {
	t.Helper()
	s, err := c.JetStream().Stream(testkit.Ctx(t), "KV_"+bucket)
	require.NoError(t, err)
	for name := range s.ConsumerNames(testkit.Ctx(t)).Name() {
		names = append(names, name)
	}
	return names
}

func TestAWatchFollowsABucketWhoseLeadersAreKilled(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "n", []byte("start")))
	f := testkit.Follow(t, c, "b", ">")
	f.Wants(t, "n=start")
	for i := range 2 {
		leader := cluster.StreamLeader("KV_b")
		leader.Stop()
		value := fmt.Sprint(i)
		require.NoError(t, c.Put(testkit.Ctx(t), "b", "n", []byte(value)))
		put := time.Now()
		f.Wants(t, "n="+value)
		t.Logf("seen after %v", time.Since(put))
		require.NoError(t, leader.Restart())
		cluster.WaitReady()
	}
	f.Silent(t)
}

func TestAWatchLosesNothingOnAConnectionThatKeepsBreaking(t *testing.T) {
	t.Parallel()
	c, direct, proxy := behindProxy(t)
	f := testkit.Follow(t, c, "b", ">")
	const n = 500
	for i := range n {
		if rand.N(20) == 0 {
			proxy.Cut()
		}
		require.NoError(t, direct.Put(testkit.Ctx(t), "b", fmt.Sprint(i), nil))
	}
	for i := range n {
		f.Wants(t, fmt.Sprint(i, "="))
	}
	f.Silent(t)
}

// What happens while the watch is blind, and leaves no trace that it could be told of.
func TestAWatchReportsWhatHasVanishedWithoutATrace(t *testing.T) {
	t.Parallel()
	for name, vanish := range map[string]func(t *testing.T, c *natty.Client){
		"purged": func(t *testing.T, c *natty.Client) {
			s, err := c.JetStream().Stream(testkit.Ctx(t), "KV_b")
			require.NoError(t, err)
			require.NoError(t, s.Purge(testkit.Ctx(t), jetstream.WithPurgeSubject("$KV.b.gone")))
		},
		"made again": func(t *testing.T, c *natty.Client) {
			require.NoError(t, c.DeleteBucket(testkit.Ctx(t), "b"))
			require.NoError(t, c.Put(testkit.Ctx(t), "b", "stays", []byte("new")))
		},
		"made again with more in it": func(t *testing.T, c *natty.Client) {
			require.NoError(t, c.DeleteBucket(testkit.Ctx(t), "b"))
			for range 10 {
				require.NoError(t, c.Put(testkit.Ctx(t), "b", "stays", []byte("new")))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, direct, proxy := behindProxy(t)
			for _, key := range []string{"gone", "stays"} {
				require.NoError(t, direct.Put(testkit.Ctx(t), "b", key, []byte("v")))
			}
			f := testkit.Follow(t, c, "b", ">")
			f.Wants(t, "gone=v", "stays=v")
			proxy.Refuse(true)
			proxy.Cut()
			vanish(t, direct)
			proxy.Refuse(false)
			if name != "purged" {
				f.Wants(t, "stays=new")
			}
			f.Wants(t, "-gone")
			require.NoError(t, direct.Put(testkit.Ctx(t), "b", "gone", []byte("back")))
			f.Wants(t, "gone=back")
			f.Silent(t)
		})
	}
}
