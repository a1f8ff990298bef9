package conn

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

// The server says why and hangs up while nats.go still writes its login, or begins with
// TLS.
func TestFullServerIsToldAsSuchEveryTime(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]nattytest.Option{"plain": nil, "TLS": {nattytest.TLS()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := nattytest.Server(t, append(opts, nattytest.Options(func(o *server.Options) { o.MaxConn = 1 }))...)
			p := &prober{opts: nats.GetDefaultOptions()}
			if opts != nil {
				require.NoError(t, nats.RootCAs(node.Files().CA)(&p.opts))
			}
			first := p.opts
			first.Servers = []string{node.URL()}
			nc, err := first.Connect()
			require.NoError(t, err)
			defer nc.Close()
			for range 50 {
				require.ErrorIs(t, p.probe(t.Context(), node.URL()), nats.ErrMaxConnectionsExceeded)
			}
		})
	}
}

func TestReasonIsWhatTheServerSaidHoweverItIsSplit(t *testing.T) {
	t.Parallel()
	failure := errors.New("broken pipe")
	for text, want := range map[string]error{
		"Maximum Connections Exceeded":                nats.ErrMaxConnectionsExceeded,
		"Maximum Account Active Connections Exceeded": nats.ErrMaxAccountConnectionsExceeded,
		"Authorization Violation":                     nats.ErrAuthorization,
		"User Authentication Expired":                 nats.ErrAuthExpired,
		"User Authentication Revoked":                 nats.ErrAuthRevoked,
		"Account Authentication Expired":              nats.ErrAccountAuthExpired,
		"Something New":                               nats.ErrDisconnected,
	} {
		said := "INFO {" + strings.Repeat(" ", maxErrorLine) + "}\r\n-ERR '" + text + "'\r\n"
		for i := range said {
			var h heard
			h.listen([]byte(said[:i]))
			require.Equal(t, failure, h.reason(failure))
			h.listen([]byte(said[i:]))
			require.ErrorIs(t, h.reason(failure), want)
		}
	}
	var h heard
	h.listen([]byte("-ERR 'Something New'\r\n"))
	require.ErrorContains(t, h.reason(failure), "Something New")
	h = heard{}
	h.listen([]byte("-ERR '" + strings.Repeat("x", 2*maxErrorLine) + "'\r\n"))
	assert.Equal(t, failure, h.reason(failure), "no server says that")
}
