package testcerts_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/internal/testcerts"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var localhost = testcerts.Leaf{CommonName: "server", Hosts: []string{"localhost"}, Server: true}

func newCA(t *testing.T) *testcerts.CA {
	t.Helper()
	ca, err := testcerts.NewCA("test CA", time.Hour)
	require.NoError(t, err)
	return ca
}

// handshake runs both sides of a TLS handshake over a loopback connection, until the
// server has accepted or refused the client.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		done <- tls.Server(conn, server).Handshake()
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	clientErr = tls.Client(conn, client).Handshake()
	if clientErr != nil {
		conn.Close() // the server may still wait for the rest of the handshake
	}
	return <-done, clientErr
}

func serverConfig(t *testing.T, ca *testcerts.CA, leaf testcerts.Leaf) *tls.Config {
	t.Helper()
	pair, err := ca.KeyPair(leaf)
	require.NoError(t, err)
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

func TestExpiredCertificateIsRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	server := serverConfig(t, ca, testcerts.Leaf{
		CommonName: "late", Hosts: []string{"localhost"}, Server: true, NotAfter: time.Now().Add(-time.Hour),
	})
	_, err := handshake(t, server, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"})
	var invalid x509.CertificateInvalidError
	require.ErrorAs(t, err, &invalid)
	require.Equal(t, x509.Expired, invalid.Reason)
}

func TestCertificateFromTheFutureIsRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	server := serverConfig(t, ca, testcerts.Leaf{
		CommonName: "early", Hosts: []string{"localhost"}, Server: true, NotBefore: time.Now().Add(time.Minute),
	})
	_, err := handshake(t, server, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"})
	require.ErrorContains(t, err, "not yet valid")
}

func TestCertificateForAnotherHostIsRefused(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	server := serverConfig(t, ca, testcerts.Leaf{
		CommonName: "localhost", Hosts: []string{"elsewhere.example"}, Server: true,
	})
	_, err := handshake(t, server, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"})
	var wrong x509.HostnameError
	require.ErrorAs(t, err, &wrong)
}

func TestCertificateOfAnUnknownCAIsRefused(t *testing.T) {
	t.Parallel()
	server := serverConfig(t, newCA(t), localhost)
	_, err := handshake(t, server, &tls.Config{RootCAs: newCA(t).Pool(), ServerName: "localhost"})
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, err, &unknown)
}

func TestCertificateIsRefusedForAUseThatItDoesNotHave(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	for name, leaf := range map[string]testcerts.Leaf{
		"client only": {CommonName: "a", Hosts: []string{"localhost"}, Client: true},
		"no use":      {CommonName: "b", Hosts: []string{"localhost"}},
	} {
		client := &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}
		_, err := handshake(t, serverConfig(t, ca, leaf), client)
		var invalid x509.CertificateInvalidError
		require.ErrorAs(t, err, &invalid, name)
		require.Equal(t, x509.IncompatibleUsage, invalid.Reason, name)
	}
}

func TestServerRefusesAClientCertificateOfAnotherCA(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	server := serverConfig(t, ca, localhost)
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
	stranger, err := newCA(t).KeyPair(testcerts.Leaf{CommonName: "stranger", Client: true})
	require.NoError(t, err)
	client := &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}
	// Unlike Certificates, this is sent even if none of the authorities that the server
	// names has signed it.
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &stranger, nil
	}
	serverErr, _ := handshake(t, server, client)
	require.Error(t, serverErr)
}

func TestImpossibleRequestsAreRefused(t *testing.T) {
	t.Parallel()
	_, err := testcerts.NewCA("never valid", 0)
	require.Error(t, err)
	now := time.Now()
	never := testcerts.Leaf{CommonName: "ends before it begins", NotBefore: now, NotAfter: now}
	_, _, err = newCA(t).Issue(never)
	require.Error(t, err)
	missing := filepath.Join(t.TempDir(), "missing")
	_, _, err = newCA(t).WriteLeaf(missing, "a", testcerts.Leaf{CommonName: "a", Server: true})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestGoodCertificatesPassOnBothSides(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
		server := serverConfig(t, ca, testcerts.Leaf{
			CommonName: "server", Hosts: []string{"localhost", "127.0.0.1", "::1"}, Server: true,
		})
		server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
		pair, err := ca.KeyPair(testcerts.Leaf{CommonName: "client", Client: true})
		require.NoError(t, err)
		client := &tls.Config{RootCAs: ca.Pool(), ServerName: host, Certificates: []tls.Certificate{pair}}
		serverErr, clientErr := handshake(t, server, client)
		require.NoError(t, errors.Join(serverErr, clientErr), host)
	}
}

func TestFilesHoldAPairThatTheCAVouchesFor(t *testing.T) {
	t.Parallel()
	ca, dir := newCA(t), t.TempDir()
	caFile := filepath.Join(dir, "ca.crt")
	require.NoError(t, ca.WritePEM(caFile))
	certFile, keyFile, err := ca.WriteLeaf(dir, "client", testcerts.Leaf{CommonName: "client", Client: true})
	require.NoError(t, err)

	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	require.NoError(t, err)
	caPEM, err := os.ReadFile(caFile)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(caPEM))
	clientUse := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: clientUse})
	require.NoError(t, err)
	require.Equal(t, "client", pair.Leaf.Subject.CommonName)
	info, err := os.Stat(keyFile)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}
