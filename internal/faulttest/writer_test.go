package faulttest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
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

// howMany returns how many messages a test writes: n, or what NATTY_MESSAGES says.
func howMany(t testing.TB, n int) int {
	t.Helper()
	if s := os.Getenv("NATTY_MESSAGES"); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	return n
}

// flood is many messages, written by 2 goroutines each through a Writer and through one that gives up early.
type flood struct {
	mu      sync.Mutex
	written int
	failed  map[string]*natty.PublishError
	repeats int
}

func (f *flood) onError(msg *nats.Msg, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body := string(msg.Data)
	if f.failed[body] != nil {
		f.repeats++
	}
	f.failed[body], _ = errors.AsType[*natty.PublishError](err)
}

// hasty is how long the second Writer's messages try.
const hasty = 200 * time.Millisecond

func (f *flood) next() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written++
	return f.written - 1
}

// run writes n messages, and goes on until end is closed.
func (f *flood) run(t testing.TB, c *natty.Client, n int, end <-chan struct{}) {
	f.failed = map[string]*natty.PublishError{}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	var writers sync.WaitGroup
	for _, timeout := range []time.Duration{0, hasty} {
		w, err := c.NewWriter(natty.WriterConfig{MaxPending: 1000, Timeout: timeout, OnError: f.onError})
		if err != nil {
			t.Error(err)
			continue
		}
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				for i := f.next(); i < n || !testkit.IsClosed(end); i = f.next() {
					if err := w.Write(ctx, &nats.Msg{Subject: "s", Data: fmt.Append(nil, i)}); err != nil {
						t.Error(err)
						return
					}
					if i%10_000 == 0 {
						if err := w.Flush(ctx); err != nil && timeout != hasty {
							t.Error("everything passes within a minute:", err)
						}
					}
				}
			})
		}
		writers.Go(func() {
			both.Wait()
			if err := w.Close(ctx); err != nil && timeout != hasty {
				t.Error("everything passes within a minute:", err)
			}
		})
	}
	writers.Wait()
	f.written -= 4 // numbers that were taken and not written
}

// verify compares with the stream: each message is stored once, or was reported as failed; and what is stored all the same was
// reported as unknown.
func (f *flood) verify(t testing.TB, s jetstream.Stream) {
	t.Helper()
	found := testkit.Bodies(t, s)
	unknown, gone := 0, 0
	for i := range f.written + 4 {
		body := strconv.Itoa(i)
		copies, failure := len(found[body]), f.failed[body]
		require.LessOrEqual(t, copies, 1, "message %d: %v", i, failure)
		switch {
		case failure == nil && copies == 0:
			gone++ // the four that were taken and not written
		case failure != nil && copies == 1:
			require.ErrorIs(t, failure, natty.ErrOutcomeUnknown)
			require.NotEmpty(t, failure.MsgID)
			unknown++
		}
		delete(found, body)
	}
	assert.Empty(t, found, "nothing else is there")
	assert.Equal(t, 4, gone, "messages that are neither stored nor reported, and the four that were not written")
	assert.Zero(t, f.repeats, "each failure is reported once")
	t.Logf("%d written, %d reported as failed, %d of them stored", f.written, len(f.failed), unknown)
}

func TestWriterThroughAConnectionThatKeepsBreakingLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	s := testkit.Ensure(t, testkit.ConnectTo(t, node.URL()), "S", "s")
	proxy := nattytest.Proxy(t, node.URL())
	c := testkit.ConnectTo(t, proxy.URL())
	faults, end := 0, make(chan struct{})
	stop := during(100*time.Millisecond, 400*time.Millisecond, func() {
		switch rand.IntN(3) {
		case 0:
			proxy.Freeze()
			<-time.After(rand.N(300 * time.Millisecond))
			proxy.Thaw()
		case 1:
			proxy.FreezeReplies()
			<-time.After(rand.N(100 * time.Millisecond))
			proxy.Cut()
			proxy.Thaw()
		default:
			proxy.Cut()
		}
		if faults++; faults == 10 {
			close(end)
		}
	})
	var f flood
	begin := time.Now()
	f.run(t, c, howMany(t, 10_000), end)
	stop()
	t.Logf("%d faults in %v", faults, time.Since(begin))
	assert.GreaterOrEqual(t, faults, 10)
	f.verify(t, s)
}

func TestWriterWhileLeadersAreKilledLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	kills := 2
	if os.Getenv("NATTY_MESSAGES") != "" {
		kills = 10
	}
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
	require.NoError(t, err)
	var f flood
	n := howMany(t, 5000)
	done, end := make(chan struct{}), make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(done)
		f.run(t, c, n, end)
	}()
	stop := sync.OnceFunc(func() { close(end); <-done })
	defer stop()
	for range kills {
		leader := cluster.StreamLeader("S")
		leader.Stop()
		require.NoError(t, leader.Restart())
		cluster.WaitReady()
	}
	stop()
	t.Logf("%d kills in %v", kills, time.Since(begin))
	f.verify(t, s)
}

func TestWriterAtLeastOnceLosesNothingWithItsConnection(t *testing.T) {
	t.Parallel()
	w0 := newWire(t, jetstream.StreamConfig{})
	var o testkit.Failures
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{AtLeastOnce: true, OnError: o.Add})
	const n = 500
	w0.proxy.FreezeReplies()
	testkit.Write(t, w, 0, n)
	testkit.Eventually(t, func() bool { return testkit.Stored(t, w0.s) == n }, "all are stored")
	w0.proxy.Cut()
	w0.proxy.Thaw()
	require.NoError(t, w.Close(testkit.Ctx(t)))
	assert.Zero(t, o.Len())
	found := testkit.Bodies(t, w0.s)
	assert.Len(t, found, n)
	assert.Len(t, found["0"], 2, "the second time without an id")
	first, err := w0.s.GetMsg(testkit.Ctx(t), n+1)
	require.NoError(t, err)
	assert.Empty(t, first.Header)
}

func TestWriterWhoseAcknowledgementsAreLostSendsAgainUnderTheSameIDs(t *testing.T) {
	t.Parallel()
	w0 := newWire(t, jetstream.StreamConfig{})
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{})
	const n = 500
	w0.proxy.FreezeReplies()
	testkit.Write(t, w, 0, n)
	testkit.Eventually(t, func() bool { return testkit.Stored(t, w0.s) == n }, "all are stored")
	before := w0.c.Conn().Stats().OutMsgs
	w0.proxy.Cut()
	w0.proxy.Thaw()
	require.NoError(t, w.Close(testkit.Ctx(t)))
	assert.EqualValues(t, n, testkit.Stored(t, w0.s))
	assert.Less(t, w0.c.Conn().Stats().OutMsgs-before, uint64(n+100), "the window is not asked for by each")
}

func TestWriterGivesAnIDToAMessageWhoseIDIsBlank(t *testing.T) {
	t.Parallel()
	w0 := newWire(t, jetstream.StreamConfig{})
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{})
	w0.proxy.FreezeReplies()
	require.NoError(t, w.Write(testkit.Ctx(t), &nats.Msg{Subject: "s", Header: nats.Header{jetstream.MsgIDHeader: {" "}}}))
	testkit.Eventually(t, func() bool { return testkit.Stored(t, w0.s) == 1 }, "it is stored")
	w0.proxy.Cut()
	w0.proxy.Thaw()
	require.NoError(t, w.Close(testkit.Ctx(t)))
	assert.EqualValues(t, 1, testkit.Stored(t, w0.s))
}

func TestWriterIsNotSentAgainBeyondTheDuplicateWindow(t *testing.T) {
	t.Parallel()
	w0 := newWire(t, jetstream.StreamConfig{Duplicates: time.Second})
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{})
	w0.proxy.FreezeReplies()
	testkit.Write(t, w, 0, 10)
	testkit.Eventually(t, func() bool { return testkit.Stored(t, w0.s) == 10 }, "all are stored")
	w0.proxy.Refuse(true)
	w0.proxy.Cut()
	w0.proxy.Thaw()
	over := time.NewTimer(1100 * time.Millisecond)
	defer over.Stop()
	testkit.Receive(t, over.C)
	w0.proxy.Refuse(false)
	err := w.Close(testkit.Ctx(t))
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Contains(t, err.Error(), `beyond the duplicate window (1s) of stream "S"`)
	assert.EqualValues(t, 10, testkit.Stored(t, w0.s))
}

