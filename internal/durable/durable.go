// Package durable owns durable consumers as they are on the server: how one is found,
// created, changed, reset, recreated and read, and what natty notes in its metadata. No
// other room writes a durable. It runs no consumer: it knows no handlers, no messages in
// flight, and not how messages are fetched. Read first:
//
//	durable.go    a durable, and its way onto the server; glance.go reads it again
//	config.go     what natty sets of it, and the one function that writes it
//	filters.go    its filters as the stream's subjects change; stored.go, leftovers.go
//	group.go      the settings and filters that its instances share
//	recreate.go   a deleted one, behind its ack floor
//	exclusive.go  the pin, the reset and the count of takeovers of exclusive ones
//	trial.go      notes about messages that may kill their process; returned.go, lost.go
package durable

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/subject"
)

// Limits of a durable.
const (
	MinAckWait     = 500 * time.Millisecond
	MaxConcurrency = 100_000
	// MaxAckPending is the max_ack_pending of a durable that natty makes. Delayed
	// retries count as ack-pending: with the server's default of 1,000, as many failing
	// messages stall a consumer (nats-server#6093).
	MaxAckPending = 20_000
)

// Manager makes durables, and reads and changes them.
type Manager struct {
	API *jsapi.Client
	// Invalid makes the error for an argument that can never work.
	Invalid func(field, value, reason string, cause error) error
}

// Spec is what a durable is to be like.
type Spec struct {
	Stream, Durable string
	Subjects        []string
	ReplaceSubjects bool // Subjects take filters off the durable
	Exclusive       bool
	AckWait         time.Duration
	MaxDeliver      int
	MaxAckPending   int // 0: as much as the server allows, or what the durable has
	DeadLetter      string
	DeliverPolicy   jetstream.DeliverPolicy
	PinnedTTL       time.Duration
}

// Durable is a durable consumer, as the server last described it.
type Durable struct {
	Stream, Name  string
	StreamCreated time.Time
	Config        jetstream.ConsumerConfig
	Floor         uint64 // every message up to this sequence of the stream is acked
	FloorCount    uint64 // the consumer sequence of Floor
	Pin           string // of the active instance, if the durable is exclusive
	Unacked       int    // how many messages are delivered, to anyone, and not acked
	Waiting       uint64 // how many messages are not delivered yet
	Requests      int    // how many pull requests wait at the server, of all instances
	Created       time.Time
	Read          time.Time // when the server said all this, by its clock
	Delivered     uint64    // the highest delivered sequence of the stream
	Deliveries    uint64    // how many deliveries there were, redeliveries included
	First         uint64    // the stream's first sequence
	Retention     jetstream.RetentionPolicy
	Replicas      int      // of the stream
	stored        []string // the subjects that the stream stores messages under; none: any
	Leader        string   // the server that counts; "" if there is one server
	Whole         bool     // the durable receives all subjects of the stream
	Mirror        bool     // the stream is a mirror
	Schedules     bool     // the stream may hold schedules
}

// AckWait is how long the server waits for an ack, or a sign of life, before it
// redelivers a message. BackOff, which another client may have set, overrides AckWait.
func (d Durable) AckWait() time.Duration {
	w := d.Config.AckWait
	for _, b := range d.Config.BackOff {
		w = min(w, b)
	}
	return max(w, time.Millisecond)
}

// RedeliveredWithin is the longest that the server waits so. With BackOff, that depends
// on how often it has delivered the message.
func (d Durable) RedeliveredWithin() time.Duration {
	return max(d.AckWait(), slices.Max(append(slices.Clip(d.Config.BackOff), 0)))
}

// Pulls is the subject of the durable's pull requests.
func (d Durable) Pulls(c *Manager) string {
	return c.API.Prefix + "CONSUMER.MSG.NEXT." + d.Stream + "." + d.Name
}

// Comparable reports whether fewer pending messages than at an earlier look mean that
// messages were removed. They do not if the deliver policy skips messages, or if the
// filters were changed.
func (d Durable) Comparable(last Durable) bool {
	return d.Config.DeliverPolicy != jetstream.DeliverLastPerSubjectPolicy &&
		subject.Same(d.Filters(), last.Filters())
}

// Follows reports whether the durable's filters follow the subjects of its stream.
func (d Durable) Follows() bool { return d.Config.Metadata[metaWholeStream] != "" }

// The kinds of warnings.
const (
	Paused     = "paused"
	NearlyFull = "ack_pending"
)

// Warning says what keeps the server from delivering messages of d, or soon will, and of
// which kind that is.
func (d Durable) Warning() (kind, text string) {
	switch until := d.Config.PauseUntil; {
	case until != nil && until.After(time.Now()):
		return Paused, "the durable is paused until " + until.Format(time.RFC3339)
	case d.Config.PriorityPolicy == jetstream.PriorityPolicyPinned: // its active instance fetches all it may
	case d.Config.MaxAckPending > 0 && 5*d.Unacked >= 4*d.Config.MaxAckPending:
		return NearlyFull, fmt.Sprintf("%d messages are delivered and not settled, and at %d (the durable's max_ack_pending) "+
			"the server delivers nothing more; messages that wait for a retry count as well",
			d.Unacked, d.Config.MaxAckPending)
	}
	return "", ""
}

