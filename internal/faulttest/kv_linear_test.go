package faulttest_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// A key as one that sees all would describe it.
type keyState struct {
	value    int    // each is written once; 0: the key is not there
	revision uint64 // 0: not known, since what wrote the value told none and nobody has asked yet
	floor    uint64 // all that is written from now on gets a greater revision, and so did a value whose own is not known
}

// write sets the value; revision is 0 where the writer was not told.
func (k keyState) write(value int, revision uint64) (bool, keyState) {
	return revision == 0 || revision > k.floor, keyState{value: value, revision: revision, floor: max(k.floor, revision)}
}

// at is the key if it is at the revision that somebody has seen; 0: it is not there.
func (k keyState) at(revision uint64) (bool, keyState) {
	switch {
	case revision == 0 || k.value == 0:
		return revision == 0 && k.value == 0, k
	case k.revision == 0 && revision > k.floor:
		return true, keyState{value: k.value, revision: revision, floor: revision}
	}
	return k.revision == revision, k
}

// The operations of a history. see and read find the key at a revision or with a value.
const (
	put     = "put"
	create  = "create"
	update  = "update"
	refresh = "refresh"
	remove  = "delete"
	see     = "see"
	read    = "read"
	get     = "get"
)

type keyOp struct {
	kind, key string
	value     int    // to write, or found
	revision  uint64 // that the key must have, or is seen to have
}

// keyResult is how an operation ended. One that failed has a second one in the history instead, of what it saw.
type keyResult struct {
	revision uint64 // the new one, of an update
	exists   bool   // refused for that: of a create
	unknown  bool   // it may have been done, or may be later
	once     bool   // it was sent once: see again
}

var keyModel = porcupine.Model{
	Init: func() any { return keyState{} },
	Step: func(state, input, output any) (bool, any) {
		before, result := state.(keyState), output.(keyResult)
		ok, after := input.(keyOp).step(before, result)
		if !ok && result.unknown { // it does nothing
			return true, before
		}
		return ok, after
	},
}

func (op keyOp) step(k keyState, result keyResult) (bool, keyState) {
	switch op.kind {
	case put:
		return k.write(op.value, 0)
	case remove:
		return k.write(0, 0)
	case create:
		if k.value != 0 || result.exists {
			return k.value != 0 && result.exists, k
		}
		return k.write(op.value, 0)
	case update:
		ok, k := k.at(op.revision)
		if !ok {
			return false, k
		}
		return k.write(op.value, result.revision)
	case refresh:
		ok, after := k.write(k.value, 0)
		return ok && k.value != 0, after
	case see:
		return k.at(op.revision)
	case read, get:
		return k.value == op.value, k
	}
	panic(op.kind)
}

// keyLog is a history of a bucket.
type keyLog struct {
	history
	t      *testing.T
	kinds  []string // to choose from at random
	keys   []string
	values atomic.Int64
	before func(op int)              // called before each operation, by who does it
	pause  time.Duration             // between operations of a client, at most
	known  map[string]*atomic.Uint64 // a late revision of each key, which all clients use
	done   map[string]int            // under mu, like those that follow
	faults [][2]time.Duration        // when a server was away, since the beginning
}

// often lists operations as often as they are to be chosen.
var often = []string{put, create, create, update, update, update, update, refresh, refresh, remove, read}

func newKeyLog(t *testing.T, prefix string, kinds ...string) *keyLog {
	t.Helper()
	h := &keyLog{
		history: history{began: time.Now()}, t: t, kinds: slices.Concat(often, kinds), before: func(int) {}, pause: 4 * time.Millisecond,
		known: map[string]*atomic.Uint64{}, done: map[string]int{},
	}
	for i := range 4 {
		key := fmt.Sprint(prefix, i)
		h.keys = append(h.keys, key)
		h.known[key] = &atomic.Uint64{}
	}
	return h
}

// work does one operation after the other, as long as there are more to do.
func (h *keyLog) work(c *natty.Client, client int, random *rand.Rand, more func(n int) bool) {
	for n := 0; more(n); n++ {
		h.once(c, client, random)
		<-time.After(upTo(random, h.pause))
	}
}

func (h *keyLog) once(c *natty.Client, client int, random *rand.Rand) {
	op := keyOp{kind: h.kinds[random.IntN(len(h.kinds))], key: h.keys[random.IntN(len(h.keys))], value: int(h.values.Add(1))}
	h.before(op.value)
	op.revision = h.known[op.key].Load()
	limit := testkit.Patience
	switch random.IntN(10) {
	case 0:
		limit = upTo(random, 5*time.Millisecond)
	case 1:
		limit = time.Second
	}
	ctx, cancel := context.WithTimeout(h.t.Context(), limit)
	defer cancel()
	h.do(ctx, c, client, op)
}

