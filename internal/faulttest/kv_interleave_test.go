package faulttest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// gate is the way of a client to the server. While it is shut it holds writes of keys, and what follows them.
type gate struct {
	net.Conn
	reached chan struct{} // a write waits

	mu   sync.Mutex // guards what follows
	shut bool
	held []byte
}

// Dial implements nats.CustomDialer, for one connection.
func (g *gate) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	g.Conn = conn
	return g, err
}

func (g *gate) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.held) == 0 {
		if !g.shut || !bytes.Contains(b, []byte("PUB $KV.")) {
			return g.Conn.Write(b)
		}
		g.reached <- struct{}{}
	}
	g.held = append(g.held, b...)
	return len(b), nil
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
}

func (g *gate) open(t *testing.T) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.Conn.Write(g.held)
	require.NoError(t, err)
	g.shut, g.held = false, nil
}

// refresher is a client whose refreshes stop between what they read and what they write.
type refresher struct {
	*natty.Client
	gate *gate
	done chan error              // nil: no refresh is under way
	saw  *jetstream.RawStreamMsg // what that has read
}

// Whatever others do between the two halves of a refresh, it writes the value that it has read behind that and nothing else.
// Each interleaving follows from its number alone.
func TestRefreshNeverExtendsAnotherOwnersKey(t *testing.T) {
	t.Parallel()
	const interleavings, groups = 1000, 4
	server := nattytest.Server(t)
	testkit.Bucket(t, testkit.ConnectTo(t, server.URL()), jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.MemoryStorage})
	for first := range groups {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			t.Parallel()
			outcomes := map[string]int{}
			clients, stream := refreshers(t, server.URL())
			ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
			defer cancel()
			for n := first; n < interleavings; n += groups {
				interleave(ctx, t, n, clients, stream, outcomes)
			}
			t.Log(outcomes)
			require.Greater(t, outcomes["refreshed"], interleavings/groups/10)
			require.Greater(t, outcomes["refused"], interleavings/groups/10)
		})
	}
}

func refreshers(t *testing.T, url string) (all [3]*refresher, stream jetstream.Stream) {
	t.Helper()
	for i := range all {
		g := &gate{reached: make(chan struct{}, 1)}
		all[i] = &refresher{gate: g, Client: testkit.Connect(t, natty.Config{Servers: []string{url}}, natty.WithNATSOptions(nats.SetCustomDialer(g)))}
		t.Cleanup(func() { g.open(t) }) // of a test that has failed
	}
	stream, err := testkit.ConnectTo(t, url).JetStream().Stream(testkit.Ctx(t), "KV_b")
	require.NoError(t, err)
	return all, stream
}

// interleave lets two or three clients do something with a key, in the order number n.
func interleave(ctx context.Context, t *testing.T, n int, all [3]*refresher, stream jetstream.Stream, outcomes map[string]int) {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(n), 3))
	r := interleaving{t: t, ctx: ctx, n: n, key: fmt.Sprint(n), last: func() *jetstream.RawStreamMsg {
		m, err := stream.GetLastMsgForSubject(ctx, fmt.Sprint("$KV.b.", n))
		require.NoError(t, err)
		return m
	}}
	clients := all[:2+random.IntN(2)]
	r.write(clients[0], 0, 0)
	for range 2 + random.IntN(4) {
		i := random.IntN(len(clients))
		switch c := clients[i]; {
		case c.done != nil:
			outcomes[r.finish(c)]++
		case random.IntN(2) == 0:
			r.begin(c)
		default:
			r.write(c, i, random.IntN(3))
		}
	}
	for _, c := range clients {
		if c.done != nil {
			outcomes[r.finish(c)]++
		}
	}
}

type interleaving struct {
	t    *testing.T
	ctx  context.Context
	n    int
	key  string
	last func() *jetstream.RawStreamMsg
	now  *jetstream.RawStreamMsg // what was the last one when something was written last
	log  []string
}

// write makes c the owner, whose TTL tells who it is, or leaves the key to nobody.
func (r *interleaving) write(c *refresher, i, how int) {
	r.t.Helper()
	value, ttl := fmt.Appendf(nil, "%d", len(r.log)), time.Duration(i+1)*time.Hour
	r.log = append(r.log, fmt.Sprint(i, [...]string{" puts", " deletes", " creates"}[how]))
	var err error
	switch how {
	case 0:
		err = c.Put(r.ctx, "b", r.key, value, ttl)
	case 1:
		err = c.Delete(r.ctx, "b", r.key)
	case 2:
		if err = c.Create(r.ctx, "b", r.key, value, ttl); err != nil {
			require.ErrorIs(r.t, err, jetstream.ErrKeyExists)
			return
		}
	}
	require.NoError(r.t, err)
	r.now = r.last()
}

func isLive(m *jetstream.RawStreamMsg) bool { return m.Header.Get("KV-Operation") == "" }

// begin lets c refresh the key until it comes to write.
func (r *interleaving) begin(c *refresher) {
	r.t.Helper()
	r.log = append(r.log, "begin")
	saw, done := r.now, make(chan error, 1)
	c.gate.close()
	go func() { done <- c.Refresh(r.ctx, "b", r.key) }()
	select {
	case <-c.gate.reached:
		require.True(r.t, isLive(saw), "interleaving %d: %q", r.n, r.log)
		c.saw, c.done = saw, done
	case err := <-done:
		c.gate.open(r.t)
		require.ErrorIs(r.t, err, jetstream.ErrKeyNotFound)
		require.False(r.t, isLive(saw), "interleaving %d: %q", r.n, r.log)
	}
}

// finish lets c write, and returns what came of it.
func (r *interleaving) finish(c *refresher) string {
	r.t.Helper()
	r.log = append(r.log, "finish")
	before := r.now
	c.gate.open(r.t)
	err := testkit.Receive(r.t, c.done)
	c.done = nil
	after := r.last()
	r.now = after
	if c.saw.Sequence == before.Sequence {
		require.NoError(r.t, err, "interleaving %d: %q", r.n, r.log)
		require.Greater(r.t, after.Sequence, before.Sequence)
		require.Equal(r.t, before.Data, after.Data)
		require.Equal(r.t, before.Header.Get(jetstream.MsgTTLHeader), after.Header.Get(jetstream.MsgTTLHeader))
		return "refreshed"
	}
	require.Equal(r.t, before, after, "interleaving %d: %q", r.n, r.log)
	if errors.Is(err, natty.ErrOutcomeUnknown) {
		return "unknown" // the machine was so busy that the write waited for half a second, and was sent twice
	}
	want := &natty.RevisionError{Bucket: "b", Key: r.key, Want: c.saw.Sequence}
	if isLive(before) {
		want.Have = before.Sequence
	}
	var stale *natty.RevisionError
	require.ErrorAs(r.t, err, &stale, "interleaving %d: %q", r.n, r.log)
	require.Equal(r.t, want, stale, "interleaving %d: %q", r.n, r.log)
	return "refused"
}
