// Package serverurl reads lists of server URLs, and shows them without the credentials
// in them. It connects to none, and leaves to its callers which schemes are allowed.
package serverurl

import (
	"net/url"
	"strings"
)

// DefaultPort is that of a nats or tls URL without one.
const DefaultPort = "4222"

// Split splits a list at its commas. Some commas belong to a password that is not
// percent-encoded: if a part without a scheme contains an @, it and the parts before
// it, back to the last scheme, stay together. Parse refuses the result. Otherwise a
// piece of the password would pass for a host, and be shown.
func Split(list string) []string {
	var servers []string
	last := 0 // index of the last server with a scheme, or of the first server
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		switch scheme := strings.Contains(s, "://"); {
		case s == "":
		case !scheme && strings.Contains(s, "@") && len(servers) > 0:
			servers = append(servers[:last], strings.Join(append(servers[last:], s), ","))
		case scheme:
			last = len(servers)
			fallthrough
		default:
			servers = append(servers, s)
		}
	}
	for i, s := range servers {
		if !strings.Contains(s, "://") {
			servers[i] = "nats://" + s
		}
	}
	return servers
}

// Parse parses the URL of one server. It returns nil if s is not such a URL.
func Parse(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || strings.Contains(s, ",") {
		return nil
	}
	// A / ? or # in a password ends the host too early: the password's first half
	// stands in the host's place, and the rest, with the @, behind it.
	if rest := u.Path + u.RawQuery + u.Fragment; strings.Contains(rest, "@") {
		return nil
	}
	return u
}

// Redacted stands for what is not shown.
const Redacted = "[redacted]"

// Redact returns the list with only what is safe to show: schemes and hosts.
func Redact(list string) string {
	servers := Split(list)
	for i, s := range servers {
		switch u := Parse(s); {
		case u == nil:
			servers[i] = Redacted
		case u.User != nil:
			servers[i] = u.Scheme + "://" + Redacted + "@" + u.Host
		default:
			servers[i] = u.Scheme + "://" + u.Host
		}
	}
	return strings.Join(servers, ",")
}

// WithoutLogin returns the URL of one server without the credentials in it.
func WithoutLogin(s string) string {
	u := Parse(s)
	if u == nil {
		return s
	}
	u.User = nil
	return u.String()
}
