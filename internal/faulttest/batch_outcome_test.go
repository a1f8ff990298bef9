package faulttest_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
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

// commits calls f with the number of each commit of a batch that the server gets.
func commits(t *testing.T, c *natty.Client, f func(n int)) *atomic.Int64 {
	t.Helper()
	n := &atomic.Int64{}
	_, err := c.Conn().Subscribe("s.>", func(m *nats.Msg) {
		if m.Header.Get("Nats-Batch-Commit") == "1" {
			f(int(n.Add(1)))
		}
	})
	require.NoError(t, err)
	require.NoError(t, c.Conn().Flush())
	return n
}

// owned makes n messages with ids of the caller.
func owned(n int) []*nats.Msg {
	msgs := testkit.Messages(n, "x")
	for i, m := range msgs {
		m.Header = nats.Header{jetstream.MsgIDHeader: {fmt.Sprint(i)}}
	}
	return msgs
}

func TestBatchWhoseAnswerIsLostIsFoundInAStreamThatRenamesSubjects(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	direct, proxy := testkit.ConnectTo(t, node.URL()), nattytest.Proxy(t, node.URL())
	s := testkit.BatchStream(t, direct, jetstream.StreamConfig{
		SubjectTransform: &jetstream.SubjectTransformConfig{Source: "s.>", Destination: "t.>"},
	})
	testkit.Fill(t, direct, "s.before", 2)
	c := testkit.ConnectTo(t, proxy.URL())
	commits(t, direct, func(n int) {
		if n > 1 {
			return
		}
		proxy.FreezeReplies()
		testkit.Eventually(t, func() bool { return testkit.Stored(t, s) == 5 }, "the batch is stored")
		_ = direct.Publish(context.Background(), "s.after", nil)
		proxy.Cut()
		proxy.Thaw()
	})
	proxy.Delay(20 * time.Millisecond) // the first answer is there before the commit is sent
	require.NoError(t, c.PublishBatch(testkit.Ctx(t), owned(3)))
	assert.EqualValues(t, 6, testkit.Stored(t, s))
}

// straggler is a network whose first connection keeps a commit back, and looks lost to the
// client from then on. The server still reads what it brings.
type straggler struct {
	first atomic.Pointer[stragglerConn]
}

func (d *straggler) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	s := &stragglerConn{Conn: conn}
	if d.first.CompareAndSwap(nil, s) {
		return s, nil
	}
	return conn, nil
}

type stragglerConn struct {
	net.Conn
	kept []byte // what Write kept back; read only after the client has left
}

func (c *stragglerConn) Write(b []byte) (int, error) {
	if c.kept == nil && bytes.Contains(b, []byte("Nats-Batch-Commit")) {
		c.kept = bytes.Clone(b)
		_ = c.SetReadDeadline(time.Now()) // the client's Read fails
	}
	if c.kept != nil {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *stragglerConn) Close() error { return nil } // the server does not learn of it

func TestBatchThatIsRefusedWhileAnotherConnectionHoldsACopyIsUnknown(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	direct, network := testkit.ConnectTo(t, node.URL()), &straggler{}
	s := testkit.BatchStream(t, direct, jetstream.StreamConfig{MaxMsgs: 4, Discard: jetstream.DiscardNew})
	testkit.Fill(t, direct, "s.before", 2)
	c := testkit.Connect(t, natty.Config{Servers: []string{node.URL()}}, natty.WithNATSOptions(nats.SetCustomDialer(network)))
	err := c.PublishBatch(testkit.Ctx(t), owned(3))
	require.ErrorIs(t, err, natty.ErrStreamFull)
	require.ErrorIs(t, err, natty.ErrOutcomeUnknown)
	assert.EqualValues(t, 2, testkit.Stored(t, s))

	testkit.BatchStream(t, direct, jetstream.StreamConfig{MaxMsgs: 100, Discard: jetstream.DiscardNew})
	first := network.first.Load()
	_, err = first.Conn.Write(first.kept)
	require.NoError(t, err)
	testkit.Eventually(t, func() bool { return testkit.Stored(t, s) == 5 }, "the first copy is stored after all")
	require.NoError(t, first.Conn.Close())
}

func TestBatchOverASlowNetworkIsSentOnce(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	direct, proxy := testkit.ConnectTo(t, node.URL()), nattytest.Proxy(t, node.URL())
	s := testkit.BatchStream(t, direct, jetstream.StreamConfig{})
	c := testkit.ConnectTo(t, proxy.URL())
	sent := commits(t, direct, func(int) {})
	proxy.Delay(400 * time.Millisecond) // an answer takes longer than the first wait for one
	require.NoError(t, c.PublishBatch(testkit.Ctx(t), testkit.Messages(3, "x")))
	assert.EqualValues(t, 1, sent.Load())
	assert.EqualValues(t, 3, testkit.Stored(t, s))
}

func TestNothingIsLostWhenTheServerIsBehind(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.StreamMaxBufferedMsgs = 100 }))
	c := testkit.ConnectTo(t, node.URL())
	s := testkit.BatchStream(t, c, jetstream.StreamConfig{})
	var tooMany atomic.Int64 // answers with 429
	_, err := testkit.ConnectTo(t, node.URL()).Conn().Subscribe("_INBOX.>", func(m *nats.Msg) {
		if strings.Contains(string(m.Data), "10167") {
			tooMany.Add(1)
		}
	})
	require.NoError(t, err)
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	batches := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 10 && err == nil; i++ {
			err = c.PublishBatch(testkit.Ctx(t), testkit.Messages(50, "x"))
		}
		batches <- err
	}()
	for range 10_000 {
		require.NoError(t, w.Write(testkit.Ctx(t), &nats.Msg{Subject: "s.w", Data: make([]byte, 128)}))
	}
	require.NoError(t, w.Flush(testkit.Ctx(t)))
	require.NoError(t, testkit.Receive(t, batches))
	assert.EqualValues(t, 10_500, testkit.Stored(t, s))
	assert.NotZero(t, tooMany.Load(), "the server refused some")
}
