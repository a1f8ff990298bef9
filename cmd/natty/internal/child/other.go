//go:build !unix

package child

import (
	"os"
	"os/exec"
	"time"
)

type process struct{ cmd *exec.Cmd }

func start(cfg Config) (*process, error) {
	p := &process{exec.Command(cfg.Args[0], cfg.Args[1:]...)} //nolint:gosec // the user's own command
	p.cmd.Env = append(os.Environ(), cfg.Env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = cfg.In, cfg.Out, cfg.Err
	return p, p.cmd.Start()
}

func (p *process) wait()         { _ = p.cmd.Wait() }
func (p *process) exitCode() int { return p.cmd.ProcessState.ExitCode() }
func (p *process) beat()         {}

// term does nothing: there is no such signal.
func (p *process) term() {}
func (p *process) kill() { _ = p.cmd.Process.Kill() }

// Guard is not used here.
func Guard(time.Duration, []string) int { return 2 }