func TestWindowBoundsWhatAWriterHoldsWhileTheServerIsFrozen(t *testing.T) {
	t.Parallel()
	w0 := newWire(t, jetstream.StreamConfig{})
	for name, cfg := range map[string]natty.WriterConfig{
		"100 of 100 messages": {MaxPending: 100}, "99900 of 100500 bytes": {MaxPendingBytes: 100_500},
	} {
		w := testkit.NewWriter(t, w0.c, cfg)
		w0.proxy.Freeze()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		n := 0
		var err error
		for err == nil {
			err = w.Write(ctx, &nats.Msg{Subject: "s", Data: make([]byte, 998)})
			n++
		}
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Contains(t, err.Error(), name)
		assert.Equal(t, 101, n)
		begin := time.Now()
		canceled, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		var waiting sync.WaitGroup
		for range 5 { // one for room, the others for their turn
			waiting.Go(func() {
				assert.ErrorIs(t, w.Write(canceled, &nats.Msg{Subject: "s", Data: make([]byte, 998)}), context.Canceled)
			})
		}
		waiting.Wait()
		assert.Less(t, time.Since(begin), testkit.AtOnce)
		w0.proxy.Thaw()
		require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("s")), "there is room again")
		require.NoError(t, w.Close(testkit.Ctx(t)))
	}
	assert.EqualValues(t, 202, testkit.Stored(t, w0.s))
}

func TestWriterOfLargeMessagesHoldsNoMoreThanItsWindow(t *testing.T) {
	// Not parallel: it measures memory.
	w0 := newWire(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage, MaxMsgs: 1})
	const limit = 8 << 20
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{MaxPendingBytes: limit})
	msg := &nats.Msg{Subject: "s", Data: make([]byte, 1<<20-1000)}
	for i := range 100 {
		size := 100
		if i%2 == 0 {
			size = cap(msg.Data)
		}
		msg.Data = msg.Data[:size]
		require.NoError(t, w.Write(testkit.Ctx(t), msg))
	}
	require.NoError(t, w.Flush(testkit.Ctx(t)))
	var with, without runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&with)
	require.NoError(t, w.Close(testkit.Ctx(t)), "it lets go of what it has")
	runtime.GC()
	runtime.ReadMemStats(&without)
	assert.Less(t, int64(with.HeapAlloc)-int64(without.HeapAlloc), int64(2*limit))
}

func TestWriteWaitsForAServerThatIsNotThere(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	s := testkit.Ensure(t, testkit.ConnectTo(t, node.URL()), "S", "s")
	proxy := nattytest.Proxy(t, node.URL())
	proxy.Refuse(true)
	c := testkit.Connect(t, natty.Config{Servers: []string{proxy.URL()}, LazyConnect: true})
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := w.Write(ctx, nats.NewMsg("s"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Contains(t, err.Error(), "not connected")

	written := make(chan error, 1)
	go func() { written <- w.Write(testkit.Ctx(t), nats.NewMsg("s")) }()
	other := testkit.NewWriter(t, c, natty.WriterConfig{})
	refused := make(chan error, 1)
	go func() { refused <- other.Write(context.Background(), nats.NewMsg("s")) }()
	require.NoError(t, other.Close(testkit.Ctx(t)))
	require.ErrorIs(t, testkit.Receive(t, refused), natty.ErrClosed)
	proxy.Refuse(false)
	require.NoError(t, testkit.Receive(t, written))
	require.NoError(t, w.Close(testkit.Ctx(t)))
	assert.EqualValues(t, 1, testkit.Stored(t, s))
}

func TestCloseOfAWriterEndsWithItsContextAndReportsWhatIsUnknown(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*nattytest.Link){
		"frozen": func(*nattytest.Link) {}, "gone": func(l *nattytest.Link) { l.Refuse(true); l.Cut() },
	} {
		for _, client := range []bool{false, true} {
			t.Run(fmt.Sprint(name, client), func(t *testing.T) {
				t.Parallel()
				w0 := newWire(t, jetstream.StreamConfig{})
				c, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: []string{w0.proxy.URL()}}, testkit.Quiet)
				require.NoError(t, err)
				defer func() { _ = c.Close(testkit.Ctx(t)) }()
				defer w0.proxy.Thaw()
				var o testkit.Failures
				w := testkit.NewWriter(t, c, natty.WriterConfig{MaxPending: 50, OnError: o.Add})
				w0.proxy.Freeze()
				testkit.Write(t, w, 0, 50)
				fault(w0.proxy)
				waits := make(chan error, 1)
				go func() { waits <- w.Write(context.Background(), nats.NewMsg("s")) }()
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				begin := time.Now()
				if client {
					_ = c.Close(ctx)
				}
				err = w.Close(ctx)
				assert.Less(t, time.Since(begin), 2*time.Second)
				require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
				assert.Contains(t, err.Error(), "and 30 more")
				require.ErrorIs(t, testkit.Receive(t, waits), natty.ErrClosed)
				testkit.Eventually(t, func() bool { return o.Len() == 50 }, "each is told")
				for i, err := range o.Errs {
					require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
					require.NotEmpty(t, o.Msgs[i].Header.Get(nats.MsgIdHdr))
				}
				require.Equal(t, err, w.Close(testkit.Ctx(t)))
			})
		}
	}
}

