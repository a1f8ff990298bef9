package faulttest_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// hubAndLeaf starts a server with the JetStream domain "hub", and a leaf node of it.
func hubAndLeaf(t testing.TB) (hub, leaf *nattytest.Node) {
	t.Helper()
	hub = nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.JetStreamDomain, o.LeafNode.Host, o.LeafNode.Port = "hub", "127.0.0.1", -1
	}))
	v, err := hub.Server().Varz(nil)
	require.NoError(t, err)
	leaf = nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.JetStreamDomain = "leaf"
		to := &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", v.LeafNode.Port)}
		o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{to}}}
	}))
	testkit.Eventually(t, func() bool { return leaf.Server().NumLeafNodes() > 0 }, "the leaf node is connected")
	return hub, leaf
}

// throughLeaf returns Clients that reach the hub's JetStream through a leaf node.
func throughLeaf(t testing.TB) [2]*natty.Client {
	t.Helper()
	_, leaf := hubAndLeaf(t)
	return both(func() *natty.Client {
		return testkit.Connect(t, natty.Config{Servers: []string{leaf.URL()}, Domain: "hub"})
	})
}

// both calls connect twice.
func both(connect func() *natty.Client) [2]*natty.Client {
	return [2]*natty.Client{connect(), connect()}
}

// importedAPI returns Clients of an account that has imported another one's JetStream.
func importedAPI(t testing.TB) [2]*natty.Client {
	t.Helper()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		owner, guest := server.NewAccount("OWNER"), server.NewAccount("GUEST")
		for to, from := range map[string]string{"$JS.API.>": "JS.owner.>", "$KV.>": "JS.owner.$KV.>"} {
			assert.NoError(t, owner.AddServiceExportWithResponse(to, server.Streamed, nil))
			assert.NoError(t, guest.AddServiceImport(owner, from, to))
		}
		o.Accounts = []*server.Account{owner, guest}
		o.Users = []*server.User{{Username: "app", Password: "secret", Account: guest}}
	}))
	owner, err := node.Server().LookupAccount("OWNER")
	require.NoError(t, err)
	require.NoError(t, owner.EnableJetStream(nil, nil))
	return both(func() *natty.Client {
		return testkit.Connect(t, natty.Config{
			Servers: []string{node.URL()}, User: "app", Password: "secret", APIPrefix: "JS.owner",
		})
	})
}

// withoutEcho returns one Client twice, whose connection does not hear what it sends.
func withoutEcho(t testing.TB) [2]*natty.Client {
	t.Helper()
	url := nattytest.Server(t).URL()
	c := testkit.Connect(t, natty.Config{Servers: []string{url}}, natty.WithNATSOptions(nats.NoEcho()))
	return [2]*natty.Client{c, c}
}

// withoutHints starts a server on which "app" may not subscribe to the keys of any bucket.
func withoutHints(t testing.TB) *nattytest.Node {
	t.Helper()
	return nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Users = []*server.User{{Username: "app", Password: "secret", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Deny: []string{"$KV.>"}},
		}}}
	}))
}

