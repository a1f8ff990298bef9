package faulttest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// seeds is how often a test of chance runs: what NATTY_SEEDS says, or n times.
func seeds(t testing.TB, n int) int {
	t.Helper()
	if s := os.Getenv("NATTY_SEEDS"); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	return n
}

func TestLeadershipIsHandedOverAtOnce(t *testing.T) {
	t.Parallel()
	handovers := 10 * seeds(t, 2)
	server := nattytest.Server(t)
	r := &testkit.Reign{T: t}
	ctx, cancel := context.WithCancel(testkit.Ctx(t))
	var wg sync.WaitGroup
	for i := range 3 {
		c, node := testkit.ConnectTo(t, server.URL()), fmt.Sprint("node-", i)
		wg.Go(func() {
			for ctx.Err() == nil {
				assert.NoError(t, c.Lead(ctx, testkit.Electing(node), func(_ context.Context, term *natty.Term) error {
					r.Begin(node, term)
					defer r.End()
					<-time.After(20 * time.Millisecond)
					return nil
				}))
			}
		})
	}
	testkit.Eventually(t, func() bool { return r.Count() > handovers }, "they take turns")
	cancel()
	wg.Wait()
	var took []time.Duration
	for n := range handovers {
		took = append(took, r.Began[n+1].Sub(r.Ended[n]))
	}
	slices.Sort(took)
	median, worst := took[len(took)/2], took[len(took)*99/100]
	t.Logf("%d times: median %v, 99th percentile %v", handovers, median, worst)
	assert.Less(t, median, testkit.LeaseTTL/4, "far below the TTL that a standby would wait for; a few ms on a machine that is not busy")
}

// intercept calls f with each write of a key when the server has it; through a link with a delay, its answer is still
// on the way then.
func intercept(t testing.TB, url, subject string, f func(n int)) {
	t.Helper()
	n := 0
	_, err := testkit.ConnectTo(t, url).Conn().Subscribe(subject, func(m *nats.Msg) {
		if m.Header.Get("KV-Operation") == "" {
			n++
			f(n)
		}
	})
	require.NoError(t, err)
}

func TestLostAnswerIsNeitherALostNorAKeptLease(t *testing.T) {
	t.Parallel()
	const writes = 4 // the first one makes it the leader, the others renew
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	written := make(chan int, 100)
	intercept(t, server.URL(), "$KV.elections.job", func(n int) {
		if n < writes {
			link.Cut()
		}
		written <- n
	})
	intercept(t, server.URL(), "$KV.elections.state", func(n int) {
		if n <= 2 {
			link.Cut()
		}
	})
	c := testkit.ConnectTo(t, link.URL())
	link.Delay(20 * time.Millisecond)
	r := &testkit.Reign{T: t}
	cfg := func(node string) natty.AsLeaderConfig {
		cfg := testkit.Electing(node)
		cfg.BucketTTL = 3 * testkit.LeaseTTL // it has to connect again in time
		return cfg
	}
	testkit.Lead(t, c, cfg("a"), func(ctx context.Context, term *natty.Term) error {
		for i := range 3 {
			if err := term.Put(ctx, "state", fmt.Append(nil, i)); err != nil {
				t.Error(err)
			}
		}
		return r.Lead("a", nil)(ctx, term)
	})
	testkit.Eventually(t, func() bool { return r.Count() == 1 }, "it leads")
	testkit.Lead(t, testkit.ConnectTo(t, server.URL()), cfg("b"), r.Lead("b", nil))
	for n := 0; n < writes; {
		n = testkit.Receive(t, written)
	}
	assert.Equal(t, 1, r.Count(), "it has led all the time")
	assert.Equal(t, "a", r.Leader())
	assert.EqualValues(t, 1, r.Active.Load())
}

func TestValidTermIsNotDeposedWhenItsStreamChangesItsLeader(t *testing.T) {
	t.Parallel()
	changes := seeds(t, 2)
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3})
	cfg := testkit.Electing("a")
	cfg.BucketTTL = 5 * testkit.LeaseTTL
	err := c.Lead(t.Context(), cfg, func(ctx context.Context, term *natty.Term) error {
		writing, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for n := 0; writing.Err() == nil; n++ {
					if err := term.Put(ctx, fmt.Sprint("k", i), fmt.Append(nil, n)); !assert.NoError(t, err) {
						return
					}
				}
			})
		}
		for range changes {
			<-time.After(200 * time.Millisecond)
			_, _ = c.Conn().Request("$JS.API.STREAM.LEADER.STEPDOWN.KV_elections", nil, time.Second) // may get no answer
		}
		cancel()
		wg.Wait()
		return ctx.Err()
	})
	require.NoError(t, err)
}

