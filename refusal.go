package natty

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/nats-io/nats.go"
)

// refusedError says that every server refuses this client, so that waiting has no purpose.
type refusedError struct{ errs []error }

func (e *refusedError) Error() string   { return "natty: connect: " + errors.Join(e.errs...).Error() }
func (e *refusedError) Unwrap() []error { return e.errs }

// asker asks each server by itself why it does not let this client in: with several, nats.go
// reports only what the last one said.
type asker struct {
	opts   nats.Options
	dialer *dialer
}

// start asks all servers in the background. The channel yields one answer: nil if one of them is fine, a
// *refusedError if all refuse, and else what they said. It comes soon after ctx ends.
func (a *asker) start(ctx context.Context) <-chan error {
	answer := make(chan error, 1)
	go func() { answer <- a.askAll(ctx) }()
	return answer
}

func (a *asker) askAll(ctx context.Context) error {
	errs := make([]error, len(a.opts.Servers))
	refused := make([]bool, len(errs))
	var wg sync.WaitGroup
	for i, server := range a.opts.Servers {
		wg.Go(func() { errs[i], refused[i] = a.askTwice(ctx, server) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	all := true
	for i, err := range errs {
		if err == nil {
			return nil
		}
		all = all && refused[i]
		errs[i] = fmt.Errorf("%s: %w", redactURL(a.opts.Servers[i]), err)
	}
	if all {
		return &refusedError{errs}
	}
	return errors.Join(errs...)
}

// askTwice asks one server, and again if the answer is not a clear refusal: one that comes in
// the middle of a TLS handshake can look like a connection reset.
func (a *asker) askTwice(ctx context.Context, server string) (err error, refused bool) { //nolint:revive // err comes with refused, not after it
	for range 2 {
		if err = a.ask(ctx, server); err == nil {
			return nil, false
		}
		if why := refusal(err); why != "" {
			return fmt.Errorf("%s: %w", why, err), true
		}
	}
	return err, false
}

func (a *asker) ask(ctx context.Context, server string) error {
	opts := a.opts
	d := newDialer(&opts)
	d.theirs = a.dialer.theirs
	stop := context.AfterFunc(ctx, d.shut)
	defer stop()
	defer d.end()
	opts.Servers, opts.Url = []string{server}, ""
	opts.CustomDialer, opts.SkipHostLookup = d, true
	opts.AllowReconnect, opts.RetryOnFailedConnect = false, false
	opts.AsyncErrorCB, opts.DisconnectedErrCB, opts.ConnectedCB, opts.ClosedCB = nil, nil, nil, nil
	nc, err := opts.Connect()
	if err != nil {
		return err
	}
	nc.Close()
	return nil
}

// refusal says what the server, or the check of its certificate, objects to and what to do; "" if
// the error may pass by itself.
func refusal(err error) string {
	var (
		unknownCA x509.UnknownAuthorityError
		wrongHost x509.HostnameError
		invalid   x509.CertificateInvalidError
		alert     tls.AlertError
		notTLS    tls.RecordHeaderError
		opErr     *net.OpError
	)
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return "the server refused the login; check user and password, token, creds_file or nkey_file"
	case errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAccountAuthExpired):
		return "the login has expired; get new credentials"
	case errors.Is(err, nats.ErrAuthRevoked):
		return "the login was revoked; get new credentials"
	case errors.Is(err, nats.ErrNkeysNotSupported):
		return "the server asks for no nkey; log in another way"
	case errors.As(err, &unknownCA):
		return "the server's certificate is signed by an unknown authority; set tls.ca_file to that authority's certificate"
	case errors.As(err, &wrongHost):
		return "the server's certificate is for another host name; connect by a name it holds, or set tls.server_name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired or is not valid yet; renew it, or check this machine's clock"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid for this use"
	case errors.Is(err, nats.ErrSecureConnWanted), errors.As(err, &notTLS):
		return "TLS is configured here and the server does not offer it; use a nats:// URL and no tls settings, or set up TLS on the server"
	case errors.Is(err, nats.ErrSecureConnRequired):
		return "the server requires TLS; set tls.ca_file"
	case errors.As(err, &alert) && errors.As(err, &opErr) && opErr.Op == "remote error":
		return "the server refused the TLS handshake, as it does without a client certificate that it trusts; check tls.cert_file and tls.key_file"
	}
	return ""
}
