package natty_test

import (
	"context"
	"errors"
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
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestWriterStoresEverythingInOrder(t *testing.T) {
	t.Parallel()
	for _, once := range []bool{false, true} {
		for _, window := range []int{1, 2, 0} {
			t.Run(fmt.Sprint(once, window), func(t *testing.T) {
				t.Parallel()
				c := testkit.ConnectTo(t, nattytest.Server(t).URL())
				s := testkit.Ensure(t, c, "S", "s")
				w := testkit.NewWriter(t, c, natty.WriterConfig{AtLeastOnce: !once, MaxPending: window})
				n := 500
				if window == 0 {
					n = 10_000
				}
				testkit.Write(t, w, 0, n)
				require.NoError(t, w.Flush(testkit.Ctx(t)))
				found := testkit.Bodies(t, s)
				for i := range n {
					require.Equal(t, []uint64{uint64(i) + 1}, found[fmt.Sprint(i)])
				}
				first, err := s.GetMsg(testkit.Ctx(t), 1)
				require.NoError(t, err)
				assert.Equal(t, once, first.Header.Get(nats.MsgIdHdr) != "")
				require.NoError(t, w.Close(testkit.Ctx(t)))
			})
		}
	}
}

func TestFlushWaitsForWhatWasWrittenBeforeWhateverOthersWrite(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s", "mine")
	w := testkit.NewWriter(t, c, natty.WriterConfig{MaxPending: 200})
	end := make(chan struct{})
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for !testkit.IsClosed(end) {
				assert.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("s")))
			}
		})
	}
	for i := range 50 {
		require.NoError(t, w.Write(testkit.Ctx(t), &nats.Msg{Subject: "mine", Data: fmt.Append(nil, i)}))
		require.NoError(t, w.Flush(testkit.Ctx(t)))
		last, err := s.GetLastMsgForSubject(testkit.Ctx(t), "mine")
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), string(last.Data))
	}
	close(end)
	others.Wait()
	require.NoError(t, w.Close(testkit.Ctx(t)))
}

func TestWriterSendsACopyAndTheCallerMayUseItsMessageAgain(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	const n = 200
	msg := &nats.Msg{Subject: "s", Reply: "mine", Data: make([]byte, 4), Header: nats.Header{"Several": {"1", "2"}, "Number": {""}}}
	for i := range n {
		copy(msg.Data, fmt.Sprintf("%04d", i))
		msg.Header["Number"][0] = fmt.Sprint(i)
		require.NoError(t, w.Write(testkit.Ctx(t), msg))
		require.Equal(t, nats.Header{"Several": {"1", "2"}, "Number": {fmt.Sprint(i)}}, msg.Header)
		require.Equal(t, "mine", msg.Reply)
		if i%10 == 0 { // headers do not stay where they were
			require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("s")))
		}
	}
	require.NoError(t, w.Close(testkit.Ctx(t)))
	plain, number := 0, 0
	for i := range testkit.Stored(t, s) {
		got, err := s.GetMsg(testkit.Ctx(t), i+1)
		require.NoError(t, err)
		require.NotEmpty(t, got.Header.Get(nats.MsgIdHdr))
		got.Header.Del(nats.MsgIdHdr)
		if len(got.Header) == 0 {
			plain++
			continue
		}
		assert.Equal(t, fmt.Sprintf("%04d", number), string(got.Data))
		assert.Equal(t, nats.Header{"Several": {"1", "2"}, "Number": {fmt.Sprint(number)}}, got.Header)
		number++
	}
	assert.Equal(t, n, number)
	assert.Equal(t, n/10, plain)
}

func TestWriterKeepsTheCallersIDsAndTheServerTheFirstOfEach(t *testing.T) {
	t.Parallel()
	for _, atLeastOnce := range []bool{false, true} {
		c := testkit.ConnectTo(t, nattytest.Server(t).URL())
		s := testkit.Ensure(t, c, "S", "s")
		w := testkit.NewWriter(t, c, natty.WriterConfig{AtLeastOnce: atLeastOnce})
		for i := range 100 {
			msg := &nats.Msg{Subject: "s", Header: nats.Header{nats.MsgIdHdr: {fmt.Sprint("id", i/2)}}}
			require.NoError(t, w.Write(testkit.Ctx(t), msg))
		}
		require.NoError(t, w.Close(testkit.Ctx(t)), "a duplicate is stored")
		assert.EqualValues(t, 50, testkit.Stored(t, s))
		last, err := s.GetMsg(testkit.Ctx(t), 50)
		require.NoError(t, err)
		assert.Equal(t, "id49", last.Header.Get(nats.MsgIdHdr))
	}
}

