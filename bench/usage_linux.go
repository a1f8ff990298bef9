package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// cpuTime is what this process has used of the CPUs, in the system's calls too.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// restartPeak makes peakMemory count from now on, and returns what it counts from.
func restartPeak() (int64, error) {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // proc(5)
		return 0, fmt.Errorf("%w: %w", errors.ErrUnsupported, err) // not every kernel has it
	}
	return peakMemory()
}

// peakMemory is the most physical memory that this process had (resident set size), in bytes.
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
