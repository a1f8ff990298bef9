package conn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/serverurl"
)

// prober connects to each server by itself to learn why it does not let this client in.
// With several servers nats.go reports only the last one's reason, and hardly anything
// while it reconnects.
type prober struct {
	opts  nats.Options // with the caller's dialer
	login Login
}

// probeAll probes every server. It returns nil if one is fine, else an *answersError,
// or ctx's error.
func (p *prober) probeAll(ctx context.Context) error {
	errs := make([]error, len(p.opts.Servers))
	var wg sync.WaitGroup
	for i, server := range p.opts.Servers {
		wg.Go(func() {
			errs[i] = p.probe(ctx, server)
			// A refusal in a TLS handshake can look like a dropped connection.
			if dropped(errs[i]) {
				errs[i] = p.probe(ctx, server)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for i, err := range errs {
		if err == nil {
			return nil
		}
		errs[i] = fmt.Errorf("%s: %w", serverurl.Redact(p.opts.Servers[i]), err)
	}
	return &answersError{errs}
}

func dropped(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (p *prober) probe(ctx context.Context, server string) error {
	opts := p.opts
	d := newDialer(&opts, p.login, func(*ServerError) {})
	stop := context.AfterFunc(ctx, d.interrupt)
	defer stop()
	opts.Servers = []string{server}
	opts.AllowReconnect, opts.RetryOnFailedConnect = false, false
	opts.AsyncErrorCB = func(*nats.Conn, *nats.Subscription, error) {} // nil prints
	opts.ConnectedCB, opts.ClosedCB, opts.DisconnectedErrCB, opts.DisconnectedCB = nil, nil, nil, nil
	opts.LameDuckModeHandler, opts.DiscoveredServersCB = nil, nil
	nc, err := opts.Connect()
	if err == nil {
		nc.Close()
		return nil
	}
	connected, dialErr := d.last()
	switch {
	case errors.Is(err, nats.ErrNoServers) && dialErr != nil:
		err = dialErr // nats.go hides a refused connection
	case connected && errors.Is(err, os.ErrDeadlineExceeded),
		connected && dropped(err) && d.silent() && !opts.TLSHandshakeFirst:
		return fmt.Errorf("the server accepts connections and says nothing; "+
			"if it expects TLS first, set tls.handshake_first: %w", err)
	}
	err = d.reason(err)
	switch {
	case errors.Is(err, nats.ErrMaxConnectionsExceeded):
		return fmt.Errorf("the server is full; raise max_connections there, or close other clients: %w", err)
	case errors.Is(err, nats.ErrMaxAccountConnectionsExceeded):
		return fmt.Errorf("the account has all the connections that it may have; raise its limit, "+
			"or close other clients: %w", err)
	}
	if advice := p.advice(err, d.identity.Load()); advice != "" {
		return &refusedError{advice, err}
	}
	return err
}

// refusedError is the clear refusal of one server.
type refusedError struct {
	advice string
	err    error
}

func (e *refusedError) Error() string { return e.advice + ": " + e.err.Error() }

func (e *refusedError) Unwrap() error { return e.err }

// answersError has each server's answer. None lets this client in.
type answersError struct{ errs []error }

func (e *answersError) Error() string {
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e *answersError) Unwrap() []error { return e.errs }

// final reports whether every server refuses: waiting has no purpose then.
func (e *answersError) final() bool {
	for _, err := range e.errs {
		if _, refused := errors.AsType[*refusedError](err); !refused {
			return false
		}
	}
	return true
}

// advice says what a clear refusal means and what to do about it. It is empty for an
// error that may pass by itself.
func (p *prober) advice(err error, identity *Identity) string {
	switch {
	// The server says no more than that it refuses the login.
	case errors.Is(err, nats.ErrAuthorization) && identity.expired():
		return "the login has expired: the JWT of creds_file was valid until " +
			identity.Expires.UTC().Format(time.RFC3339) + "; get new credentials, or check this machine's clock"
	case errors.Is(err, nats.ErrAuthorization):
		return "the server refused the login; check user and password, token, creds_file or nkey_file"
	case errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAccountAuthExpired):
		return "the login has expired; get new credentials"
	case errors.Is(err, nats.ErrAuthRevoked):
		return "the login was revoked; get new credentials"
	case errors.Is(err, nats.ErrNkeysNotSupported):
		return "the server takes no nkey; log in another way"
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "TLS is configured here and the server does not offer it; " +
			"use a nats:// URL and no tls settings, or set up TLS on the server"
	}
	return p.tlsAdvice(err)
}

func (p *prober) tlsAdvice(err error) string {
	var (
		unknownCA x509.UnknownAuthorityError
		wrongHost x509.HostnameError
		invalid   x509.CertificateInvalidError
		notTLS    tls.RecordHeaderError
		remote    *net.OpError
	)
	switch {
	case errors.As(err, &unknownCA):
		return "the server's certificate is signed by an unknown authority; " +
			"set tls.ca_file to that authority's certificate"
	case errors.As(err, &wrongHost):
		return "the server's certificate is for another host name; " +
			"connect by a name it holds, or set tls.server_name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired or is not valid yet; " +
			"renew it, or check this machine's clock"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid for this use; " +
			"give the server one for server authentication, and check its authority"
	case errors.As(err, &notTLS) && p.opts.TLSHandshakeFirst:
		return "the server does not start with TLS; " +
			"unset tls.handshake_first, or set handshake_first on the server"
	case errors.As(err, &notTLS):
		return "TLS is configured here and the server does not speak it; " +
			"use a nats:// URL and no tls settings, or set up TLS on the server"
	case errors.As(err, &remote) && remote.Op == "remote error":
		return alertAdvice(remote.Err)
	}
	return ""
}

// alertAdvice explains the TLS alert with which a server ended a handshake (RFC 8446,
// section 6.2). crypto/tls does not export the alert's type, and its text may change,
// but its value is the number.
func alertAdvice(alert error) string {
	v := reflect.ValueOf(alert)
	if v.Kind() != reflect.Uint8 {
		return ""
	}
	switch v.Uint() {
	case 42, 43, 44, 45, 46, 48, 49, 116: // about the certificate
		return "the server refused the client's certificate, or the lack of one; " +
			"set tls.cert_file and tls.key_file to a certificate that it trusts"
	case 40, 47, 70, 71, 112: // no common ground; up to TLS 1.2 also for no certificate
		return "the server refused the TLS handshake; " +
			"check whether it wants a client certificate (tls.cert_file and tls.key_file), " +
			"and which TLS versions it allows"
	}
	return ""
}