// The TTL is so long that no follower can have waited for its end.
func TestLeaseIsHandedOnBeyondAPlainConnection(t *testing.T) {
	t.Parallel()
	const ttl, soon = 20 * time.Second, 5 * time.Second
	for name, test := range map[string]struct {
		clients func(testing.TB) [2]*natty.Client
		warning string // of a standby
	}{
		"through a leaf node":   {throughLeaf, "domain"},
		"with an imported API":  {importedAPI, ""},
		"without echo":          {withoutEcho, ""},
		"without the hints":     {deaf, `Permissions Violation for Subscription to "$KV.elections.job"`},
		"on a plain connection": {func(t testing.TB) [2]*natty.Client { return both(onOneServer(t)) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clients := test.clients(t)
			r := &testkit.Reign{T: t}
			cfg := testkit.Electing("a")
			cfg.BucketTTL = ttl
			leader := make(chan struct{})
			first := testkit.Lead(t, clients[0], cfg, r.Lead("first", leader))
			testkit.Eventually(t, func() bool { return r.Count() == 1 }, "the first one leads")
			heard := clients[1].Conn().NumSubscriptions()
			testkit.Lead(t, clients[1], cfg, r.Lead("second", nil))
			door := natty.LockConfig{Bucket: "locks", Key: "door", TTL: ttl}
			lock, err := clients[0].Lock(testkit.Ctx(t), door)
			require.NoError(t, err)
			locked := make(chan error, 1)
			go func() {
				next, err := clients[1].Lock(testkit.Ctx(t), door)
				if err == nil {
					err = next.Release(testkit.Ctx(t))
				}
				locked <- err
			}()
			testkit.Eventually(t, func() bool {
				if test.warning == "" {
					return clients[1].Conn().NumSubscriptions() >= heard+2
				}
				return warned(clients[1], test.warning)
			}, "the second one stands by")

			// Keys are written meanwhile, by those who wait too.
			for _, c := range clients {
				require.NoError(t, c.Put(testkit.Ctx(t), "settings", "k", []byte("v")))
				require.NoError(t, c.Put(testkit.Ctx(t), "elections", "other", []byte("v")))
			}
			require.Equal(t, 1, r.Count())
			began := time.Now()
			close(leader)
			require.NoError(t, first())
			testkit.Eventually(t, func() bool { return r.Count() == 2 }, "the second one follows")
			require.NoError(t, lock.Release(testkit.Ctx(t)))
			require.NoError(t, testkit.Receive(t, locked))
			assert.Less(t, time.Since(began), soon)
			assert.Equal(t, "second", r.Leader())
		})
	}
}

func deaf(t testing.TB) [2]*natty.Client {
	t.Helper()
	node := withoutHints(t)
	return both(func() *natty.Client { return testkit.Login(t, node.URL(), "app") })
}

func onOneServer(t testing.TB) func() *natty.Client {
	t.Helper()
	url := nattytest.Server(t).URL()
	return func() *natty.Client { return testkit.ConnectTo(t, url) }
}

// warned reports whether an election of c stands by with a warning that has a part.
func warned(c *natty.Client, part string) bool {
	return slices.ContainsFunc(c.Health().Elections, func(h natty.ElectionHealth) bool {
		return !h.Leading && strings.Contains(h.Warning, part)
	})
}

// troubles collects what the elections of a Client report.
type troubles struct {
	mu  sync.Mutex
	all []string
}

func (o *troubles) Observe(e natty.Event) {
	if e, ok := e.(natty.ElectionEvent); ok && e.Err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.all = append(o.all, e.Err.Error())
	}
}

// has reports whether one of them has a part.
func (o *troubles) has(part string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.all, func(s string) bool { return strings.Contains(s, part) })
}

// fill stores two kilobytes that stay until they are purged.
func fill(t testing.TB, c *natty.Client, subject string) {
	t.Helper()
	_, err := c.PublishMsg(testkit.Ctx(t), &nats.Msg{
		Subject: subject, Data: make([]byte, 2000), Header: nats.Header{jetstream.MsgTTLHeader: {"never"}},
	})
	require.NoError(t, err)
}

func purge(t testing.TB, c *natty.Client, stream, subject string) {
	t.Helper()
	s, err := c.JetStream().Stream(testkit.Ctx(t), stream)
	require.NoError(t, err)
	require.NoError(t, s.Purge(testkit.Ctx(t), jetstream.WithPurgeSubject(subject)))
}

