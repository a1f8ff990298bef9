package natty_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/relistan/go-director"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestOnlyOneLeadsAndTheNextFollowsAtOnceWhenItStops(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	r := &testkit.Reign{T: t}
	stops := map[string]func() error{}
	for i := range 3 {
		node := fmt.Sprint("node-", i)
		stops[node] = testkit.Lead(t, testkit.ConnectTo(t, server.URL()), testkit.Electing(node), r.Lead(node, nil))
	}
	c := testkit.ConnectTo(t, server.URL())
	var slowest time.Duration
	for n := 1; n <= 3; n++ {
		testkit.Eventually(t, func() bool { return r.Count() == n }, "there is a leader")
		leader := r.Leader()
		assert.True(t, c.HaveLeader(testkit.Ctx(t), leader, "elections", "job"))
		assert.False(t, c.HaveLeader(testkit.Ctx(t), "nobody", "elections", "job"))
		got, err := c.GetLeader(testkit.Ctx(t), "elections", "job")
		require.NoError(t, err)
		assert.Equal(t, leader, got)
		require.NoError(t, stops[leader]())
	}
	r.Mu.Lock()
	for n := 1; n < 3; n++ {
		slowest = max(slowest, r.Began[n].Sub(r.Ended[n-1]))
	}
	r.Mu.Unlock()
	assert.Less(t, slowest, testkit.LeaseTTL/2, "not after the TTL")
	_, err := c.GetLeader(testkit.Ctx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	_, err = c.GetLeader(testkit.Ctx(t), "none", "job")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
}

func TestTwoNodesOfOneNameAreTwo(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	r := &testkit.Reign{T: t}
	for range 2 {
		testkit.Lead(t, testkit.ConnectTo(t, server.URL()), testkit.Electing("twin"), r.Lead("twin", nil))
	}
	testkit.Eventually(t, func() bool { return r.Count() == 1 }, "there is a leader")
	<-time.After(testkit.LeaseTTL) // a term in which the other one could make a mistake
	assert.Equal(t, 1, r.Count())
}

func TestLeaderThatIsCutOffEndsBeforeTheNextBegins(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*nattytest.Link){
		"frozen":              func(l *nattytest.Link) { l.Freeze() },
		"answers do not come": func(l *nattytest.Link) { l.FreezeReplies() },
		"cut and refused":     func(l *nattytest.Link) { l.Refuse(true); l.Cut() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			link := nattytest.Proxy(t, server.URL())
			r := &testkit.Reign{T: t}
			testkit.Lead(t, testkit.ConnectTo(t, link.URL()), testkit.Electing("first"), r.Lead("first", nil))
			testkit.Eventually(t, func() bool { return r.Leader() == "first" }, "the first one leads")
			testkit.Lead(t, testkit.ConnectTo(t, server.URL()), testkit.Electing("second"), r.Lead("second", nil))
			at := time.Now()
			fault(link)
			testkit.Eventually(t, func() bool { return r.Leader() == "second" }, "the second one follows")
			r.Mu.Lock()
			assert.Less(t, r.Ended[0].Sub(at), testkit.LeaseTTL, "the first one's ctx ended in time")
			assert.True(t, r.Ended[0].Before(r.Began[1]))
			r.Mu.Unlock()
			link.Refuse(false)
			link.Thaw()
			<-time.After(testkit.LeaseTTL / 2)
			assert.Equal(t, "second", r.Leader(), "and the first one stands by")
		})
	}
}

