package cli

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

// asProgram makes this test binary behave as natty itself.
const asProgram = "NATTY_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// testProgram is a natty that runs, or is to run, as a process of its own.
type testProgram struct {
	*exec.Cmd
	t     *testing.T
	lines *bufio.Scanner
	errs  bytes.Buffer
}

// nattyCmd returns a command that has nothing of this environment that says where a server
// is. It is killed at the end of the test.
func nattyCmd(t *testing.T, args ...string) *testProgram {
	t.Helper()
	p := &testProgram{Cmd: exec.CommandContext(t.Context(), os.Args[0], args...), t: t}
	home := t.TempDir()
	p.Env = []string{
		asProgram + "=1", "HOME=" + home, "XDG_CONFIG_HOME=" + home, "PATH=" + os.Getenv("PATH"),
		"GOCOVERDIR=" + home, // else a program built to measure coverage complains on stderr
	}
	p.Stderr = &p.errs
	return p
}

// result runs the program to its end.
func (p *testProgram) result() (stdout, stderr string, code int) {
	p.t.Helper()
	var out bytes.Buffer
	p.Stdout = &out
	if err := p.Run(); err != nil {
		var exit *exec.ExitError
		require.ErrorAs(p.t, err, &exit)
	}
	return out.String(), p.errs.String(), p.ProcessState.ExitCode()
}

// start starts the program; line then returns its output.
func (p *testProgram) start() {
	p.t.Helper()
	out, err := p.StdoutPipe()
	require.NoError(p.t, err)
	p.lines = bufio.NewScanner(out)
	p.lines.Buffer(nil, 1<<20)
	require.NoError(p.t, p.Start())
	p.t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
}

// line returns the next line of the output.
func (p *testProgram) line() string {
	p.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = p.Process.Kill() })
	defer timer.Stop()
	require.True(p.t, p.lines.Scan(), "the program has ended, or prints nothing: %s", &p.errs)
	return p.lines.Text()
}

// until returns the output up to the line that begins with prefix.
func (p *testProgram) until(prefix string) string {
	p.t.Helper()
	for {
		if line := p.line(); strings.HasPrefix(line, prefix) {
			return line
		}
	}
}

// code waits for the program's end and returns its exit code.
func (p *testProgram) code() int {
	p.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = p.Process.Kill() })
	defer timer.Stop()
	for p.lines.Scan() {
	}
	_ = p.Wait()
	return p.ProcessState.ExitCode()
}

// patience is far longer than anything takes.
const patience = 30 * time.Second

func ctxOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until ok.
func eventually(t *testing.T, ok func() bool, what string) {
	t.Helper()
	require.Eventually(t, ok, patience, 10*time.Millisecond, what)
}

// connect returns a connection to a server.
func connect(t *testing.T, node *nattytest.Node) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(node.URL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return nc, js
}
