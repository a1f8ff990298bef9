package pull

import (
	"cmp"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Request is a pull request as the server reads it.
type Request struct {
	Batch     int           `json:"batch"`
	MaxBytes  int           `json:"max_bytes,omitempty"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat,omitempty"`
	// Group is the priority group, and Pin the id of the client that the server has
	// pinned.
	Group string `json:"group,omitempty"`
	Pin   string `json:"id,omitempty"`
}

// Limit keeps requests within what the durable allows. The server would always refuse
// larger ones.
func (p *Puller) Limit(cfg jetstream.ConsumerConfig) { p.limits = cfg }

// MaxBytes is the durable's own limit on the bytes of a request; 0: none.
func (p *Puller) MaxBytes() int { return p.limits.MaxRequestMaxBytes }

// Grow makes later requests large enough for any message that a server can hold. A
// message may be larger than this server accepts now: it was stored by another one, or
// the limit was lowered. It reports false if that does not help: the durable limits its
// requests, or they are as large already.
func (p *Puller) Grow() bool {
	limited := p.limits.MaxRequestMaxBytes > 0
	grows := p.max < maxMessage && !limited
	p.max = maxMessage
	return grows
}

const (
	// overhead is room for subjects beside a message of the largest size.
	overhead = 64 << 10
	// maxMessage is the largest max_payload that a server can have, with overhead.
	maxMessage = 64<<20 + overhead
)

// request returns a request for n messages as the durable and the server allow it now.
// The server's max_payload may change with each connection, and under one too.
func (p *Puller) request(n int, expires, heartbeat time.Duration) Request {
	req := p.wish
	req.Batch, req.Expires, req.Heartbeat = n, expires, heartbeat
	if req.MaxBytes > 0 {
		req.MaxBytes = max(req.MaxBytes, int(p.nc.MaxPayload())+overhead, p.max)
	}
	if l := p.limits.MaxRequestBatch; l > 0 {
		req.Batch = min(n, l)
	}
	if l := p.limits.MaxRequestExpires; l > 0 {
		req.Expires = min(req.Expires, l)
	}
	if l := p.limits.MaxRequestMaxBytes; l > 0 {
		req.MaxBytes = min(cmp.Or(req.MaxBytes, l), l)
	}
	// The server accepts a heartbeat of at most half of the expiry.
	req.Heartbeat = min(req.Heartbeat, req.Expires/2)
	if req.Heartbeat < MinHeartbeat {
		req.Heartbeat = 0
	}
	return req
}
