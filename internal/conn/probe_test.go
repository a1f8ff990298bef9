package conn

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A server that refuses a client's certificate closes the connection right behind its
// alert, which may never arrive.
func TestRefusalThatLooksLikeALostConnectionIsProbedAgain(t *testing.T) {
	t.Parallel()
	for name, drop := range map[string]func(*net.TCPConn){
		"closed": func(*net.TCPConn) {},
		"reset":  func(c *net.TCPConn) { _ = c.SetLinger(0) },
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close() //nolint:revive // both, at the end
		go func() {
			for n := 0; ; n++ {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				if n > 0 {
					_, _ = io.WriteString(conn, "INFO {}\r\n")
					_, _ = bufio.NewReader(conn).ReadString('\n')
					_, _ = io.WriteString(conn, "-ERR 'Authorization Violation'\r\n")
				} else {
					drop(conn.(*net.TCPConn))
				}
				conn.Close()
			}
		}()
		p := prober{opts: nats.GetDefaultOptions()}
		p.opts.Servers = []string{"nats://" + listener.Addr().String()}
		answers, ok := errors.AsType[*answersError](p.probeAll(t.Context()))
		require.True(t, ok, name)
		require.ErrorIs(t, answers, nats.ErrAuthorization, name)
		assert.True(t, answers.final(), name)
	}
}

func TestAnswersAreFinalOnlyIfEveryServerRefuses(t *testing.T) {
	t.Parallel()
	refused, passing := &refusedError{"no", nats.ErrAuthorization}, syscall.ECONNREFUSED
	for _, c := range []struct {
		errs  []error
		final bool
	}{
		{[]error{passing}, false},
		{[]error{refused}, true},
		{[]error{refused, passing}, false},
		{[]error{passing, refused}, false},
		{[]error{refused, refused}, true},
	} {
		assert.Equal(t, c.final, (&answersError{c.errs}).final(), c.errs)
	}
}

func TestWhatMayPassByItselfIsNoRefusal(t *testing.T) {
	t.Parallel()
	p := prober{}
	for _, err := range []error{
		io.EOF, context.DeadlineExceeded, syscall.ECONNREFUSED, nats.ErrNoServers, nats.ErrTimeout, nats.ErrMaxConnectionsExceeded,
		&net.DNSError{Err: "no such host", IsNotFound: true}, nats.ErrTLS,
		&net.OpError{Op: "remote error", Err: tls.AlertError(80)}, // internal error
		&net.OpError{Op: "remote error", Err: errors.New("no alert")},
		&net.OpError{Op: "local error", Err: tls.AlertError(42)},
	} {
		assert.Empty(t, p.advice(err, nil), err)
	}
	for _, err := range []error{
		nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAccountAuthExpired, nats.ErrAuthRevoked, nats.ErrNkeysNotSupported,
		nats.ErrSecureConnWanted, &net.OpError{Op: "remote error", Err: tls.AlertError(116)},
	} {
		assert.NotEmpty(t, p.advice(err, nil), err)
		assert.False(t, strings.HasSuffix(p.advice(err, nil), "."), err)
	}
}
