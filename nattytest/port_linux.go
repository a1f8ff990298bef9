package nattytest

import (
	"fmt"
	"syscall"
)

// port reserves a TCP port of 127.0.0.1 for one listener, also while that listener is
// down. A socket is bound to the port and never listens. So connections are refused, as
// by a server that is gone. The listener can take the port at any time, because both
// sockets set SO_REUSEADDR. The kernel gives the port to nobody else, neither as a
// random port nor as the local end of an outgoing connection.
//
// Remembering the number alone does not suffice: tests restart servers while hundreds
// of sockets come and go, and now and then another one would take the port.
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

// release frees the port. Call it once.
func (p *port) release() {
	syscall.Close(p.fd)
}