func TestStandbyAsksTheServerNothing(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	r := &testkit.Reign{T: t}
	testkit.Lead(t, testkit.ConnectTo(t, server.URL()), testkit.Electing("leader"), r.Lead("leader", nil))
	testkit.Eventually(t, func() bool { return r.Count() == 1 }, "there is a leader")
	standby := testkit.ConnectTo(t, server.URL())
	spy := testkit.ConnectTo(t, server.URL()).Conn()
	testkit.Lead(t, standby, testkit.Electing("standby"), r.Lead("standby", nil))
	before := standby.Conn().Stats().OutMsgs
	stable := func() bool {
		now := standby.Conn().Stats().OutMsgs
		same := now == before && now > 1
		before = now
		return same
	}
	require.Eventually(t, stable, testkit.Patience, 200*time.Millisecond, "it stands by")
	renewals := make(chan *nats.Msg, 100)
	_, err := spy.ChanSubscribe("$KV.elections.job", renewals)
	require.NoError(t, err)
	for range 8 { // more than two TTLs
		testkit.Receive(t, renewals)
	}
	assert.Equal(t, before, standby.Conn().Stats().OutMsgs, "it sent nothing")
	assert.Equal(t, 1, r.Count())
}

func TestStandbyThatMayNotListenSaysSoAndFollowsAllTheSame(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.User("root", "secret"), nattytest.Options(func(o *server.Options) {
		o.Users = append(o.Users, &server.User{Username: "app", Password: "secret", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Deny: []string{"$KV.>"}},
		}})
	}))
	r := &testkit.Reign{T: t}
	resign := testkit.Lead(t, testkit.Login(t, node.URL(), "root"), testkit.Electing("leader"), r.Lead("leader", nil))
	testkit.Eventually(t, func() bool { return r.Leader() == "leader" }, "there is a leader")
	c := testkit.Login(t, node.URL(), "app")
	testkit.Lead(t, c, testkit.Electing("standby"), r.Lead("standby", nil))
	testkit.Eventually(t, func() bool {
		e := c.Health().Elections
		return len(e) == 1 && strings.Contains(e[0].Warning, `Permissions Violation for Subscription to "$KV.elections.job"`)
	}, "Health says what is refused")
	require.NoError(t, resign())
	testkit.Eventually(t, func() bool { return r.Leader() == "standby" }, "it looks instead")
	testkit.Eventually(t, func() bool { return c.Health().Elections[0].Warning == "" }, "a leader hears enough")
}

func TestLeadReturnsWhatItsFunctionReturns(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	err := c.Lead(testkit.Ctx(t), testkit.Electing("a"), func(context.Context, *natty.Term) error { return testkit.ErrHandler })
	require.ErrorIs(t, err, testkit.ErrHandler)
	err = c.Lead(testkit.Ctx(t), testkit.Electing("a"), func(context.Context, *natty.Term) error { panic("no") })
	require.ErrorContains(t, err, "panicked: no")
	require.ErrorContains(t, err, "leader_test.go")
	ctx, cancel := context.WithCancel(t.Context())
	err = c.Lead(ctx, testkit.Electing("a"), func(ctx context.Context, _ *natty.Term) error { cancel(); <-ctx.Done(); return ctx.Err() })
	require.NoError(t, err)
	_, err = c.GetLeader(testkit.Ctx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound, "each gave the leadership back")
}

func TestDeposedLeadersWritesAreRefusedByTheServer(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	terms := make(chan *natty.Term, 2)
	keep := func(ctx context.Context, term *natty.Term) error {
		// At the end of the test the first one may lead again, and be stopped in its Put.
		if err := term.Put(ctx, "state", fmt.Append(nil, term.Token())); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		terms <- term
		<-ctx.Done()
		return nil
	}
	testkit.Lead(t, testkit.ConnectTo(t, link.URL()), testkit.Electing("first"), keep)
	first := testkit.Receive(t, terms)
	direct := testkit.ConnectTo(t, server.URL())
	testkit.Lead(t, direct, testkit.Electing("second"), keep)
	link.Freeze()
	// On its way, in a connection that delivers it when another one leads.
	late := make(chan error, 1)
	go func() { late <- first.Put(context.Background(), "state", []byte("late")) }()
	second := testkit.Receive(t, terms)
	link.Thaw()
	require.ErrorIs(t, testkit.Receive(t, late), natty.ErrDeposed)
	require.ErrorIs(t, first.Put(testkit.Ctx(t), "state", []byte("later")), natty.ErrDeposed)
	kv, err := direct.JetStream().KeyValue(testkit.Ctx(t), "elections")
	require.NoError(t, err)
	<-time.After(testkit.LeaseTTL * 3 / 2) // it outlives the bucket's TTL
	entry, err := kv.Get(testkit.Ctx(t), "state")
	require.NoError(t, err)
	assert.Equal(t, fmt.Sprint(second.Token()), string(entry.Value()))
	for _, key := range []string{"job", "job._term", "", "a b"} {
		var config *natty.ConfigError
		require.ErrorAs(t, second.Put(testkit.Ctx(t), key, nil), &config, key)
	}
}

