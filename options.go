package natty

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/serverurl"
	"github.com/natty-go/natty/internal/subject"
)

// Config says who a service is and where its servers are. The zero value connects
// without credentials to $NATS_URL, or to a server on this machine.
//
// A Config that is printed with fmt, logged with slog or marshalled to JSON shows
// neither a Secret nor the credentials in a server's URL.
type Config struct {
	// Name is who this service is. It names the connection on the server and, with the
	// subject, the durables that have no name of their own.
	Name string `json:"name,omitempty"`
	// Servers are URLs of servers of one cluster; any of them will do. The scheme is
	// nats (also when left out), tls, ws or wss. Each URL may also be a list, separated
	// by commas. Default: $NATS_URL, else nats://127.0.0.1:4222. Credentials in a URL
	// replace User, Password and Token for its server. Special characters in them, a
	// comma too, are percent-encoded.
	Servers []string `json:"servers,omitempty"`

	// User logs in with Password.
	User string `json:"user,omitempty"`
	// Password is that of User.
	Password Secret `json:"password,omitempty"`
	// Token logs in without a user.
	Token Secret `json:"token,omitempty"`
	// CredsFile holds a user's JWT and seed. The file is read again for every attempt to
	// connect, so that it can be replaced while the service runs. While it cannot be
	// used, natty goes on with what it held before; the log and Health.LastError name
	// the file.
	CredsFile string `json:"creds_file,omitempty"`
	// NKeyFile holds a user's nkey seed. It is read again as CredsFile is.
	NKeyFile string `json:"nkey_file,omitempty"`

	// TLS says how to verify the server, and holds the client's certificate.
	TLS TLSConfig `json:"tls,omitzero"`

	// Domain is the JetStream domain to use. Set at most one of Domain and APIPrefix.
	Domain string `json:"domain,omitempty"`
	// APIPrefix is the prefix of an imported JetStream API. Default "$JS.API".
	APIPrefix string `json:"api_prefix,omitempty"`

	// Replicas is the number of replicas of the streams and buckets that natty makes by
	// itself. Default 1.
	Replicas int `json:"replicas,omitempty"`
	// PublishTimeout is how long a publish keeps trying when its ctx has no deadline.
	// Default 5s.
	PublishTimeout time.Duration `json:"publish_timeout,omitempty"`

	// DisableReconnect ends the Client when its connection is lost. Running calls
	// return ErrClosed.
	DisableReconnect bool `json:"disable_reconnect,omitempty"`
	// LazyConnect makes Connect return at once and connect in the background. Calls
	// wait for the first connection within their ctx; most wait 5s if it has no deadline.
	LazyConnect bool `json:"lazy_connect,omitempty"`
}

// TLSConfig says how to verify the server and how this client proves who it is. Any of
// these settings, or a tls:// URL, demands TLS. A server that requires TLS gets it in
// any case.
//
// The files are PEM. They are read at Connect, which refuses what cannot work, and again
// for every attempt to connect, so that they can be replaced while the service runs.
// While a file cannot be used, natty goes on with what it held before; the log and
// Health.LastError name the file. A client certificate and its key count as one file.
type TLSConfig struct {
	// CAFile holds the certificate authorities to trust. Default: the system's.
	CAFile string `json:"ca_file,omitempty"`
	// CertFile is the client's certificate.
	CertFile string `json:"cert_file,omitempty"`
	// KeyFile is the private key of CertFile.
	KeyFile string `json:"key_file,omitempty"`
	// ServerName is the name that the server's certificate must be for. Default: the
	// host of the URL.
	ServerName string `json:"server_name,omitempty"`
	// HandshakeFirst starts TLS before the server speaks, as a server with
	// handshake_first expects.
	HandshakeFirst bool `json:"handshake_first,omitempty"`
	// InsecureSkipVerify accepts any certificate. For tests only.
	InsecureSkipVerify bool `json:"insecure_skip_verify,omitempty"`
}

// Option is a setting that a configuration file cannot hold.
type Option func(*options)

type options struct {
	log   *slog.Logger
	tls   *tls.Config
	nats  []nats.Option
	adopt bool // conn
	conn  *nats.Conn

	observers  []Observer
	tracers    []Tracer
	middleware []func(Handler) Handler
}

// WithLogger sends natty's log to l. Default, also for nil: slog.Default().
func WithLogger(l *slog.Logger) Option {
	return func(o *options) {
		if l != nil {
			o.log = l
		}
	}
}

// WithObserver reports to o what happens to the Client. Given again, it adds another
// Observer. Default, also for nil: no reports.
func WithObserver(o Observer) Option {
	return func(opts *options) {
		if o != nil {
			opts.observers = append(opts.observers, o)
		}
	}
}

