package natty

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What an attempt to publish has come to. Three questions decide: may the message be stored (unknown), is there
// any use in sending it again (againError), and what is the failure called.

// sendError is an error of nats.go before anything was handed to the network, or while it was.
type sendError struct{ err error }

func (e *sendError) Error() string { return e.err.Error() }
func (e *sendError) Unwrap() error { return e.err }

// againError asks for another attempt.
type againError struct{ reason error }

func (e *againError) Error() string { return e.reason.Error() }

var errSilent = errors.New("no acknowledgement came")

// judge decides what an attempt's error means. It returns an *againError if the message is to be sent again, the
// final error, or the acknowledgement if it finds that an earlier attempt was stored after all.
func (p *publication) judge(ctx context.Context, err error) (*jetstream.PubAck, error) {
	if sent, ok := errors.AsType[*sendError](err); ok {
		return nil, p.judgeSend(sent.err)
	}
	if code := errorCode(err); code != 0 {
		return p.judgeRefusal(ctx, code, err)
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, p.judgeNoResponders(ctx, err)
	case errors.Is(err, errSilent), errors.Is(err, nats.ErrDisconnected):
		p.unknown = true
		return nil, &againError{err}
	case errors.Is(err, nats.ErrConnectionClosed):
		p.unknown = true
		return nil, whenClosed(err)
	case errors.Is(err, nats.ErrPermissionViolation):
		return nil, err // the server did nothing with it
	}
	// ctx has ended; or what answered is not a stream, beside which there may be one.
	p.unknown = true
	return nil, err
}

// judgeSend decides about an error of the sending itself.
func (p *publication) judgeSend(err error) error {
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %d bytes with headers, and the server takes %d at most; publish less, or raise its max_payload: %w",
			ErrTooLarge, p.size(), p.c.nc.MaxPayload(), err)
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionDraining):
		return whenClosed(err)
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrHeadersNotSupported):
		return &againError{err} // between two connections: nothing was sent
	case errors.Is(err, nats.ErrBadHeaderMsg):
		return &ConfigError{Field: "msg", Reason: "has a header without a name, or whose name holds a space, a colon or the like; name headers with letters, digits and -", Err: err}
	case errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrInvalidMsg):
		return &ConfigError{Field: "msg", Reason: "refused by nats.go", Err: err}
	}
	p.unknown = true // part of it may have left
	return &againError{err}
}

// judgeRefusal decides about an error that the server answered with.
func (p *publication) judgeRefusal(ctx context.Context, code jetstream.ErrorCode, err error) (*jetstream.PubAck, error) {
	switch code {
	case codeDuplicateInFlight, codeConcurrentLastSeq, codeNotAvailable, codeNotLeader:
		// Something with the same id, or for the same subject, is being stored: ask again what became of it.
		return nil, &againError{err}
	case codeSequenceMismatch:
		// A replica that has to catch up; whether the message is stored, the next attempt will tell.
		p.unknown = true
		return nil, &againError{err}
	case codeWrongLastSeq, codeWrongLastID:
		if p.unknown && p.id != "" && p.stream != nil {
			return p.readBack(ctx, err)
		}
	case codeStoreFailed:
		return nil, p.explainStoreFailed(ctx, err)
	case codeMsgTooLarge:
		if lookErr := p.lookUp(ctx); lookErr != nil {
			return nil, fmt.Errorf("%w: %d bytes with headers: %w: %w", ErrTooLarge, p.size(), err, lookErr)
		}
		return nil, fmt.Errorf("%w: %d bytes with headers, and stream %q takes %d at most; publish less, or raise its max_msg_size: %w",
			ErrTooLarge, p.size(), p.stream.Config.Name, p.stream.Config.MaxMsgSize, err)
	case codeNoTTLs:
		return nil, fmt.Errorf("the stream does not heed a message's own TTL; set AllowMsgTTL with EnsureStream: %w", err)
	case codeHeaderTooLarge:
		return nil, fmt.Errorf("%w: its headers have %d bytes; carry less in them: %w", ErrTooLarge, p.size()-len(p.msg.Data), err)
	case codeAccountLimit, codeNoResources, codeNoMemory, codeNoStorage:
		return nil, fmt.Errorf("%w; raise the limits of the account or the server, or remove messages: %w", ErrStreamFull, err)
	}
	return nil, err
}

// judgeNoResponders tells a subject without a stream from a stream without a leader.
func (p *publication) judgeNoResponders(ctx context.Context, err error) error {
	ctx, cancel := p.within(ctx)
	defer cancel()
	// Once only: the stream may be back before the API answers.
	ctx, stop := context.WithTimeout(ctx, attemptTimeout.Min)
	defer stop()
	streams, lookErr := p.c.streamNames(ctx, p.subject())
	switch {
	case errors.Is(lookErr, nats.ErrNoResponders):
		return &againError{fmt.Errorf("JetStream does not answer; is it enabled for this account: %w", lookErr)}
	case lookErr != nil:
		return &againError{fmt.Errorf("%w: cannot look up the stream: %w", err, lookErr)}
	case len(streams) == 0:
		return fmt.Errorf("%w; make one with EnsureStream, or check the subject: %w", ErrNoStream, err)
	}
	return &againError{fmt.Errorf("stream %q has no leader: %w", streams[0], err)}
}

