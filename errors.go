package natty

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/dispatch"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/lease"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/subject"
)

// Errors that callers tell apart with errors.Is. The errors of the server and of
// nats.go stay in the chain below them, so that both match.
var (
	// ErrNoStream says that no stream holds the subject, or that the named stream does
	// not exist.
	ErrNoStream = jsapi.ErrNoStream
	// ErrTooLarge says that a message is over the size limit of the server or of its
	// stream. It was not stored.
	ErrTooLarge = publish.ErrTooLarge
	// ErrStreamFull says that a limit of the stream or of the account keeps the server
	// from storing the message.
	ErrStreamFull = publish.ErrStreamFull
	// ErrOutcomeUnknown says that a message was sent and not acknowledged: it may be
	// stored. Publishing it again with the same message id inside the stream's
	// duplicate window is safe.
	ErrOutcomeUnknown = errors.New("outcome unknown: the message may be stored")
	// ErrDrainTimeout says that handlers were still running when DrainTimeout ended.
	ErrDrainTimeout = consumer.ErrDrainTimeout
	// ErrUnsupported says that the server is too old for a request. The error names
	// what the server lacks, and the first version that has it.
	ErrUnsupported = jsapi.ErrUnsupported
	// ErrDeposed says that a lease is lost: it could not be renewed in time, or
	// somebody else has it.
	ErrDeposed = lease.ErrDeposed
	// ErrLocked says that somebody else has the lock.
	ErrLocked = errors.New("locked by another")
	// ErrBucketTTLMismatch says that a bucket exists with another TTL than the election
	// or lock needs.
	ErrBucketTTLMismatch = lease.ErrBucketTTLMismatch
	// ErrClosed says that the Client was closed, or that its connection is gone for
	// good (DisableReconnect).
	ErrClosed = conn.ErrClosed
)

// ConfigError reports a setting or an argument that can never work.
type ConfigError struct {
	// Field is the name of the setting or parameter. In a service file it is the place.
	Field string
	// Value is what was found, never a secret.
	Value string
	// Reason says what is wrong and what to do.
	Reason string
	// Err is the cause, or nil.
	Err error
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
	// Field is the JSON name of the setting, as the nats command line shows it.
	Field string
	// Have is what the server has, as JSON.
	Have string
	// Want is what was asked for, as JSON.
	Want string
}

// DriftError reports a stream or durable that exists with settings that differ from
// those asked for and cannot be changed.
type DriftError struct {
	// Kind is "stream", "bucket" or "consumer".
	Kind string
	// Name is that of the stream, bucket or consumer.
	Name string
	// Differences are the settings that cannot be changed.
	Differences []Difference
	// Err is the server's refusal, or nil.
	Err error
}

// elsewhere is what to do about a setting that must change, for each Kind. It does not
// advise to delete what is there, and says what that would cost.
var elsewhere = map[string]string{
	"stream":   "move the messages to another stream: deleting this one deletes them",
	"bucket":   "move the keys to another bucket: deleting this one deletes them",
	"consumer": "take another name: deleting the consumer deletes its position",
}

func (e *DriftError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "natty: %s %q exists with settings that cannot be changed", e.Kind, e.Name)
	for i, d := range e.Differences {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		have, want := jsapi.Readable(d.Field, d.Have), jsapi.Readable(d.Field, d.Want)
		fmt.Fprintf(&b, "%s%s is %s, wanted %s", sep, d.Field, have, want)
	}
	fmt.Fprintf(&b, "; ask for what is there, or %s", elsewhere[e.Kind])
	if e.Err != nil {
		fmt.Fprintf(&b, " (server: %v)", e.Err)
	}
	return b.String()
}

func (e *DriftError) Unwrap() error { return e.Err }

// The functions that follow make public errors for the packages below, which cannot.

// invalid makes a ConfigError.
func invalid(field, value, reason string, cause error) error {
	return &ConfigError{Field: field, Value: value, Reason: reason, Err: cause}
}

// notPublished makes a PublishError.
func notPublished(subject, msgID string, unknown bool, cause error) error {
	return &PublishError{Subject: subject, MsgID: msgID, Unknown: unknown, Err: cause}
}

// changed makes a RevisionError.
func changed(bucket, key string, have, want uint64) error {
	return &RevisionError{Bucket: bucket, Key: key, Have: have, Want: want}
}

// failed makes a HandlerError.
func failed(subject string, d dispatch.Delivery, stack []byte, final bool, cause error) error {
	return &HandlerError{Subject: subject, Delivery: Delivery(d), Stack: stack, Final: final, Err: cause}
}

