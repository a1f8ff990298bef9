//go:build unix

package main

import (
	"os"
	"syscall"
)

// What pauses a process without its knowledge, and lets it go on.
var pause, resume os.Signal = syscall.SIGSTOP, syscall.SIGCONT
