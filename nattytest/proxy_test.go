package nattytest_test

import (
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

func TestCutEndsAStreamInTheMiddleOnBothSides(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	written := writeAll(server, make([]byte, 256<<20))
	_, err := io.ReadFull(client, make([]byte, 1<<20))
	require.NoError(t, err)

	l.Cut()

	require.Error(t, <-written)
	rest, err := io.Copy(io.Discard, client)
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.Less(t, rest, int64(255<<20))
}

func TestCutLosesWhatIsHeldAndGoesOnAccepting(t *testing.T) {
	t.Parallel()
	address, accepted := upstream(t)
	l := nattytest.Proxy(t, address)
	client := dial(t, l)
	server := accept(t, accepted)
	l.Freeze()
	send(t, client, "lost")
	l.Cut()
	l.Thaw()
	got, err := io.ReadAll(server)
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.Empty(t, got)

	client = dial(t, l)
	server = accept(t, accepted)
	send(t, client, "again")
	requireArrives(t, server, "again")
}

func TestFreezeHoldsEveryByteBothWaysAndThawKeepsOrder(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	l.Freeze()
	send(t, client, "one ")
	send(t, server, "three ")
	requireSilence(t, server, 0)
	requireSilence(t, client, 0)
	send(t, client, "two")
	send(t, server, "four")
	l.Thaw()
	requireArrives(t, server, "one two")
	requireArrives(t, client, "three four")
}

func TestFreezeInTheMiddleOfAStreamLosesNothing(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	data := numbered(24 << 20)
	written := writeAll(client, data)
	start := make([]byte, 1<<20)
	_, err := io.ReadFull(server, start)
	require.NoError(t, err)

	l.Freeze()
	got := slices.Concat(start, requireSilence(t, server, len(data)-len(start)-1))
	l.Thaw()

	rest := make([]byte, len(data)-len(got))
	_, err = io.ReadFull(server, rest)
	require.NoError(t, err)
	require.NoError(t, <-written)
	requireSame(t, data, append(got, rest...))
}

func TestFreezeReturnsThoughTheReceiverDoesNotRead(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	data := numbered(48 << 20) // more than the sockets hold, less than the proxy holds
	require.NoError(t, <-writeAll(client, data))
	for range 10 { // also interrupts a write that was interrupted before
		l.Freeze()
		l.Thaw()
	}
	got := make([]byte, len(data))
	_, err := io.ReadFull(server, got)
	require.NoError(t, err)
	requireSame(t, data, got)
}

func TestFreezeAcceptsNewConnectionsAndThawServesThem(t *testing.T) {
	t.Parallel()
	address, accepted := upstream(t)
	l := nattytest.Proxy(t, address)
	l.Freeze()
	client := dial(t, l)
	send(t, client, "hello")
	select {
	case <-accepted:
		t.Fatal("the target was dialed through a freeze")
	case <-time.After(silence):
	}
	l.Thaw()
	requireArrives(t, accept(t, accepted), "hello")
}

func TestFreezeHoldsTheEndOfAConnection(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	l.Freeze()
	require.NoError(t, server.Close())
	requireSilence(t, client, 0)
	l.Thaw()
	_, err := client.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func TestFreezeRepliesLetsRequestsPass(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	l.FreezeReplies()
	send(t, client, "request")
	requireArrives(t, server, "request")
	send(t, server, "reply")
	requireSilence(t, client, 0)
	l.Thaw()
	requireArrives(t, client, "reply")
}

func TestFreezeRequestsLetsRepliesPass(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	l.FreezeRequests()
	send(t, server, "reply")
	requireArrives(t, client, "reply")
	send(t, client, "request")
	requireSilence(t, server, 0)
	l.Thaw()
	requireArrives(t, server, "request")
}

func TestDelayIsAddedToEveryByte(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	const delay = 40 * time.Millisecond
	l.Delay(delay)
	begin := time.Now()
	send(t, client, "ping")
	requireArrives(t, server, "ping")
	require.GreaterOrEqual(t, time.Since(begin), delay)
	send(t, server, "pong")
	requireArrives(t, client, "pong")
	require.GreaterOrEqual(t, time.Since(begin), 2*delay)
}

func TestDelayKeepsOrderAndThroughput(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	const delay = 200 * time.Millisecond
	l.Delay(delay)
	data := numbered(16 << 20)
	begin := time.Now()
	written := writeAll(client, data)
	got := make([]byte, len(data))
	_, err := io.ReadFull(server, got)
	took := time.Since(begin)
	require.NoError(t, err)
	require.NoError(t, <-written)
	requireSame(t, data, got)
	require.GreaterOrEqual(t, took, delay)
	// The data is 512 chunks or more, so delays one after the other would take 100
	// seconds.
	require.Less(t, took, 10*time.Second)
}

func TestDelayThatChangesLetsNothingOvertake(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	data := numbered(4 << 10)
	for i := 0; i < len(data); i += 8 {
		l.Delay(time.Duration(i/8%3) * 5 * time.Millisecond)
		send(t, client, string(data[i:i+8]))
	}
	got := make([]byte, len(data))
	_, err := io.ReadFull(server, got)
	require.NoError(t, err)
	require.Equal(t, data, got)
}

func TestDelayOfZeroTurnsItOff(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	l.Delay(10 * patience)
	l.Delay(0)
	send(t, client, "now")
	requireArrives(t, server, "now")
}

func TestRefuseTurnsNewConnectionsAwayAndKeepsOpenOnes(t *testing.T) {
	t.Parallel()
	address, accepted := upstream(t)
	l := nattytest.Proxy(t, address)
	client := dial(t, l)
	server := accept(t, accepted)

	l.Refuse(true)
	l.Refuse(true)
	_, err := net.Dial("tcp", strings.TrimPrefix(l.URL(), "nats://"))
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	send(t, client, "still here")
	requireArrives(t, server, "still here")

	l.Refuse(false)
	l.Refuse(false)
	send(t, dial(t, l), "back")
	requireArrives(t, accept(t, accepted), "back")
}

func TestLastWordsOfAServerArriveBeforeTheEnd(t *testing.T) {
	t.Parallel()
	l, client, server := through(t)
	l.FreezeReplies()
	send(t, server, "-ERR goodbye")
	require.NoError(t, server.Close())
	// The server answers these bytes with a reset, which must not overtake its last
	// bytes.
	require.NoError(t, <-writeAll(client, make([]byte, 1<<20)))
	l.Thaw()
	requireArrives(t, client, "-ERR goodbye")
}

func TestHalfAConnectionMayEndAlone(t *testing.T) {
	t.Parallel()
	_, client, server := through(t)
	send(t, client, "question")
	require.NoError(t, client.CloseWrite())
	question, err := io.ReadAll(server)
	require.NoError(t, err)
	require.Equal(t, "question", string(question))
	send(t, server, "answer")
	require.NoError(t, server.Close())
	answer, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "answer", string(answer))
}

func TestTargetThatIsDownClosesTheConnection(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	l := nattytest.Proxy(t, node.URL())
	node.Stop()
	_, err := dial(t, l).Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)

	require.NoError(t, node.Restart())
	info := make([]byte, 4)
	_, err = io.ReadFull(dial(t, l), info)
	require.NoError(t, err)
	require.Equal(t, "INFO", string(info))
}

