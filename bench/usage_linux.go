package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// cpuTime is the CPU time that this process has used, system calls included.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// restartPeak makes peakMemory start over, and returns where it starts.
func restartPeak() (int64, error) {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // proc(5)
		return 0, fmt.Errorf("%w: %w", errors.ErrUnsupported, err) // not every kernel has it
	}
	return peakMemory()
}

// peakMemory is the most physical memory that this process has had (resident set size),
// in bytes.
func peakMemory() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(status), "\nVmHWM:")
	var kib int64
	if _, err := fmt.Sscanf(line, "%d kB", &kib); err != nil {
		return 0, fmt.Errorf("/proc/self/status without VmHWM: %w", err)
	}
	return kib << 10, nil
}
