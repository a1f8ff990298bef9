// Package procs runs the processes of a chaos run: servers and workers, each this same
// program with another environment, and the faulty links between them.
package procs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Process is a process that is killed, paused and started again.
type Process struct {
	Name string

	env    func(life int) (string, error) // what the process is to be
	out    string                         // the file for its standard output
	errors string                         // and for its standard error

	mu      sync.Mutex // guards what follows
	program string     // empty: this one
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	ended   chan struct{} // closed when the process has ended
	life    int
}

// Start starts the process, unless it runs.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runsLocked() {
		return nil
	}
	p.life++
	env, err := p.env(p.life)
	if err != nil {
		return err
	}
	program := p.program
	if program == "" {
		if program, err = os.Executable(); err != nil {
			return err
		}
	}
	cmd := exec.Command(program) //nolint:gosec // this very program, or one that the caller has named
	cmd.Env = append(os.Environ(), env)
	cmd.SysProcAttr = withParent()
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := appendTo(p.out)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // the process has its own
	errs, err := appendTo(p.errors)
	if err != nil {
		return err
	}
	defer errs.Close() //nolint:errcheck // as above
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended is in its history
	}()
	return nil
}

// Use sets the program that the process is at its next start; empty: this one.
func (p *Process) Use(program string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.program = program
}

func appendTo(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// runsLocked reports whether the process runs. The caller holds p.mu.
func (p *Process) runsLocked() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Runs reports whether the process runs.
func (p *Process) Runs() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runsLocked()
}

// Life says how often the process was started.
func (p *Process) Life() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.life
}

// Signal sends a signal to the process if it runs.
func (p *Process) Signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runsLocked() {
		_ = p.cmd.Process.Signal(s) // fails only when it has ended just now
	}
}

// Tell writes a line to the standard input of the process.
func (p *Process) Tell(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runsLocked() {
		_, _ = io.WriteString(p.stdin, line+"\n") // fails only when it has ended just now
	}
}

// Kill ends the process at once.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	_ = p.await(time.Minute)
}

// Stop asks the process to end, and kills it when it takes too long.
func (p *Process) Stop(patience time.Duration) error {
	p.Signal(syscall.SIGTERM)
	if p.await(patience) == nil {
		return nil
	}
	p.Signal(syscall.SIGQUIT) // it says what it is doing
	_ = p.await(2 * time.Second)
	p.Kill()
	return fmt.Errorf("%s did not end within %v", p.Name, patience)
}

func (p *Process) await(patience time.Duration) error {
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	if ended == nil {
		return nil
	}
	select {
	case <-ended:
		return nil
	case <-time.After(patience):
		return errors.New("still running")
	}
}

// WaitFor waits until a condition holds.
func WaitFor(ctx context.Context, what string, holds func() bool) error {
	for !holds() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
