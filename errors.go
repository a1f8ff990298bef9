package natty

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Errors that callers tell apart with errors.Is. Server errors and those of
// nats.go stay in the chain below them, so that both match.
var (
	// ErrNoStream says that no stream holds the subject, or that the named
	// stream does not exist.
	ErrNoStream = errors.New("no stream holds the subject")
	// ErrTooLarge says that a message is over the server's or its stream's
	// size limit. It was not stored.
	ErrTooLarge = errors.New("message too large")
	// ErrStreamFull says that a limit of the stream or of the account keeps the
	// server from storing the message.
	ErrStreamFull = errors.New("stream full")
	// ErrOutcomeUnknown says that a message was sent and not acknowledged: it may
	// be stored. Publishing it again with the same message id inside the
	// stream's duplicate window is safe.
	ErrOutcomeUnknown = errors.New("outcome unknown: the message may be stored")
	// ErrDrainTimeout says that handlers were still running when DrainTimeout ended.
	ErrDrainTimeout = errors.New("handlers outlived the drain timeout")
	// ErrUnsupported says that the server is too old for what was asked of it; the error names what, and since when
	// it can.
	ErrUnsupported = errors.New("not supported by the server")
	// ErrDeposed says that a lease is lost: it could not be renewed in time, or somebody else has it.
	ErrDeposed = errors.New("the lease is lost")
	// ErrLocked says that another one has the lock.
	ErrLocked = errors.New("locked by another")
	// ErrBucketTTLMismatch says that a bucket exists with another TTL than the election or lock needs.
	ErrBucketTTLMismatch = errors.New("the bucket has another TTL")
	// ErrClosed says that the Client was closed, or that its connection is gone
	// for good (DisableReconnect).
	ErrClosed = errors.New("client closed")
)

// ConfigError reports a setting or an argument that can never work. Field names it as
// a Config field or a parameter, Value is what was found (never a secret), Reason
// says what is wrong and what to do.
type ConfigError struct {
	Field  string
	Value  string
	Reason string
	Err    error // the cause, or nil
}

func (e *ConfigError) Error() string {
	var b strings.Builder
	b.WriteString("natty: " + e.Field)
	if e.Value != "" {
		fmt.Fprintf(&b, " %q", e.Value)
	}
	b.WriteString(": " + e.Reason)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

func (e *ConfigError) Unwrap() error { return e.Err }

// Difference is one setting of a stream or durable that is not as asked for.
type Difference struct {
	Field string // the JSON name of the setting, as the nats command line shows it
	Have  string // what the server has, as JSON
	Want  string // what was asked for, as JSON
}

// DriftError reports a stream or durable that exists with settings that differ
// from those asked for and cannot be changed.
type DriftError struct {
	Kind        string // "stream", "bucket" or "consumer"
	Name        string
	Differences []Difference
	Err         error // the server's refusal, or nil
}

func (e *DriftError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "natty: %s %q exists with settings that cannot be changed", e.Kind, e.Name)
	for i, d := range e.Differences {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s is %s, wanted %s", sep, d.Field, d.Have, d.Want)
	}
	fmt.Fprintf(&b, "; ask for what is there, or delete the %s and let it be made again", e.Kind)
	if e.Err != nil {
		fmt.Fprintf(&b, " (server: %v)", e.Err)
	}
	return b.String()
}

func (e *DriftError) Unwrap() error { return e.Err }

// PublishError is the type of every error that Publish, PublishMsg and Write return, and of what a Writer
// reports.
type PublishError struct {
	Subject string
	// MsgID is the Nats-Msg-Id the message was sent with, empty if it was never sent, or without one (a Writer with
	// AtLeastOnce).
	MsgID string
	// Unknown means that the message may be stored: publish it again with MsgID to
	// be sure. The error then matches ErrOutcomeUnknown too.
	Unknown bool
	Err     error
}

func (e *PublishError) Error() string {
	cause := strings.TrimPrefix(e.Err.Error(), "natty: ")
	switch {
	case e.Unknown && e.MsgID != "":
		return fmt.Sprintf("natty: publish to %q (message id %s): %v: %s", e.Subject, e.MsgID, ErrOutcomeUnknown, cause)
	case e.Unknown:
		return fmt.Sprintf("natty: publish to %q: %v: %s", e.Subject, ErrOutcomeUnknown, cause)
	}
	return fmt.Sprintf("natty: publish to %q: %s", e.Subject, cause)
}

// Unwrap gives the cause, and ErrOutcomeUnknown where it applies.
func (e *PublishError) Unwrap() []error {
	if e.Unknown {
		return []error{ErrOutcomeUnknown, e.Err}
	}
	return []error{e.Err}
}

// RevisionError reports a key that was to be changed at one revision and has another. It matches
// jetstream.ErrKeyRevisionMismatch, and jetstream.ErrKeyNotFound if the key is gone.
type RevisionError struct {
	Bucket, Key string
	Have        uint64 // the key's revision; 0: it is not there
	Want        uint64 // the revision asked for; 0: it was not to be there
}

func (e *RevisionError) Error() string {
	have := fmt.Sprintf("is at revision %d", e.Have)
	if e.Have == 0 {
		have = "is not there"
	}
	want := fmt.Sprintf("wanted revision %d", e.Want)
	if e.Want == 0 {
		want = "wanted none"
	}
	return fmt.Sprintf("natty: key %q of bucket %q %s, %s; read it again", e.Key, e.Bucket, have, want)
}

// Unwrap gives what the error matches in nats.go.
func (e *RevisionError) Unwrap() []error {
	if e.Have == 0 {
		return []error{jetstream.ErrKeyRevisionMismatch, jetstream.ErrKeyNotFound}
	}
	return []error{jetstream.ErrKeyRevisionMismatch}
}

// HandlerError reports a delivery that its handler did not accept. It goes to
// ConsumerConfig.OnError and to the log.
type HandlerError struct {
	Subject  string
	Delivery Delivery
	// Stack is where the handler panicked, or nil if it returned an error.
	Stack []byte
	// Final means that the message is not delivered again.
	Final bool
	Err   error
}

func (e *HandlerError) Error() string {
	what := "failed"
	switch {
	case e.Stack != nil:
		what = "panicked"
	case e.Final:
		what = "failed for good"
	}
	return fmt.Sprintf("natty: handler %s on %q (stream %s, sequence %d, attempt %d): %v",
		what, e.Subject, e.Delivery.Stream, e.Delivery.Sequence, e.Delivery.Attempt, e.Err)
}

func (e *HandlerError) Unwrap() error { return e.Err }

// Permanent marks err as final: the message is not tried again. It goes to the consumer's DeadLetter; without one it
// is terminated and err reported. A nil err still is a failure.
func Permanent(err error) error {
	if err == nil {
		err = errors.New("permanent failure")
	}
	return &verdict{err: err, permanent: true}
}

// RetryAfter asks for the message again after d instead of the consumer's backoff;
// zero or less means at once. A nil err still is a failure, a way to say
// "not yet".
func RetryAfter(d time.Duration, err error) error {
	if err == nil {
		err = errors.New("not yet")
	}
	return &verdict{err: err, after: max(d, 0)}
}

// verdict is an error that says what is to become of its message.
type verdict struct {
	err       error
	permanent bool
	after     time.Duration
}

func (v *verdict) Error() string { return v.err.Error() }
func (v *verdict) Unwrap() error { return v.err }
