// Package testcerts makes certificate authorities and certificates for tests: valid
// ones, and the expired, misnamed and unknown ones that a TLS client must refuse. It
// knows nothing of NATS.
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

// backdate is how far in the past certificates begin by default, so that a peer whose
// clock is a little slow accepts them.
const backdate = time.Minute

// CA is a self-signed certificate authority. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a certificate authority with the common name name and a new P-256 key. It
// is valid from a minute ago until validFor from now.
func NewCA(name string, validFor time.Duration) (*CA, error) {
	if validFor <= 0 {
		return nil, fmt.Errorf("testcerts: CA %q: validFor must be positive, not %v", name, validFor)
	}
	now := time.Now()
	cert, key, err := sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validFor),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("testcerts: CA %q: %w", name, err)
	}
	return &CA{cert: cert, key: key}, nil
}

// PEM returns the authority's certificate, PEM-encoded.
func (ca *CA) PEM() []byte { return encode("CERTIFICATE", ca.cert.Raw) }

// Pool returns a new pool that trusts this authority alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// Leaf describes a certificate that a CA issues.
type Leaf struct {
	CommonName string
	// Hosts are the names that the certificate is valid for: DNS names and IP
	// addresses, mixed. CommonName is not one of them by itself.
	Hosts []string
	// NotBefore and NotAfter bound the validity, cut to whole seconds. The zero
	// NotBefore is a minute ago, or a minute before NotAfter if that is earlier. The
	// zero NotAfter is the CA's own end.
	NotBefore, NotAfter time.Time
	// Server and Client say what the certificate may be used for. With neither, every
	// TLS handshake refuses it.
	Server, Client bool
}

// Issue makes a certificate with a new P-256 key, signed by the authority. It returns
// both PEM-encoded, the key as PKCS #8.
func (ca *CA) Issue(leaf Leaf) (certPEM, keyPEM []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("testcerts: leaf %q: %w", leaf.CommonName, err)
		}
	}()
	template, err := ca.template(leaf)
	if err != nil {
		return nil, nil, err
	}
	cert, key, err := sign(template, ca)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return encode("CERTIFICATE", cert.Raw), encode("PRIVATE KEY", keyDER), nil
}

// KeyPair is [CA.Issue] for a [tls.Config].
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

// WriteLeaf issues a certificate, writes name.crt and name.key into dir, and returns
// their paths. Only its owner can read the key.
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
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: leaf.CommonName},
		NotBefore: notBefore,
		NotAfter:  notAfter,
		KeyUsage:  x509.KeyUsageDigitalSignature,
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
		// A certificate that lists no extended use is valid for all of them.
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	}
	return template, nil
}

// sign makes a certificate with a new key, signed by ca, or by the key itself if ca is
// nil. Its serial number is random, because two authorities of one name must not issue
// the same number: some clients confuse such certificates.
func sign(template *x509.Certificate, ca *CA) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if ca == nil {
		ca = &CA{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