// Buckets of natty's have revisions that grow across buckets. Those of other programs
// begin at one, so that revisions of an old bucket and of its successor coincide.
func TestNothingOfADeletedBucketCountsInItsSuccessor(t *testing.T) {
	t.Parallel()
	const ttl = 30 * time.Second // nothing is renewed during the test
	for _, others := range [][2]bool{{false, false}, {false, true}, {true, false}, {true, true}} {
		t.Run(fmt.Sprintf("made by another program, before and after: %v", others), func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			c := testkit.ConnectTo(t, server.URL())
			begin := func(other bool) (*natty.Client, *natty.Term, *natty.Lease) {
				if other {
					for bucket, ttl := range map[string]time.Duration{"elections": ttl, "locks": 0} {
						_, err := c.JetStream().CreateKeyValue(testkit.Ctx(t), jetstream.KeyValueConfig{
							Bucket: bucket, TTL: ttl, LimitMarkerTTL: time.Minute,
						})
						require.NoError(t, err)
					}
				}
				owner := testkit.ConnectTo(t, server.URL())
				cfg := testkit.Electing("a")
				cfg.BucketTTL = ttl
				terms := make(chan *natty.Term, 10) // at the end it may lead again
				testkit.Lead(t, owner, cfg, func(ctx context.Context, term *natty.Term) error {
					terms <- term
					<-ctx.Done()
					return nil
				})
				term := testkit.Receive(t, terms)
				lock, err := owner.Lock(testkit.Ctx(t), testkit.Door(ttl))
				require.NoError(t, err)
				return owner, term, lock
			}
			_, before, lockBefore := begin(others[0])
			require.NoError(t, before.Put(testkit.Ctx(t), "state", []byte("before")))
			for _, bucket := range []string{"elections", "locks"} {
				require.NoError(t, c.DeleteBucket(testkit.Ctx(t), bucket))
			}
			owner, after, lockAfter := begin(others[1])
			require.NoError(t, after.Put(testkit.Ctx(t), "state", []byte("after")))
			if !others[1] {
				assert.Greater(t, after.Token(), before.Token(), "tokens grow")
				assert.Greater(t, lockAfter.Token(), lockBefore.Token())
			}

			began := time.Now()
			require.ErrorIs(t, before.Put(testkit.Ctx(t), "state", []byte("late")), natty.ErrDeposed)
			require.ErrorIs(t, lockBefore.Release(testkit.Ctx(t)), natty.ErrDeposed)
			require.NoError(t, after.Put(testkit.Ctx(t), "other", nil), "the term after it is valid")
			value, err := c.Get(testkit.Ctx(t), "elections", "state")
			require.NoError(t, err)
			assert.Equal(t, "after", string(value))
			_, err = owner.TryLock(testkit.Ctx(t), testkit.Door(ttl))
			require.ErrorIs(t, err, natty.ErrLocked, "the lock is not released by its former owner")
			require.NoError(t, lockAfter.Release(testkit.Ctx(t)))
			assert.Less(t, time.Since(began), testkit.AtOnce, "the server is believed at once")
		})
	}
}

