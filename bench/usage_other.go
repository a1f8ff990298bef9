//go:build !linux

package main

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

var errUsage = fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOOS)

func cpuTime() (time.Duration, error) { return 0, errUsage }
func restartPeak() (int64, error)     { return 0, errUsage }
func peakMemory() (int64, error)      { return 0, errUsage }