// WithTracer lets t follow every message that the Client publishes, and every call of a
// handler. Given again, it adds another Tracer, which starts behind t and ends before
// it. Default, also for nil: none, which costs nothing.
func WithTracer(t Tracer) Option {
	return func(o *options) {
		if t != nil {
			o.tracers = append(o.tracers, t)
		}
	}
}

// WithMiddleware wraps every Handler that the Client runs, and the callbacks of Consume.
// natty calls each function in wrap once for each call of Process, and the Handler that
// it returns for each attempt, within what a Tracer follows and within HandlerTimeout.
// The first function makes the outermost Handler, whose error decides what becomes of
// the message; see IsPermanent and RetryDelay. DeliveryFrom(ctx) has the Delivery.
// Handlers of batches are not wrapped. A second WithMiddleware adds its functions inside
// those of the first.
func WithMiddleware(wrap ...func(Handler) Handler) Option {
	return func(o *options) {
		for _, one := range wrap {
			if one != nil {
				o.middleware = append(o.middleware, one)
			}
		}
	}
}

// WithTLSConfig starts from a copy of cfg. The settings of Config.TLS override it. TLS
// 1.2 is the least, here and by default: Connect refuses a cfg that allows less.
func WithTLSConfig(cfg *tls.Config) Option {
	return func(o *options) { o.tls = cfg.Clone() }
}

// WithNATSOptions passes options on to nats.go. Their handlers are called as well as
// natty's. Several goroutines at once may call those that give credentials or
// certificates, and a custom dialer: while there is no connection, natty also probes
// every server by itself.
//
// The options cannot change what natty's guarantees rest on: it reconnects forever
// (unless DisableReconnect) and has no reconnect buffer. Nor can they change Config's
// servers.
func WithNATSOptions(opts ...nats.Option) Option {
	return func(o *options) { o.nats = append(o.nats, opts...) }
}

// WithConn uses a connection that the caller made, and leaves it open at Close.
// Config's fields about servers, credentials, TLS and reconnecting have no effect then.
// natty's guarantees need a connection with nats.ReconnectBufSize(-1),
// nats.MaxReconnects(-1) and nats.IgnoreAuthErrorAbort().
func WithConn(nc *nats.Conn) Option {
	return func(o *options) { o.adopt, o.conn = true, nc }
}

const defaultPublishTimeout = 5 * time.Second

// withDefaults fills in what is not set. Each of the result's Servers is one URL with
// its scheme.
func (c Config) withDefaults() Config {
	var servers []string
	for _, list := range c.Servers {
		servers = append(servers, serverurl.Split(list)...)
	}
	if servers == nil && len(c.Servers) > 0 {
		servers = c.Servers // blank, which validate refuses
	}
	if servers == nil {
		servers = serverurl.Split(os.Getenv("NATS_URL"))
	}
	if servers == nil {
		servers = []string{nats.DefaultURL}
	}
	c.Servers = servers
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.PublishTimeout == 0 {
		c.PublishTimeout = defaultPublishTimeout
	}
	c.PublishTimeout = min(c.PublishTimeout, longest)
	return c
}

// validate reports all settings that cannot work. It needs the defaults filled in.
func (c Config) validate() error {
	return joined(c.validateServers(), c.validateLogin(), c.validateAPI(), c.validateNumbers())
}

func (c Config) validateAPI() error {
	switch domain, prefix := c.Domain, strings.TrimSuffix(c.APIPrefix, "."); {
	case domain != "" && c.APIPrefix != "":
		return invalid("domain", domain, "set beside api_prefix; set one of them", nil)
	case domain != "" && (subject.Invalid(domain) != "" || strings.ContainsAny(domain, ".*>")):
		return invalid("domain", domain,
			"is not the name of a domain; expected one word without spaces, dots and wildcards", nil)
	case c.APIPrefix != "" && (subject.Invalid(prefix) != "" || subject.HasWildcard(prefix)):
		return invalid("api_prefix", c.APIPrefix,
			"is not a subject prefix; expected tokens separated by dots, without spaces and wildcards", nil)
	}
	return nil
}

func (c Config) validateNumbers() error {
	var errs []error
	if c.Replicas < 0 {
		errs = append(errs, negative("replicas", c.Replicas))
	}
	if c.PublishTimeout < 0 {
		errs = append(errs, negative("publish_timeout", c.PublishTimeout))
	}
	return joined(errs...)
}

// notURL begins the reason why a server's URL is refused. Neither the URL nor the
// parser's error, which quotes it, can be shown.
const notURL = "is not a URL (not shown: it may hold a password)"