// In a bucket of another TTL the leader would trust a key that is gone, or nobody would
// follow when it dies.
func TestStandbyLeadsInNoBucketThatGotAnotherTTL(t *testing.T) {
	t.Parallel()
	change := func(c *natty.Client, age time.Duration) {
		s, err := c.JetStream().Stream(testkit.Ctx(t), "KV_elections")
		require.NoError(t, err)
		cfg := s.CachedInfo().Config
		cfg.MaxAge, cfg.SubjectDeleteMarkerTTL, cfg.Duplicates = age, time.Second, time.Second
		_, err = c.JetStream().UpdateStream(testkit.Ctx(t), cfg)
		require.NoError(t, err)
	}
	for name, hurt := range map[string]func(leader, other *natty.Client){
		"made again": func(_, other *natty.Client) {
			require.NoError(t, other.DeleteBucket(testkit.Ctx(t), "elections"))
			testkit.Bucket(t, other, jetstream.KeyValueConfig{Bucket: "elections"})
		},
		"shorter, and the leader is cut off": func(leader, other *natty.Client) {
			change(other, time.Second)
			leader.Conn().Close()
		},
		"none, and the leader dies": func(leader, other *natty.Client) {
			change(other, 0)
			leader.Conn().Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			leader, standby, other := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL())
			reign := &testkit.Reign{T: t}
			testkit.Lead(t, leader, testkit.Electing("a"), reign.Lead("a", nil))
			testkit.Eventually(t, func() bool { return reign.Count() == 1 }, "a leads")
			ended := make(chan error, 1)
			go func() { ended <- standby.Lead(testkit.Ctx(t), testkit.Electing("b"), reign.Lead("b", nil)) }()
			<-time.After(testkit.LeaseTTL / 2) // b has looked
			hurt(leader, other)
			require.ErrorIs(t, testkit.Receive(t, ended), natty.ErrBucketTTLMismatch)
			assert.Equal(t, 1, reign.Count())
		})
	}
}

func TestKeysOfATermAndLeasesDoNotOverwriteEachOther(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, other := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL())
	lead := func(c *natty.Client, key string) (chan *natty.Term, func() error) {
		cfg, terms := testkit.Electing(key), make(chan *natty.Term, 10)
		cfg.Key = key
		return terms, testkit.Lead(t, c, cfg, func(ctx context.Context, term *natty.Term) error {
			terms <- term
			<-ctx.Done()
			return nil
		})
	}
	terms, _ := lead(c, "job")
	term := testkit.Receive(t, terms)
	lock := natty.LockConfig{Bucket: "elections", Key: "door", TTL: testkit.LeaseTTL}
	held, err := other.Lock(testkit.Ctx(t), lock)
	require.NoError(t, err)
	leases, stop := lead(other, "other")
	testkit.Receive(t, leases)
	refused := func(keys ...string) {
		for _, key := range keys {
			var config *natty.ConfigError
			require.ErrorAs(t, term.Put(testkit.Ctx(t), key, nil), &config, key)
		}
	}
	refused("door", "other", "other._term")
	require.NoError(t, stop())
	require.NoError(t, held.Release(testkit.Ctx(t)))
	refused("other", "other._term") // it has been an election

	// What the term has written is nobody's lease.
	require.NoError(t, term.Put(testkit.Ctx(t), "state", []byte("kept")))
	lock.Key = "state"
	_, err = other.TryLock(testkit.Ctx(t), lock)
	require.ErrorIs(t, err, natty.ErrLocked)
	waiting, _ := lead(other, "state")
	testkit.Eventually(t, func() bool { return strings.Contains(election(other).LastError, "delete the key") }, "it is told")
	require.Empty(t, waiting)
	value, err := c.Get(testkit.Ctx(t), "elections", "state")
	require.NoError(t, err)
	assert.Equal(t, "kept", string(value))

	// A key of the term that becomes an election's is the term's no more.
	require.NoError(t, other.Delete(testkit.Ctx(t), "elections", "state"))
	testkit.Receive(t, waiting)
	refused("state")
	require.NoError(t, term.Put(testkit.Ctx(t), "more", nil), "the term goes on")
}

