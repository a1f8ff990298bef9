package cli

import (
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

// commands are those that need a server.
var commands = [][]string{
	{"dead", "ls"},
	{"dead", "ls", "dead.orders"},
	{"dead", "show", "dead.orders"},
	{"dead", "redrive", "dead.orders", "--yes"},
	{"dead", "purge", "dead.orders", "--yes"},
	{"doctor"},
	{"top", "--once"},
	{"ui"},
	{"lead", "--bucket", "leases", "--key", "job", "--", "echo", "ran"},
	{"lock", "--bucket", "leases", "--key", "job", "--", "echo", "ran"},
}

// with puts flags behind the name of a command.
func with(command []string, flags ...string) []string {
	return append([]string{command[0]}, append(flags, command[1:]...)...)
}

func TestEachCommandWithoutAServerSaysWhereItLooked(t *testing.T) {
	t.Parallel()
	for _, command := range commands {
		out, errs, code := nattyCmd(t, with(command, "--server", "nats://127.0.0.1:1", "--timeout", "200ms")...).result()
		assert.Equal(t, 1, code, "%q: %s", command, errs)
		assert.Contains(t, errs, "natty: connect: not connected: ", "%q", command)
		assert.Contains(t, errs, "nats://127.0.0.1:1", "%q", command)
		assert.Contains(t, errs, "set --server, --context or NATS_URL, or wait longer with --timeout", "%q", command)
		assert.Empty(t, out, "%q", command)
	}
}

func TestEachCommandNamesAWrongFlag(t *testing.T) {
	t.Parallel()
	for _, command := range append(commands, []string{"dev"}) {
		_, errs, code := nattyCmd(t, with(command, "--colour=no")...).result()
		assert.Equal(t, 2, code, "%q: %s", command, errs)
		assert.Equal(t, "natty: unknown flag: --colour\nnatty: see natty --help, or natty COMMAND --help\n", errs, "%q", command)
	}
	for _, args := range [][]string{{"top", "--interval", "1ms"}, {"ui", "--interval", "1ms"}, {"top", "ORDERS"}, {"doctor", "ORDERS"}, {"ui", "8080"}} {
		_, errs, code := nattyCmd(t, args...).result()
		assert.Equal(t, 2, code, "%q: %s", args, errs)
	}
	for _, command := range []string{"doctor", "top", "ui"} {
		_, errs, code := nattyCmd(t, command, "--dead", "dead..x").result()
		assert.Equal(t, 2, code, "%q: %s", command, errs)
		assert.Contains(t, errs, `natty: --dead "dead..x" `, "%q", command)
	}
}

func TestTimesAndNumbersThatCannotBeAreWrongUsage(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	at := []string{"--server", node.URL()}
	refused := func(flag, value string, command []string) {
		t.Helper()
		out, errs, code := nattyCmd(t, with(command, append(at, flag+"="+value)...)...).result()
		assert.Equal(t, 2, code, "%q %s: %s", command, flag, errs)
		assert.Contains(t, errs, "natty: "+flag+" "+value+" ", "%q", command)
		assert.Empty(t, out, "%q", command)
	}
	for _, command := range commands {
		for _, timeout := range []string{"-1s", "0s"} {
			refused("--timeout", timeout, command)
		}
		if command[0] == "lead" || command[0] == "lock" {
			for _, ttl := range []string{"0s", "-10s", "500ms"} {
				refused("--ttl", ttl, command)
			}
			refused("--replicas", "0", command)
			refused("--grace", "-1s", command)
		}
	}
	refused("--wait", "-1s", []string{"lock", "--bucket", "leases", "--key", "job", "--", "echo", "ran"})
}

func TestEachCommandWithoutPermissionNamesTheSubject(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		deny := &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.>"}}}
		o.Users = []*server.User{{Username: "ops", Password: "secret"}, {Username: "guest", Password: "secret", Permissions: deny}}
	}))
	at := func(user string) string {
		return "nats://" + user + ":secret@" + strings.TrimPrefix(node.URL(), "nats://")
	}
	c := fixture.Client(t, at("ops"))
	fixture.Streams(t, c)
	fixture.Letters(t, c, 1)
	for _, command := range commands {
		if command[0] == "ui" {
			continue // its page says what could not be read
		}
		out, errs, code := nattyCmd(t, with(command, "--server", at("guest"), "--timeout", "5s")...).result()
		if command[0] != "top" { // which shows the rest
			assert.Equal(t, 1, code, "%q: %s", command, errs)
		}
		assert.Regexp(t, `may not publish to \$JS\.API\.STREAM\.|(?i)permissions violation for publish to "\$JS\.API\.STREAM\.`, out+errs, "%q", command)
		assert.NotContains(t, out+errs, "secret", "%q", command)
		assert.NotContains(t, out, "ran\n", "%q", command)
	}
}
