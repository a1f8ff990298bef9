//go:build !linux

package nattytest

import (
	"fmt"
	"net"
)

// port is a TCP port of 127.0.0.1 that was free when it was chosen. Another process may
// take it while its listener is down: outside Linux no bound socket can reserve a port
// and let another socket listen on it.
type port struct {
	number int
}

func reservePort() (*port, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("nattytest: reserve a port: %w", err)
	}
	defer listener.Close()
	return &port{number: listener.Addr().(*net.TCPAddr).Port}, nil
}

func (p *port) release() {}
