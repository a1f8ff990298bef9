//go:build unix && !linux

package child

import "syscall"

func attributes() *syscall.SysProcAttr { return nil }

func adopt() {}

// killRest kills the group, this process included.
func killRest() {}
