package publish

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/respmux"
)

var (
	// ErrTooLarge says that a message is over a size limit and not stored.
	ErrTooLarge = errors.New("message too large")
	// ErrStreamFull says that a limit of the stream, account or server was reached.
	ErrStreamFull = errors.New("stream full")
)

// outcome is what the error of an attempt to publish means. An attempt without an error
// has stored the message.
type outcome int

const (
	refused    outcome = iota // the message is not stored; another attempt would fail too
	passing                   // it is not stored; another attempt may succeed
	unknown                   // it may be stored; another attempt with its id finds out
	unresolved                // it may be stored; there is no other attempt that could find out
	conflict                  // refused, unless an earlier attempt stored it: see readBack
	full                      // refused at a limit of the stream, else passing: see explainStoreFailed
	noLeader                  // passing, but refused without a stream: see explainNoResponders
)

// codes says what those of the server's error codes mean that mean something else to a
// publish than to other requests. For all other codes see outcomeOfCode.
var codes = map[jetstream.ErrorCode]outcome{
	// The server compares expectations before it looks for duplicates. The message that
	// breaks the expectation may be this one, from an earlier attempt.
	jetstream.JSErrCodeStreamWrongLastSequence: conflict,
	jsapi.CodeWrongLastID:                      conflict,

	// The server has one code for a full stream and for any other failure to store.
	jsapi.CodeStoreFailed: full,

	// A limit of the server: someone has to raise it, remove messages, or publish less.
	jsapi.CodeNoResources: refused,
}

// outcomeOfCode is the outcome of an error of the server. jsapi's table of all codes
// decides, unless codes has an exception.
func outcomeOfCode(err error) outcome {
	is, special := codes[jsapi.Code(err)]
	switch {
	case special:
		return is
	case jsapi.Passing(err):
		return passing
	case jsapi.Unknown(err):
		return unknown
	}
	return refused
}

// batchCodes says what further codes mean for a batch.
var batchCodes = map[jetstream.ErrorCode]outcome{
	jsapi.CodeBatchIncomplete: passing, // the server misses a message: it stores none
	// An id of the batch is in the stream: of an earlier attempt, or of another message.
	jsapi.CodeBatchDuplicate: conflict,
	jsapi.CodeBatchTooLarge:  refused, // more messages than the server takes
}

// meaning is the outcome of an error of nats.go.
type meaning struct {
	err error
	is  outcome
}

// sendErrors says what errors of sending mean. After any other error a part of the
// message may have left: that is unknown.
var sendErrors = []meaning{
	{nats.ErrMaxPayload, refused},
	{nats.ErrConnectionClosed, refused},
	{nats.ErrConnectionDraining, refused},
	{nats.ErrBadHeaderMsg, refused},
	{nats.ErrBadSubject, refused},
	{nats.ErrInvalidMsg, refused},
	{nats.ErrReconnectBufExceeded, passing}, // there is no connection just now
	{nats.ErrHeadersNotSupported, passing},  // nor are the next one's features known
}

// answerErrors says what errors mean that come in place of an answer. Any other error
// is unresolved: ctx has ended, or something answered that is not a stream, beside
// which a stream may have stored the message.
var answerErrors = []meaning{
	{nats.ErrNoResponders, noLeader},
	{errSilent, unknown},
	{nats.ErrDisconnected, unknown},
	{nats.ErrConnectionClosed, unresolved},
	{respmux.ErrInbox, unresolved},         // before the next: it wraps it
	{nats.ErrPermissionViolation, refused}, // the server dropped the message
}

// outcomeOfAnswer is the outcome of an error that came as the answer, or in its place.
func outcomeOfAnswer(err error) outcome {
	if jsapi.Code(err) == 0 {
		return outcomeOf(err, answerErrors, unresolved)
	}
	return outcomeOfCode(err)
}

// errSilent is the error of an attempt without an answer.
var errSilent = errors.New("no acknowledgement came")

func outcomeOf(err error, known []meaning, otherwise outcome) outcome {
	for _, m := range known {
		if errors.Is(err, m.err) {
			return m.is
		}
	}
	return otherwise
}

// sendError is an error of nats.go from before, or while, the message went to the
// network.
type sendError struct{ err error }

func (e *sendError) Error() string { return e.err.Error() }

