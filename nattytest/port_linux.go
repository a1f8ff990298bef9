package nattytest

import (
	"fmt"
	"syscall"
)

// port is a TCP port of 127.0.0.1 that is kept for one listener, also while that listener is down: a socket is bound to it
// and never listens, so connections are refused as they would be by a server that is gone, a listener can take the port
// at any time (both sides set SO_REUSEADDR), and the kernel gives it to nobody else, neither as a random port nor as the
// near end of an outgoing connection. Tests restart servers while hundreds of other sockets come and go; a port that is
// only remembered is lost now and then.
type port struct {
	number int
	fd     int
}

func reservePort() (*port, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("nattytest: reserve a port: %w", err)
	}
	number, err := bindLoopback(fd)
	if err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("nattytest: reserve a port: %w", err)
	}
	return &port{number: number, fd: fd}, nil
}

func bindLoopback(fd int) (int, error) {
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return 0, err
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	addr, ok := bound.(*syscall.SockaddrInet4)
	if !ok {
		return 0, fmt.Errorf("bound to %T", bound)
	}
	return addr.Port, nil
}

// release gives the port back. It is called once.
func (p *port) release() {
	syscall.Close(p.fd)
}
