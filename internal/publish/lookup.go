package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/subject"
)

// StreamOf returns the settings and the state of the stream that would store msg.
func (pub *Publisher) StreamOf(ctx context.Context, msg *nats.Msg) (*jetstream.StreamInfo, error) {
	stored := pub.storedSubject(msg)
	name, err := pub.streamName(ctx, stored)
	if err != nil {
		return nil, err
	}
	info, err := pub.API.StreamInfo(ctx, name, stored)
	if err != nil {
		return nil, fmt.Errorf("cannot look up stream %q: %w", name, err)
	}
	return info, nil
}

func (pub *Publisher) streamName(ctx context.Context, stored string) (string, error) {
	streams, err := pub.API.StreamsOf(ctx, stored)
	if err != nil {
		return "", fmt.Errorf("cannot look up the stream: %w", err)
	}
	if len(streams) == 0 {
		return "", fmt.Errorf("%w; make one with EnsureStream, or check the subject", jsapi.ErrNoStream)
	}
	return streams[0], nil
}

// KeyPrefix is what the subjects of keys begin with (ADR-8).
const KeyPrefix = "$KV."

// storedSubject is the subject that the stream stores msg under. A key of another
// domain is published under that domain's API prefix, which the server removes.
func (pub *Publisher) storedSubject(msg *nats.Msg) string {
	if key, ok := strings.CutPrefix(msg.Subject, pub.API.Prefix+KeyPrefix); ok {
		return KeyPrefix + key
	}
	return msg.Subject
}

// lookUp sets p.stream.
func (p *publication) lookUp(ctx context.Context) error {
	ctx, cancel := p.within(ctx)
	defer cancel()
	info, err := p.pub.StreamOf(ctx, p.msg)
	if err == nil {
		p.stream, p.looked = info, time.Now()
	}
	return err
}

// lookUpRecent is lookUp, unless the message's Writer has asked the same a moment ago.
func (p *publication) lookUpRecent(ctx context.Context) error {
	if p.streams == nil {
		return p.lookUp(ctx)
	}
	return p.streams.find(ctx, p)
}

// streams are a Writer's recent lookups. After a lost connection thousands of its
// messages ask for the same stream.
type streams struct {
	asking chan struct{} // holds a token of the one goroutine that asks the server

	mu    sync.Mutex // guards known
	known []knownStream
}

type knownStream struct {
	info *jetstream.StreamInfo
	at   time.Time
}

// streamIsKnown is how long a lookup is used again.
const streamIsKnown = time.Second

// find sets p.stream from a recent lookup or a new one.
func (k *streams) find(ctx context.Context, p *publication) error {
	if k.recall(p) {
		return nil
	}
	bounded, cancel := p.within(ctx)
	defer cancel()
	select {
	case k.asking <- struct{}{}:
	case <-bounded.Done():
		return bounded.Err()
	}
	defer func() { <-k.asking }()
	if k.recall(p) {
		return nil
	}
	if err := p.lookUp(ctx); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = append(k.known, knownStream{p.stream, p.looked})
	return nil
}

func (k *streams) recall(p *publication) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = slices.DeleteFunc(k.known, func(s knownStream) bool { return time.Since(s.at) > streamIsKnown })
	for _, s := range k.known {
		// With a limit per subject the lookup was about its own subject alone.
		if config := &s.info.Config; !config.DiscardNewPerSubject && subject.AnyCovers(config.Subjects, p.msg.Subject) {
			p.stream, p.looked = s.info, s.at
			return true
		}
	}
	return false
}

// explainNoResponders distinguishes a subject without a stream from a stream without a
// leader.
func (p *publication) explainNoResponders(ctx context.Context, err error) error {
	ctx, cancel := p.within(ctx)
	defer cancel()
	// Asked once only: the stream may be back before the API answers.
	ctx, stop := context.WithTimeout(ctx, AttemptTimeout.Min)
	defer stop()
	streams, lookErr := p.pub.API.StreamNames(ctx, p.pub.storedSubject(p.msg))
	switch {
	case errors.Is(lookErr, nats.ErrNoResponders):
		return &retryError{fmt.Errorf("JetStream does not answer; is it enabled for this account: %w", lookErr)}
	case lookErr != nil:
		return &retryError{fmt.Errorf("%w: cannot look up the stream: %w", err, lookErr)}
	case len(streams) == 0:
		return fmt.Errorf("%w; make one with EnsureStream, or check the subject: %w", jsapi.ErrNoStream, err)
	}
	return &retryError{fmt.Errorf("stream %q has no leader: %w", streams[0], err)}
}

// explainStoreFailed distinguishes a full stream from other failures to store.
func (p *publication) explainStoreFailed(ctx context.Context, err error) error {
	if lookErr := p.lookUpRecent(ctx); lookErr != nil {
		return &retryError{errors.Join(err, lookErr)}
	}
	stored := p.pub.storedSubject(p.msg)
	if limit := limitReached(p.stream, stored, 1, recordSize(stored, p.msg)); limit != "" {
		return fmt.Errorf("%w: stream %q is at its %s; raise it, or remove messages: %w",
			ErrStreamFull, p.stream.Config.Name, limit, err)
	}
	return &retryError{err} // there is room by now, or the server was shutting down
}

// recordSize is the least that a message takes in the server's stores: they add 34 bytes.
func recordSize(stored string, m *nats.Msg) uint64 { return uint64(len(stored) + size(m) + 34) }

// limitReached names the limit that keeps the stream from taking so many more messages
// and bytes, or returns "". Only a stream that discards new messages refuses any for
// its limits.
func limitReached(stream *jetstream.StreamInfo, stored string, msgs, bytes uint64) string {
	config, state := &stream.Config, &stream.State
	switch {
	case config.Discard != jetstream.DiscardNew:
	case config.MaxMsgs > 0 && state.Msgs+msgs > uint64(config.MaxMsgs):
		return fmt.Sprintf("max_msgs (%d)", config.MaxMsgs)
	case config.MaxBytes > 0 && state.Bytes+bytes > uint64(config.MaxBytes):
		return fmt.Sprintf("max_bytes (%d)", config.MaxBytes)
	case config.DiscardNewPerSubject && config.MaxMsgsPerSubject > 0 &&
		(config.SubjectTransform != nil || state.Subjects[stored] >= uint64(config.MaxMsgsPerSubject)):
		// A transform stores the message under a subject that is not known here.
		return fmt.Sprintf("max_msgs_per_subject (%d)", config.MaxMsgsPerSubject)
	}
	return ""
}
