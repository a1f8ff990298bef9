package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const committed = ".." // the folder assets/, relative to this package

func TestWriteFailsInAMissingFolder(t *testing.T) {
	t.Parallel()
	if err := write(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Fatal("write into a missing folder returned nil")
	}
}

func TestGeneratedCertificatesAreAcceptedByBothSides(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "nats"} {
		if err := handshake(t, dir, host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := handshake(t, dir, "example.com"); err == nil {
		t.Error("the server's certificate was accepted for example.com")
	}
}

func TestCommittedCertificatesAreAcceptedByBothSides(t *testing.T) {
	t.Parallel()
	if err := handshake(t, committed, "localhost"); err != nil {
		t.Fatal(err)
	}
}

func TestCommittedCertificatesOutliveTheNextYear(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ca", "server", "client"} {
		cert := leaf(t, filepath.Join(committed, name+".crt"))
		if left := time.Until(cert.NotAfter); left < 365*24*time.Hour {
			t.Errorf("%s.crt ends on %s: run go run ./assets/gen from the root",
				name, cert.NotAfter.Format(time.DateOnly))
		}
	}
}

func TestNoCommittedKeyIsTheAuthoritys(t *testing.T) {
	t.Parallel()
	keys, err := filepath.Glob(filepath.Join(committed, "*.key"))
	if err != nil || len(keys) == 0 {
		t.Fatalf("keys: %v, %v", keys, err)
	}
	for _, key := range keys {
		if _, err := tls.LoadX509KeyPair(filepath.Join(committed, "ca.crt"), key); err == nil {
			t.Errorf("%s is the authority's private key", key)
		}
	}
}

// handshake connects a client to a server. Both use the files in dir, and each checks
// the other. It returns the client's error, else the server's.
func handshake(t *testing.T, dir, host string) error {
	t.Helper()
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		t.Fatal("ca.crt holds no certificate")
	}
	clientSide, serverSide := net.Pipe()
	client := tls.Client(clientSide, &tls.Config{
		RootCAs: pool, ServerName: host, Certificates: pair(t, dir, "client"),
	})
	server := tls.Server(serverSide, &tls.Config{
		ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, Certificates: pair(t, dir, "server"),
		SessionTicketsDisabled: true, // nobody reads them from the pipe, so writing them would block
	})
	refusal := make(chan error, 1)
	go func() {
		err := server.Handshake()
		if err != nil {
			_ = serverSide.Close() // wakes the client
		}
		refusal <- err
	}()
	clientErr := client.Handshake()
	_ = clientSide.Close()
	serverErr := <-refusal
	_ = serverSide.Close()
	if clientErr != nil {
		return clientErr
	}
	return serverErr
}

func pair(t *testing.T, dir, name string) []tls.Certificate {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return []tls.Certificate{cert}
}

func leaf(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s holds no PEM", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
