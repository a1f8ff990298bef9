//go:build unix

package child

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// ending is locked for good by whoever ends the guard.
var ending sync.Mutex

// Guard runs the command of args and returns its exit code. It kills the command when
// the parent dies or is silent for too long.
func Guard(silence time.Duration, args []string) int {
	runtime.LockOSThread() // Pdeathsig is about the thread that has started the command
	// Caught, and not ignored: the command would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	syscall.CloseOnExec(3)
	pipe := os.NewFile(3, "parent")
	adopt()
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec // the user's own command
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "natty: the command cannot be run: %v\n", err)
		return 126
	}
	go watch(pipe, silence)
	_ = cmd.Wait()
	ending.Lock() // if watch has it, watch ends this process
	killRest()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// watch kills the command when the parent has died, wants that, or is silent.
func watch(pipe *os.File, silence time.Duration) {
	beats := make(chan struct{}, 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		buf := make([]byte, 64)
		for {
			if _, err := pipe.Read(buf); err != nil && !errors.Is(err, syscall.EINTR) {
				return
			}
			select {
			case beats <- struct{}{}:
			default:
			}
		}
	}()
	timer := time.NewTimer(silence)
	for {
		select {
		case <-beats:
			timer.Reset(silence)
			continue
		case <-timer.C:
			fmt.Fprintf(os.Stderr, "natty: natty does not respond for %v, so the command is killed\n", silence)
		case <-gone:
		}
		break
	}
	ending.Lock()
	killRest()
	_ = syscall.Kill(0, syscall.SIGKILL) // the group, and this process
}
