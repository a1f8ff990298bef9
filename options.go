package natty

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Config says who a service is and where its servers are. The zero value connects
// without credentials to $NATS_URL, or to a server on this machine.
//
// Printed with fmt, logged with slog or marshalled to JSON, a Config shows neither a Secret nor the
// credentials in a server's URL.
type Config struct {
	// Name is who this service is. It names the connection on the server and, with
	// the subject, the durables that are not named explicitly.
	Name string `json:"name,omitempty"`
	// Servers are URLs (nats, tls, ws or wss; nats when left out) of servers of one cluster, any of which will
	// do. Each may also be a list, separated by commas. Default: $NATS_URL, else nats://127.0.0.1:4222. A
	// URL may carry credentials, which then take the place of User, Password and Token for its server; special
	// characters in them, a comma too, are percent-encoded.
	Servers []string `json:"servers,omitempty"`

	User     string `json:"user,omitempty"`
	Password Secret `json:"password,omitempty"`
	Token    Secret `json:"token,omitempty"`
	// CredsFile holds a user's JWT and seed. It is read again at every reconnect, so
	// that credentials can be rotated.
	CredsFile string `json:"creds_file,omitempty"`
	// NKeyFile holds a user's nkey seed.
	NKeyFile string `json:"nkey_file,omitempty"`

	TLS TLSConfig `json:"tls,omitzero"`

	// Domain is the JetStream domain to use; APIPrefix the prefix of an imported
	// JetStream API, "$JS.API" when empty. At most one of them can be set.
	Domain    string `json:"domain,omitempty"`
	APIPrefix string `json:"api_prefix,omitempty"`

	// Replicas is the number of replicas of what natty makes by itself. Default 1.
	Replicas int `json:"replicas,omitempty"`
	// PublishTimeout is how long a publish keeps trying when its ctx has no deadline.
	// Default 5s.
	PublishTimeout time.Duration `json:"publish_timeout,omitempty"`

	// DisableReconnect ends the Client when its connection is lost. What was
	// running returns ErrClosed.
	DisableReconnect bool `json:"disable_reconnect,omitempty"`
	// LazyConnect makes Connect return at once and connect in the background; calls
	// wait for the first connection within their ctx.
	LazyConnect bool `json:"lazy_connect,omitempty"`
}

