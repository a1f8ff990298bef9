package cli

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

// withLetters returns a server with two kinds of dead letters, and one foreign.
func withLetters(t *testing.T) (*nattytest.Node, *natty.Client) {
	t.Helper()
	node := nattytest.Server(t)
	c := fixture.Client(t, node.URL())
	fixture.Streams(t, c)
	fixture.Letters(t, c, 3)
	fixture.Refuse(t, c, 1, "orders.binary", "cannot parse\x1b[31m", func(int) []byte { return []byte{0, 1, 2, 0xff} })
	require.NoError(t, c.Publish(t.Context(), "dead.orders", []byte("from a stranger")))
	return node, c
}

func TestDeadListsAndFilters(t *testing.T) {
	t.Parallel()
	node, _ := withLetters(t)
	on := func(args ...string) (string, string, int) {
		return nattyCmd(t, append(args, "--server", node.URL())...).result()
	}
	out, errs, code := on("dead", "ls", "dead.>")
	require.Equal(t, 0, code, errs)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, 6, out)
	assert.Regexp(t, `^ID +AGE +ORIGIN +DURABLE +TRIES +SIZE +REASON$`, lines[0])
	assert.Regexp(t, `^DEAD/1 +\d+\w+ +orders.new +billing +1 delivery +8 B +no such customer$`, lines[1])
	assert.NotContains(t, out, "\x1b", "a letter does not change the terminal")
	assert.Contains(t, lines[5], "not a dead letter of natty's")

	for _, filter := range [][]string{
		{"--origin", "orders.bin*"}, {"--reason", "No Such Thing"}, {"--older", "1h"}, {"--durable", "other"},
	} {
		out, errs, code := on(append([]string{"dead", "ls", "dead.orders"}, filter...)...)
		assert.Equal(t, 0, code, errs)
		assert.Equal(t, "There are no such dead letters on dead.orders.\n", out)
	}
	out, _, _ = on("dead", "ls", "dead.orders", "--origin", "orders.*", "--reason", "NO SUCH", "--newer", "1h")
	assert.Equal(t, 3, strings.Count(out, "no such customer"))
	out, _, _ = on("dead", "ls")
	assert.Regexp(t, `dead.orders +DEAD +5`, out)

	var letters []map[string]any
	out, _, _ = on("dead", "ls", "dead.orders", "--json", "--limit", "2")
	require.NoError(t, json.Unmarshal([]byte(out), &letters))
	require.Len(t, letters, 2)
	assert.Equal(t, "orders.new", letters[0]["subject"])
}

func TestDeadShowPrintsWhatIsNotTextAsHex(t *testing.T) {
	t.Parallel()
	node, _ := withLetters(t)
	out, errs, code := nattyCmd(t, "dead", "show", "dead.orders", "--server", node.URL(), "--id", "DEAD/4").result()
	require.Equal(t, 0, code, errs)
	assert.Contains(t, out, "Letter   DEAD/4\nReason   cannot parse")
	assert.Contains(t, out, "Origin   orders.binary, in stream ORDERS at 4\n")
	assert.Contains(t, out, "Header   Customer: 0\n")
	assert.Contains(t, out, "Payload  4 B, not text, so shown as hex\n  00000000  00 01 02 ff ")
	_, errs, code = nattyCmd(t, "dead", "show", "dead.orders", "--server", node.URL(), "--id", "DEAD/99").result()
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "natty dead ls dead.orders")
}

func TestDeadRedriveAsksOrIsToldAndPutsBack(t *testing.T) {
	t.Parallel()
	node, c := withLetters(t)
	on := func(args ...string) (string, string, int) {
		return nattyCmd(t, append(args, "--server", node.URL())...).result()
	}
	_, errs, code := on("dead", "redrive", "dead.orders")
	assert.Equal(t, 2, code, "there is nobody to ask")
	assert.Contains(t, errs, "add --yes")
	out, _, code := on("dead", "redrive", "dead.orders", "--dry-run", "--origin", "orders.new")
	assert.Equal(t, 0, code)
	assert.Equal(t, 3, strings.Count(out, "no such customer"))

	out, errs, code = on("dead", "redrive", "dead.orders", "--yes", "--origin", "orders.new")
	require.Equal(t, 0, code, errs)
	assert.Equal(t, "3 dead letters were redriven.\n", out)
	fixture.Consume(t, c, 3, func(context.Context, *nats.Msg) error { return nil })
	out, errs, code = on("dead", "redrive", "dead.orders", "--yes")
	assert.Equal(t, 1, code, "the foreign letter stays")
	assert.Equal(t, "1 dead letter was redriven.\n", out)
	assert.Contains(t, errs, "it is no dead letter of natty's")
}