func TestPutThatIsDeposedBeforeItWritesSaysSo(t *testing.T) {
	t.Parallel()
	link := nattytest.Proxy(t, nattytest.Server(t).URL())
	terms := make(chan *natty.Term, 10) // it leads again
	testkit.Lead(t, testkit.ConnectTo(t, link.URL()), testkit.Electing("a"), func(ctx context.Context, term *natty.Term) error {
		terms <- term
		<-ctx.Done()
		return nil
	})
	term := testkit.Receive(t, terms)
	link.Freeze()
	// The first Put of a key asks whose it is.
	err := term.Put(testkit.Ctx(t), "state", nil)
	link.Thaw()
	require.ErrorIs(t, err, natty.ErrDeposed)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
}

func TestManyWritesOfALeaderAreNotTakenForADeposition(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	err := c.Lead(testkit.Ctx(t), testkit.Electing("a"), func(ctx context.Context, term *natty.Term) error {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 20 {
					if err := term.Put(ctx, fmt.Sprint("k", i), fmt.Append(nil, j)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return nil
	})
	require.NoError(t, err)
}

func TestElectionSurvivesTheLossOfItsStreamsLeader(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	r := &testkit.Reign{T: t}
	var clients []*natty.Client
	for i := range 2 {
		c := testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
		clients = append(clients, c)
		cfg := testkit.Electing(fmt.Sprint("node-", i))
		cfg.BucketTTL = 3 * time.Second
		testkit.Lead(t, c, cfg, r.Lead(cfg.NodeName, nil))
	}
	testkit.Eventually(t, func() bool { return r.Count() == 1 }, "there is a leader")
	node := cluster.StreamLeader("KV_elections")
	node.Stop()
	<-time.After(testkit.LeaseTTL / 2)
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		leader, err := clients[0].GetLeader(ctx, "elections", "job")
		return err == nil && leader == r.Leader() && r.Active.Load() == 1
	}, "there is one leader afterwards")
}

func TestElectionThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	_, err := c.JetStream().CreateKeyValue(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "old", TTL: time.Minute, LimitMarkerTTL: time.Minute})
	require.NoError(t, err)
	_, err = c.JetStream().CreateKeyValue(testkit.Ctx(t), jetstream.KeyValueConfig{Bucket: "history", TTL: testkit.LeaseTTL, History: 5, LimitMarkerTTL: testkit.LeaseTTL})
	require.NoError(t, err)
	for name, test := range map[string]struct {
		change func(*natty.AsLeaderConfig)
		want   string
	}{
		"no bucket":     {func(c *natty.AsLeaderConfig) { c.Bucket = "" }, "bucket: is empty"},
		"no key":        {func(c *natty.AsLeaderConfig) { c.Key = "" }, "key: is empty"},
		"no name":       {func(c *natty.AsLeaderConfig) { c.NodeName = "" }, "NodeName: is empty"},
		"bucket":        {func(c *natty.AsLeaderConfig) { c.Bucket = "a.b" }, `"a.b"`},
		"key":           {func(c *natty.AsLeaderConfig) { c.Key = "a b" }, `"a b"`},
		"term key":      {func(c *natty.AsLeaderConfig) { c.Key = "a._term" }, "natty uses"},
		"short TTL":     {func(c *natty.AsLeaderConfig) { c.BucketTTL = time.Millisecond }, "whole seconds"},
		"odd TTL":       {func(c *natty.AsLeaderConfig) { c.BucketTTL = 1500 * time.Millisecond }, "1.5s"},
		"another TTL":   {func(c *natty.AsLeaderConfig) { c.Bucket = "old" }, "it has 1m0s, and BucketTTL is 2s"},
		"history":       {func(c *natty.AsLeaderConfig) { c.Bucket = "history" }, "5 revisions"},
		"many replicas": {func(c *natty.AsLeaderConfig) { c.Bucket, c.ReplicaCount = "new", 3 }, "replicas"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testkit.Electing("a")
			test.change(&cfg)
			err := c.Lead(testkit.Ctx(t), cfg, func(context.Context, *natty.Term) error { return nil })
			require.ErrorContains(t, err, test.want)
			require.ErrorContains(t, c.AsLeader(testkit.Ctx(t), cfg, func() error { return nil }), test.want)
		})
	}
	cfg := testkit.Electing("a")
	cfg.Bucket = "old"
	require.ErrorIs(t, c.Lead(testkit.Ctx(t), cfg, func(context.Context, *natty.Term) error { return nil }), natty.ErrBucketTTLMismatch)
	require.Error(t, c.Lead(testkit.Ctx(t), testkit.Electing("a"), nil))
	require.Error(t, c.AsLeader(testkit.Ctx(t), testkit.Electing("a"), nil))
}