func TestElectionsAndLocksWaitForRoomAndSaySo(t *testing.T) {
	t.Parallel()
	const ttl = testkit.LeaseTTL
	limit := func(t testing.TB, node *nattytest.Node, streams int, bytes int64) {
		t.Helper()
		require.NoError(t, node.Server().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{"": {
			MaxMemory: -1, MaxStore: bytes, MaxStreams: streams, MaxConsumers: -1, MaxAckPending: -1,
			MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1,
		}}))
	}
	buckets := func(t testing.TB, root *natty.Client, maxBytes int64) {
		t.Helper()
		for bucket, ttl := range map[string]time.Duration{"elections": ttl, "locks": 0} {
			testkit.Bucket(t, root, jetstream.KeyValueConfig{Bucket: bucket, TTL: ttl, LimitMarkerTTL: ttl + time.Second, MaxBytes: maxBytes})
		}
	}
	for name, test := range map[string]struct {
		shut func(t testing.TB, node *nattytest.Node, root *natty.Client)
		open func(t testing.TB, node *nattytest.Node, root *natty.Client)
		want string
	}{
		"the bucket is full": {
			func(t testing.TB, _ *nattytest.Node, root *natty.Client) {
				buckets(t, root, 2200)
				fill(t, root, "$KV.elections.filler")
				fill(t, root, "$KV.locks.filler")
			},
			func(t testing.TB, _ *nattytest.Node, root *natty.Client) {
				purge(t, root, "KV_elections", "$KV.elections.filler")
				purge(t, root, "KV_locks", "$KV.locks.filler")
			},
			"maximum bytes exceeded",
		},
		"the account is full": {
			func(t testing.TB, node *nattytest.Node, root *natty.Client) {
				buckets(t, root, 0)
				testkit.Ensure(t, root, "S", "s")
				require.NoError(t, root.Publish(testkit.Ctx(t), "s", make([]byte, 2000)))
				limit(t, node, -1, 2000)
			},
			func(t testing.TB, node *nattytest.Node, root *natty.Client) { limit(t, node, -1, -1) },
			"resource limits exceeded for account",
		},
		"the account may have no further stream": {
			func(t testing.TB, node *nattytest.Node, root *natty.Client) {
				testkit.Ensure(t, root, "S", "s")
				limit(t, node, 1, -1)
			},
			func(t testing.TB, node *nattytest.Node, root *natty.Client) { limit(t, node, -1, -1) },
			"maximum number of streams reached",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := nattytest.Server(t)
			root := testkit.ConnectTo(t, node.URL())
			test.shut(t, node, root)
			r := &testkit.Reign{T: t}
			var told [2]troubles
			var stops []func() error
			locked := make(chan error, 2)
			for i := range told {
				c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}}, natty.WithObserver(&told[i]))
				stops = append(stops, testkit.Lead(t, c, testkit.Electing("a"), r.Lead("a", nil)))
				go func() {
					l, err := c.Lock(testkit.Ctx(t), testkit.Door(ttl))
					if err == nil {
						err = l.Release(testkit.Ctx(t))
					}
					if errors.Is(err, natty.ErrDeposed) { // on a busy machine it may have ended by itself
						err = nil
					}
					locked <- err
				}()
			}
			for i := range told {
				testkit.Eventually(t, func() bool { return told[i].has(test.want) }, "it says why nobody leads")
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := root.Lock(ctx, testkit.Door(ttl))
			require.ErrorContains(t, err, test.want)
			require.Zero(t, r.Count())
			require.Empty(t, locked)

			test.open(t, node, root)
			testkit.Eventually(t, func() bool { return r.Count() == 1 }, "then one of them leads")
			for i := range told {
				require.NoError(t, testkit.Receive(t, locked))
				require.NoError(t, stops[i](), "nothing has ended Lead")
			}
		})
	}
}

// What is full by other keys may keep the leader from renewing.
func TestBucketThatFillsUpUnderALeaderHasOneLeaderAtMost(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	root := testkit.ConnectTo(t, node.URL())
	testkit.Bucket(t, root, jetstream.KeyValueConfig{
		Bucket: "elections", TTL: testkit.LeaseTTL, LimitMarkerTTL: testkit.LeaseTTL, MaxBytes: 2800,
	})
	r := &testkit.Reign{T: t}
	var told troubles
	for range 2 {
		c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}}, natty.WithObserver(&told))
		testkit.Lead(t, c, testkit.Electing("a"), r.Lead("a", nil))
	}
	testkit.Eventually(t, func() bool { return r.Count() == 1 }, "one leads")
	fill(t, root, "$KV.elections.filler")
	for i, full := 0, false; !full; i++ {
		full = root.Put(testkit.Ctx(t), "elections", fmt.Sprint("filler-", i), nil) != nil
	}
	renewed := testkit.RevisionOf(t, root, "elections", "job")
	testkit.Eventually(t, func() bool {
		if testkit.IsKeyGone(testkit.Ctx(t), root, "elections", "job") {
			return told.has("maximum bytes exceeded")
		}
		return testkit.RevisionOf(t, root, "elections", "job") > renewed
	}, "it is renewed, or it is said why not")
	purge(t, root, "KV_elections", "$KV.elections.filler")
	testkit.Eventually(t, func() bool {
		return r.Active.Load() == 1 && root.HaveLeader(testkit.Ctx(t), "a", "elections", "job")
	}, "one leads in the end")
}

