package natty

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Codec turns values into the data of messages and back. It is used from many goroutines.
type Codec interface {
	// Marshal encodes v.
	Marshal(v any) ([]byte, error)
	// Unmarshal fills what v points to; Typed[T] gives it a *T. It must leave data as
	// it is.
	Unmarshal(data []byte, v any) error
	// ContentType is the Content-Type header of such data, as in "application/json". If
	// it is empty, no header is written, and any header is accepted.
	ContentType() string
}

const contentTypeHeader = "Content-Type"

// JSON returns a Handler that decodes each message with encoding/json and gives the
// value to h. See Typed.
func JSON[T any](h func(ctx context.Context, v T) error) Handler {
	return Typed(jsonCodec{}, h)
}

// Typed returns a Handler that decodes each message with codec and gives the value to
// h, whose error is the verdict; DeliveryFrom(ctx) has the rest about the message. A
// nil codec or h gives a nil Handler, which Process refuses.
//
// A message that cannot be decoded is a Permanent failure: it goes to the consumer's
// DeadLetter, and h is not called. The same holds for a message whose Content-Type
// header names another type than the codec's. Parameters of the type do not count,
// application/vnd.x+json is application/json, and a message without the header is
// assumed to have the codec's type. The reason says where decoding failed as far as
// that is known. It quotes nothing of the data, because it is logged and stored. It
// wraps the codec's own error, for errors.As in OnError. A codec that panics fails as a
// handler does, and the message is retried.
func Typed[T any](codec Codec, h func(ctx context.Context, v T) error) Handler {
	if codec == nil || h == nil {
		return nil
	}
	return func(ctx context.Context, msg *nats.Msg) error {
		var v T
		if err := decode(codec, msg, &v); err != nil {
			return err
		}
		return h(ctx, v)
	}
}

// decode decodes a message into v. Its error is Permanent.
func decode[T any](codec Codec, msg *nats.Msg, v *T) error {
	want := codec.ContentType()
	if got := contentType(msg); !sameType(got, want) {
		return Permanent(fmt.Errorf("not decoded: its %s is not %q; "+
			"publish it with that, or consume it with another codec", contentTypeHeader, want))
	}
	if err := codec.Unmarshal(msg.Data, v); err != nil {
		return Permanent(&decodeError{as: want, into: fmt.Sprintf("%T", v)[1:], err: err})
	}
	return nil
}

// JSONBatch returns a BatchHandler that decodes each message with encoding/json and
// gives the values to h. See Typed. A nil h gives a nil BatchHandler.
//
// A message that cannot be decoded fails alone, as Permanent. h gets the values of the
// other messages, and is not called if there are none. The error of h applies only to
// these messages: an index in a *PartialError is an index in vs. If h panics, all
// messages of the batch are retried, also those that cannot be decoded.
func JSONBatch[T any](h func(ctx context.Context, vs []T) error) BatchHandler {
	if h == nil {
		return nil
	}
	return func(ctx context.Context, msgs []*nats.Msg) error {
		vs := make([]T, 0, len(msgs))
		at := make([]int, 0, len(msgs)) // the index in msgs of each of vs
		failed := map[int]error{}
		for i, msg := range msgs {
			var v T
			if err := decode(jsonCodec{}, msg, &v); err != nil {
				failed[i] = err
				continue
			}
			vs, at = append(vs, v), append(at, i)
		}
		var err error
		if len(vs) > 0 {
			err = h(ctx, vs)
		}
		if len(failed) == 0 {
			return err
		}
		each, all := split(err, len(at))
		for i, m := range at {
			if failed[m] = all; each != nil {
				failed[m] = each[i]
			}
		}
		return &PartialError{Errs: failed}
	}
}

// PublishJSON publishes v as JSON. See PublishTyped.
func PublishJSON(
	ctx context.Context, p Publisher, subject string, v any, opts ...jetstream.PublishOpt,
) error {
	return PublishTyped(ctx, p, jsonCodec{}, subject, v, opts...)
}

// PublishTyped publishes v as codec encodes it, as PublishMsg does, with the codec's
// type in the Content-Type header. Every error is a *PublishError. A value that cannot
// be encoded is not sent.
func PublishTyped(
	ctx context.Context, p Publisher, codec Codec, subject string, v any, opts ...jetstream.PublishOpt,
) error {
	switch {
	case p == nil:
		return &PublishError{Subject: subject, Err: invalid("p", "", "is nil; give a Client", nil)}
	case codec == nil:
		err := invalid("codec", "", "is nil; give one, or use PublishJSON", nil)
		return &PublishError{Subject: subject, Err: err}
	}
	data, err := codec.Marshal(v)
	if err != nil {
		return &PublishError{Subject: subject, Err: fmt.Errorf("encode a %T: %w", v, err)}
	}
	msg := &nats.Msg{Subject: subject, Data: data}
	if t := codec.ContentType(); t != "" {
		msg.Header = nats.Header{contentTypeHeader: {t}}
	}
	_, err = p.PublishMsg(ctx, msg, opts...)
	return err
}

// contentType is the message's Content-Type, or "".
func contentType(msg *nats.Msg) string {
	if v := msg.Header[contentTypeHeader]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// sameType reports whether data of type got can be decoded as type want.
func sameType(got, want string) bool {
	if got == "" || want == "" {
		return true
	}
	got, want = mediaType(got), mediaType(want)
	_, format, _ := strings.Cut(want, "/")
	return got == want || strings.HasSuffix(got, "+"+format)
}

// mediaType is a content type without its parameters, even if these are malformed.
func mediaType(s string) string {
	if t, _, err := mime.ParseMediaType(s); err == nil {
		return t
	}
	s, _, _ = strings.Cut(s, ";")
	return strings.ToLower(strings.TrimSpace(s))
}

// decodeError says that data could not be decoded. It quotes none of the data, as the
// texts of decoders do.
type decodeError struct {
	as, into string
	err      error
}

func (e *decodeError) Error() string {
	as := ""
	if e.as != "" {
		as = " as " + e.as
	}
	return fmt.Sprintf("cannot be decoded%s into %s: %s", as, e.into, e.where())
}

// where is the part of the cause that quotes nothing.
func (e *decodeError) where() string {
	if syntax, ok := errors.AsType[*json.SyntaxError](e.err); ok {
		return fmt.Sprintf("it is not JSON at byte %d", syntax.Offset)
	}
	if mismatch, ok := errors.AsType[*json.UnmarshalTypeError](e.err); ok {
		return fmt.Sprintf("the value before byte %d is no %v", mismatch.Offset, mismatch.Type)
	}
	return fmt.Sprintf("the decoder returned a %T", e.err)
}

func (e *decodeError) Unwrap() error { return e.err }

type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }
func (jsonCodec) ContentType() string                { return "application/json" }