func TestWriteRefusesWhatCanNeverWorkAndSendsNothing(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.MaxPayload = 2000 }))
	c := testkit.ConnectTo(t, node.URL())
	s := testkit.Ensure(t, c, "ALL", "s.>")
	var o testkit.Failures
	w := testkit.NewWriter(t, c, natty.WriterConfig{OnError: o.Add})
	small := testkit.NewWriter(t, c, natty.WriterConfig{OnError: o.Add, MaxPendingBytes: 100})
	var wrong *natty.ConfigError
	var failed *natty.PublishError
	err := w.Write(testkit.Ctx(t), nil)
	require.ErrorAs(t, err, &wrong)
	require.ErrorAs(t, err, &failed)
	assert.Equal(t, `natty: publish to "": msg: is nil; give a message`, err.Error())
	for _, subject := range []string{"", "s.*", "s.>", "s..a", "s a", "s.a\r\nPUB s.b 0\r\n\r\n"} {
		err := w.Write(testkit.Ctx(t), nats.NewMsg(subject))
		require.ErrorAs(t, err, &wrong, "subject %q", subject)
		require.ErrorAs(t, err, &failed)
		assert.Equal(t, subject, failed.Subject)
	}
	err = w.Write(testkit.Ctx(t), &nats.Msg{Subject: "s.a", Data: make([]byte, 2001)})
	require.ErrorIs(t, err, natty.ErrTooLarge)
	require.ErrorAs(t, err, &failed)
	assert.Contains(t, err.Error(), "2000")
	err = small.Write(testkit.Ctx(t), &nats.Msg{Subject: "s.a", Data: make([]byte, 98)})
	require.ErrorIs(t, err, natty.ErrTooLarge)
	assert.Contains(t, err.Error(), "101 bytes")
	assert.Contains(t, err.Error(), "MaxPendingBytes is 100")
	require.NoError(t, small.Write(testkit.Ctx(t), &nats.Msg{Subject: "s.a", Data: make([]byte, 97)}))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, w.Write(ended, nats.NewMsg("s.a")), context.Canceled)
	require.NoError(t, w.Close(testkit.Ctx(t)), "these are no failures of the Writer's")
	require.NoError(t, small.Close(testkit.Ctx(t)))
	assert.Zero(t, o.Len())
	assert.EqualValues(t, 1, testkit.Stored(t, s))
}

func TestNewWriterRefusesWhatCanNeverWork(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	for field, cfg := range map[string]natty.WriterConfig{
		"MaxPending": {MaxPending: -1}, "MaxPendingBytes": {MaxPendingBytes: -1}, "Timeout": {Timeout: -1},
	} {
		_, err := c.NewWriter(cfg)
		var wrong *natty.ConfigError
		require.ErrorAs(t, err, &wrong)
		assert.Equal(t, field, wrong.Field)
	}
	require.NoError(t, c.Close(testkit.Ctx(t)))
	_, err := c.NewWriter(natty.WriterConfig{})
	require.ErrorIs(t, err, natty.ErrClosed)
}

func TestWriterToldNoReportsEachMessageOnceAndGoesOn(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	var o testkit.Failures
	w := testkit.NewWriter(t, c, natty.WriterConfig{OnError: o.Add})
	const n = 1000
	for i := range n {
		subject := "s"
		if i%2 == 1 {
			subject = "nobody"
		}
		require.NoError(t, w.Write(testkit.Ctx(t), &nats.Msg{Subject: subject, Data: fmt.Append(nil, i), Header: nats.Header{"A": {"b"}}}))
	}
	err := w.Flush(testkit.Ctx(t))
	require.ErrorIs(t, err, natty.ErrNoStream)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Contains(t, err.Error(), `"nobody"`)
	assert.Contains(t, err.Error(), "and 480 more messages failed")
	assert.Less(t, strings.Count(err.Error(), "\n"), 21, "a million failures make no million lines")
	require.NoError(t, w.Flush(testkit.Ctx(t)), "they were returned")
	require.NoError(t, w.Close(testkit.Ctx(t)))
	assert.EqualValues(t, n/2, testkit.Stored(t, s))
	seen := map[string]bool{}
	for i, err := range o.Errs {
		var failed *natty.PublishError
		require.ErrorAs(t, err, &failed)
		assert.Equal(t, "nobody", failed.Subject)
		assert.Equal(t, failed.MsgID, o.Msgs[i].Header.Get(nats.MsgIdHdr), "to be written again as it is")
		assert.Equal(t, "b", o.Msgs[i].Header.Get("A"))
		seen[string(o.Msgs[i].Data)] = true
	}
	assert.Len(t, o.Errs, n/2)
	assert.Len(t, seen, n/2)
}