var errRead = errors.New("only looking")

// do does an operation, and adds what is known of it afterwards to the history.
func (h *keyLog) do(ctx context.Context, c *natty.Client, client int, op keyOp) {
	var result keyResult
	called, nc := time.Now(), c.Conn()
	reconnects := nc.Stats().Reconnects
	err := op.run(ctx, c, &result)
	back := time.Now()
	result.once = back.Sub(called) < publish.AttemptTimeout.Min && c.Conn() == nc && nc.Stats().Reconnects == reconnects
	var stale *natty.RevisionError
	saw := func(revision uint64) {
		h.add(client, keyOp{kind: see, key: op.key, revision: revision}, keyResult{}, called, back)
	}
	switch {
	case err == nil:
		h.count(op.kind)
		h.add(client, op, result, called, back)
		if op.kind == update {
			h.known[op.key].Store(result.revision)
		}
	case errors.Is(err, natty.ErrOutcomeUnknown):
		h.count("unknown")
		h.add(client, op, keyResult{unknown: true}, called, h.began.Add(math.MaxInt64))
	case errors.As(err, &stale):
		if op.kind == refresh { // it has read one revision, and found another when it came to write
			op.revision = stale.Want
			assert.True(h.t, stale.Have == 0 || stale.Have > stale.Want, "%v", stale)
			saw(stale.Want)
		}
		assert.Equal(h.t, stale.Want, op.revision)
		assert.NotEqual(h.t, stale.Want, stale.Have)
		h.count(op.kind + " refused")
		saw(stale.Have)
		h.known[op.key].Store(stale.Have)
	case op.kind == create && errors.Is(err, jetstream.ErrKeyExists):
		h.count("create refused")
		result.exists = true
		h.add(client, op, result, called, back)
	case errors.Is(err, jetstream.ErrKeyNotFound):
		h.count(op.kind + " found none")
		saw(0)
	case errors.Is(err, context.DeadlineExceeded):
		h.count(op.kind + " not done") // its value must not be seen, since the error does not match ErrOutcomeUnknown
	default:
		h.t.Errorf("%+v: %v", op, err)
	}
}

// run does an operation; it writes what it finds into op, and what it is told into result.
func (op *keyOp) run(ctx context.Context, c *natty.Client, result *keyResult) (err error) {
	data := strconv.AppendInt(nil, int64(op.value), 10)
	switch op.kind {
	case put:
		return c.Put(ctx, "b", op.key, data, time.Hour)
	case remove:
		return c.Delete(ctx, "b", op.key)
	case create:
		return c.Create(ctx, "b", op.key, data, time.Hour)
	case update:
		result.revision, err = c.Update(ctx, "b", op.key, data, op.revision)
	case refresh:
		return c.Refresh(ctx, "b", op.key)
	case read:
		b, err := natty.NewBucket[int](c, natty.BucketConfig{Bucket: "b"})
		if err != nil {
			return err
		}
		err = b.Modify(ctx, op.key, func(v int) (int, error) { op.value = v; return 0, errRead })
		if errors.Is(err, errRead) {
			return nil
		}
		return err
	case get:
		data, err := c.Get(ctx, "b", op.key)
		if err != nil {
			return err
		}
		op.value, err = strconv.Atoi(string(data))
		return err
	case see:
		_, err = c.Update(ctx, "b", op.key, nil, op.revision)
	}
	return err
}

func (h *keyLog) count(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done[what]++
}

// away notes that a server is away while f runs.
func (h *keyLog) away(f func()) {
	began := time.Now()
	f()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, [2]time.Duration{began.Sub(h.began), time.Since(h.began)})
}

// again are the writes that may be done a second time. The server knows a message that it has got twice by its id; when it
// starts, it learns the ids of the messages that it still has, and a bucket does not keep those of values that were overwritten
// or deleted. So what is on its way while a server restarts is not sent for certain only once. An update and a refresh cannot
// be done twice: they depend on a revision. Nor can what was sent only once: it was answered before a first attempt ends, on
// one connection.
func (h *keyLog) again(ops []porcupine.Operation) (again []porcupine.Operation) {
	for _, o := range ops {
		result := o.Output.(keyResult)
		blind := slices.Contains([]string{put, create, remove}, o.Input.(keyOp).kind) && !result.exists && !result.once
		for _, away := range h.faults {
			if blind && time.Duration(o.Call) < away[1] && time.Duration(o.Return) > away[0] {
				o.Output, o.Return = keyResult{unknown: true}, math.MaxInt64
				again = append(again, o)
			}
		}
	}
	return again
}