func TestFailedMessagesMayBeWrittenAgainAsTheyAre(t *testing.T) {
	t.Parallel()
	w0 := newWire(t, jetstream.StreamConfig{})
	var o testkit.Failures
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{OnError: o.Add, Timeout: 300 * time.Millisecond})
	w0.proxy.FreezeReplies()
	testkit.Write(t, w, 0, 20)
	require.ErrorIs(t, w.Flush(testkit.Ctx(t)), natty.ErrOutcomeUnknown)
	w0.proxy.Thaw()
	testkit.Eventually(t, func() bool { return o.Len() == 20 }, "OnError is told")
	again := testkit.NewWriter(t, w0.c, natty.WriterConfig{})
	for _, msg := range o.Msgs {
		require.NoError(t, again.Write(testkit.Ctx(t), msg))
	}
	require.NoError(t, again.Close(testkit.Ctx(t)))
	assert.EqualValues(t, 20, testkit.Stored(t, w0.s))
}

func TestWriterSendsAgainWhatItWasGivenThoughTheCallerHasChangedIt(t *testing.T) {
	t.Parallel()
	w0 := newWire(t, jetstream.StreamConfig{})
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{})
	w0.proxy.Freeze()
	msg := &nats.Msg{Subject: "s", Data: []byte("old"), Header: nats.Header{"A": {"old"}}}
	require.NoError(t, w.Write(testkit.Ctx(t), msg))
	copy(msg.Data, "new")
	msg.Header["A"][0] = "new"
	w0.proxy.Cut()
	w0.proxy.Thaw()
	require.NoError(t, w.Close(testkit.Ctx(t)))
	got, err := w0.s.GetMsg(testkit.Ctx(t), 1)
	require.NoError(t, err)
	assert.Equal(t, "old", string(got.Data))
	assert.Equal(t, "old", got.Header.Get("A"))
}

func TestFlushesAtOnceAllReturnWhatFailedMeanwhile(t *testing.T) {
	t.Parallel()
	w0 := newWire(t, jetstream.StreamConfig{})
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{})
	w0.proxy.FreezeReplies()
	require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("nobody")))
	const n = 5
	errs := make(chan error, n)
	for range n {
		go func() { errs <- w.Flush(testkit.Ctx(t)) }()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := w.Flush(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Contains(t, err.Error(), "1 messages have no outcome yet")
	w0.proxy.Thaw()
	for range n {
		require.ErrorIs(t, testkit.Receive(t, errs), natty.ErrNoStream)
	}
	require.NoError(t, w.Flush(testkit.Ctx(t)))
	require.NoError(t, w.Close(testkit.Ctx(t)))
}

func TestWriterMakesNoGoroutinePerMessageAndNoneAtRest(t *testing.T) {
	// Not parallel: it counts goroutines.
	w0 := newWire(t, jetstream.StreamConfig{})
	before := runtime.NumGoroutine()
	w := testkit.NewWriter(t, w0.c, natty.WriterConfig{})
	assert.LessOrEqual(t, runtime.NumGoroutine(), before, "at rest")
	w0.proxy.FreezeReplies()
	testkit.Write(t, w, 0, 500)
	assert.LessOrEqual(t, runtime.NumGoroutine(), before+1, "the test's own ctx")
	w0.proxy.Thaw()
	require.NoError(t, w.Close(testkit.Ctx(t)))
}
