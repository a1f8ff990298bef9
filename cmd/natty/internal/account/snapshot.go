package account

import (
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Snapshot is an account at one moment. It marshals to JSON.
type Snapshot struct {
	Time      time.Time  `json:"time"`
	Server    Server     `json:"server"`
	Streams   []Stream   `json:"streams"`
	Consumers []Consumer `json:"consumers"`
	Leases    []Lease    `json:"leases"`
	Dead      []Dead     `json:"dead_letters"`
	// Problems are what could not be read.
	Problems []Problem `json:"problems,omitempty"`

	account *jetstream.AccountInfo
}

// Problem is something that could not be read. What it would have shown is missing in the
// Snapshot, or is as it was read before.
type Problem struct {
	Kind Unread `json:"kind"`
	// Text says what it is, why it could not be read, and what to do.
	Text string `json:"text"`

	refused string // the API subject that the user may not publish to; empty otherwise
}

// Unread is what could not be read.
type Unread string

// What could not be read, and with it whatever it holds.
const (
	UnreadStreams   Unread = "streams"   // all of them, so that nothing is known
	UnreadConsumers Unread = "consumers" // of one stream
	UnreadContent   Unread = "content"   // the leases and dead letters in one stream
	UnreadOldest    Unread = "oldest"    // the oldest message of one consumer
	UnreadSubjects  Unread = "subjects"  // of the messages in one stream
	UnreadLimits    Unread = "limits"    // of the account
)

// Lacks reports whether something of a kind may be missing.
func (s *Snapshot) Lacks(kind Unread) bool {
	return slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.Kind == kind || p.Kind == UnreadStreams })
}

// Server is the server of the connection.
type Server struct {
	Name    string  `json:"name"`
	Version string  `json:"version"`
	Cluster string  `json:"cluster,omitempty"`
	URL     string  `json:"url"`
	RTT     float64 `json:"rtt_ms"`
}

// Stream is a stream, or the stream of a bucket.
type Stream struct {
	Name      string   `json:"name"`
	Subjects  []string `json:"subjects,omitempty"`
	Retention string   `json:"retention"`
	Messages  uint64   `json:"messages"`
	Bytes     uint64   `json:"bytes"`
	Consumers int      `json:"consumers"`
	Replicas  int      `json:"replicas"`
	LastSeq   uint64   `json:"last_seq"`
	// Rate is how many messages are stored in a second. It is missing in the first
	// Snapshot.
	Rate *float64 `json:"stored_per_second,omitempty"`

	info *jetstream.StreamInfo
}

// Consumer is a consumer of a stream.
type Consumer struct {
	Stream  string   `json:"stream"`
	Name    string   `json:"name"`
	Durable bool     `json:"durable"`
	Filters []string `json:"filters,omitempty"`
	// Lag is how many messages are not settled: Pending are not delivered yet, InFlight
	// are delivered; of those, Redelivered for more than the first time.
	Lag         uint64 `json:"lag"`
	Pending     uint64 `json:"pending"`
	InFlight    int    `json:"in_flight"`
	MaxInFlight int    `json:"max_in_flight"`
	Redelivered int    `json:"redelivered"`
	// Waiting is how many requests for messages wait.
	Waiting int `json:"waiting"`
	// Oldest is when the oldest message was stored that is not settled.
	Oldest        *time.Time `json:"oldest,omitempty"`
	LastDelivered *time.Time `json:"last_delivered,omitempty"`
	LastSettled   *time.Time `json:"last_settled,omitempty"`
	// Rate is how many messages are delivered in a second.
	Rate *float64 `json:"delivered_per_second,omitempty"`
	// Warning says why messages are not handled.
	Warning string `json:"warning,omitempty"`

	info *jetstream.ConsumerInfo
}

// Lease is a leadership or a lock.
type Lease struct {
	Kind    string    `json:"kind"` // "leader" or "lock"
	Bucket  string    `json:"bucket"`
	Key     string    `json:"key"`
	Owner   string    `json:"owner"`
	Renewed time.Time `json:"renewed"`
	// Expires is when the lease ends unless it is renewed.
	Expires time.Time `json:"expires,omitzero"`
}

// Dead is the dead letters of one subject.
type Dead struct {
	Stream  string `json:"stream"`
	Subject string `json:"subject"`
	Count   uint64 `json:"count"`
	// Newest is when the last letter was stored, and Reason what it says.
	Newest time.Time `json:"newest,omitzero"`
	Reason string    `json:"reason,omitempty"`
}

// sample is what rates are computed from.
type sample struct {
	at      time.Time
	count   uint64
	created time.Time
}

// rate returns how fast a count grows, and keeps it for the next Snapshot. The caller
// holds a.reading.
func (a *Account) rate(name string, now sample) *float64 {
	before, ok := a.last[name]
	a.last[name] = now
	passed := now.at.Sub(before.at).Seconds()
	if !ok || !before.created.Equal(now.created) || passed <= 0 || now.count < before.count {
		return nil
	}
	perSecond := float64(now.count-before.count) / passed
	return &perSecond
}
