package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

// leadArgs are the arguments of a natty lead or lock that runs a shell script.
func leaseArgs(node *nattytest.Node, command, ttl, script string, more ...string) []string {
	args := []string{command, "--server", node.URL(), "--bucket", "leases", "--key", "job", "--ttl", ttl}
	return append(append(args, more...), "--", "sh", "-c", script)
}

// gone reports whether a process has ended.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.HasPrefix(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " Z")
}

func pids(t *testing.T, line string) []int {
	t.Helper()
	var all []int
	for word := range strings.FieldsSeq(line) {
		pid, err := strconv.Atoi(word)
		require.NoError(t, err, line)
		all = append(all, pid)
	}
	return all
}

// family is a script that starts a child, and a child in a session of its own, prints
// the three process ids and its guard's, and stays.
const family = `sleep 600 & a=$!; setsid sleep 600 & echo $$ $a $! $PPID; wait`

func TestLeadPassesOnTheExitCodeAndSaysWhoItIs(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	for _, command := range []string{"lead", "lock"} {
		name := map[string]string{"lead": "--node", "lock": "--owner"}[command]
		script := `echo $NATTY_BUCKET $NATTY_KEY $NATTY_OWNER; test $NATTY_TOKEN -gt 0 && cat && exit 7`
		args := leaseArgs(node, command, "5s", script, name, "me")
		args[4] = command // the bucket
		p := nattyCmd(t, args...)
		p.Stdin = strings.NewReader("from standard input")
		out, errs, code := p.result()
		assert.Equal(t, 7, code, errs)
		assert.Equal(t, command+" job me\nfrom standard input", out)
		assert.Empty(t, errs)
	}
}

func TestLeadKilledWithNineLeavesNoOrphan(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lead", "5s", family)...)
	p.start()
	all := pids(t, p.line())
	require.NoError(t, p.Process.Kill())
	for _, pid := range all {
		eventually(t, func() bool { return gone(pid) }, "the whole family has ended")
	}
	next := nattyCmd(t, leaseArgs(node, "lead", "5s", "echo next; exit 0")...)
	out, _, code := next.result()
	assert.Equal(t, 0, code)
	assert.Equal(t, "next\n", out)
}

func TestAGuardKilledWithNineLeavesNoOrphan(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lead", "5s", `sleep 600 & echo $$ $! $PPID; wait`)...)
	p.start()
	all := pids(t, p.line())
	require.NoError(t, syscall.Kill(all[2], syscall.SIGKILL))
	assert.Equal(t, 128+9, p.code())
	for _, pid := range all {
		eventually(t, func() bool { return gone(pid) }, "the whole family has ended")
	}
}

func TestASuspendedLeadDoesNotLetTheCommandGoOn(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lead", "2s", family)...)
	p.start()
	all := pids(t, p.line())
	require.NoError(t, p.Process.Signal(syscall.SIGSTOP))
	for _, pid := range all {
		eventually(t, func() bool { return gone(pid) }, "the whole family has ended")
	}
	next := nattyCmd(t, leaseArgs(node, "lead", "2s", "echo next")...)
	_, _, code := next.result()
	assert.Equal(t, 0, code)
}

func TestACommandThatEndsLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lock", "5s", `setsid sleep 600 >/dev/null 2>&1 & echo $!`)...)
	p.start()
	left := pids(t, p.line())[0]
	assert.Equal(t, 0, p.code())
	assert.True(t, gone(left), "a daemon would go on without the lock")
}

func TestADeposedLeaderStopsItsCommandAndStandsBy(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lead", "2s", `trap 'echo TERM; exit 0' TERM; echo $NATTY_TOKEN; sleep 600 & wait`)...)
	p.start()
	first := pids(t, p.line())[0]
	_, js := connect(t, node)
	kv, err := js.KeyValue(ctxOf(t), "leases")
	require.NoError(t, err)
	require.NoError(t, kv.Delete(ctxOf(t), "job"))
	require.Equal(t, "TERM", p.line())
	assert.Greater(t, pids(t, p.line())[0], first, "it was elected again")
}

func TestADeposedCommandThatIgnoresTERMIsKilled(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lock", "2s", `trap 'echo TERM' TERM; echo $$; while :; do sleep 0.05; done`)...)
	p.start()
	pid := pids(t, p.line())[0]
	_, js := connect(t, node)
	kv, err := js.KeyValue(ctxOf(t), "leases")
	require.NoError(t, err)
	require.NoError(t, kv.Delete(ctxOf(t), "job"))
	require.Equal(t, "TERM", p.line())
	assert.Equal(t, 1, p.code(), "the lock was lost")
	assert.True(t, gone(pid))
	assert.Contains(t, p.errs.String(), "the lock was lost while the command ran")
	assert.Equal(t, 1, strings.Count(p.errs.String(), "natty: the lock was lost"))
}

func TestLeadPassesOnTERMAndGivesTheLeadershipBack(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lead", "20s", `trap 'echo TERM; exit 5' TERM; echo ready; sleep 600 & wait`)...)
	p.start()
	require.Equal(t, "ready", p.line())
	standby := nattyCmd(t, leaseArgs(node, "lead", "20s", `echo leads`)...)
	standby.start()
	waits := nattyCmd(t, leaseArgs(node, "lead", "20s", `echo leads`)...)
	waits.start()
	require.NoError(t, waits.Process.Signal(syscall.SIGINT))
	assert.Contains(t, []int{128 + 2, -1}, waits.code(), "a standby that is stopped has not run the command")

	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	require.Equal(t, "TERM", p.line())
	assert.Equal(t, 5, p.code())
	assert.Equal(t, "leads", standby.line(), "at once, and not after 20 seconds")
}

func TestLockWithoutWaitingSaysWhoHasIt(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lock", "20s", `echo ready; sleep 600`, "--owner", "somebody")...)
	p.start()
	require.Equal(t, "ready", p.line())
	_, errs, code := nattyCmd(t, leaseArgs(node, "lock", "20s", `echo no`, "--no-wait")...).result()
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "(somebody); leave out --no-wait to wait for it")
	_, errs, code = nattyCmd(t, leaseArgs(node, "lock", "20s", `echo no`, "--wait", "100ms")...).result()
	assert.Equal(t, 1, code)
	assert.Contains(t, errs, "for longer than 100ms")
}

func TestLeadOfACommandThatIsNotThere(t *testing.T) {
	t.Parallel()
	_, errs, code := nattyCmd(t, "lead", "--bucket", "b", "--key", "k", "--", "no-such-command").result()
	assert.Equal(t, 127, code)
	assert.Contains(t, errs, "put it into PATH")
}