func TestNeverTwoLeadersInAClusterThatLosesNodes(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	r := &testkit.Reign{T: t}
	for range 3 {
		testkit.Lead(t, testkit.Connect(t, natty.Config{Servers: cluster.URLs(), Replicas: 3}), testkit.Electing("twin"), r.Lead("twin", nil))
	}
	asked := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	led := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return asked.HaveLeader(ctx, "twin", "elections", "job") && r.Active.Load() == 1
	}
	testkit.Eventually(t, led, "somebody leads")
	for range seeds(t, 2) {
		node := cluster.StreamLeader("KV_elections")
		node.Stop()
		testkit.Eventually(t, led, "without the node that is down")
		require.NoError(t, node.Restart())
		cluster.WaitReady()
		testkit.Eventually(t, led, "and afterwards")
	}
	t.Logf("%d terms", r.Count())
}

// TestNeverTwoLeadersUnderChaos cuts, freezes and delays connections, stops leaders, and restarts the server at random.
func TestNeverTwoLeadersUnderChaos(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t, 3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			electionChaos(t, rand.New(rand.NewPCG(uint64(seed), 1)))
		})
	}
}

func electionChaos(t *testing.T, random *rand.Rand) {
	t.Helper()
	const steps = 12
	server := nattytest.Server(t)
	r := &testkit.Reign{T: t}
	links, clients, stops := [3]*nattytest.Link{}, [3]*natty.Client{}, [3]func() error{}
	for i := range links {
		links[i] = nattytest.Proxy(t, server.URL())
		clients[i] = testkit.ConnectTo(t, links[i].URL())
		stops[i] = testkit.Lead(t, clients[i], testkit.Electing("twin"), r.Lead(fmt.Sprint(i), nil))
	}
	whole := func() {
		for _, l := range links {
			l.Delay(0)
			l.Thaw()
		}
	}
	t.Cleanup(whole)
	testkit.Eventually(t, func() bool { return r.Count() > 0 }, "somebody leads")
	for range steps {
		i := random.IntN(len(links))
		if random.IntN(3) > 0 {
			i, _ = strconv.Atoi(r.Leader())
		}
		if random.IntN(20) == 0 {
			server.Stop()
			<-time.After(time.Duration(random.Int64N(int64(testkit.LeaseTTL))))
			require.NoError(t, server.Restart())
		}
		if random.IntN(5) == 0 {
			require.NoError(t, stops[i]())
			stops[i] = testkit.Lead(t, clients[i], testkit.Electing("twin"), r.Lead(fmt.Sprint(i), nil))
		}
		disturb(links[i], random, testkit.LeaseTTL)
		<-time.After(time.Duration(random.Int64N(int64(testkit.LeaseTTL / 3))))
	}
	whole()
	before := r.Count()
	testkit.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return r.Active.Load() == 1 && clients[0].HaveLeader(ctx, "twin", "elections", "job")
	}, "somebody leads in the end")
	t.Logf("%d terms, %d of them under faults", r.Count(), before)
}

// disturb makes a fault of the network, which ends by itself within 2·scale. A delay, of scale/8 at most, stays.
func disturb(link *nattytest.Link, random *rand.Rand, scale time.Duration) {
	switch random.IntN(5) {
	case 0:
		link.Cut()
	case 1:
		link.Delay(upTo(random, scale/8))
	case 2:
		link.Freeze()
		time.AfterFunc(upTo(random, 2*scale), link.Thaw)
	case 3:
		link.FreezeReplies()
		time.AfterFunc(upTo(random, 2*scale), link.Thaw)
	case 4:
		link.FreezeReplies()
		time.AfterFunc(upTo(random, scale/2), func() { link.Cut(); link.Thaw() })
	}
}

func upTo(random *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(d)))
}

// The lock as one that sees all would describe it: whose it is, by token, or nobody's.
type lockState struct{ owner, last uint64 }

// lockOp gives the lock to the owner of a token, or takes it from it.
type lockOp struct {
	token uint64
	end   bool
}