// The program of the README of the library that this one learnt from.
func TestLeaseOverALimitSaysSo(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.MaxPayload = 2000 }))
	c := testkit.ConnectTo(t, node.URL())
	ctx := testkit.Ctx(t)
	long := strings.Repeat("n", 2000)
	put := func(data string) error {
		return c.Lead(ctx, testkit.Electing("a"), func(ctx context.Context, term *natty.Term) error {
			return term.Put(ctx, "k", []byte(data))
		})
	}
	tooLong := func(limit string) {
		t.Helper()
		door := testkit.Door(testkit.LeaseTTL)
		door.Owner = long
		_, lockErr := c.Lock(ctx, door)
		_, tryErr := c.TryLock(ctx, door)
		leadErr := c.Lead(ctx, testkit.Electing(long), func(context.Context, *natty.Term) error { return nil })
		for _, err := range []error{lockErr, tryErr, leadErr, put(long)} {
			require.ErrorIs(t, err, natty.ErrTooLarge)
			require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
			require.ErrorContains(t, err, limit)
		}
	}
	tooLong("the server takes 2000 at most")

	for _, bucket := range []string{testkit.Door(0).Bucket, testkit.Electing("").Bucket} {
		js, err := c.JetStream().Stream(ctx, "KV_"+bucket)
		require.NoError(t, err)
		cfg := js.CachedInfo().Config
		cfg.MaxMsgSize = 1000
		_, err = c.JetStream().UpdateStream(ctx, cfg)
		require.NoError(t, err)
	}
	long = long[:1000]
	tooLong("max_msg_size")
	require.NoError(t, put("short"))
}

func TestAsLeaderRunsOnOneOfTwoNodes(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	var ran [2]atomic.Int64
	var active atomic.Int32
	stops := make([]func(), 2)
	for i := range 2 {
		c := testkit.ConnectTo(t, server.URL())
		cfg := testkit.Electing(fmt.Sprint("node-", i))
		looper := director.NewFreeLooper(director.FOREVER, make(chan error, 1))
		cfg.Looper = looper
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- c.AsLeader(ctx, cfg, func() error {
				assert.EqualValues(t, 1, active.Add(1))
				defer active.Add(-1)
				ran[i].Add(1)
				if ran[i].Load() == 3 {
					panic("is logged, and it goes on")
				}
				return testkit.ErrHandler
			})
		}()
		stops[i] = func() {
			cancel()
			require.NoError(t, testkit.Receive(t, done))
			require.NoError(t, looper.Wait(), "the done channel is told")
		}
	}
	testkit.Eventually(t, func() bool { return ran[0].Load()+ran[1].Load() > 10 }, "one of them runs")
	leader := 0
	if ran[0].Load() == 0 {
		leader = 1
	}
	assert.Zero(t, ran[1-leader].Load())
	stops[leader]()
	testkit.Eventually(t, func() bool { return ran[1-leader].Load() > 10 }, "then the other one")
	stops[1-leader]()
}