func TestWriterOnAStreamThatAcknowledgesNothingSaysSo(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "SILENT", Subjects: []string{"s"}, NoAck: true})
	require.NoError(t, err)
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	testkit.Write(t, w, 0, 100)
	err = w.Close(testkit.Ctx(t))
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Contains(t, err.Error(), "no_ack")
	assert.EqualValues(t, 100, testkit.Stored(t, s), "nothing is sent again")
}

func TestWriterWithoutPermissionFailsAtOnceAndLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	node := testkit.Restrict(t, "s.allowed")
	testkit.Ensure(t, testkit.Login(t, node.URL(), "root"), "S", "s.>")
	c := testkit.Login(t, node.URL(), "app")
	var o testkit.Failures
	w := testkit.NewWriter(t, c, natty.WriterConfig{OnError: o.Add})
	for range 50 {
		require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("s.allowed")))
		require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("s.denied")))
	}
	begin := time.Now()
	err := w.Close(testkit.Ctx(t))
	assert.Less(t, time.Since(begin), 5*time.Second)
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.Equal(t, 50, o.Len())
}

func TestWriterWaitsForRoomInAFullStream(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s"}, MaxMsgs: 100, Discard: jetstream.DiscardNew,
	})
	require.NoError(t, err)
	w := testkit.NewWriter(t, c, natty.WriterConfig{MaxPending: 200})
	testkit.Write(t, w, 0, 250)
	testkit.Eventually(t, func() bool { return testkit.Stored(t, s) == 100 }, "it is full")
	for range 2 {
		testkit.Eventually(t, func() bool { return testkit.Stored(t, s) >= 75 }, "what was refused comes again")
		require.NoError(t, s.Purge(testkit.Ctx(t)))
	}
	require.NoError(t, w.Close(testkit.Ctx(t)))

	testkit.Fill(t, c, "s", int(100-testkit.Stored(t, s)))
	w = testkit.NewWriter(t, c, natty.WriterConfig{Timeout: 2 * time.Second})
	testkit.Write(t, w, 0, 10)
	err = w.Flush(testkit.Ctx(t))
	require.ErrorIs(t, err, natty.ErrStreamFull)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	require.NoError(t, s.Purge(testkit.Ctx(t)))
	testkit.Write(t, w, 0, 10)
	require.NoError(t, w.Close(testkit.Ctx(t)))
	assert.EqualValues(t, 10, testkit.Stored(t, s))
}

func TestOnErrorThatBlocksHoldsUpNothingButAFullWindow(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	release := make(chan struct{})
	var calls, at atomic.Int64
	w := testkit.NewWriter(t, c, natty.WriterConfig{MaxPending: 10, OnError: func(*nats.Msg, error) {
		assert.EqualValues(t, 1, at.Add(1), "one at a time")
		<-release
		at.Add(-1)
		calls.Add(1)
	}})
	for range 9 {
		require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("nobody")))
	}
	require.ErrorIs(t, w.Flush(testkit.Ctx(t)), natty.ErrNoStream)
	testkit.Write(t, w, 0, 100)
	require.NoError(t, w.Flush(testkit.Ctx(t)), "one place is enough")
	require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("nobody")))
	require.ErrorIs(t, w.Flush(testkit.Ctx(t)), natty.ErrNoStream)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := w.Write(ctx, nats.NewMsg("s"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Contains(t, err.Error(), "in which 10 of 10 messages")
	close(release)
	require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("s")))
	require.NoError(t, w.Close(testkit.Ctx(t)))
	assert.EqualValues(t, 10, calls.Load())
}