func (c Config) validateServers() error {
	ws := 0
	var errs []error
	for i, s := range c.Servers {
		field := fmt.Sprintf("servers[%d]", i)
		u := serverurl.Parse(s)
		if strings.Trim(s, ", \t\n") == "" {
			return invalid(field, s,
				"is empty; name a server, or leave servers out for $NATS_URL or one on this machine", nil)
		}
		if u == nil {
			errs = append(errs, invalid(field, "", notURL+"; expected nats://host:port, with special "+
				"characters of a password percent-encoded, or the password in a field of its own", nil))
			continue
		}
		if port, err := strconv.ParseUint(cmp.Or(u.Port(), serverurl.DefaultPort), 10, 16); err != nil || port == 0 {
			return invalid(field, serverurl.Redact(s), "has a port that does not exist; expected 1 to 65535", nil)
		}
		switch u.Scheme {
		case "nats", "tls":
		case "ws", "wss":
			ws++
		default:
			errs = append(errs, invalid(field, serverurl.Redact(s), "unknown scheme; expected nats, tls, ws or wss", nil))
		}
	}
	if errs == nil && ws != 0 && ws != len(c.Servers) {
		return invalid("servers", "",
			"mixes WebSocket URLs with others; a list must be all ws/wss or all nats/tls", nil)
	}
	return joined(errs...)
}

func (c Config) validateLogin() error {
	ways := 0
	for _, way := range []string{c.User + string(c.Password), string(c.Token), c.CredsFile, c.NKeyFile} {
		if way != "" {
			ways++
		}
	}
	switch {
	case ways > 1:
		return invalid("user, token, creds_file, nkey_file", "",
			"more than one way to log in is set; set one", nil)
	case c.Password != "" && c.User == "":
		return invalid("password", "", "set without user; set both", nil)
	}
	return nil
}

// longest is what a longer duration counts as.
const longest = backoff.Longest

func negative(field string, v any) error {
	return invalid(field, fmt.Sprint(v),
		"is negative; leave it at zero for the default, or give a positive value", nil)
}

// apiPrefix returns what the subjects of JetStream's API start with.
func (c Config) apiPrefix() string {
	switch {
	case c.Domain != "":
		return "$JS." + c.Domain + ".API."
	case c.APIPrefix != "":
		return strings.TrimSuffix(c.APIPrefix, ".") + "."
	}
	return jsapi.DefaultPrefix
}

// Secret is a string that is not shown: it prints, logs and marshals as [redacted]. It
// cannot hide where fmt and encoding/json do not ask a type: in unexported fields of
// other structs, as a JSON object key, and for the verbs %p and %w (go vet reports
// them). So keep a Config or a Service in an unexported field as a pointer, of which %v
// and %+v print the address alone.
type Secret string

// shown returns what stands for s. An empty secret shows that nothing is set.
func (s Secret) shown() string {
	if s == "" {
		return ""
	}
	return serverurl.Redacted
}

// String implements fmt.Stringer.
func (s Secret) String() string { return s.shown() }

// Format implements fmt.Formatter, for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.shown())) }

// MarshalText implements encoding.TextMarshaler, and so serves JSON, YAML and XML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.shown()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(b []byte) error { *s = Secret(b); return nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.shown()) }

// plainConfig is a Config without methods, to print a redacted one.
type plainConfig Config

func (c Config) redacted() plainConfig {
	servers := make([]string, len(c.Servers))
	for i, s := range c.Servers {
		servers[i] = serverurl.Redact(s)
	}
	c.Servers = servers
	return plainConfig(c)
}

// Format implements fmt.Formatter, for every verb.
func (c Config) Format(f fmt.State, verb rune) { formatPlain(f, verb, c.redacted()) }

// formatPlain prints a struct. Verbs that are for strings or numbers alone would print
// what is in it without asking its types, and so count as %+v.
func formatPlain(f fmt.State, verb rune, plain any) {
	format := "%+v"
	if verb == 'v' {
		format = fmt.FormatString(f, verb)
	}
	_, _ = fmt.Fprintf(f, format, plain)
}

// MarshalJSON implements json.Marshaler. The result is for reading: it holds no
// secrets, so that it cannot serve to connect.
func (c Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.redacted()) }

// LogValue implements slog.LogValuer.
func (c Config) LogValue() slog.Value { return slog.AnyValue(c.redacted()) }

// Backoff is the pause before a failed message is retried. After the nth failure it is
// random between d = min(Max, Min·2^(n-1)) and 1.25·d, so that messages that failed
// together are not retried together. The zero value means 250ms and one minute.
type Backoff struct {
	// Min is the pause after the first failure, without its random part. Default 250ms.
	Min time.Duration `json:"backoff_min,omitempty"`
	// Max is the longest pause, without its random part. Default one minute.
	Max time.Duration `json:"backoff_max,omitempty"`
}
