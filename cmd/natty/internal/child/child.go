// Package child runs a command that must not outlive the process that runs it.
//
// Between the two stands a guard: this program again, in a process group of its own
// together with the command. A pipe connects it with its parent, and the parent writes
// into the pipe again and again. When the pipe closes, because the parent has died in
// whatever way, or when nothing comes for too long, because the parent is suspended or
// hangs, the guard kills the command and everything that the command has started.
//
//   - On Linux the guard also adopts processes that have left the group, and kills
//     them too. If the guard itself is killed with -9, the kernel kills the command
//     (Pdeathsig), and the parent kills the rest of the group.
//   - On other Unix systems the guard kills the group. A process that has left the
//     group stays. If the guard itself is killed with -9, the parent kills the group;
//     if both are at the same moment, the command stays.
//   - On Windows there is no guard. The parent kills the command, and not what the
//     command has started; if the parent is killed, the command stays.
package child

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// Config says what to run.
type Config struct {
	Args     []string
	Env      []string // in addition to this process's
	In       *os.File
	Out, Err io.Writer

	// Stop asks the command to end: TERM, and KILL after Grace.
	Stop  context.Context //nolint:containedctx // the run's, one of several
	Grace time.Duration
	// Lost says that the command must not run any more: TERM, and KILL after LostGrace.
	Lost      context.Context //nolint:containedctx // as Stop
	LostGrace time.Duration
	// Hurry kills the command at once, once Stop has ended.
	Hurry context.Context //nolint:containedctx // as Stop
	// Silence is how long the guard lets the command run without a sign of life from
	// this process.
	Silence time.Duration
}

// NotFoundError says that there is no such command.
type NotFoundError struct{ err error }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("the command cannot be run: %v; give its path, or put it into PATH", e.err)
}
func (e *NotFoundError) Unwrap() error { return e.err }

// Check reports whether there is such a command.
func Check(args []string) error {
	if _, err := exec.LookPath(args[0]); err != nil {
		return &NotFoundError{err}
	}
	return nil
}

// GuardCommand is the name of the hidden command that calls Guard with the Silence and
// the command's arguments.
const GuardCommand = "__guard"

// Run runs the command until it ends, and returns its exit code: 128 and the number of
// the signal if a signal ended it.
func Run(cfg Config) (int, error) {
	p, err := start(cfg)
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", cfg.Args[0], err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.wait()
	}()
	beat := time.NewTicker(max(cfg.Silence/4, time.Millisecond))
	defer beat.Stop()
	var kill <-chan time.Time
	stop, lost, hurry := cfg.Stop.Done(), cfg.Lost.Done(), (<-chan struct{})(nil)
	for {
		select {
		case <-ended:
			return p.exitCode(), nil
		case <-beat.C:
			p.beat()
		case <-stop:
			stop, hurry = nil, cfg.Hurry.Done()
			p.term()
			kill = time.After(cfg.Grace)
		case <-lost:
			lost, stop = nil, nil
			p.term()
			kill = time.After(cfg.LostGrace)
		case <-hurry:
			hurry = nil
			kill = time.After(0)
		case <-kill:
			kill = nil
			p.kill()
		}
	}
}