// A stream's leader without a majority goes on answering reads, and expires nothing.
func TestLeaseWithoutAMajorityIsNotTakenForOnePutThereByHand(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	r := &testkit.Reign{T: t}
	var told troubles
	var stops []func() error
	for range 2 {
		c := testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3}, natty.WithObserver(&told))
		stops = append(stops, testkit.Lead(t, c, testkit.Electing("a"), r.Lead("a", nil)))
	}
	testkit.Eventually(t, func() bool { return r.Count() == 1 }, "one leads")
	survivor := cluster.StreamLeader("KV_elections")
	for _, node := range cluster.Nodes() {
		if node != survivor {
			node.Stop()
		}
	}
	testkit.Eventually(t, func() bool { return r.Active.Load() == 0 }, "the leader ends")
	testkit.Eventually(t, func() bool {
		return told.has("may lack a majority") || told.has("no answer from JetStream yet")
	}, "it is said why nobody follows")
	assert.False(t, told.has("by hand"))
	for _, node := range cluster.Nodes() {
		if node != survivor {
			require.NoError(t, node.Restart())
		}
	}
	cluster.WaitReady()
	testkit.Eventually(t, func() bool { return r.Active.Load() == 1 && r.Count() == 2 }, "one leads again")
	assert.False(t, told.has("by hand"))
	for _, stop := range stops {
		require.NoError(t, stop(), "nothing has ended Lead")
	}
}

func TestInstancesThatStartTogetherMakeOneBucket(t *testing.T) {
	t.Parallel()
	const instances = 6
	cluster := nattytest.Cluster(t)
	clients := make([]*natty.Client, instances)
	for i := range clients {
		clients[i] = testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	}
	for round := range seeds(t, 3) {
		r := &testkit.Reign{T: t}
		stops, locked := make([]func() error, instances), make([]error, instances)
		testkit.Race(instances, func(i int) {
			cfg := testkit.Electing(fmt.Sprint(i))
			cfg.Bucket = fmt.Sprint("elections-", round)
			cfg.BucketTTL = 30 * time.Second // only a release lets another one follow
			stops[i] = testkit.Lead(t, clients[i], cfg, r.Lead(cfg.NodeName, nil))
			var lock *natty.Lease
			lock, locked[i] = clients[i].Lock(testkit.Ctx(t), natty.LockConfig{Bucket: fmt.Sprint("locks-", round), Key: fmt.Sprint(i)})
			if locked[i] == nil {
				locked[i] = lock.Release(testkit.Ctx(t))
			}
		})
		for _, err := range locked {
			require.NoError(t, err)
		}
		for range instances { // each of them leads in its turn, so that none has ended
			testkit.Eventually(t, func() bool { return r.Active.Load() == 1 }, "one leads")
			leader, err := strconv.Atoi(r.Leader())
			require.NoError(t, err)
			require.NoError(t, stops[leader]())
		}
		assert.Equal(t, instances, r.Count())
	}
}

// Who stands by knows for how long the leader may go on, whatever the new bucket says. Those without hints look often, and so find it
// before the leader does.
func TestBucketThatIsDeletedUnderALeaderHasOneLeaderAtMost(t *testing.T) {
	t.Parallel()
	node := withoutHints(t)
	r := &testkit.Reign{T: t}
	var root *natty.Client
	var stops []func() error
	for range 3 {
		root = testkit.Login(t, node.URL(), "app")
		stops = append(stops, testkit.Lead(t, root, testkit.Electing("a"), r.Lead("a", nil)))
	}
	for range seeds(t, 5) {
		testkit.Eventually(t, func() bool {
			return r.Active.Load() == 1 && root.HaveLeader(testkit.Ctx(t), "a", "elections", "job")
		}, "one leads")
		<-time.After(testkit.LeaseTTL / 2) // all that stand by have looked
		terms := r.Count()
		require.NoError(t, root.DeleteBucket(testkit.Ctx(t), "elections"))
		deleted := time.Now()
		testkit.Eventually(t, func() bool { return r.Count() > terms }, "one leads again")
		assert.Less(t, time.Since(deleted), testkit.LeaseTTL+testkit.AtOnce)
	}
	for _, stop := range stops {
		require.NoError(t, stop(), "nothing has ended Lead")
	}
}
