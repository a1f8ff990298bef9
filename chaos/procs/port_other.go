//go:build unix && !linux

package procs

import (
	"fmt"
	"net"
	"syscall"
)

// reservePort returns a port that was free a moment ago.
func reservePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("bound to %T", l.Addr())
	}
	return addr.Port, nil
}

func withParent() *syscall.SysProcAttr { return nil }
