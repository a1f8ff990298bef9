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
	Marshal(v any) ([]byte, error)
	// Unmarshal fills what v points to; Typed[T] gives it a *T. It must leave data as it is.
	Unmarshal(data []byte, v any) error
	// ContentType is what the Content-Type header says of such data, as in "application/json". With an empty one no
	// header is written, and none refused.
	ContentType() string
}

const contentTypeHeader = "Content-Type"

// JSON returns a Handler that decodes each message with encoding/json and gives the value to h. See Typed.
func JSON[T any](h func(ctx context.Context, v T) error) Handler {
	return Typed(jsonCodec{}, h)
}

// Typed returns a Handler that decodes each message with codec and gives the value to h, whose error is the
// verdict; DeliveryFrom(ctx) tells the rest about the message. A nil codec or h gives a nil Handler, which Process refuses.
//
// What cannot be decoded is a Permanent failure: it goes to the consumer's DeadLetter, and h is not called. So does a
// message whose Content-Type header names another type than the codec's; parameters do not count, application/vnd.x+json
// is application/json, and a message without the header is taken for what the codec expects. The reason says where
// decoding failed as far as that is known, and holds nothing of the data: it is logged and stored. The codec's own error
// is below it, for errors.As in OnError. A codec that panics fails as a handler does, and is tried again.
func Typed[T any](codec Codec, h func(ctx context.Context, v T) error) Handler {
	if codec == nil || h == nil {
		return nil
	}
	return func(ctx context.Context, msg *nats.Msg) error {
		var v T
		want := codec.ContentType()
		if got := header(msg.Header, contentTypeHeader); !sameType(got, want) {
			return Permanent(fmt.Errorf("not decoded: its %s is not %q; publish it with that, or consume it with another codec",
				contentTypeHeader, want))
		}
		if err := codec.Unmarshal(msg.Data, &v); err != nil {
			return Permanent(&decodeError{as: want, into: fmt.Sprintf("%T", &v)[1:], err: err})
		}
		return h(ctx, v)
	}
}

// PublishJSON publishes v as JSON. See PublishTyped.
func PublishJSON(ctx context.Context, p Publisher, subject string, v any, opts ...jetstream.PublishOpt) error {
	return PublishTyped(ctx, p, jsonCodec{}, subject, v, opts...)
}

// PublishTyped publishes v as codec encodes it, with the codec's type in the Content-Type header, as PublishMsg does. Every
// error is a *PublishError; what cannot be encoded is not sent.
func PublishTyped(ctx context.Context, p Publisher, codec Codec, subject string, v any, opts ...jetstream.PublishOpt) error {
	switch {
	case p == nil:
		return &PublishError{Subject: subject, Err: &ConfigError{Field: "p", Reason: "is nil; give a Client"}}
	case codec == nil:
		return &PublishError{Subject: subject, Err: &ConfigError{Field: "codec", Reason: "is nil; give one, or use PublishJSON"}}
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

// sameType reports whether data of type got can be decoded as type want.
func sameType(got, want string) bool {
	if got == "" || want == "" {
		return true
	}
	got, want = mediaType(got), mediaType(want)
	_, format, _ := strings.Cut(want, "/")
	return got == want || strings.HasSuffix(got, "+"+format)
}

// mediaType is a content type without its parameters. One that is not well-formed still names a type.
func mediaType(s string) string {
	if t, _, err := mime.ParseMediaType(s); err == nil {
		return t
	}
	s, _, _ = strings.Cut(s, ";")
	return strings.ToLower(strings.TrimSpace(s))
}

// decodeError says that data could not be decoded, without any of it: the texts of decoders quote what they find.
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

// where is what the cause may say.
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
