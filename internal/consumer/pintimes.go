package consumer

import (
	"context"
	"time"

	"github.com/natty-go/natty/internal/pull"
)

const (
	// An owner sends a request this often, and hears from the server this often.
	maxPinExpiry    = 5 * time.Second
	maxPinHeartbeat = time.Second
	// A standby sends a request this often. It hears from the server at each heartbeat,
	// which costs no request.
	maxStandbyExpiry = 2 * time.Minute
	// An owner gives the pin back when it had nothing to do for this long.
	maxPinIdle = 30 * time.Second
)

// pinTimes follow from the durable's PinnedTTL: a silent owner loses its pin after it.
type pinTimes struct {
	// trust is how long the owner relies on its pin after it has sent a request. A
	// fifth of the time is left as a margin for clocks that differ.
	trust     time.Duration
	expires   time.Duration // of the owner's requests
	heartbeat time.Duration
	touch     time.Duration // how old the owner's last request may get
	idle      time.Duration // how long an owner with nothing to do keeps the pin
	// holdBack is how long a standby does not ask for the pin after another server may
	// have forgotten who has it. The former owner learns of that within touch, asks
	// first, and can go on at once.
	holdBack time.Duration

	standbyExpires, standbyHeartbeat time.Duration
}

func pinTimesOf(ttl, heartbeat time.Duration) pinTimes {
	t := pinTimes{
		trust:     ttl - ttl/5,
		expires:   min(maxPinExpiry, ttl/2),
		heartbeat: max(pull.MinHeartbeat, min(heartbeat, maxPinHeartbeat, ttl/10)),
		touch:     min(maxPinExpiry/2, ttl/4),
		idle:      3 * min(maxPinIdle/3, ttl),

		standbyExpires:   12 * min(maxStandbyExpiry/12, ttl),
		standbyHeartbeat: max(pull.MinHeartbeat, min(heartbeat, ttl/2)),
	}
	t.holdBack = t.touch + t.touch/5
	return t
}

type pinnedTTLKey struct{}

// WithPinnedTTL returns a ctx in which Run makes its durable with this PinnedTTL: how
// long the server waits for a silent active instance of an exclusive consumer. It is
// for tests, which cannot wait for the default of ten seconds.
func WithPinnedTTL(ctx context.Context, ttl time.Duration) context.Context {
	return context.WithValue(ctx, pinnedTTLKey{}, ttl)
}

// pinnedTTL returns the TTL of WithPinnedTTL if it is positive, else the default.
func pinnedTTL(ctx context.Context, normally time.Duration) time.Duration {
	if ttl, _ := ctx.Value(pinnedTTLKey{}).(time.Duration); ttl > 0 {
		return ttl
	}
	return normally
}