// removed makes a RemovedError.
func removed(r consumer.Removal) error { e := RemovedError(r); return &e }

// drift makes a DriftError.
func drift(kind, name string, differ []jsapi.Difference, cause error) error {
	e := &DriftError{Kind: kind, Name: name, Err: cause}
	for _, d := range differ {
		e.Differences = append(e.Differences, Difference(d))
	}
	return e
}

// PublishError is the type of every error that Publish, PublishMsg and Write return,
// and of those that a Writer reports.
type PublishError struct {
	// Subject is what the message was published on.
	Subject string
	// MsgID is the Nats-Msg-Id of the message. It is empty if the message was never
	// sent, or was sent without one (a Writer with AtLeastOnce).
	MsgID string
	// Unknown means that the message may be stored: publish it again with MsgID to be
	// sure. The error then matches ErrOutcomeUnknown too.
	Unknown bool
	// Err is the cause.
	Err error
}

func (e *PublishError) Error() string {
	cause := strings.TrimPrefix(e.Err.Error(), "natty: ")
	switch {
	case e.Unknown && e.MsgID != "":
		return fmt.Sprintf("natty: publish to %q (message id %s): %v: %s",
			e.Subject, e.MsgID, ErrOutcomeUnknown, cause)
	case e.Unknown:
		return fmt.Sprintf("natty: publish to %q: %v: %s", e.Subject, ErrOutcomeUnknown, cause)
	}
	return fmt.Sprintf("natty: publish to %q: %s", e.Subject, cause)
}

// Unwrap returns the cause, and ErrOutcomeUnknown if Unknown is set.
func (e *PublishError) Unwrap() []error {
	if e.Unknown {
		return []error{ErrOutcomeUnknown, e.Err}
	}
	return []error{e.Err}
}

// RevisionError reports a key that was to be changed at one revision and has another.
// It matches jetstream.ErrKeyRevisionMismatch, and jetstream.ErrKeyNotFound if the key
// is gone.
type RevisionError struct {
	// Bucket is where the key is.
	Bucket string
	// Key is the key that was not changed.
	Key string
	// Have is the key's revision; 0 if there is no key.
	Have uint64
	// Want is the revision asked for; 0 if there was to be no key.
	Want uint64
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

// Unwrap returns the errors of nats.go that the error matches.
func (e *RevisionError) Unwrap() []error {
	if e.Have == 0 {
		return []error{jetstream.ErrKeyRevisionMismatch, jetstream.ErrKeyNotFound}
	}
	return []error{jetstream.ErrKeyRevisionMismatch}
}

// HandlerError reports a delivery whose handler failed. It goes to
// ConsumerConfig.OnError and to the log.
type HandlerError struct {
	// Subject is what the message was published on.
	Subject string
	// Delivery is the delivery that failed.
	Delivery Delivery
	// Stack is where the handler panicked, or nil if it returned an error.
	Stack []byte
	// Final means that the message is not redelivered.
	Final bool
	// Err is the handler's error.
	Err error
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

// RemovedError reports messages that the stream's own limits (age, count, size), or a
// purge, removed before the consumer had handled them. It goes to
// ConsumerConfig.OnError and to the log.
type RemovedError struct {
	// Stream is what removed the messages.
	Stream string
	// Durable is the consumer that had not handled them.
	Durable string
	// First is the first sequence that the stream still has.
	First uint64
	// Count is the least number of messages that were removed. The server does not count
	// them, so natty computes it from other counts, which also change when new messages
	// come. 0 means that the stream now begins after the consumer's position, and that it
	// is not known whether the removed messages were for this consumer.
	Count uint64
	// Failed says that the messages had failed, and waited for their next attempt.
	Failed bool
}

func (e *RemovedError) Error() string {
	count := fmt.Sprintf("at least %d messages", e.Count)
	if e.Count == 0 {
		count = "messages, perhaps some of this consumer's,"
	}
	before := "before they were delivered"
	if e.Failed {
		before = "that had failed before their next attempt"
	}
	return fmt.Sprintf("natty: consumer %q: the limits of stream %q, or a purge, removed %s %s: "+
		"it now begins at sequence %d; raise the limits, or add instances",
		e.Durable, e.Stream, count, before, e.First)
}

// publishable returns a ConfigError for a subject that nobody can publish to.
func publishable(s string) error {
	if wrong := subject.Unpublishable(s); wrong != "" {
		return invalid("subject", s, wrong, nil)
	}
	return nil
}
