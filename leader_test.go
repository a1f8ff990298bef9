package natty_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/relistan/go-director"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

// leaseTTL is as short as it can be for a machine that is busy with other tests.
const leaseTTL = 2 * time.Second

func electing(node string) natty.AsLeaderConfig {
	return natty.AsLeaderConfig{Bucket: "elections", Key: "job", NodeName: node, BucketTTL: leaseTTL}
}

// reign watches that at most one leads, and that tokens grow.
type reign struct {
	t      testing.TB
	active atomic.Int32
	mu     sync.Mutex
	token  uint64
	terms  []string
	began  []time.Time
	ended  []time.Time
}

// lead is a function for Lead that leads until its ctx ends, or stop is closed.
func (r *reign) lead(node string, stop <-chan struct{}) func(context.Context, *natty.Term) error {
	return func(ctx context.Context, term *natty.Term) error {
		r.begin(node, term)
		defer r.end()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stop:
			return nil
		}
	}
}

func (r *reign) begin(node string, term *natty.Term) {
	assert.EqualValues(r.t, 1, r.active.Add(1), "one leader at a time")
	r.mu.Lock()
	defer r.mu.Unlock()
	assert.Greater(r.t, term.Token(), r.token, "tokens grow")
	r.token = term.Token()
	r.terms, r.began = append(r.terms, node), append(r.began, time.Now())
}

func (r *reign) end() {
	r.mu.Lock()
	r.ended = append(r.ended, time.Now())
	r.mu.Unlock()
	r.active.Add(-1)
}

func (r *reign) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.terms)
}

func (r *reign) leader() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.terms) == 0 {
		return ""
	}
	return r.terms[len(r.terms)-1]
}

// lead runs Lead in the background until stop is called, which returns what it returned.
func lead(t testing.TB, c *natty.Client, cfg natty.AsLeaderConfig, f func(context.Context, *natty.Term) error) (stop func() error) {
	t.Helper()
	return background(t, "Lead", func(ctx context.Context) error { return c.Lead(ctx, cfg, f) })
}

func TestOnlyOneLeadsAndTheNextFollowsAtOnceWhenItStops(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	r := &reign{t: t}
	stops := map[string]func() error{}
	for i := range 3 {
		node := fmt.Sprint("node-", i)
		stops[node] = lead(t, connectTo(t, server.URL()), electing(node), r.lead(node, nil))
	}
	c := connectTo(t, server.URL())
	var slowest time.Duration
	for n := 1; n <= 3; n++ {
		eventually(t, func() bool { return r.count() == n }, "there is a leader")
		leader := r.leader()
		assert.True(t, c.HaveLeader(testCtx(t), leader, "elections", "job"))
		assert.False(t, c.HaveLeader(testCtx(t), "nobody", "elections", "job"))
		got, err := c.GetLeader(testCtx(t), "elections", "job")
		require.NoError(t, err)
		assert.Equal(t, leader, got)
		require.NoError(t, stops[leader]())
	}
	r.mu.Lock()
	for n := 1; n < 3; n++ {
		slowest = max(slowest, r.began[n].Sub(r.ended[n-1]))
	}
	r.mu.Unlock()
	assert.Less(t, slowest, leaseTTL/2, "not after the TTL")
	_, err := c.GetLeader(testCtx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	_, err = c.GetLeader(testCtx(t), "none", "job")
	require.ErrorIs(t, err, jetstream.ErrBucketNotFound)
}

func TestTwoNodesOfOneNameAreTwo(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	r := &reign{t: t}
	for range 2 {
		lead(t, connectTo(t, server.URL()), electing("twin"), r.lead("twin", nil))
	}
	eventually(t, func() bool { return r.count() == 1 }, "there is a leader")
	<-time.After(leaseTTL) // a term in which the other one could make a mistake
	assert.Equal(t, 1, r.count())
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
			r := &reign{t: t}
			lead(t, connectTo(t, link.URL()), electing("first"), r.lead("first", nil))
			eventually(t, func() bool { return r.leader() == "first" }, "the first one leads")
			lead(t, connectTo(t, server.URL()), electing("second"), r.lead("second", nil))
			at := time.Now()
			fault(link)
			eventually(t, func() bool { return r.leader() == "second" }, "the second one follows")
			r.mu.Lock()
			assert.Less(t, r.ended[0].Sub(at), leaseTTL, "the first one's ctx ended in time")
			assert.True(t, r.ended[0].Before(r.began[1]))
			r.mu.Unlock()
			link.Refuse(false)
			link.Thaw()
			<-time.After(leaseTTL / 2)
			assert.Equal(t, "second", r.leader(), "and the first one stands by")
		})
	}
}

