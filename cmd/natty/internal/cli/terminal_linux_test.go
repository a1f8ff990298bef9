package cli

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

// terminal is a pseudo-terminal in which a program runs.
type terminal struct {
	*os.File

	mu   sync.Mutex
	seen strings.Builder
}

// inTerminal starts a program in a terminal of its own.
func inTerminal(t *testing.T, p *testProgram, width, height uint16) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	p.Stdin, p.Stdout, p.Stderr = slave, slave, slave
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, p.Start())
	require.NoError(t, slave.Close())
	term := &terminal{File: master}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			term.mu.Lock()
			term.seen.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait(); _ = master.Close() })
	return term
}

// rest returns what was printed behind what waitFor has found.
func (term *terminal) rest() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.seen.String()
}

// waitFor waits until a text was printed, behind the one that it has found before.
func (term *terminal) waitFor(t *testing.T, what string) {
	t.Helper()
	eventually(t, func() bool {
		term.mu.Lock()
		defer term.mu.Unlock()
		_, rest, ok := strings.Cut(term.seen.String(), what)
		if ok {
			term.seen.Reset()
			term.seen.WriteString(rest)
		}
		return ok
	}, "the terminal shows "+what)
}

func TestTopIsLiveUntilQ(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := fixture.Client(t, node.URL())
	fixture.Streams(t, c)
	fixture.Letters(t, c, 2)
	p := nattyCmd(t, "top", "--server", node.URL(), "--interval", "100ms")
	p.Env = append(p.Env, "TERM=xterm", "NO_COLOR=1")
	term := inTerminal(t, p, 60, 20)
	term.waitFor(t, "\x1b[?1049h")
	term.waitFor(t, "ORDERS/billing")
	term.waitFor(t, "dead.orders")
	node.Stop()
	term.waitFor(t, "NO NEWS: there is no connection")
	require.NoError(t, node.Restart())
	term.waitFor(t, "\x1b[Hnatty top")
	_, err := term.WriteString("q")
	require.NoError(t, err)
	term.waitFor(t, "\x1b[?1049l")
	require.NoError(t, p.Wait())
	assert.NotContains(t, term.rest(), "\x1b[31m")
}

func TestTopInADumbTerminalMovesNoCursor(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, "top", "--server", node.URL(), "--interval", "100ms")
	p.Env = append(p.Env, "TERM=dumb")
	term := inTerminal(t, p, 60, 20)
	term.waitFor(t, "There are no consumers.")
	term.waitFor(t, "There are no consumers.")
	require.NoError(t, p.Process.Signal(os.Interrupt))
	require.NoError(t, p.Wait())
	assert.NotContains(t, term.rest(), "\x1b")
}

func TestPurgeAsksInATerminal(t *testing.T) {
	t.Parallel()
	node, _ := withLetters(t)
	p := nattyCmd(t, "dead", "purge", "dead.orders", "--server", node.URL())
	term := inTerminal(t, p, 80, 24)
	term.waitFor(t, "Purge 4 dead letters of dead.orders? [y/N]")
	_, err := term.WriteString("n\n")
	require.NoError(t, err)
	term.waitFor(t, "nothing was purged")
	_ = p.Wait()
	assert.Equal(t, 1, p.ProcessState.ExitCode())

	p = nattyCmd(t, "dead", "purge", "dead.orders", "--server", node.URL())
	term = inTerminal(t, p, 80, 24)
	term.waitFor(t, "[y/N]")
	_, err = term.WriteString("yes\n")
	require.NoError(t, err)
	term.waitFor(t, "4 dead letters were purged.")
	require.NoError(t, p.Wait())
}

func TestACommandUnderALockHasTheTerminal(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	p := nattyCmd(t, leaseArgs(node, "lock", "5s", `read line; echo "got $line"; read line`)...)
	term := inTerminal(t, p, 80, 24)
	_, err := term.WriteString("hello\n")
	require.NoError(t, err)
	term.waitFor(t, "got hello")
	_, err = term.WriteString("\x03") // Ctrl-C
	require.NoError(t, err)
	_ = p.Wait()
	assert.Equal(t, 128+2, p.ProcessState.ExitCode())
}
