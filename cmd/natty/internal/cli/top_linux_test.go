package cli

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/cmd/natty/internal/account"
	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

func TestTopShowsConsumersLeasesAndDeadLetters(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := fixture.Client(t, node.URL())
	fixture.Streams(t, c)
	fixture.Letters(t, c, 2)
	require.NoError(t, c.Publish(t.Context(), "orders.new", []byte("waits")))
	for _, command := range []string{"lead", "lock"} {
		name := map[string]string{"lead": "--node", "lock": "--owner"}[command]
		args := leaseArgs(node, command, "20s", "echo ready; sleep 600", name, "host-of-"+command)
		args[4] = command + "s"
		p := nattyCmd(t, args...)
		p.start()
		require.Equal(t, "ready", p.line())
	}
	out, errs, code := nattyCmd(t, "top", "--once", "--interval", "100ms", "--server", node.URL()).result()
	require.Equal(t, 0, code, errs)
	assert.Regexp(t, `ORDERS/billing +1 +0/s +0/20.0k +0 +0 +\d+\w+ +messages wait, and nobody asks for them`, out)
	assert.Regexp(t, `leads/job +leader +\d+\w+ ago +host-of-lead`, out)
	assert.Regexp(t, `locks/job +lock +\d+\w+ ago +host-of-lock`, out)
	assert.Regexp(t, `dead.orders +2 +\d+\w+ ago +no such customer`, out)
	assert.NotContains(t, out, "\x1b")

	out, errs, code = nattyCmd(t, "top", "--json", "--interval", "100ms", "--server", node.URL()).result()
	require.Equal(t, 0, code, errs)
	var s account.Snapshot
	require.NoError(t, json.Unmarshal([]byte(out), &s))
	require.Len(t, s.Consumers, 1)
	assert.Equal(t, uint64(1), s.Consumers[0].Lag)
	require.NotNil(t, s.Consumers[0].Rate)
	require.NotNil(t, s.Consumers[0].Oldest)
	assert.Len(t, s.Leases, 2)
	assert.Empty(t, s.Problems)
}
