package nattytest_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) {
	// A node that stops while it creates a replica leaks the goroutines of the
	// replica's store. The leak is the server's: createRaftGroup returns without
	// stopping the store, seen with 2.15.2.
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
	)
}

const (
	patience = 20 * time.Second
	// silence is how long a test reads before it concludes that nothing arrives.
	silence = 60 * time.Millisecond
)

// upstream starts a TCP server, and hands its connections to the test.
func upstream(t *testing.T) (address string, accepted <-chan *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	conns, done := make(chan *net.TCPConn, 16), make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns <- conn.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
		close(conns)
		for conn := range conns {
			conn.Close()
		}
	})
	return listener.Addr().String(), conns
}

func dial(t *testing.T, l *nattytest.Link) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.URL(), "nats://"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn.(*net.TCPConn)
}

func accept(t *testing.T, accepted <-chan *net.TCPConn) *net.TCPConn {
	t.Helper()
	select {
	case conn := <-accepted:
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
		return conn
	case <-time.After(patience):
		t.Fatal("nothing was accepted")
		return nil
	}
}

// through returns both ends of a connection through a new proxy.
func through(t *testing.T) (l *nattytest.Link, client, server *net.TCPConn) {
	t.Helper()
	address, accepted := upstream(t)
	l = nattytest.Proxy(t, address)
	client = dial(t, l)
	return l, client, accept(t, accepted)
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	_, err := conn.Write([]byte(text))
	require.NoError(t, err)
}

func requireArrives(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	_, err := io.ReadFull(conn, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// requireSilence reads until nothing has arrived for a while. It returns the bytes that
// arrived before, at most allowed of them.
func requireSilence(t *testing.T, conn net.Conn, allowed int) []byte {
	t.Helper()
	var got []byte
	buf := make([]byte, 64<<10)
	for {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(silence)))
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
			require.LessOrEqual(t, len(got), allowed)
			return got
		}
	}
}

// numbered returns a payload in which every eight bytes differ, so that the test
// notices a lost or swapped piece.
func numbered(size int) []byte {
	data := make([]byte, 0, size)
	for i := uint64(0); len(data) < size; i++ {
		data = binary.BigEndian.AppendUint64(data, i)
	}
	return data
}

// writeAll writes in the background, and sends the result to the channel.
func writeAll(conn net.Conn, data []byte) <-chan error {
	result := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		result <- err
	}()
	return result
}

func requireSame(t *testing.T, want, got []byte) {
	t.Helper()
	require.Len(t, got, len(want))
	require.Equal(t, sha256.Sum256(want), sha256.Sum256(got))
}

// requireInTime retries try until ctx ends. A request that is in flight when a leader
// or a connection is lost gets no answer.
func requireInTime(ctx context.Context, t *testing.T, try func(context.Context) error) {
	t.Helper()
	for {
		once, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := try(once)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			require.NoError(t, err, "in time")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// fatal runs f with a testing.TB and returns the message that f passed to Fatal.
func fatal(f func(testing.TB)) string {
	tb := &failing{ended: make(chan struct{})}
	go func() {
		defer close(tb.ended)
		defer func() { _ = recover() }()
		f(tb)
	}()
	<-tb.ended
	return tb.message
}

type failing struct {
	testing.TB
	message string
	ended   chan struct{}
}

func (*failing) Helper()        {}
func (*failing) Cleanup(func()) {}
func (f *failing) Fatal(args ...any) {
	f.message = fmt.Sprint(args...)
	panic("fatal")
}