// lookUp asks for the settings and the state of the stream that holds the subject.
func (p *publication) lookUp(ctx context.Context) error {
	ctx, cancel := p.within(ctx)
	defer cancel()
	streams, err := p.c.streamsOf(ctx, p.subject())
	if err != nil {
		return fmt.Errorf("cannot look up the stream: %w", err)
	}
	if len(streams) == 0 {
		return fmt.Errorf("%w; make one with EnsureStream, or check the subject", ErrNoStream)
	}
	var info jetstream.StreamInfo
	request := map[string]string{"subjects_filter": p.subject()}
	if err := p.c.query(ctx, "STREAM.INFO."+streams[0], request, &info); err != nil {
		return fmt.Errorf("cannot look up stream %q: %w", streams[0], err)
	}
	p.stream = &info
	return nil
}

// lookUpRecent is lookUp, unless a Writer has asked the same a moment ago.
func (p *publication) lookUpRecent(ctx context.Context) error {
	if p.streams == nil {
		return p.lookUp(ctx)
	}
	return p.streams.find(ctx, p)
}

// readBack finds out whether a conditional publish that was sent before is what makes its own
// repetition fail: the server compares expected sequences before it looks for duplicates. The message it
// would have stored is the first one of its subject behind the expected sequence.
func (p *publication) readBack(ctx context.Context, refused error) (*jetstream.PubAck, error) {
	ctx, cancel := p.within(ctx)
	defer cancel()
	requests := []any{map[string]any{"last_by_subj": p.subject()}}
	if seq, err := strconv.ParseUint(header(p.msg.Header, jetstream.ExpectedLastSubjSeqHeader), 10, 64); err == nil {
		requests = append(requests, map[string]any{"seq": seq + 1, "next_by_subj": p.subject()})
	}
	next, err := strconv.ParseUint(header(p.msg.Header, jetstream.ExpectedLastSeqHeader), 10, 64)
	exact := err == nil
	next++
	if exact {
		requests = append(requests, map[string]any{"seq": next})
	}
	for _, request := range requests {
		stored, err := p.c.leaderGet(ctx, p.stream.Config.Name, request)
		if err != nil {
			continue
		}
		h, _ := nats.DecodeHeadersMsg(stored.Header) // none: not ours
		if header(h, jetstream.MsgIDHeader) == p.id {
			return &jetstream.PubAck{Stream: p.stream.Config.Name, Domain: p.c.cfg.Domain, Sequence: stored.Sequence}, nil
		}
		if exact && stored.Sequence == next {
			p.unknown = false // the only place where it could be is taken
		}
	}
	// Not to be seen: never stored, or stored and removed since. Unless its place is taken, the error says that
	// it is not known.
	return nil, refused
}

// explainStoreFailed tells a stream that is full from one that could not store for another reason: the server has
// one code for both.
func (p *publication) explainStoreFailed(ctx context.Context, err error) error {
	if lookErr := p.lookUpRecent(ctx); lookErr != nil {
		return &againError{errors.Join(err, lookErr)}
	}
	if limit := p.limitReached(); limit != "" {
		return fmt.Errorf("%w: stream %q is at its %s; raise it, or remove messages: %w", ErrStreamFull, p.stream.Config.Name, limit, err)
	}
	// There is room by now, or the server was shutting down.
	return &againError{err}
}

// recordSize is what a stored message takes beside its subject, headers and data; at least, in the server's stores.
const recordSize = 34

// limitReached names the limit that keeps the stream from taking the message, or returns "". Only a stream that
// discards new messages refuses any for its limits.
func (p *publication) limitReached() string {
	config, state := &p.stream.Config, &p.stream.State
	if config.Discard != jetstream.DiscardNew {
		return ""
	}
	size := uint64(len(p.subject()) + p.size() + recordSize)
	switch {
	case config.MaxMsgs > 0 && state.Msgs >= uint64(config.MaxMsgs):
		return fmt.Sprintf("max_msgs (%d)", config.MaxMsgs)
	case config.MaxBytes > 0 && state.Bytes+size > uint64(config.MaxBytes):
		return fmt.Sprintf("max_bytes (%d)", config.MaxBytes)
	case config.DiscardNewPerSubject && config.MaxMsgsPerSubject > 0 &&
		(config.SubjectTransform != nil || state.Subjects[p.subject()] >= uint64(config.MaxMsgsPerSubject)):
		// A transform stores it under a subject that is not known here.
		return fmt.Sprintf("max_msgs_per_subject (%d)", config.MaxMsgsPerSubject)
	}
	return ""
}

// subject is what the stream stores the message under: the way to another domain's keys takes the prefix of its API off.
func (p *publication) subject() string {
	if key, ok := strings.CutPrefix(p.msg.Subject, p.c.cfg.apiPrefix()+keyPrefix); ok {
		return keyPrefix + key
	}
	return p.msg.Subject
}

// size is what the server's limits count: headers and data.
func (p *publication) size() int {
	return p.msg.Size() - len(p.msg.Subject) - len(p.msg.Reply)
}