func (e *sendError) Unwrap() error { return e.err }

// retryError asks for another attempt.
type retryError struct{ reason error }

func (e *retryError) Error() string { return e.reason.Error() }

// retryReason returns why err asks for another attempt, or nil if err is final.
func retryReason(err error) error {
	if again, ok := errors.AsType[*retryError](err); ok {
		return again.reason
	}
	return nil
}

// classify decides what an attempt's error means. It returns a *retryError if the
// message is to be sent again, else the final error, or the acknowledgement if it finds
// that an earlier attempt stored the message.
func (p *publication) classify(ctx context.Context, err error) (*jetstream.PubAck, error) {
	if sent, ok := errors.AsType[*sendError](err); ok {
		return nil, p.classifySend(sent.err)
	}
	if cut, ok := errors.AsType[*conn.ServerError](err); ok {
		return nil, p.classifyCut(cut)
	}
	code, is := jsapi.Code(err), outcomeOfAnswer(err)
	switch {
	case is == conflict && p.unknown && p.id != "" && p.stream != nil:
		return p.readBack(ctx, err)
	case is == full:
		return nil, p.explainStoreFailed(ctx, err)
	case is == noLeader:
		return nil, p.explainNoResponders(ctx, err)
	case is == refused:
		err = p.explainRefusal(ctx, code, err)
	}
	return nil, p.conclude(is, jsapi.WhenClosed(err))
}

// classifySend is classify for errors of sending.
func (p *publication) classifySend(err error) error {
	is := outcomeOf(err, sendErrors, unknown)
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		limit := p.pub.API.NC.MaxPayload()
		p.unknown = p.unknown && !p.causedCut(limit)
		return fmt.Errorf("%w: %w", tooLarge(size(p.msg), "the server", limit, "max_payload"), err)
	case errors.Is(err, nats.ErrBadHeaderMsg):
		return p.pub.Invalid("msg", "", "has a header without a name, or whose name holds a space, "+
			"a colon or the like; name headers with letters, digits and -", err)
	case errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrInvalidMsg):
		return p.pub.Invalid("msg", "", "refused by nats.go", err)
	case is == refused:
		return jsapi.WhenClosed(err)
	}
	return p.conclude(is, err)
}

// conclude notes an outcome and returns the error that stands for it.
func (p *publication) conclude(is outcome, err error) error {
	if is == unknown || is == unresolved {
		p.unknown, p.cuts.payload = true, false
	}
	if is == passing || is == unknown {
		return &retryError{err}
	}
	return err
}

// explainRefusal says what the caller can do about a refusal.
func (p *publication) explainRefusal(ctx context.Context, code jetstream.ErrorCode, err error) error {
	switch code {
	case jetstream.JSErrCodeStreamMessageExceedsMaximum:
		if lookErr := p.lookUp(ctx); lookErr != nil {
			return fmt.Errorf("%w: %d bytes with headers: %w: %w", ErrTooLarge, size(p.msg), err, lookErr)
		}
		return fmt.Errorf("%w: %w", tooLargeFor(&p.stream.Config, size(p.msg)), err)
	case jsapi.CodeHeaderTooLarge:
		return fmt.Errorf("%w: its headers have %d bytes; carry less in them: %w",
			ErrTooLarge, size(p.msg)-len(p.msg.Data), err)
	case jsapi.CodeAccountLimit, jsapi.CodeNoResources, jsapi.CodeNoMemory, jsapi.CodeNoStorage:
		return fmt.Errorf("%w; raise the limits of the account or the server, or remove messages: %w",
			ErrStreamFull, err)
	case jsapi.CodeNoTTLs:
		return fmt.Errorf("the stream does not heed a message's own TTL; "+
			"set AllowMsgTTL with EnsureStream: %w", err)
	}
	return err
}

func tooLarge(size int, who string, limit int64, setting string) error {
	return fmt.Errorf("%w: %d bytes with headers, and %s takes %d at most; publish less, or raise its %s",
		ErrTooLarge, size, who, limit, setting)
}

func tooLargeFor(stream *jetstream.StreamConfig, size int) error {
	return tooLarge(size, fmt.Sprintf("stream %q", stream.Name), int64(stream.MaxMsgSize), "max_msg_size")
}