// check looks at every key a last time, and checks its history.
func (h *keyLog) check(c *natty.Client) {
	for _, key := range h.keys {
		h.do(testkit.Ctx(h.t), c, -1, keyOp{kind: see, key: key, revision: math.MaxUint64})
		h.do(testkit.Ctx(h.t), c, -1, keyOp{kind: read, key: key})
		ops := slices.DeleteFunc(slices.Clone(h.ops), func(o porcupine.Operation) bool { return o.Input.(keyOp).key != key })
		ops = append(ops, h.again(ops)...)
		if result := porcupine.CheckOperationsTimeout(keyModel, ops, testkit.Patience); result != porcupine.Ok {
			slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
			for _, o := range ops {
				h.t.Logf("%10v %10v client %d: %+v %+v", time.Duration(o.Call), time.Duration(o.Return), o.ClientId, o.Input, o.Output)
			}
			h.t.Errorf("%s: key %s; away: %v", result, key, h.faults)
		}
	}
	h.t.Logf("%d operations: %v", h.values.Load(), h.done)
	assert.Positive(h.t, h.done[update])
}

// TestHistoriesOfABucketAreLinearizable cuts, freezes and delays connections at random, so that answers are lost, and restarts
// the server. NATTY_SEEDS says how many times.
func TestHistoriesOfABucketAreLinearizable(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t, 2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			keyChaos(t, uint64(seed))
		})
	}
}

func keyChaos(t *testing.T, seed uint64) {
	t.Helper()
	const clients, each, scale = 8, 25, 50 * time.Millisecond
	server := nattytest.Server(t)
	direct := testkit.ConnectTo(t, server.URL())
	testkit.Bucket(t, direct, jetstream.KeyValueConfig{Bucket: "b", TTL: time.Hour, LimitMarkerTTL: time.Second})
	h := newKeyLog(t, "k", get) // the one server is the leader
	restartAt := rand.New(rand.NewPCG(seed, 2*clients)).IntN(clients*each) + 1
	h.before = func(op int) {
		if op == restartAt {
			h.away(func() { assert.NoError(t, server.Restart()) })
		}
	}
	var working, disturbing sync.WaitGroup
	ended := make(chan struct{})
	for i := range clients {
		link := nattytest.Proxy(t, server.URL())
		t.Cleanup(func() { link.Delay(0); link.Thaw() })
		c := testkit.ConnectTo(t, link.URL())
		working.Go(func() { h.work(c, i, rand.New(rand.NewPCG(seed, uint64(i))), func(n int) bool { return n < each }) })
		disturbing.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(clients+i)))
			for !testkit.IsClosed(ended) {
				<-time.After(upTo(random, 16*scale))
				disturb(link, random, scale)
			}
		})
	}
	working.Wait()
	close(ended)
	disturbing.Wait()
	h.check(direct)
}

// TestHistoriesOfAReplicatedBucketAreLinearizable makes the bucket's leader step down, and stops it. Without Get: any replica
// may answer that.
func TestHistoriesOfAReplicatedBucketAreLinearizable(t *testing.T) {
	t.Parallel()
	const clients = 4
	cluster := nattytest.Cluster(t)
	cfg := natty.Config{Servers: cluster.URLs(), Replicas: 3}
	direct := testkit.Connect(t, cfg)
	testkit.Bucket(t, direct, jetstream.KeyValueConfig{Bucket: "b", TTL: time.Hour, LimitMarkerTTL: time.Second})
	all := make([]*natty.Client, clients)
	for i := range all {
		all[i] = testkit.Connect(t, cfg)
	}
	for seed := range seeds(t, 1) {
		h := newKeyLog(t, fmt.Sprint(seed, "."))
		h.pause = 20 * time.Millisecond // a cluster takes its time, and more than some hundred operations on a key cannot be checked
		var working sync.WaitGroup
		ended := make(chan struct{})
		for i, c := range all {
			random := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
			working.Go(func() { h.work(c, i, random, func(int) bool { return !testkit.IsClosed(ended) }) })
		}
		random := rand.New(rand.NewPCG(uint64(seed), clients))
		for range 3 {
			<-time.After(upTo(random, 200*time.Millisecond))
			_, _ = direct.Conn().Request("$JS.API.STREAM.LEADER.STEPDOWN.KV_b", nil, time.Second) // may get no answer
		}
		h.away(func() {
			leader := cluster.StreamLeader("KV_b")
			leader.Stop()
			<-time.After(upTo(random, 200*time.Millisecond))
			require.NoError(t, leader.Restart())
			cluster.WaitReady()
		})
		close(ended)
		working.Wait()
		h.check(direct)
	}
}
