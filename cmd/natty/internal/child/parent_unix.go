//go:build unix

package child

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killTimeout is how long the guard has to kill everything, before the group is killed
// with the guard.
const killTimeout = 500 * time.Millisecond

type process struct {
	cmd      *exec.Cmd
	pipe     *os.File // to the guard
	terminal int      // that the command has; -1 for none
	err      error
	fallback *time.Timer
}

func start(cfg Config) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Close() }()
	p := &process{pipe: write, terminal: -1}
	args := append([]string{GuardCommand, cfg.Silence.String(), "--"}, cfg.Args...)
	p.cmd = exec.Command(self, args...) //nolint:gosec // the user's own command
	p.cmd.Env = append(os.Environ(), cfg.Env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = cfg.In, cfg.Out, cfg.Err
	p.cmd.ExtraFiles = []*os.File{read}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if fd := int(cfg.In.Fd()); foreground(fd) {
		p.terminal = fd
		p.cmd.SysProcAttr.Foreground, p.cmd.SysProcAttr.Ctty = true, fd
	}
	if err := p.cmd.Start(); err != nil {
		_ = write.Close()
		return nil, err
	}
	return p, nil
}

// foreground reports whether this process has the terminal.
func foreground(fd int) bool {
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func (p *process) wait() {
	p.err = p.cmd.Wait()
	if p.fallback != nil {
		p.fallback.Stop()
	}
	// Nothing is left in the group, unless the guard was killed.
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.pipe.Close()
	if p.terminal >= 0 { // take it back; as a background process this one would be stopped
		signal.Ignore(syscall.SIGTTOU)
		_ = unix.IoctlSetPointerInt(p.terminal, unix.TIOCSPGRP, unix.Getpgrp())
		signal.Reset(syscall.SIGTTOU)
	}
}

func (p *process) exitCode() int {
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}

// beat is the sign of life. The pipe is never full for long: the guard reads it.
func (p *process) beat() { _, _ = p.pipe.Write([]byte{0}) }

func (p *process) term() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM) }

func (p *process) kill() {
	_ = p.pipe.Close()
	p.fallback = time.AfterFunc(killTimeout, func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	})
}
