package natty

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

	"github.com/nats-io/nats.go"
)

// asker asks each server by itself why it does not let this client in: with several, nats.go reports only what
// the last one said, and while it reconnects, next to nothing.
type asker struct {
	opts nats.Options // with the caller's dialer
}

// all asks every server. It returns nil if one is fine, else an *answersError, or ctx's error.
func (a *asker) all(ctx context.Context) error {
	errs := make([]error, len(a.opts.Servers))
	var wg sync.WaitGroup
	for i, server := range a.opts.Servers {
		wg.Go(func() { errs[i] = a.twice(ctx, server) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for i, err := range errs {
		if err == nil {
			return nil
		}
		errs[i] = fmt.Errorf("%s: %w", redactURL(a.opts.Servers[i]), err)
	}
	return &answersError{errs}
}

// twice asks one server, and again if it dropped the connection without a word, which a refusal in a TLS handshake
// can look like.
func (a *asker) twice(ctx context.Context, server string) error {
	err := a.once(ctx, server)
	if dropped(err) {
		err = a.once(ctx, server)
	}
	return err
}

func dropped(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (a *asker) once(ctx context.Context, server string) error {
	opts := a.opts
	d := newDialer(&opts)
	stop := context.AfterFunc(ctx, d.interrupt)
	defer stop()
	opts.Servers, opts.CustomDialer = []string{server}, d
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
	case connected && errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the server accepts connections and says nothing; if it expects TLS first, set tls.handshake_first: %w", err)
	}
	if advice := a.advice(err); advice != "" {
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

// answersError is what the servers said, none of which let this client in.
type answersError struct{ errs []error }

func (e *answersError) Error() string {
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e *answersError) Unwrap() []error { return e.errs }

// final reports that every server refuses, so that waiting has no purpose.
func (e *answersError) final() bool {
	for _, err := range e.errs {
		if _, refused := errors.AsType[*refusedError](err); !refused {
			return false
		}
	}
	return true
}

// advice says what a clear refusal means and what to do about it. It is empty for what may pass by itself.
func (a *asker) advice(err error) string {
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return "the server refused the login; check user and password, token, creds_file or nkey_file"
	case errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAccountAuthExpired):
		return "the login has expired; get new credentials"
	case errors.Is(err, nats.ErrAuthRevoked):
		return "the login was revoked; get new credentials"
	case errors.Is(err, nats.ErrNkeysNotSupported):
		return "the server takes no nkey; log in another way"
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "TLS is configured here and the server does not offer it; use a nats:// URL and no tls settings, or set up TLS on the server"
	}
	return a.tlsAdvice(err)
}

func (a *asker) tlsAdvice(err error) string {
	var (
		unknownCA x509.UnknownAuthorityError
		wrongHost x509.HostnameError
		invalid   x509.CertificateInvalidError
		notTLS    tls.RecordHeaderError
		remote    *net.OpError
	)
	switch {
	case errors.As(err, &unknownCA):
		return "the server's certificate is signed by an unknown authority; set tls.ca_file to that authority's certificate"
	case errors.As(err, &wrongHost):
		return "the server's certificate is for another host name; connect by a name it holds, or set tls.server_name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired or is not valid yet; renew it, or check this machine's clock"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid for this use"
	case errors.As(err, &notTLS) && a.opts.TLSHandshakeFirst:
		return "the server does not start with TLS; unset tls.handshake_first, or set handshake_first on the server"
	case errors.As(err, &notTLS):
		return "TLS is configured here and the server does not speak it; use a nats:// URL and no tls settings, or set up TLS on the server"
	case errors.As(err, &remote) && remote.Op == "remote error":
		return alertAdvice(remote.Err)
	}
	return ""
}

// alertAdvice explains the TLS alert with which a server ended a handshake (RFC 8446, section 6.2). crypto/tls does not
// export its type, but the number is in it; its text may change.
func alertAdvice(alert error) string {
	v := reflect.ValueOf(alert)
	if v.Kind() != reflect.Uint8 {
		return ""
	}
	switch v.Uint() {
	case 42, 43, 44, 45, 46, 48, 49, 116: // about the certificate
		return "the server refused the client's certificate, or the lack of one; set tls.cert_file and tls.key_file to a certificate that it trusts"
	case 40, 47, 70, 71, 112: // no common ground; up to TLS 1.2 also for no certificate
		return "the server refused the TLS handshake; check whether it wants a client certificate (tls.cert_file and tls.key_file), and which TLS versions it allows"
	}
	return ""
}