// FindStream returns the one stream that holds all of cfg's subjects.
func (c *Manager) FindStream(ctx context.Context, cfg Spec) (string, error) {
	if cfg.Stream != "" {
		exists, err := c.API.StreamExists(ctx, cfg.Stream)
		if err == nil && !exists {
			err = fmt.Errorf("%w: there is no stream of this name; make it with EnsureStream, or check stream_name",
				jsapi.ErrNoStream)
		}
		if err != nil {
			return "", fmt.Errorf("natty: stream %q: %w", cfg.Stream, err)
		}
		return cfg.Stream, nil
	}
	found := ""
	for _, s := range cfg.Subjects {
		streams, err := c.API.StreamsOf(ctx, s)
		switch {
		case err != nil:
			return "", fmt.Errorf("natty: look up the stream of %q: %w", s, err)
		case len(streams) == 0:
			return "", fmt.Errorf("natty: %q: %w; make one with EnsureStream, or check the subject", s, jsapi.ErrNoStream)
		case len(streams) > 1:
			return "", c.Invalid("subjects", s, "is held by the streams "+strings.Join(streams, " and ")+
				"; set stream_name to the one to consume", nil)
		case found != "" && found != streams[0]:
			return "", c.Invalid("subjects", s, fmt.Sprintf(
				"is in stream %s and others are in %s; run one consumer for each stream", streams[0], found), nil)
		}
		found = streams[0]
	}
	return found, nil
}

// EnsureDurable makes the durable of cfg, or changes what cfg sets and the durable has
// otherwise.
func (c *Manager) EnsureDurable(ctx context.Context, stream string, cfg Spec) (Durable, error) {
	d := Durable{Stream: stream, Name: cfg.Durable}
	set, err := c.configured(ctx, stream, cfg)
	if err != nil {
		return d, fmt.Errorf("natty: consumer %q: %w", d.Name, err)
	}
	r := resource(stream, d.Name)
	r.Create = func(ctx context.Context) error {
		_, err := c.create(ctx, stream, fresh(cfg, set), cfg.MaxAckPending != 0)
		return err
	}
	have, err := c.API.ReadOrMake(ctx, r)
	if err != nil {
		err = jsapi.Named(r, err)
	} else if have != nil {
		err = c.converge(ctx, r, have, func(have map[string]any) (map[string]any, error) {
			return c.wanted(cfg, set, have)
		})
	}
	if code := jsapi.Code(err); code == jsapi.CodeQueueOverlap || code == jsapi.CodeQueueHasConsumer {
		return d, c.explainOverlap(ctx, stream, cfg, err)
	}
	if err != nil {
		return d, err
	}
	return d, jsapi.Named(r, c.Refresh(ctx, &d))
}

// create makes a consumer with as much room for unacked messages as the server allows,
// unless the user has chosen how much. The server says how much that is in the text of
// its refusal only: halving finds it well enough.
func (c *Manager) create(
	ctx context.Context, stream string, cfg jetstream.ConsumerConfig, chosen bool,
) (*jetstream.ConsumerInfo, error) {
	for cfg.MaxAckPending = cmp.Or(cfg.MaxAckPending, MaxAckPending); ; cfg.MaxAckPending /= 2 {
		made, err := c.API.Via(ctx).CreateConsumer(ctx, stream, cfg)
		switch {
		case err == nil:
			return made.CachedInfo(), nil
		case jsapi.Code(err) != jsapi.CodeMaxAckPending || cfg.MaxAckPending <= 1 || chosen:
			return nil, err
		}
	}
}

// BeginsBehind reports whether d was made so that it may skip messages behind a floor.
func (d Durable) BeginsBehind(floor uint64) bool {
	switch d.Config.DeliverPolicy {
	case jetstream.DeliverAllPolicy:
		return false
	case jetstream.DeliverByStartSequencePolicy:
		return d.Config.OptStartSeq > floor+1
	default:
		return true
	}
}

// Refresh reads what the server knows about d.
func (c *Manager) Refresh(ctx context.Context, d *Durable) error {
	stream, err := c.API.StreamInfo(ctx, d.Stream, "")
	if err != nil {
		return err
	}
	info, err := c.API.ConsumerInfo(ctx, d.Stream, d.Name)
	if err != nil {
		return err
	}
	d.StreamCreated, d.Retention = stream.Created, stream.Config.Retention
	d.Replicas, d.Mirror = stream.Config.Replicas, stream.Config.Mirror != nil
	d.Schedules = stream.Config.AllowMsgSchedules
	d.First, d.stored = stream.State.FirstSeq, stored(stream.Config)
	d.read(info)
	return nil
}
