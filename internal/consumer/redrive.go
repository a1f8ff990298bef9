package consumer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/deadletter"
	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/subject"
)

// StoredLetter is a dead letter, and where it is stored.
type StoredLetter struct {
	deadletter.Letter
	In string // the stream
	At uint64 // its sequence there
	id string // under which it is redriven
}

// EachLetter calls yield for the dead letters that a subject has now, until it returns
// false. A letter that cannot be read, and a stream, comes with an error; the others
// follow.
func (c *Client) EachLetter(ctx context.Context, filter string, yield func(StoredLetter, error) bool) {
	if wrong := subject.InvalidFilter(filter); wrong != "" {
		yield(StoredLetter{}, c.Invalid("subject", filter, wrong+"; expected tokens separated by single dots", nil))
		return
	}
	streams, err := c.API.StreamsOf(ctx, filter)
	if err == nil && len(streams) == 0 {
		err = jsapi.ErrNoStream
	}
	if err != nil {
		yield(StoredLetter{}, err)
		return
	}
	for _, stream := range streams {
		more, err := c.lettersIn(ctx, stream, filter, yield)
		if err != nil {
			more = yield(StoredLetter{In: stream}, fmt.Errorf("stream %q: %w", stream, err)) && ctx.Err() == nil
		}
		if !more {
			return
		}
	}
}

func (c *Client) lettersIn(
	ctx context.Context, stream, filter string, yield func(StoredLetter, error) bool,
) (more bool, _ error) {
	info, err := c.API.StreamInfo(ctx, stream, "")
	if err != nil {
		return true, err
	}
	more = true
	for _, stored := range durable.StoredAs(info.Config, filter) {
		if !more || err != nil {
			break
		}
		more, err = c.lettersAt(ctx, info, stored, yield)
	}
	return more, err
}

// lettersAt calls yield for the letters that a stream stores under a filter.
func (c *Client) lettersAt(
	ctx context.Context, info *jetstream.StreamInfo, filter string, yield func(StoredLetter, error) bool,
) (more bool, _ error) {
	stream := info.Config.Name
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; {
		m, err := c.API.LeaderGet(ctx, stream, map[string]any{"seq": seq, "next_by_subj": filter})
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence > info.State.LastSeq {
			break
		}
		if err != nil {
			return true, err
		}
		l := StoredLetter{In: stream, At: m.Sequence}
		l.id = fmt.Sprintf("natty-redrive-%s-%d-%d", stream, m.Sequence, m.Time.UnixNano())
		if l.Letter, err = deadletter.Read(m.Subject, m.Header, m.Data); err != nil {
			err = fmt.Errorf("letter %d in stream %q: its headers cannot be read: %w", l.At, l.In, err)
		}
		if !yield(l, err) {
			return false, nil
		}
		seq = m.Sequence + 1
	}
	return true, nil
}

// Redrive publishes a letter's message for the durable that failed, and deletes the
// letter. Anyone who may publish on the subject of the letters can have written the
// letter: it reaches no other subject than those which the stream and the durable that
// it names receive.
func (c *Client) Redrive(ctx context.Context, l StoredLetter) error {
	if err := checkNames(l.Letter); err != nil {
		return err
	}
	if err := c.checkDurable(ctx, l.Letter); err != nil {
		return err
	}
	if err := c.checkStream(ctx, l.Letter); err != nil {
		return err
	}
	if _, err := c.Pub.PublishMsg(ctx, deadletter.Redrive(l.Letter, l.id), nil); err != nil {
		return err
	}
	// The letter is not left in both places because ctx ends just now.
	ctx, cancel := jsapi.Outlast(ctx, EndGrace)
	defer cancel()
	request := map[string]any{"seq": l.At, "no_erase": true}
	err := c.API.Query(ctx, "STREAM.MSG.DELETE."+l.In, request, &struct{}{})
	switch {
	case err == nil, jsapi.Code(err) == jsapi.CodeNoMessage: // another Redrive was faster
		return nil
	}
	return fmt.Errorf("it was put back, and is still among the dead letters; delete it there: %w", err)
}

// checkNames refuses a letter whose names could not have been those of a message that a
// consumer had. They go into subjects: one that is too long would end the connection.
func checkNames(l deadletter.Letter) error {
	if l.Stream == "" || l.Durable == "" {
		return errors.New("it is no dead letter of natty's: it does not say where it comes from")
	}
	for what, name := range map[string]string{"stream": l.Stream, "durable": l.Durable} {
		if wrong := subject.InvalidName(name); wrong != "" {
			return fmt.Errorf("it is no dead letter of natty's: the name of its %s %s", what, wrong)
		}
	}
	if wrong := subject.Unpublishable(l.Subject); wrong != "" {
		return fmt.Errorf("it is no dead letter of natty's: its subject %s", wrong)
	}
	if strings.HasPrefix(l.Subject, "$") {
		return fmt.Errorf("subject %q belongs to the server or to a bucket, "+
			"where an old message would undo newer ones; write what is in the letter by yourself", l.Subject)
	}
	return nil
}

// checkDurable refuses a letter that its durable would not receive. Without its durable
// nobody would take the message: others skip it, and an Interest stream would not even
// store it.
func (c *Client) checkDurable(ctx context.Context, l deadletter.Letter) error {
	info, err := c.API.ConsumerInfo(ctx, l.Stream, l.Durable)
	switch {
	case jsapi.Missing(err):
		return fmt.Errorf("durable %q on stream %q, which it is for, is gone; publish what is in the letter "+
			"anew, or make the durable again: %w", l.Durable, l.Stream, err)
	case err != nil:
		return err
	case !durable.Receives(info.Config, l.Subject):
		return fmt.Errorf("durable %q on stream %q, which it is for, does not receive %q any more; publish "+
			"what is in the letter anew, or add the subject to the durable", l.Durable, l.Stream, l.Subject)
	}
	return nil
}

// checkStream refuses a letter whose stream would not store it, or store it where the
// durable does not find it, or remove a newer message for it.
func (c *Client) checkStream(ctx context.Context, l deadletter.Letter) error {
	info, err := c.API.StreamInfo(ctx, l.Stream, l.Subject)
	if err != nil {
		return err
	}
	cfg := info.Config
	if !subject.AnyCovers(cfg.Subjects, l.Subject) {
		return fmt.Errorf("%w: stream %q, where it comes from, does not store %q; "+
			"publish what is in the letter anew", jsapi.ErrNoStream, l.Stream, l.Subject)
	}
	if t := cfg.SubjectTransform; t != nil && (t.Source == "" || subject.Covers(t.Source, l.Subject)) {
		return fmt.Errorf("stream %q has a subject transform, and would not store it as %q; "+
			"publish what is in the letter anew", l.Stream, l.Subject)
	}
	limit := cfg.MaxMsgsPerSubject
	if limit > 0 && int64(info.State.Subjects[l.Subject]) >= limit && cfg.Discard == jetstream.DiscardOld {
		return fmt.Errorf("%w: %q keeps %d messages of %q (max_msgs_per_subject), all newer: "+
			"putting this one back would remove one of them",
			publish.ErrStreamFull, l.Stream, limit, l.Subject)
	}
	return nil
}