func TestDeadPurgeLeavesStrangersAlone(t *testing.T) {
	t.Parallel()
	node, _ := withLetters(t)
	on := func(args ...string) (string, string, int) {
		return nattyCmd(t, append(args, "--server", node.URL())...).result()
	}
	out, errs, code := on("dead", "purge", "dead.orders", "--yes", "--json")
	require.Equal(t, 0, code, errs)
	assert.JSONEq(t, `{"found":4,"done":4,"left_alone":1}`, out)
	out, errs, code = on("dead", "purge", "dead.orders", "--yes")
	require.Equal(t, 0, code, errs)
	assert.Equal(t, "0 dead letters were purged.\n", out)
	assert.Equal(t, "natty: left alone on dead.orders, since natty has not written them: 1 message; add --foreign to take them too\n", errs)
	out, errs, code = on("dead", "show", "dead.orders", "--id", "DEAD/5")
	require.Equal(t, 0, code, errs)
	assert.Contains(t, out, "from a stranger")
	assert.Contains(t, out, "not a dead letter of natty's")
	out, errs, code = on("dead", "purge", "dead.orders", "--yes", "--foreign")
	require.Equal(t, 0, code, errs)
	assert.Equal(t, "1 dead letter was purged.\n", out)
	out, _, _ = on("dead", "ls")
	assert.Equal(t, "There are no dead letters.\n", out)
}

func TestDeadTellsHowFarItIs(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := fixture.Client(t, node.URL())
	fixture.Streams(t, c)
	fixture.Letters(t, c, 100)
	out, errs, code := nattyCmd(t, "dead", "redrive", "dead.orders", "--server", node.URL(), "--yes").result()
	require.Equal(t, 0, code, errs)
	assert.Equal(t, "100 dead letters were redriven.\n", out)
	assert.Contains(t, errs, "natty: redriving: 50 of 100\n")
	assert.LessOrEqual(t, strings.Count(errs, "\n"), 10)
}

func TestDeadWithoutWhatItNeedsSaysWhatToDo(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.User("ops", "the password"))
	url := "nats://ops:the%20password@" + strings.TrimPrefix(node.URL(), "nats://")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"dead", "ls", "dead.>", "--server", url}, 1, "natty dead ls\n"},
		{[]string{"dead", "ls", "dead..x", "--server", url}, 2, "single dots"},
		{[]string{"dead", "ls", "dead.>", "--server", url, "--id", "x"}, 2, "DEAD/17"},
		{[]string{"dead", "ls", "dead.>", "--server", url, "--origin", "a..b"}, 2, "single dots"},
		{[]string{"dead", "ls", "dead.>", "--server", node.URL(), "--user", "ops", "--password", "wrong one"}, 1, "login"},
		{[]string{"dead", "ls", "dead.>", "--server", "nats://127.0.0.1:1", "--timeout", "200ms"}, 1, "--server"},
		{[]string{"dead", "ls", "dead.>", "--context", "nowhere"}, 1, "nats context ls"},
		{[]string{"dead", "shw"}, 2, "dead"},
		{[]string{"dead", "purge"}, 2, "give one subject of dead letters"},
		{[]string{"tpo"}, 2, `there is no command "tpo"; did you mean top?`},
		{[]string{"top", "--tlsca", "/nope"}, 2, `--tlsca "/nope": `},
	} {
		_, errs, code := nattyCmd(t, c.args...).result()
		assert.Equal(t, c.code, code, "%q: %s", c.args, errs)
		assert.Contains(t, errs, c.says, "%q", c.args)
		assert.Equal(t, c.code, strings.Count(errs, "\n"), "one line, and one about --help: %s", errs)
		assert.NotContains(t, errs, "password@", "no secret")
		assert.NotContains(t, errs, "wrong one", "no secret")
	}
	start := time.Now()
	_, _, code := nattyCmd(t, "dead", "ls", "dead.>", "--server", url).result()
	assert.Equal(t, 1, code)
	assert.Less(t, time.Since(start), patience)
}
