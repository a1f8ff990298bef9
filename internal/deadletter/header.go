package deadletter

import (
	"encoding/hex"
	"strings"
)

const (
	serverPrefix   = "Nats-"
	nattyPrefix    = "Natty-"
	originalPrefix = "Natty-Original-"
	// encodedPrefix begins the name of a header whose own name, in hexadecimal, nats.go
	// does not send. Other clients do: a name with a space, for example.
	encodedPrefix = "Natty-Encoded-"
)

// IsServerHeader reports whether a header's name is among those that belong to the
// server. On some of them it acts; others are a user's own.
func IsServerHeader(name string) bool { return hasFold(name, serverPrefix) }

func hasFold(name, prefix string) bool {
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// keepsItsName reports whether a header keeps its whole name behind originalPrefix. A
// message that is a dead letter itself has headers of natty's, and its letter has others
// of the same names.
func keepsItsName(name string) bool {
	return IsServerHeader(name) || strings.HasPrefix(name, nattyPrefix)
}

// aside returns the name under which a dead letter carries a header. The server acts on
// many Nats-* headers, or refuses messages with them; so all of them are renamed.
func aside(name string) string {
	rest, servers := strings.CutPrefix(name, serverPrefix)
	switch {
	case !sendable(name):
		return encodedPrefix + hex.EncodeToString([]byte(name))
	case servers && !keepsItsName(rest):
		return originalPrefix + rest
	case keepsItsName(name): // and how it is spelled
		return originalPrefix + name
	}
	return name
}

// original undoes aside.
func original(name string) string {
	if code, ok := strings.CutPrefix(name, encodedPrefix); ok {
		if plain, err := hex.DecodeString(code); err == nil && !sendable(string(plain)) {
			return string(plain)
		}
	}
	rest, ok := strings.CutPrefix(name, originalPrefix)
	switch {
	case !ok:
		return name
	case keepsItsName(rest):
		return rest
	}
	return serverPrefix + rest
}

// sendable reports whether nats.go sends a header of this name.
func sendable(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"()/,:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return name != ""
}

// The server, or a client of the server's, acts on these headers: message ids,
// conditions, TTLs, schedules, roll-ups, counters, batches, traces, and where a copy in
// another stream came from. Each entry is a name or, with a dash at its end, the begin
// of names. nats-server's Nats-* constants were read for the list.
var acted = []string{
	"Nats-Msg-Id", "Nats-Expected-", "Nats-TTL", "Nats-Rollup", "Nats-Schedule", "Nats-Schedule-",
	"Nats-Scheduler", "Nats-Marker-Reason", "Nats-Incr", "Nats-Counter-", "Nats-Batch-", "Nats-Trace-",
	"Nats-Stream-Source", "Nats-Stream-Identity", "Nats-Pin-Id", "Nats-Required-Api-Level", "Nats-Request-Info",
}

// isActedOn reports whether a header is left out when a message is put back: conditions
// and schedules had their time. Other Nats-* headers are a user's own, and come back.
func isActedOn(name string) bool {
	for _, a := range acted {
		if strings.EqualFold(name, a) || a[len(a)-1] == '-' && hasFold(name, a) {
			return true
		}
	}
	return false
}
