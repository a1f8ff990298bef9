// Package testcerts makes certificate authorities and leaf certificates for tests: good ones, and the expired, misnamed and
// unknown ones that a TLS client must refuse.
package testcerts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// backdate is how far in the past certificates begin by default, so that a peer whose clock is a little behind accepts them.
const backdate = time.Minute

// CA is a self-signed certificate authority. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a certificate authority with the common name name and a new P-256 key, valid from a minute ago until validFor
// from now.
func NewCA(name string, validFor time.Duration) (*CA, error) {
	if validFor <= 0 {
		return nil, fmt.Errorf("testcerts: CA %q: validFor must be positive, not %v", name, validFor)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("testcerts: CA %q: %w", name, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validFor),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("testcerts: CA %q: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("testcerts: CA %q: %w", name, err)
	}
	return &CA{cert: cert, key: key}, nil
}

// PEM returns the authority's certificate, PEM-encoded.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// Pool returns a new pool that trusts this authority alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// Leaf describes a certificate that a CA issues.
type Leaf struct {
	CommonName string
	// Hosts are the names that the certificate is good for: DNS names and IP addresses, mixed. CommonName is not one of
	// them by itself.
	Hosts []string
	// NotBefore and NotAfter bound the validity. The zero NotBefore is a minute ago, or a minute before NotAfter if that is
	// earlier; the zero NotAfter is the CA's own end. Both are cut to whole seconds.
	NotBefore, NotAfter time.Time
	// Server and Client say what the certificate may be used for. With neither, it is good for no TLS handshake.
	Server, Client bool
}

// Issue makes a certificate with a new P-256 key, signed by the authority, and returns both PEM-encoded, the key as PKCS #8.
func (ca *CA) Issue(leaf Leaf) (certPEM, keyPEM []byte, err error) {
	template, err := ca.template(leaf)
	if err != nil {
		return nil, nil, fmt.Errorf("testcerts: leaf %q: %w", leaf.CommonName, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("testcerts: leaf %q: %w", leaf.CommonName, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("testcerts: leaf %q: %w", leaf.CommonName, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("testcerts: leaf %q: %w", leaf.CommonName, err)
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return certPEM, keyPEM, nil
}

// KeyPair is Issue for a tls.Config.
func (ca *CA) KeyPair(leaf Leaf) (tls.Certificate, error) {
	certPEM, keyPEM, err := ca.Issue(leaf)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(certPEM, keyPEM)
}

// WritePEM writes the authority's certificate to path, readable by everyone.
func (ca *CA) WritePEM(path string) error {
	return os.WriteFile(path, ca.PEM(), 0o644)
}

// WriteLeaf issues a certificate and writes name.crt and name.key into dir, the key readable by its owner alone, and returns
// their paths.
func (ca *CA) WriteLeaf(dir, name string, leaf Leaf) (certFile, keyFile string, err error) {
	certPEM, keyPEM, err := ca.Issue(leaf)
	if err != nil {
		return "", "", err
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if err := os.WriteFile(certFile, certPEM, 0o644); err != nil {
		return "", "", err
	}
	if err := os.WriteFile(keyFile, keyPEM, 0o600); err != nil {
		return "", "", err
	}
	return certFile, keyFile, nil
}

func (ca *CA) template(leaf Leaf) (*x509.Certificate, error) {
	notBefore, notAfter := leaf.NotBefore, leaf.NotAfter
	if notAfter.IsZero() {
		notAfter = ca.cert.NotAfter
	}
	if notBefore.IsZero() {
		notBefore = time.Now().Add(-backdate)
		if !notBefore.Before(notAfter) {
			notBefore = notAfter.Add(-backdate)
		}
	}
	if !notBefore.Before(notAfter) {
		return nil, errors.New("NotAfter must be later than NotBefore")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: leaf.CommonName},
		NotBefore:    notBefore,
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	for _, host := range leaf.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, host)
	}
	if leaf.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if leaf.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if len(template.ExtKeyUsage) == 0 {
		// A certificate that lists no extended use is good for every one of them; one that lists another is not.
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	}
	return template, nil
}

// newSerial is random because two authorities of one name must not issue the same number: some clients confuse them then.
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("testcerts: serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
