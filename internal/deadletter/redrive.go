package deadletter

import (
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// headerRedrive is the Address of the durable that a redriven message is for.
const headerRedrive = "Natty-Redrive"

// Address is how redriven messages name a durable.
func Address(stream, durable string) string { return stream + "/" + durable }

// Redrive returns the message of l, to be published again under an id, for the durable
// that failed. It carries what Receive puts into its place again: the publisher's
// message id, where the message failed first, and how often it was redriven. Headers on
// which the server acts are left out.
func Redrive(l Letter, id string) *nats.Msg {
	header := make(nats.Header, len(l.Header)+6)
	for name, values := range l.Header {
		switch {
		case !sendable(name), strings.HasPrefix(name, nattyPrefix):
			header[aside(name)] = values
		case !isActedOn(name):
			header[name] = values
		}
	}
	if publishers := first(l.Header, jetstream.MsgIDHeader); publishers != "" {
		header[aside(jetstream.MsgIDHeader)] = []string{publishers}
	}
	header.Set(headerRedrive, Address(l.Stream, l.Durable))
	header.Set(headerSubject, l.Subject)
	header.Set(headerSequence, strconv.FormatUint(l.Sequence, 10))
	header.Set(headerRedrives, strconv.Itoa(l.Redrives+1))
	header.Set(jetstream.MsgIDHeader, id)
	return &nats.Msg{Subject: l.Subject, Header: header, Data: l.Data}
}

// Redriven is what a redriven message says.
type Redriven struct {
	For      string // the Address of the only durable that it is for
	Redrives int
	Sequence uint64 // where it was when it failed first; 0 if that is not known
}

// Receive makes a redriven message what its publisher sent: it takes off what Redrive
// added, and sets the publisher's message id. stream is where the message is now. It
// writes to m and its header map, so nobody else may have them yet.
//
// It returns false if the message is for every durable. That includes a message that
// carries the headers of a redriven one because a client has forwarded them: its
// subject, or for a message of an older natty its stream, is another one.
func Receive(m *nats.Msg, stream string) (r Redriven, ok bool) {
	to := first(m.Header, headerRedrive)
	if to == "" {
		return Redriven{}, false
	}
	on := first(m.Header, headerSubject)
	switch {
	case on != "":
		ok = on == m.Subject
	default:
		ok = strings.HasPrefix(to, stream+"/")
	}
	if ok {
		r = Redriven{For: to, Redrives: max(count(first(m.Header, headerRedrives)), 1)}
		r.Sequence, _ = strconv.ParseUint(first(m.Header, headerSequence), 10, 64)
	}
	for _, name := range []string{headerRedrive, headerSubject, headerSequence, headerRedrives} {
		delete(m.Header, name)
	}
	if ok {
		m.Header = restored(m.Header)
	}
	if len(m.Header) == 0 {
		m.Header = nil
	}
	return r, ok
}

// restored returns headers under their own names, where a letter carried them under
// another.
func restored(h nats.Header) nats.Header {
	delete(h, jetstream.MsgIDHeader) // of the redrive
	own := make(nats.Header, len(h))
	for name, values := range h {
		own[original(name)] = values
	}
	delete(own, headerRedrive) // a copy that is forwarded is for every durable
	return own
}