// TLSConfig says how the server is verified and how this client proves who it is.
// Setting any of this, or a tls:// URL, demands TLS; a server that requires TLS gets it
// in any case. The files are PEM, and read at Connect.
type TLSConfig struct {
	// CAFile holds the certificate authorities to trust. Default: the system's.
	CAFile string `json:"ca_file,omitempty"`
	// CertFile and KeyFile are the client's certificate and its private key.
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`
	// ServerName is the name the server's certificate must be for. Default: the host of the URL.
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

	observer Observer
}

// WithLogger sends natty's log to l. Default, also for nil: slog.Default().
func WithLogger(l *slog.Logger) Option {
	return func(o *options) {
		if l != nil {
			o.log = l
		}
	}
}

// WithObserver tells o what happens to the Client. Default, also for nil: nobody is told.
func WithObserver(o Observer) Option {
	return func(opts *options) { opts.observer = o }
}

// WithTLSConfig starts from cfg, which is copied; what Config.TLS sets is put on top.
func WithTLSConfig(cfg *tls.Config) Option {
	return func(o *options) { o.tls = cfg.Clone() }
}

// WithNATSOptions passes options on to nats.go. Their handlers are called beside natty's. Those that give
// credentials or certificates, and a custom dialer, may be called by several goroutines at once: while there is no
// connection, every server is also asked by itself. What natty's guarantees rest on is not theirs
// to change: reconnecting for ever (unless DisableReconnect) and no reconnect buffer. Nor are the
// servers, which are Config's.
func WithNATSOptions(opts ...nats.Option) Option {
	return func(o *options) { o.nats = append(o.nats, opts...) }
}

// WithConn uses a connection that the caller made, and leaves it open at Close. The
// fields of Config about servers, credentials, TLS and reconnecting have no effect then.
// For natty's guarantees make it with nats.ReconnectBufSize(-1), nats.MaxReconnects(-1)
// and nats.IgnoreAuthErrorAbort().
func WithConn(nc *nats.Conn) Option {
	return func(o *options) { o.adopt, o.conn = true, nc }
}

const defaultPublishTimeout = 5 * time.Second

// withDefaults fills in what is not set. The Servers of the result are one URL each, with scheme.
func (c Config) withDefaults() Config {
	var servers []string
	for _, list := range c.Servers {
		servers = append(servers, splitServers(list)...)
	}
	if servers == nil {
		servers = splitServers(os.Getenv("NATS_URL"))
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
	return c
}

// splitServers splits a list at its commas, except at one that seems to belong to a password; validate refuses what
// then holds one. Otherwise half a password could pass for a host, and be shown.
func splitServers(list string) []string {
	var servers []string
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		switch scheme := strings.Contains(s, "://"); {
		case s == "":
		case scheme:
			servers = append(servers, s)
		case strings.Contains(s, "@") && len(servers) > 0:
			servers[len(servers)-1] += "," + s
		default:
			servers = append(servers, "nats://"+s)
		}
	}
	return servers
}

// parseServer parses the URL of one server; nil if it is none.
func parseServer(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || strings.Contains(s, ",") {
		return nil
	}
	// A password that is not encoded can end up behind the host, and its first half in the host's place.
	if rest := u.Path + u.RawQuery + u.Fragment; strings.Contains(rest, "@") {
		return nil
	}
	return u
}

// validate reports the first setting that cannot work. It expects defaults to be filled in.
func (c Config) validate() error {
	if err := c.validateServers(); err != nil {
		return err
	}
	if err := c.validateLogin(); err != nil {
		return err
	}
	switch domain, prefix := c.Domain, strings.TrimSuffix(c.APIPrefix, "."); {
	case domain != "" && c.APIPrefix != "":
		return &ConfigError{Field: "domain", Value: domain, Reason: "set beside api_prefix; set one of them"}
	case domain != "" && (validSubject(domain) != "" || strings.ContainsAny(domain, ".*>")):
		return &ConfigError{Field: "domain", Value: domain, Reason: "is not the name of a domain; expected one word without spaces, dots and wildcards"}
	case c.APIPrefix != "" && (validSubject(prefix) != "" || hasWildcard(prefix)):
		return &ConfigError{Field: "api_prefix", Value: c.APIPrefix, Reason: "is not a subject prefix; expected tokens separated by dots, without spaces and wildcards"}
	case c.Replicas < 0:
		return negative("replicas", c.Replicas)
	case c.PublishTimeout < 0:
		return negative("publish_timeout", c.PublishTimeout)
	}
	return nil
}

func (c Config) validateServers() error {
	ws := 0
	for i, s := range c.Servers {
		field := fmt.Sprintf("servers[%d]", i)
		u := parseServer(s)
		if u == nil {
			// Neither the URL nor the parser's error, which quotes it, can be shown.
			return &ConfigError{Field: field, Reason: "is not a URL (not shown: it may hold a password); expected nats://host:port, with special characters of a password percent-encoded"}
		}
		switch u.Scheme {
		case "nats", "tls":
		case "ws", "wss":
			ws++
		default:
			return &ConfigError{Field: field, Value: redactURL(s), Reason: "unknown scheme; expected nats, tls, ws or wss"}
		}
	}
	if ws != 0 && ws != len(c.Servers) {
		return &ConfigError{Field: "servers", Reason: "mixes WebSocket URLs with others; a list must be all ws/wss or all nats/tls"}
	}
	return nil
}

func (c Config) validateLogin() error {
	ways := 0
	for _, set := range []bool{c.User != "" || c.Password != "", c.Token != "", c.CredsFile != "", c.NKeyFile != ""} {
		if set {
			ways++
		}
	}
	switch {
	case ways > 1:
		return &ConfigError{Field: "user, token, creds_file, nkey_file", Reason: "more than one way to log in is set; set one"}
	case c.Password != "" && c.User == "":
		return &ConfigError{Field: "password", Reason: "set without user; set both"}
	}
	return nil
}

func negative(field string, v any) error {
	return &ConfigError{Field: field, Value: fmt.Sprint(v), Reason: "is negative; leave it at zero for the default, or give a positive value"}
}

// apiPrefix is what the subjects of JetStream's API start with.
func (c Config) apiPrefix() string {
	switch {
	case c.Domain != "":
		return "$JS." + c.Domain + ".API."
	case c.APIPrefix != "":
		return strings.TrimSuffix(c.APIPrefix, ".") + "."
	}
	return "$JS.API."
}

// Secret is a string that is not shown: it prints, logs and marshals as [redacted]. Out of its reach is where fmt and
// encoding/json do not ask a type: unexported fields of other structs, the verbs %p and %w, which are for
// other things (go vet reports them), and JSON object keys.
type Secret string

const redacted = "[redacted]"

// shown is what stands for s; an empty secret shows that nothing is set.
func (s Secret) shown() string {
	if s == "" {
		return ""
	}
	return redacted
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

// plainConfig is a Config without methods, for printing one that was redacted.
type plainConfig Config

func (c Config) redacted() plainConfig {
	servers := make([]string, len(c.Servers))
	for i, s := range c.Servers {
		servers[i] = redactURL(s)
	}
	c.Servers = servers
	return plainConfig(c)
}

// Format implements fmt.Formatter, for every verb.
func (c Config) Format(f fmt.State, verb rune) {
	format := "%+v"
	if verb == 'v' {
		format = fmt.FormatString(f, verb)
	}
	_, _ = fmt.Fprintf(f, format, c.redacted())
}

// MarshalJSON implements json.Marshaler. The result is for reading: it holds no secrets and
// so is no configuration to connect with.
func (c Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.redacted()) }

// LogValue implements slog.LogValuer.
func (c Config) LogValue() slog.Value { return slog.AnyValue(c.redacted()) }

// redactURL shows of a list of URLs what is safe: schemes and hosts.
func redactURL(list string) string {
	servers := splitServers(list)
	for i, s := range servers {
		switch u := parseServer(s); {
		case u == nil:
			servers[i] = redacted
		case u.User != nil:
			servers[i] = u.Scheme + "://" + redacted + "@" + u.Host
		default:
			servers[i] = u.Scheme + "://" + u.Host
		}
	}
	return strings.Join(servers, ",")
}
