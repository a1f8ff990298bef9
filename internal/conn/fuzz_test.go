package conn

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// FuzzWire: whatever a server sends, and however the network splits it, nats.go reads it
// all, except for a last line that is an error.
func FuzzWire(f *testing.F) {
	for _, text := range []string{
		"", "PING\r\n", "MSG a 1 8\r\n-ERR 'x'\r\nPING\r\n" + violation, violation, "-ERR 'Permissions Violation for Publish to \"a\"'\r\n",
		"-ERR '", "-ERR 'x'", "-ERR 'x'\r", "-ERR 'x'\n", "\n-ERR 'a'\r\n-ERR 'b'\r\n", "-", "\r\n-E", strings.Repeat("x", 600) + "'\r\n",
	} {
		f.Add(text, uint(3), uint(9))
	}
	f.Fuzz(func(t *testing.T, text string, i, j uint) {
		n := uint(len(text)) + 1
		i, j = min(i%n, j%n), max(i%n, j%n)
		got, refused, err := readAll(t, text[:i], text[i:j], text[j:])
		rest, ok := strings.CutPrefix(text, got)
		require.True(t, ok, "%q was read of %q", got, text)
		if rest == "" {
			require.NoError(t, err)
			require.Nil(t, refused)
			return
		}
		require.NotNil(t, refused, "%q was not read", rest)
		require.ErrorIs(t, err, nats.ErrDisconnected)
		require.Equal(t, "-ERR '"+refused.Text+"'\r\n", rest)
		require.False(t, known(refused.Text), "nats.go knows %q", refused.Text)
	})
}

// FuzzWhatAServerSays reads a server's errors, whose texts are the protocol.
func FuzzWhatAServerSays(f *testing.F) {
	for _, text := range []string{
		`Permissions Violation for Publish to "$JS.ACK.S.d.1.2.3.4.5"`, `Permissions Violation for Subscription to "a" using queue "q"`,
		`permissions violation for publish to ""`, `"`, "Authorization Violation", "", "\x00\xff", `Permissions Violation for Publish to "a"b"`,
	} {
		f.Add(text, uint(5))
	}
	f.Fuzz(func(t *testing.T, text string, split uint) {
		if r, ok := refusalOf(fmt.Errorf("%w: %s", nats.ErrPermissionViolation, text)); ok {
			assert.NotEmpty(t, r.Subject)
			assert.Contains(t, text, r.Subject)
			assert.NotEmpty(t, r.kind())
		}
		said := "INFO {}\r\n-ERR '" + text + "'\r\n"
		split %= uint(len(said))
		var h heard
		h.listen([]byte(said[:split]))
		h.listen([]byte(said[split:]))
		failure := errors.New("broken pipe")
		require.Error(t, h.reason(failure))
		if !strings.Contains(text, "\n") && text != "" && len(text) < maxErrorLine-20 {
			assert.Equal(t, text, h.text)
		}
	})
}
