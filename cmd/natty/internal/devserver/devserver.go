// Package devserver runs a NATS server with JetStream and TLS inside this process, for
// development.
package devserver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/natty-go/natty/internal/testcerts"
	"github.com/natty-go/natty/nattytest"
)

// Config says what to run.
type Config struct {
	// Dir keeps the streams and the certificates. "" is a temporary directory, which
	// Close removes.
	Dir string
	// Port is the port on 127.0.0.1; 0 is any free one.
	Port int
}

// Server is a server that runs.
type Server struct {
	URL    string
	CAFile string
	Dir    string

	node *nattytest.Node
	temp bool
}

// The certificates are valid for a year, and made anew a month before that.
const (
	validFor = 365 * 24 * time.Hour
	renew    = 30 * 24 * time.Hour
)

// Start starts a server. The caller must call Close.
func Start(cfg Config) (_ *Server, err error) {
	s := &Server{Dir: cfg.Dir, temp: cfg.Dir == ""}
	if s.temp {
		if s.Dir, err = os.MkdirTemp("", "natty-dev-"); err != nil {
			return nil, err
		}
	} else if s.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	pair, err := s.certificate()
	if err != nil {
		return nil, err
	}
	port := cfg.Port
	if port == 0 {
		port = -1
	}
	s.node, err = nattytest.Start(nattytest.Options(func(o *server.Options) {
		o.ServerName = "natty-dev"
		o.Port = port
		o.StoreDir = s.Dir
		o.TLS = true
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	}))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("port %d is taken, maybe by another server; choose one with --port, or 0 for any", cfg.Port)
	case err != nil:
		return nil, err
	}
	s.URL = s.node.URL()
	return s, nil
}

// Close stops the server, and removes its store if that is temporary.
func (s *Server) Close() error {
	var errs []error
	if s.node != nil {
		errs = append(errs, s.node.Close())
	}
	if s.temp {
		errs = append(errs, os.RemoveAll(s.Dir))
	}
	return errors.Join(errs...)
}

// certificate returns the server's certificate. The one in the directory is kept, so
// that a configuration that names its authority works after a restart.
func (s *Server) certificate() (tls.Certificate, error) {
	dir := filepath.Join(s.Dir, "tls")
	s.CAFile = filepath.Join(dir, "ca.crt")
	cert, key := filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	if pair, err := tls.LoadX509KeyPair(cert, key); err == nil && s.trusts(pair) {
		return pair, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return tls.Certificate{}, err
	}
	ca, err := testcerts.NewCA("natty dev CA", validFor)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := ca.WritePEM(s.CAFile); err != nil {
		return tls.Certificate{}, err
	}
	if _, _, err := ca.WriteLeaf(dir, "server", testcerts.Leaf{
		CommonName: "natty dev", Hosts: []string{"127.0.0.1", "::1", "localhost"}, Server: true,
	}); err != nil {
		return tls.Certificate{}, err
	}
	return tls.LoadX509KeyPair(cert, key)
}

// trusts reports whether the authority in the directory has signed a certificate that
// is valid for some time yet.
func (s *Server) trusts(pair tls.Certificate) bool {
	pem, err := os.ReadFile(s.CAFile)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(pem) || pair.Leaf == nil {
		return false
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: time.Now().Add(renew)})
	return err == nil
}
