package conn

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

const (
	greeting  = "INFO {\"max_payload\":100}\r\nPONG\r\n"
	violation = "-ERR 'Maximum Payload Violation'\r\n"
)

// script is a connection that brings chunks, and then ends.
type script struct {
	net.Conn
	chunks [][]byte
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.chunks[0])
	if s.chunks[0] = s.chunks[0][n:]; len(s.chunks[0]) == 0 {
		s.chunks = s.chunks[1:]
	}
	return n, nil
}

func (*script) SetReadDeadline(time.Time) error { return nil }

// readAll returns what nats.go reads of a text that is split behind the greeting, and
// the error with which the server ended the connection.
func readAll(t *testing.T, chunks ...string) (got string, refused *ServerError, err error) {
	t.Helper()
	s := &script{}
	for _, c := range append([]string{greeting}, chunks...) {
		s.chunks = append(s.chunks, []byte(c))
	}
	w := newWire(s, &nats.Options{}, "", false, func(e *ServerError) { refused = e })
	data, err := io.ReadAll(w)
	require.GreaterOrEqual(t, len(data), len(greeting))
	return string(data[len(greeting):]), refused, err
}

func TestFatalErrorIsReadAsALostConnectionHoweverItIsSplit(t *testing.T) {
	t.Parallel()
	const before = "MSG a 1 8\r\n-ERR 'x'\r\nPING\r\n"
	text := before + violation
	for i := range len(text) {
		for j := i; j < len(text); j++ {
			got, refused, err := readAll(t, text[:i], text[i:j], text[j:])
			require.Equal(t, before, got, "%q", []string{text[:i], text[i:j], text[j:]})
			require.ErrorAs(t, err, &refused)
			require.ErrorIs(t, err, nats.ErrDisconnected)
			require.True(t, refused.PayloadTooLarge())
		}
	}
	got, refused, err := readAll(t, "-ERR 'maximum control line exceeded'\r\n")
	require.Error(t, err)
	assert.Empty(t, got)
	assert.True(t, refused.LineTooLong())
}

func TestDataThatLooksLikeAnErrorIsRead(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"MSG a 1 8\r\n-ERR 'x'\r\n" + "MSG a 1 1\r\nx\r\n",
		"MSG a 1 4\r\n-ERR\r\n",
		"MSG a 1 6\r\n-ERR '\r\n",
		"MSG a 1 8\r\nx-ERR 'y'\r\n",
		"-ERR 'Permissions Violation for Publish to \"a\"'\r\n",
		"-ERR 'Stale Connection'\r\n",
		"-ERR 'Maximum Pay", // the connection breaks
	} {
		for i := range len(text) {
			got, refused, err := readAll(t, text[:i], text[i:])
			require.NoError(t, err)
			require.Equal(t, text, got, "split at %d", i)
			require.Nil(t, refused)
		}
	}
}

func TestDataThatIsAnErrorWordForWordIsReadAfterAMoment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, srv := net.Pipe()
		w := newWire(client, &nats.Options{}, "", false, func(e *ServerError) { t.Error(e) })
		const text = "MSG a 1 34\r\n" + violation
		go func() {
			_, _ = srv.Write([]byte(greeting))
			_, _ = srv.Write([]byte(text))
			time.Sleep(time.Minute) // fake time
			_, _ = srv.Write([]byte("PING\r\n"))
			_ = srv.Close()
		}()
		got := make([]byte, len(greeting)+len(text))
		begin := time.Now()
		_, err := io.ReadFull(iotest.OneByteReader(w), got)
		require.NoError(t, err)
		assert.Equal(t, greeting+text, string(got))
		assert.Equal(t, errorGrace, time.Since(begin))
		rest, err := io.ReadAll(w)
		require.NoError(t, err)
		assert.Equal(t, "PING\r\n", string(rest))
	})
}

func TestErrorBeforeTheWelcomeIsForTheAttemptToConnect(t *testing.T) {
	t.Parallel()
	s := &script{chunks: [][]byte{[]byte("INFO {}\r\n"), []byte("-ERR 'Something New'\r\n")}}
	got, err := io.ReadAll(newWire(s, &nats.Options{}, "", false, func(e *ServerError) { t.Error(e) }))
	require.NoError(t, err)
	assert.Equal(t, "INFO {}\r\n-ERR 'Something New'\r\n", string(got))
	for i := range "PONG\r\n" { // wherever it is split
		s := &script{chunks: [][]byte{[]byte("INFO {}\r\nPONG\r\n"[:9+i]), []byte("PONG\r\n"[i:]), []byte(violation)}}
		_, err := io.ReadAll(newWire(s, &nats.Options{}, "", false, func(*ServerError) {}))
		require.ErrorIs(t, err, nats.ErrDisconnected, "%d", i)
	}
}

// reasons keeps why waiting publishes get no acknowledgement.
type reasons chan error

func (r reasons) Fail(_ string, err error) { r <- err }

func TestConnectionSurvivesLimitsThatAreLowered(t *testing.T) {
	t.Parallel()
	webSocket := nattytest.Options(func(o *server.Options) {
		o.Websocket.Host, o.Websocket.Port, o.Websocket.NoTLS = "127.0.0.1", server.RANDOM_PORT, true
	})
	for name, opts := range map[string][]nattytest.Option{"plain": nil, "TLS": {nattytest.TLS()}, "WebSocket": {webSocket}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var lowered server.Options
			node := nattytest.Server(t, append(opts, nattytest.Options(func(o *server.Options) { lowered = *o }))...)
			o := nats.GetDefaultOptions()
			o.Servers, o.RetryOnFailedConnect, o.ReconnectWait = []string{node.URL()}, true, time.Millisecond
			switch name {
			case "TLS":
				require.NoError(t, nats.RootCAs(node.Files().CA)(&o))
			case "WebSocket":
				o.Servers = []string{node.Server().WebsocketURL()}
			}
			cn := dialTo(t, &o, false, make(chan Event, 100))
			require.NoError(t, cn.Await(t.Context()))
			failed := make(reasons, 16)
			cn.Attach(failed)
			lowered.MaxPayload, lowered.MaxControlLine = 1000, 1024
			require.NoError(t, node.Server().ReloadOptions(&lowered))
			for _, send := range []func() error{
				func() error { return cn.NC.Publish("a", make([]byte, 2000)) },
				func() error { return cn.NC.Publish(strings.Repeat("a", 1500), nil) },
			} {
				require.NoError(t, send())
				refused, ok := errors.AsType[*ServerError](<-failed)
				require.True(t, ok)
				assert.True(t, refused.PayloadTooLarge() || refused.LineTooLong(), refused.Text)
				require.Eventually(t, func() bool { return cn.NC.Flush() == nil && cn.Link.Up() }, 5*time.Second, time.Millisecond)
				require.ErrorIs(t, cn.Link.State().LastErr, nats.ErrDisconnected)
			}
			assert.Equal(t, int64(1000), cn.NC.MaxPayload())
		})
	}
}
