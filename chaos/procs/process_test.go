package procs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// envTest makes this test's own program a process that a test starts.
const envTest = "NATTY_CHAOS_PROCS_TEST"

func TestMain(m *testing.M) {
	kind, is := os.LookupEnv(envTest)
	if !is {
		os.Exit(m.Run())
	}
	if kind == "deaf" {
		signal.Ignore(syscall.SIGTERM)
	}
	fmt.Fprintln(os.Stdout, "started")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Fprintln(os.Stdout, "told", in.Text())
	}
}

// process returns a process of a kind, and what it has written so far.
func process(t *testing.T, kind string) (p *Process, output func() string) {
	t.Helper()
	dir := t.TempDir()
	p = &Process{
		Name: kind, out: filepath.Join(dir, "out"), errors: filepath.Join(dir, "err"),
		env: func(int) (string, error) { return envTest + "=" + kind, nil },
	}
	t.Cleanup(p.Kill)
	return p, func() string {
		data, _ := os.ReadFile(p.out) // it may not be there yet
		return string(data)
	}
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, WaitFor(ctx, what, holds))
}

func TestOutputOfAllLivesIsKept(t *testing.T) {
	t.Parallel()
	p, output := process(t, "plain")
	assert.False(t, p.Runs())
	for life := 1; life <= 2; life++ {
		require.NoError(t, p.Start())
		require.NoError(t, p.Start(), "it runs already")
		assert.Equal(t, life, p.Life())
		await(t, "it has started", func() bool { return strings.Count(output(), "started\n") == life })
		p.Tell(fmt.Sprint("life ", life))
		await(t, "it was told", func() bool { return strings.Contains(output(), fmt.Sprint("told life ", life, "\n")) })
		p.Kill()
		assert.False(t, p.Runs())
	}
	assert.Equal(t, "started\ntold life 1\nstarted\ntold life 2\n", output())
}

func TestStoppedProcessEndsInOrder(t *testing.T) {
	t.Parallel()
	p, output := process(t, "plain")
	require.NoError(t, p.Stop(time.Second), "it does not run")
	require.NoError(t, p.Start())
	await(t, "it has started", func() bool { return output() != "" })
	require.NoError(t, p.Stop(30*time.Second))
	assert.False(t, p.Runs())
}

func TestProcessThatDoesNotStopSaysWhatItDoesAndIsKilled(t *testing.T) {
	t.Parallel()
	p, output := process(t, "deaf")
	require.NoError(t, p.Start())
	await(t, "it has started", func() bool { return output() != "" })
	require.EqualError(t, p.Stop(time.Millisecond), "deaf did not end within 1ms")
	assert.False(t, p.Runs())
	errs, err := os.ReadFile(p.errors)
	require.NoError(t, err)
	assert.Contains(t, string(errs), "SIGQUIT")
}

func TestPausedProcessRunsOn(t *testing.T) {
	t.Parallel()
	p, output := process(t, "plain")
	require.NoError(t, p.Start())
	await(t, "it has started", func() bool { return output() != "" })
	p.Signal(syscall.SIGSTOP)
	p.Tell("wait")
	assert.True(t, p.Runs())
	p.Signal(syscall.SIGCONT)
	await(t, "it was told", func() bool { return strings.Contains(output(), "told wait") })
}

func TestWaitForSaysWhatItWaitedFor(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.EqualError(t, WaitFor(ctx, "it rains", func() bool { return false }), "it rains: context canceled")
	require.NoError(t, WaitFor(ctx, "it is dry", func() bool { return true }))
}