func TestAsLeaderEndsWithItsLooper(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	var ran atomic.Int32
	run := func() error { ran.Add(1); return nil }
	cfg := testkit.Electing("a")
	cfg.Looper = director.NewImmediateTimedLooper(3, time.Millisecond, nil)
	require.NoError(t, c.AsLeader(testkit.Ctx(t), cfg, run))
	assert.LessOrEqual(t, ran.Load(), int32(3))
	// A done channel that nobody reads.
	looper := director.NewTimedLooper(director.FOREVER, time.Millisecond, make(chan error))
	cfg.Looper = looper
	done := make(chan error, 1)
	before := ran.Load()
	go func() { done <- c.AsLeader(testkit.Ctx(t), cfg, run) }()
	testkit.Eventually(t, func() bool { return ran.Load() > before }, "it runs")
	looper.Quit()
	require.NoError(t, testkit.Receive(t, done))
	require.NoError(t, looper.Wait())
	_, err := c.GetLeader(testkit.Ctx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound, "the leadership is given back")
}

func TestCloseEndsLeadershipAndLocks(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Name: "a", Servers: []string{server.URL()}}, testkit.Quiet)
	require.NoError(t, err)
	lock, err := c.Lock(testkit.Ctx(t), natty.LockConfig{Bucket: "locks", Key: "door"})
	require.NoError(t, err)
	led, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- c.Lead(context.Background(), testkit.Electing("a"), func(ctx context.Context, _ *natty.Term) error {
			close(led)
			<-ctx.Done()
			assert.Error(t, c.Close(ctx), "not from within")
			return nil
		})
	}()
	testkit.Receive(t, led)
	require.NoError(t, c.Close(testkit.Ctx(t)))
	require.NoError(t, testkit.Receive(t, done))
	require.Error(t, lock.Context().Err())
	other := testkit.ConnectTo(t, server.URL())
	_, err = other.GetLeader(testkit.Ctx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	free, err := other.TryLock(testkit.Ctx(t), natty.LockConfig{Bucket: "locks", Key: "door"})
	require.NoError(t, err, "the lock is free")
	require.NoError(t, free.Release(testkit.Ctx(t)))
}

// AsLeader's function has no ctx by which Close could tell its caller.
func TestCloseByALeadersFunctionIsRefused(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	errs := make(chan error, 10)
	closeIt := func() error { errs <- c.Close(testkit.Ctx(t)); return nil }
	cfg := testkit.Electing("a")
	cfg.Looper = director.NewImmediateTimedLooper(2, time.Millisecond, nil)
	require.NoError(t, c.AsLeader(testkit.Ctx(t), cfg, closeIt))
	require.NoError(t, c.Lead(testkit.Ctx(t), cfg, func(context.Context, *natty.Term) error { return closeIt() }))
	for range 3 {
		require.ErrorContains(t, testkit.Receive(t, errs), "call it from outside")
	}
	require.NoError(t, c.Put(testkit.Ctx(t), "b", "k", nil), "it is open still")

	// Another goroutine may, if the function does not wait for it.
	led, closed := make(chan struct{}), make(chan error, 1)
	cfg.Looper = director.NewFreeLooper(director.FOREVER, make(chan error, 1))
	go func() { <-led; closed <- c.Close(testkit.Ctx(t)) }()
	require.NoError(t, c.AsLeader(testkit.Ctx(t), cfg, sync.OnceValue(func() error { close(led); return nil })))
	require.NoError(t, testkit.Receive(t, closed))
}

// t.FailNow in a leader's function ends its goroutine.
func TestLeaderThatEndsItsGoroutineGivesTheLeadershipBack(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Lead(context.Background(), testkit.Electing("a"), func(context.Context, *natty.Term) error { runtime.Goexit(); return nil })
	}()
	testkit.Receive(t, ended)
	_, err := c.GetLeader(testkit.Ctx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)

	var ran atomic.Int32
	stop := testkit.Background(t, "AsLeader", func(ctx context.Context) error {
		return c.AsLeader(ctx, testkit.Electing("a"), func() error { ran.Add(1); runtime.Goexit(); return nil })
	})
	testkit.Eventually(t, func() bool { return ran.Load() > 3 }, "it goes on")
	require.NoError(t, stop())
	require.NoError(t, c.Close(testkit.Ctx(t)))
}
