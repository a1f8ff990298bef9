package natty

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"time"
)

// build makes a tls.Config on top of base, or returns nil when nothing asks for one.
// Each file is read here, so that a wrong one is named at once and not found out by a
// handshake.
func (t TLSConfig) build(base *tls.Config) (*tls.Config, error) {
	if t == (TLSConfig{}) {
		return base, nil
	}
	cfg := base
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if t.CAFile != "" {
		pool, err := loadCAs(t.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = pool
	}
	switch {
	case t.CertFile == "" && t.KeyFile != "":
		return nil, &ConfigError{Field: "tls.key_file", Value: t.KeyFile, Reason: "set without tls.cert_file; set both"}
	case t.CertFile != "" && t.KeyFile == "":
		return nil, &ConfigError{Field: "tls.cert_file", Value: t.CertFile, Reason: "set without tls.key_file; set both"}
	case t.CertFile != "":
		cert, err := loadPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	if t.ServerName != "" {
		cfg.ServerName = t.ServerName
	}
	if t.InsecureSkipVerify {
		cfg.InsecureSkipVerify = true
	}
	return cfg, nil
}

func loadCAs(file string) (*x509.CertPool, error) {
	data, err := readFile("tls.ca_file", file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, &ConfigError{Field: "tls.ca_file", Value: file, Reason: "holds " + pemContents(data) + "; expected the PEM certificate of the authority that signed the server's"}
	}
	return pool, nil
}

func loadPair(certFile, keyFile string) (tls.Certificate, error) {
	none := tls.Certificate{}
	certPEM, err := readFile("tls.cert_file", certFile)
	if err != nil {
		return none, err
	}
	keyPEM, err := readFile("tls.key_file", keyFile)
	if err != nil {
		return none, err
	}
	certKinds, keyKinds := pemContents(certPEM), pemContents(keyPEM)
	switch {
	case !strings.Contains(certKinds, aCertificate) && strings.Contains(certKinds, aKey) && strings.Contains(keyKinds, aCertificate):
		return none, &ConfigError{Field: "tls.cert_file", Value: certFile, Reason: "holds a private key, and tls.key_file a certificate: the two are swapped"}
	case !strings.Contains(certKinds, aCertificate):
		return none, &ConfigError{Field: "tls.cert_file", Value: certFile, Reason: "holds " + certKinds + "; expected the PEM certificate of this client"}
	case !strings.Contains(keyKinds, aKey):
		return none, &ConfigError{Field: "tls.key_file", Value: keyFile, Reason: "holds " + keyKinds + "; expected the PEM private key of tls.cert_file"}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return none, &ConfigError{Field: "tls.key_file", Value: keyFile, Reason: "does not go with tls.cert_file " + certFile + "; expected its private key, not encrypted", Err: err}
	}
	if leaf := pair.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
		return none, &ConfigError{Field: "tls.cert_file", Value: certFile, Reason: "expired on " + leaf.NotAfter.UTC().Format(time.RFC3339) + "; get a new certificate"}
	}
	return pair, nil
}

const (
	aCertificate = "a certificate"
	aKey         = "a private key"
)

// pemContents says in words what a file holds, for an error that tells two mixed-up files apart.
func pemContents(data []byte) string {
	var kinds []string
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		kind := "a " + block.Type
		switch {
		case block.Type == "CERTIFICATE":
			kind = aCertificate
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				kind = "a damaged CERTIFICATE block"
			}
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			kind = aKey
		}
		kinds = append(kinds, kind)
	}
	if kinds == nil {
		return "no PEM data"
	}
	return strings.Join(kinds, ", ")
}

// readFile reads a file that must have something in it.
func readFile(field, file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, &ConfigError{Field: field, Value: file, Reason: "there is no such file; check the path", Err: err}
	case err != nil:
		return nil, &ConfigError{Field: field, Value: file, Reason: "cannot be read; check that it is a file this process may read", Err: err}
	case len(bytes.TrimSpace(data)) == 0:
		return nil, &ConfigError{Field: field, Value: file, Reason: "is empty; check the path, and what writes the file"}
	}
	return data, nil
}
