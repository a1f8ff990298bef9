package account

import (
	"context"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/subject"
)

const (
	headerReason  = "Natty-Reason"
	headerDurable = "Natty-Durable"

	maxDeadSubjects = 200 // that are shown of a stream
)

func isLetter(h nats.Header) bool { return h.Get(headerDurable) != "" && h[headerReason] != nil }

// readDead returns the dead letters in a stream: all of a stream whose last message is
// a letter, or whose first one is, else those on the subjects that the user has named.
func (a *Account) readDead(ctx context.Context, info *jetstream.StreamInfo) ([]Dead, error) {
	name := info.Config.Name
	if info.State.Msgs == 0 || strings.HasPrefix(name, bucketPrefix) || strings.HasPrefix(name, "OBJ_") {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var all []Dead
	err := a.ask(ctx, "STREAM.INFO."+name, func(ctx context.Context) error {
		stream, err := a.js.Stream(ctx, name)
		if err != nil {
			return err
		}
		filters, err := a.deadFilters(ctx, stream, info)
		for _, filter := range filters {
			counted, err := stream.Info(ctx, jetstream.WithSubjectFilter(filter))
			if err != nil {
				return err
			}
			for subject, count := range counted.State.Subjects {
				if len(all) == maxDeadSubjects {
					return nil
				}
				d := Dead{Stream: name, Subject: subject, Count: count}
				if msg, err := stream.GetLastMsgForSubject(ctx, subject); err == nil {
					d.Newest, d.Reason = msg.Time, msg.Header.Get(headerReason)
				}
				all = append(all, d)
			}
		}
		return err
	})
	return all, err
}

// deadFilters returns the filters of a stream's dead letters.
func (a *Account) deadFilters(ctx context.Context, stream jetstream.Stream, info *jetstream.StreamInfo) ([]string, error) {
	var filters []string
	for _, named := range a.dead {
		for _, held := range info.Config.Subjects {
			if subject.Overlap(named, held) {
				filters = append(filters, subject.Common(named, held))
			}
		}
	}
	if len(filters) > 0 {
		return filters, nil
	}
	// A stranger may have written one of the two.
	for _, get := range []func(ctx context.Context) (*jetstream.RawStreamMsg, error){
		func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
			return stream.GetLastMsgForSubject(ctx, ">")
		},
		func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
			return stream.GetMsg(ctx, info.State.FirstSeq)
		},
	} {
		msg, err := a.message(ctx, info, get)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
		case err != nil:
			return nil, err
		case isLetter(msg.Header):
			return []string{">"}, nil
		}
	}
	return nil, nil
}

// message gets a message of a stream.
func (a *Account) message(ctx context.Context, info *jetstream.StreamInfo,
	get func(ctx context.Context) (*jetstream.RawStreamMsg, error),
) (msg *jetstream.RawStreamMsg, err error) {
	name := info.Config.Name
	ask := func(ctx context.Context) error {
		msg, err = get(ctx)
		return err
	}
	if !info.Config.AllowDirect {
		err = a.ask(ctx, "STREAM.MSG.GET."+name, ask)
		return msg, err
	}
	err = a.ask(ctx, "DIRECT.GET."+name, func(ctx context.Context) error {
		return a.ask(ctx, "DIRECT.GET."+name+".>", ask)
	})
	return msg, err
}
