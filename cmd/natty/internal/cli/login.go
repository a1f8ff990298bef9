package cli

import (
	"cmp"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/jsm.go/natscontext"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natty-go/natty"
)

// login is the flags that say which server to use, and as whom.
type login struct {
	context, server             string
	creds, nkey, user, password string
	tlsCA, tlsCert, tlsKey      string
	domain                      string
	timeout                     time.Duration

	set *pflag.FlagSet
}

func (l *login) flags(f *pflag.FlagSet) {
	l.set = f
	f.StringVar(&l.context, "context", "", "use this context of the nats command (NATS_CONTEXT)")
	f.StringVarP(&l.server, "server", "s", "", "URLs of servers of one cluster, separated by commas (NATS_URL)")
	f.StringVar(&l.creds, "creds", "", "credentials file (NATS_CREDS)")
	f.StringVar(&l.nkey, "nkey", "", "file with an nkey seed (NATS_NKEY)")
	f.StringVar(&l.user, "user", "", "user name (NATS_USER)")
	f.StringVar(&l.password, "password", "",
		"password; others on this machine can see it here, so rather set NATS_PASSWORD")
	f.StringVar(&l.tlsCA, "tlsca", "", "file with the certificate authorities to trust (NATS_CA)")
	f.StringVar(&l.tlsCert, "tlscert", "", "file with a client certificate (NATS_CERT)")
	f.StringVar(&l.tlsKey, "tlskey", "", "file with its private key (NATS_KEY)")
	f.StringVar(&l.domain, "domain", "", "JetStream domain (NATS_DOMAIN)")
	f.DurationVar(&l.timeout, "timeout", 5*time.Second, "how long to wait for the server")
}

func (l *login) timeoutSet() bool { return l.set.Changed("timeout") }

// environment maps each setting to the variable that stands in for its flag.
func (l *login) environment() map[*string]string {
	return map[*string]string{
		&l.server: "NATS_URL", &l.creds: "NATS_CREDS", &l.nkey: "NATS_NKEY", &l.user: "NATS_USER",
		&l.password: "NATS_PASSWORD", &l.tlsCA: "NATS_CA", &l.tlsCert: "NATS_CERT", &l.tlsKey: "NATS_KEY",
		&l.domain: "NATS_DOMAIN",
	}
}

// config returns how to connect. A flag beats everything else. A context that is named
// beats the environment. The selected context is used only when neither a flag nor
// NATS_URL names a server, so that its secrets never go to another server.
func (l *login) config() (natty.Config, []natty.Option, error) {
	name := cmp.Or(l.context, os.Getenv("NATS_CONTEXT"))
	if name == "" && l.server == "" && os.Getenv("NATS_URL") == "" {
		name = natscontext.SelectedContext()
	}
	if name != "" {
		return l.fromContext(name)
	}
	for value, variable := range l.environment() {
		*value = cmp.Or(*value, os.Getenv(variable))
	}
	cfg := natty.Config{
		Name: clientName(), User: l.user, Password: natty.Secret(l.password), CredsFile: l.creds, NKeyFile: l.nkey,
		TLS:    natty.TLSConfig{CAFile: l.tlsCA, CertFile: l.tlsCert, KeyFile: l.tlsKey},
		Domain: l.domain,
	}
	if l.server != "" {
		cfg.Servers = []string{l.server}
	}
	return cfg, nil, nil
}

func (l *login) fromContext(name string) (natty.Config, []natty.Option, error) {
	var over []natscontext.Option
	add := func(value string, option func(string) natscontext.Option) {
		if value != "" {
			over = append(over, option(value))
		}
	}
	add(l.server, natscontext.WithServerURL)
	add(l.creds, natscontext.WithCreds)
	add(l.nkey, natscontext.WithNKey)
	add(l.user, natscontext.WithUser)
	add(l.password, natscontext.WithPassword)
	add(l.tlsCA, natscontext.WithCA)
	add(l.tlsCert, natscontext.WithCertificate)
	add(l.tlsKey, natscontext.WithKey)
	add(l.domain, natscontext.WithJSDomain)
	nctx, err := natscontext.New(name, true, over...)
	if err != nil {
		return natty.Config{}, nil, fmt.Errorf(
			"context %q cannot be used: %w; see the contexts there are with: nats context ls", name, err)
	}
	opts, err := nctx.NATSOptions()
	if err != nil {
		return natty.Config{}, nil, fmt.Errorf("context %q: %w; mend it with: nats context edit %s", name, err, name)
	}
	cfg := natty.Config{Name: clientName(), Domain: nctx.JSDomain()}
	if cfg.Domain == "" {
		cfg.APIPrefix = nctx.JSAPIPrefix()
	}
	if url := nctx.ServerURL(); url != "" {
		cfg.Servers = []string{url}
	}
	cfg.TLS.HandshakeFirst = nctx.TLSHandshakeFirst()
	return cfg, []natty.Option{natty.WithNATSOptions(opts...)}, nil
}

// clientName names the connection on the server.
func clientName() string {
	host, err := os.Hostname()
	if err != nil {
		return "natty"
	}
	return "natty-" + host
}

func completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return natscontext.KnownContexts(), cobra.ShellCompDirectiveNoFileComp
}