func TestStandbyAsksTheServerNothing(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	r := &reign{t: t}
	lead(t, connectTo(t, server.URL()), electing("leader"), r.lead("leader", nil))
	eventually(t, func() bool { return r.count() == 1 }, "there is a leader")
	standby := connectTo(t, server.URL())
	spy := connectTo(t, server.URL()).Conn()
	lead(t, standby, electing("standby"), r.lead("standby", nil))
	before := standby.Conn().Stats().OutMsgs
	stable := func() bool {
		now := standby.Conn().Stats().OutMsgs
		same := now == before && now > 1
		before = now
		return same
	}
	require.Eventually(t, stable, patience, 200*time.Millisecond, "it stands by")
	renewals := make(chan *nats.Msg, 100)
	_, err := spy.ChanSubscribe("$KV.elections.job", renewals)
	require.NoError(t, err)
	for range 8 { // more than two TTLs
		receive(t, renewals)
	}
	assert.Equal(t, before, standby.Conn().Stats().OutMsgs, "it sent nothing")
	assert.Equal(t, 1, r.count())
}

func TestLeadReturnsWhatItsFunctionReturns(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	err := c.Lead(testCtx(t), electing("a"), func(context.Context, *natty.Term) error { return errHandler })
	require.ErrorIs(t, err, errHandler)
	err = c.Lead(testCtx(t), electing("a"), func(context.Context, *natty.Term) error { panic("no") })
	require.ErrorContains(t, err, "panicked: no")
	require.ErrorContains(t, err, "leader_test.go")
	ctx, cancel := context.WithCancel(t.Context())
	err = c.Lead(ctx, electing("a"), func(ctx context.Context, _ *natty.Term) error { cancel(); <-ctx.Done(); return ctx.Err() })
	require.NoError(t, err)
	_, err = c.GetLeader(testCtx(t), "elections", "job")
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
	lead(t, connectTo(t, link.URL()), electing("first"), keep)
	first := receive(t, terms)
	direct := connectTo(t, server.URL())
	lead(t, direct, electing("second"), keep)
	link.Freeze()
	// On its way, in a connection that delivers it when another one leads.
	late := make(chan error, 1)
	go func() { late <- first.Put(context.Background(), "state", []byte("late")) }()
	second := receive(t, terms)
	link.Thaw()
	require.ErrorIs(t, receive(t, late), natty.ErrDeposed)
	require.ErrorIs(t, first.Put(testCtx(t), "state", []byte("later")), natty.ErrDeposed)
	kv, err := direct.JetStream().KeyValue(testCtx(t), "elections")
	require.NoError(t, err)
	<-time.After(leaseTTL * 3 / 2) // it outlives the bucket's TTL
	entry, err := kv.Get(testCtx(t), "state")
	require.NoError(t, err)
	assert.Equal(t, fmt.Sprint(second.Token()), string(entry.Value()))
	for _, key := range []string{"job", "job._term", "", "a b"} {
		var config *natty.ConfigError
		require.ErrorAs(t, second.Put(testCtx(t), key, nil), &config, key)
	}
}

func TestPutThatIsDeposedBeforeItWritesSaysSo(t *testing.T) {
	t.Parallel()
	link := nattytest.Proxy(t, nattytest.Server(t).URL())
	terms := make(chan *natty.Term, 10) // it leads again
	lead(t, connectTo(t, link.URL()), electing("a"), func(ctx context.Context, term *natty.Term) error {
		terms <- term
		<-ctx.Done()
		return nil
	})
	term := receive(t, terms)
	link.Freeze()
	// The first Put of a key asks whose it is.
	err := term.Put(testCtx(t), "state", nil)
	link.Thaw()
	require.ErrorIs(t, err, natty.ErrDeposed)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
}

func TestManyWritesOfALeaderAreNotTakenForADeposition(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	err := c.Lead(testCtx(t), electing("a"), func(ctx context.Context, term *natty.Term) error {
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
	r := &reign{t: t}
	var clients []*natty.Client
	for i := range 2 {
		c := connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
		clients = append(clients, c)
		cfg := electing(fmt.Sprint("node-", i))
		cfg.BucketTTL = 3 * time.Second
		lead(t, c, cfg, r.lead(cfg.NodeName, nil))
	}
	eventually(t, func() bool { return r.count() == 1 }, "there is a leader")
	node := cluster.StreamLeader("KV_elections")
	node.Stop()
	<-time.After(leaseTTL / 2)
	require.NoError(t, node.Restart())
	eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		leader, err := clients[0].GetLeader(ctx, "elections", "job")
		return err == nil && leader == r.leader() && r.active.Load() == 1
	}, "there is one leader afterwards")
}

func TestElectionThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	_, err := c.JetStream().CreateKeyValue(testCtx(t), jetstream.KeyValueConfig{Bucket: "old", TTL: time.Minute, LimitMarkerTTL: time.Minute})
	require.NoError(t, err)
	_, err = c.JetStream().CreateKeyValue(testCtx(t), jetstream.KeyValueConfig{Bucket: "history", TTL: leaseTTL, History: 5, LimitMarkerTTL: leaseTTL})
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
			cfg := electing("a")
			test.change(&cfg)
			err := c.Lead(testCtx(t), cfg, func(context.Context, *natty.Term) error { return nil })
			require.ErrorContains(t, err, test.want)
			require.ErrorContains(t, c.AsLeader(testCtx(t), cfg, func() error { return nil }), test.want)
		})
	}
	cfg := electing("a")
	cfg.Bucket = "old"
	require.ErrorIs(t, c.Lead(testCtx(t), cfg, func(context.Context, *natty.Term) error { return nil }), natty.ErrBucketTTLMismatch)
	require.Error(t, c.Lead(testCtx(t), electing("a"), nil))
	require.Error(t, c.AsLeader(testCtx(t), electing("a"), nil))
}

// The program of the README of the library that this one learnt from.
func TestAsLeaderRunsOnOneOfTwoNodes(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	var ran [2]atomic.Int64
	var active atomic.Int32
	stops := make([]func(), 2)
	for i := range 2 {
		c := connectTo(t, server.URL())
		cfg := electing(fmt.Sprint("node-", i))
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
				return errHandler
			})
		}()
		stops[i] = func() {
			cancel()
			require.NoError(t, receive(t, done))
			require.NoError(t, looper.Wait(), "the done channel is told")
		}
	}
	eventually(t, func() bool { return ran[0].Load()+ran[1].Load() > 10 }, "one of them runs")
	leader := 0
	if ran[0].Load() == 0 {
		leader = 1
	}
	assert.Zero(t, ran[1-leader].Load())
	stops[leader]()
	eventually(t, func() bool { return ran[1-leader].Load() > 10 }, "then the other one")
	stops[1-leader]()
}

func TestAsLeaderEndsWithItsLooper(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	var ran atomic.Int32
	run := func() error { ran.Add(1); return nil }
	cfg := electing("a")
	cfg.Looper = director.NewImmediateTimedLooper(3, time.Millisecond, nil)
	require.NoError(t, c.AsLeader(testCtx(t), cfg, run))
	assert.LessOrEqual(t, ran.Load(), int32(3))
	// A done channel that nobody reads.
	looper := director.NewTimedLooper(director.FOREVER, time.Millisecond, make(chan error))
	cfg.Looper = looper
	done := make(chan error, 1)
	before := ran.Load()
	go func() { done <- c.AsLeader(testCtx(t), cfg, run) }()
	eventually(t, func() bool { return ran.Load() > before }, "it runs")
	looper.Quit()
	require.NoError(t, receive(t, done))
	require.NoError(t, looper.Wait())
	_, err := c.GetLeader(testCtx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound, "the leadership is given back")
}

func TestCloseEndsLeadershipAndLocks(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, err := natty.Connect(testCtx(t), natty.Config{Name: "a", Servers: []string{server.URL()}}, quiet)
	require.NoError(t, err)
	lock, err := c.Lock(testCtx(t), natty.LockConfig{Bucket: "locks", Key: "door"})
	require.NoError(t, err)
	led, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- c.Lead(context.Background(), electing("a"), func(ctx context.Context, _ *natty.Term) error {
			close(led)
			<-ctx.Done()
			assert.Error(t, c.Close(ctx), "not from within")
			return nil
		})
	}()
	receive(t, led)
	require.NoError(t, c.Close(testCtx(t)))
	require.NoError(t, receive(t, done))
	require.Error(t, lock.Context().Err())
	other := connectTo(t, server.URL())
	_, err = other.GetLeader(testCtx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)
	free, err := other.TryLock(testCtx(t), natty.LockConfig{Bucket: "locks", Key: "door"})
	require.NoError(t, err, "the lock is free")
	require.NoError(t, free.Release(testCtx(t)))
}

// t.FailNow in a leader's function ends its goroutine.
func TestLeaderThatEndsItsGoroutineGivesTheLeadershipBack(t *testing.T) {
	t.Parallel()
	c := connectTo(t, nattytest.Server(t).URL())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Lead(context.Background(), electing("a"), func(context.Context, *natty.Term) error { runtime.Goexit(); return nil })
	}()
	receive(t, ended)
	_, err := c.GetLeader(testCtx(t), "elections", "job")
	require.ErrorIs(t, err, jetstream.ErrKeyNotFound)

	var ran atomic.Int32
	stop := background(t, "AsLeader", func(ctx context.Context) error {
		return c.AsLeader(ctx, electing("a"), func() error { ran.Add(1); runtime.Goexit(); return nil })
	})
	eventually(t, func() bool { return ran.Load() > 3 }, "it goes on")
	require.NoError(t, stop())
	require.NoError(t, c.Close(testCtx(t)))
}
