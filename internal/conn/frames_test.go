package conn

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// frame puts a text into a frame as the server does.
func frame(first byte, text string) string {
	if len(text) < 126 {
		return string([]byte{first, byte(len(text))}) + text
	}
	return string(binary.BigEndian.AppendUint16([]byte{first, 126}, uint16(len(text)))) + text
}

const (
	binaryFrame = 0x82
	hello       = "HTTP/1.1 101 Switching Protocols\r\n\r\n\x82\x0bINFO {}\r\n\x82\x06PONG\r\n"
)

// readFrames is readAll for a WebSocket.
func readFrames(t *testing.T, chunks ...string) (got string, refused *ServerError, err error) {
	t.Helper()
	s := &script{}
	for _, c := range append([]string{hello}, chunks...) {
		if c != "" {
			s.chunks = append(s.chunks, []byte(c))
		}
	}
	data, err := io.ReadAll(newFramedWire(s, &nats.Options{}, func(e *ServerError) { refused = e }))
	require.GreaterOrEqual(t, len(data), len(hello))
	return string(data[len(hello):]), refused, err
}

func TestFatalErrorInAFrameIsReadAsALostConnectionHoweverItIsSplit(t *testing.T) {
	t.Parallel()
	const message = "MSG a 1 8\r\n-ERR 'x'\r\nPING\r\n"
	for _, end := range []string{"", frame(closeFrame, "\x03\xf1Maximum Payload Exceeded")} {
		for before, text := range map[string]string{
			frame(binaryFrame, message) + "\x82\x22":               frame(binaryFrame, message) + frame(binaryFrame, violation) + end,
			frame(binaryFrame, message+violation)[:2+len(message)]: frame(binaryFrame, message+violation) + end,
		} {
			for i := range len(text) {
				for j := i; j < len(text); j++ {
					got, refused, err := readFrames(t, text[:i], text[i:j], text[j:])
					require.Equal(t, before, got, "%q", []string{text[:i], text[i:j], text[j:]})
					require.ErrorAs(t, err, &refused)
					require.True(t, refused.PayloadTooLarge(), refused.Text)
				}
			}
		}
	}
}

func TestDataInAFrameThatLooksLikeAnErrorIsRead(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		frame(binaryFrame, "MSG a 1 8\r\n-ERR 'x'\r\n") + frame(binaryFrame, "PING\r\n"),
		frame(binaryFrame, "MSG a 1 10\r\n-ERR 'x'\r\n\r\n"),
		frame(binaryFrame, "MSG a 1 6\r\n-ERR '\r\n"),
		frame(binaryFrame, "MSG a 1 1\r\n-\r\n") + frame(closeFrame, "\x03\xe8"),
		frame(binaryFrame, "-ERR 'Permissions Violation for Publish to \"a\"'\r\n"),
		frame(binaryFrame, "-ERR 'Stale Connection'\r\n") + frame(closeFrame, "\x03\xe9"),
		frame(binaryFrame, violation)[:20], // the connection breaks
	} {
		for i := range len(text) {
			got, refused, err := readFrames(t, text[:i], text[i:])
			require.NoError(t, err)
			require.Equal(t, text, got, "split at %d", i)
			require.Nil(t, refused)
		}
	}
}

func TestDataInAFrameThatIsAnErrorWordForWordIsReadAfterAMoment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, srv := net.Pipe()
		w := newFramedWire(client, &nats.Options{}, func(e *ServerError) { t.Error(e) })
		text := hello + frame(binaryFrame, "MSG a 1 33\r\n"+violation)
		go func() {
			_, _ = srv.Write([]byte(hello))
			_, _ = srv.Write([]byte(text[len(hello):]))
			time.Sleep(time.Minute) // fake time
			_ = srv.Close()
		}()
		got := make([]byte, len(text))
		begin := time.Now()
		_, err := io.ReadFull(w, got)
		require.NoError(t, err)
		assert.Equal(t, text, string(got))
		assert.Equal(t, errorGrace, time.Since(begin))
		_, err = io.ReadAll(w)
		require.NoError(t, err)
	})
}

func TestAWebSocketIsReadOnlyInTheClear(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]nats.Options{
		"a wss URL":   {Servers: []string{"ws://a", " wss://b"}},
		"TLS":         {Url: "ws://a", TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12}},
		"secure":      {Url: "ws://a", Secure: true},
		"compression": {Url: "ws://a", Compression: true},
	} {
		assert.False(t, (&dialer{opts: &opts}).legible(), name)
	}
	assert.True(t, (&dialer{opts: &nats.Options{Url: "ws://a"}}).legible())
}