func TestAcknowledgementIsLostThoughTheMessageIsStored(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	node := nattytest.Server(t)
	l := nattytest.Proxy(t, node.URL())
	stream := newStream(ctx, t, connect(t, node.URL()), 1)
	disconnected := make(chan struct{}, 1)
	nc := connect(t, l.URL(), nats.DisconnectErrHandler(func(*nats.Conn, error) { disconnected <- struct{}{} }))
	js, err := jetstream.New(nc)
	require.NoError(t, err)

	l.FreezeReplies()
	future, err := js.PublishAsync("orders.new", []byte("one"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return stored(ctx, t, stream) == 1 }, patience, 5*time.Millisecond)
	l.Cut()
	l.Thaw()

	<-disconnected
	select {
	case err := <-future.Err():
		require.ErrorIs(t, err, nats.ErrDisconnected)
	case <-future.Ok():
		t.Fatal("acknowledged through a frozen link")
	case <-ctx.Done():
		t.Fatal("neither lost nor acknowledged")
	}
	require.Eventually(t, nc.IsConnected, patience, 5*time.Millisecond)
}

func TestProxyRefusesATargetWithoutAPort(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"", "localhost", "nats://localhost", "nats://user:secret@host:%zz"} {
		message := fatal(func(t testing.TB) { nattytest.Proxy(t, target) })
		require.Contains(t, message, "the proxy's target", target)
		require.NotContains(t, message, "secret")
	}
}