var lockModel = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, op := state.(lockState), input.(lockOp)
		if op.end {
			return s.owner == op.token, lockState{last: s.last}
		}
		return s.owner == 0 && op.token > s.last, lockState{owner: op.token, last: op.token}
	},
}

// history is what clients have done, and when.
type history struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
}

func (h *history) add(client int, op, result any, call, back time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{
		ClientId: client, Input: op, Output: result, Call: int64(call.Sub(h.began)), Return: int64(back.Sub(h.began)),
	})
}

func TestHistoriesOfLocksAreLinearizable(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t, 3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			lockChaos(t, uint64(seed))
		})
	}
}

func lockChaos(t *testing.T, seed uint64) {
	t.Helper()
	const clients, lasting = 8, 3 * testkit.LeaseTTL
	server := nattytest.Server(t)
	h := &history{began: time.Now()}
	ctx, cancel := context.WithTimeout(t.Context(), lasting)
	defer cancel()
	var wg sync.WaitGroup
	for i := range clients {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		link := nattytest.Proxy(t, server.URL())
		t.Cleanup(func() { link.Delay(0); link.Thaw() })
		c := testkit.ConnectTo(t, link.URL())
		wg.Go(func() {
			for ctx.Err() == nil {
				if random.IntN(30) == 0 {
					disturb(link, random, testkit.LeaseTTL)
				}
				h.lockOnce(ctx, c, i, random)
			}
		})
	}
	wg.Wait()
	require.Equal(t, porcupine.Ok, porcupine.CheckOperationsTimeout(lockModel, h.ops, testkit.Patience))
	t.Logf("%d operations", len(h.ops))
	assert.NotEmpty(t, h.ops)
}

// lockOnce locks, stays for a while, and releases, unless the lock is lost before.
func (h *history) lockOnce(ctx context.Context, c *natty.Client, client int, random *rand.Rand) {
	lock := c.Lock
	if random.IntN(3) == 0 {
		lock = c.TryLock
		<-time.After(time.Duration(random.Int64N(int64(20 * time.Millisecond))))
	}
	ctx, cancel := context.WithTimeout(ctx, testkit.LeaseTTL*2)
	defer cancel()
	called := time.Now()
	l, err := lock(ctx, testkit.Door(testkit.LeaseTTL))
	if err != nil {
		return
	}
	h.add(client, lockOp{token: l.Token()}, nil, called, time.Now())
	lost := make(chan time.Time, 1)
	context.AfterFunc(l.Context(), func() { lost <- time.Now() })
	stay := time.Duration(random.Int64N(int64(30 * time.Millisecond)))
	if random.IntN(40) == 0 {
		stay = testkit.LeaseTTL
	}
	select {
	case <-time.After(stay):
	case <-l.Context().Done():
	}
	called = time.Now()
	err = l.Release(ctx)
	back := time.Now()
	if errors.Is(context.Cause(l.Context()), natty.ErrDeposed) { // it was over when the ctx ended, and no later
		called = <-lost
		back = called
	}
	h.add(client, lockOp{token: l.Token(), end: true}, nil, called, back)
	_ = err // whatever it says, it is not the owner any more
}

func TestWaitingForALockSendsNothing(t *testing.T) {
	t.Parallel()
	const clients, turns = 8, 25
	server := nattytest.Server(t)
	holder, err := testkit.ConnectTo(t, server.URL()).Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
	require.NoError(t, err)
	var wg sync.WaitGroup
	all := make([]*natty.Client, clients)
	for i := range all {
		all[i] = testkit.ConnectTo(t, server.URL())
		wg.Go(func() {
			for range turns {
				l, err := all[i].Lock(testkit.Ctx(t), testkit.Door(testkit.LeaseTTL))
				if err != nil {
					t.Error(err)
					return
				}
				assert.NoError(t, l.Release(testkit.Ctx(t)))
			}
		})
	}
	sent := func() (n uint64) {
		for _, c := range all {
			n += c.Conn().Stats().OutMsgs
		}
		return n
	}
	<-time.After(testkit.LeaseTTL / 2)
	before := sent()
	<-time.After(testkit.LeaseTTL * 3 / 2)
	assert.Equal(t, before, sent(), "waiting sends nothing")
	require.NoError(t, holder.Release(testkit.Ctx(t)))
	wg.Wait() // all get their turns
}
