package nattywatermill

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

const (
	// uuidHeader is the name by which Watermill's other Pub/Subs know it too.
	uuidHeader = "_watermill_message_uuid"
	// escapedHeader holds what cannot be a header by itself, in the form of a URL's
	// query. The names in it begin with metadataKey, except uuidKey.
	escapedHeader = "Watermill-Escaped"
	uuidKey       = "uuid"
	metadataKey   = "m."
)

// toNATS returns msg as a NATS message. Metadata become headers. What a header cannot
// carry as it is, or what the server or natty would act on, goes to escapedHeader.
func toNATS(subject, id string, msg *message.Message) *nats.Msg {
	header, escaped := nats.Header{}, url.Values{}
	if isSendable(msg.UUID) {
		header[uuidHeader] = []string{msg.UUID}
	} else {
		escaped.Set(uuidKey, msg.UUID)
	}
	for key, value := range msg.Metadata {
		if isOwnHeader(key) || !isHeaderName(key) || !isSendable(value) {
			escaped.Set(metadataKey+key, value)
		} else {
			header[key] = []string{value}
		}
	}
	if len(escaped) > 0 {
		header[escapedHeader] = []string{escaped.Encode()}
	}
	if id != "" {
		header[jetstream.MsgIDHeader] = []string{id}
	}
	return &nats.Msg{Subject: subject, Header: header, Data: msg.Payload}
}

// fromNATS undoes toNATS. A message of another publisher gets its message id as UUID, or
// else its place in the stream. The server's and natty's headers are left out: they are
// about the delivery.
func fromNATS(m *nats.Msg, d natty.Delivery) (*message.Message, error) {
	// The payload is a copy, since the bytes may be needed for a retry or a dead letter.
	msg := message.NewMessage(d.MsgID, bytes.Clone(m.Data))
	if d.MsgID == "" {
		msg.UUID = fmt.Sprintf("%s/%d", d.Stream, d.Sequence)
	}
	if values := m.Header[uuidHeader]; len(values) > 0 {
		msg.UUID = values[0]
	}
	for key, values := range m.Header {
		if !isOwnHeader(key) {
			msg.Metadata[key] = strings.Join(values, ", ")
		}
	}
	for _, query := range m.Header[escapedHeader] {
		escaped, err := url.ParseQuery(query)
		if err != nil {
			return nil, fmt.Errorf("nattywatermill: header %s cannot be read; this package did not write it: %w",
				escapedHeader, err)
		}
		for key, values := range escaped {
			if name, ok := strings.CutPrefix(key, metadataKey); ok {
				msg.Metadata[name] = values[0]
			} else if key == uuidKey {
				msg.UUID = values[0]
			}
		}
	}
	return msg, nil
}

// isOwnHeader reports whether a header of this name means something to the server, to
// natty or to this package. nats.go takes a message with a Status for an answer of the
// server's.
func isOwnHeader(name string) bool {
	switch name {
	case uuidHeader, escapedHeader, "Status", "Description":
		return true
	}
	return hasPrefixFold(name, "Nats-") || hasPrefixFold(name, "Natty-")
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// isHeaderName reports whether every client can send a header of this name.
func isHeaderName(name string) bool {
	for i := range len(name) {
		if c := name[i]; !isNameByte(c) && c != '.' {
			return false
		}
	}
	return name != ""
}

// isSendable reports whether a header's value arrives as it is. Clients trim values, and
// replace line breaks.
func isSendable(value string) bool {
	if strings.TrimSpace(value) != value || !utf8.ValidString(value) {
		return false
	}
	for i := range len(value) {
		if value[i] < ' ' || value[i] == 0x7f {
			return false
		}
	}
	return true
}