func TestOnErrorThatPanicsOrEndsItsGoroutineIsSurvived(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	var o testkit.Failures
	w := testkit.NewWriter(t, c, natty.WriterConfig{MaxPending: 2, OnError: func(msg *nats.Msg, err error) {
		o.Add(msg, err)
		if o.Len()%2 == 0 {
			runtime.Goexit()
		}
		panic("no")
	}})
	for range 20 {
		require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("nobody")))
	}
	require.ErrorIs(t, w.Close(testkit.Ctx(t)), natty.ErrNoStream)
	assert.Equal(t, 20, o.Len())
}

func TestWriterAfterCloseIsErrClosed(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	testkit.Write(t, w, 0, 10)
	var closing sync.WaitGroup
	for range 5 {
		closing.Go(func() { assert.NoError(t, w.Close(testkit.Ctx(t))) })
	}
	closing.Wait()
	err := w.Write(testkit.Ctx(t), nats.NewMsg("s"))
	require.ErrorIs(t, err, natty.ErrClosed)
	require.NotErrorIs(t, err, natty.ErrOutcomeUnknown)
	require.ErrorIs(t, w.Flush(testkit.Ctx(t)), natty.ErrClosed)
	assert.EqualValues(t, 10, testkit.Stored(t, s))

	w = testkit.NewWriter(t, c, natty.WriterConfig{})
	require.NoError(t, w.Write(testkit.Ctx(t), nats.NewMsg("nobody")))
	err = w.Close(testkit.Ctx(t))
	require.ErrorIs(t, err, natty.ErrNoStream)
	assert.Equal(t, err, w.Close(testkit.Ctx(t)), "the same again")
}

func TestCloseOfTheClientClosesItsWriters(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	s := testkit.Ensure(t, testkit.ConnectTo(t, node.URL()), "S", "s")
	c, err := natty.Connect(testkit.Ctx(t), natty.Config{Servers: []string{node.URL()}}, testkit.Quiet)
	require.NoError(t, err)
	one, other := testkit.NewWriter(t, c, natty.WriterConfig{}), testkit.NewWriter(t, c, natty.WriterConfig{})
	testkit.Write(t, one, 0, 3000)
	require.NoError(t, other.Write(testkit.Ctx(t), nats.NewMsg("nobody")))
	require.ErrorIs(t, c.Close(testkit.Ctx(t)), natty.ErrNoStream, "nobody else is told")
	require.NoError(t, one.Close(testkit.Ctx(t)))
	require.ErrorIs(t, one.Write(testkit.Ctx(t), nats.NewMsg("s")), natty.ErrClosed)
	assert.EqualValues(t, 3000, testkit.Stored(t, s))
}

func TestWriterIsSharedByManyGoroutines(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	w := testkit.NewWriter(t, c, natty.WriterConfig{MaxPending: 50})
	const goroutines, each = 32, 200
	var writers sync.WaitGroup
	for g := range goroutines {
		writers.Go(func() {
			for i := range each {
				if err := w.Write(testkit.Ctx(t), &nats.Msg{Subject: "s", Data: fmt.Appendf(nil, "%d %d", g, i)}); err != nil {
					t.Error(err)
				}
				if i%50 == 0 {
					assert.NoError(t, w.Flush(testkit.Ctx(t)))
				}
			}
		})
	}
	writers.Wait()
	require.NoError(t, w.Close(testkit.Ctx(t)))
	found := testkit.Bodies(t, s)
	assert.Len(t, found, goroutines*each)
	for g := range goroutines {
		last := uint64(0)
		for i := range each {
			at := found[fmt.Sprintf("%d %d", g, i)]
			require.Len(t, at, 1)
			require.Greater(t, at[0], last, "each goroutine's in order")
			last = at[0]
		}
	}
}

func TestWritersNumbersAreRefusedOrWorkWhateverTheyAre(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	cfg := natty.WriterConfig{}
	extremes(&cfg, func(field string, value int64) {
		w, err := c.NewWriter(cfg)
		if value < 0 {
			var bad *natty.ConfigError
			require.ErrorAs(t, err, &bad, "%s %d", field, value)
			return
		}
		require.NoError(t, err, "%s %d", field, value)
		for range 3 {
			err = errors.Join(err, w.Write(testkit.Ctx(t), nats.NewMsg("s")))
		}
		err = errors.Join(err, w.Close(testkit.Ctx(t)))
		if field != "Timeout" || value > 1 { // no message is stored in a nanosecond
			require.NoError(t, err, "%s %d", field, value)
		}
	})
}
