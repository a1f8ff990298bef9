package natty

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty/internal/consumer"
	"github.com/natty-go/natty/internal/jsapi"
)

// DeadLetter is a message that a consumer could not handle. Whoever may publish on the
// dead-letter subject can write one that says anything: believe it as far as you trust
// those who may.
type DeadLetter struct {
	// Subject is what the message was published on.
	Subject string
	// Header is that of the message as it was published.
	Header nats.Header
	// Data is the payload of the message.
	Data []byte
	// Reason is the error of the last attempt.
	Reason string
	// Stream is where the message was when it failed first, before any redrive.
	Stream string
	// Sequence is that of the message in Stream.
	Sequence uint64
	// Durable is the consumer that failed to handle the message.
	Durable string
	// Deliveries is how often the message was delivered to Durable since its
	// last redrive, if there was one.
	Deliveries int
	// Redrives is how often the message had been redriven before.
	Redrives int
	// Time is when the message was dead-lettered.
	Time time.Time
	// StoredIn is the stream that keeps the letter.
	StoredIn string
	// StoredAt is the letter's sequence in StoredIn.
	StoredAt uint64
}

// DeadLetters iterates over the dead letters that a subject has now, oldest first.
// Wildcards are allowed. It reads from the stream's leader and changes nothing.
//
// A letter that cannot be read comes as an error, and the others follow. The iteration
// ends by itself after an error that concerns them all.
func (c *Client) DeadLetters(ctx context.Context, subject string) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		c.consumers.EachLetter(ctx, subject, func(l consumer.StoredLetter, err error) bool {
			if err != nil {
				err = jsapi.About(fmt.Sprintf("dead letters of %q", subject), err)
			}
			return yield(letterOf(l), err)
		})
	}
}

func letterOf(l consumer.StoredLetter) DeadLetter {
	return DeadLetter{
		Subject: l.Subject, Header: l.Header, Data: l.Data, Reason: l.Reason, Stream: l.Stream, Sequence: l.Sequence,
		Durable: l.Durable, Deliveries: l.Deliveries, Redrives: l.Redrives, Time: l.Time,
		StoredIn: l.In, StoredAt: l.At,
	}
}

// maxRefusals bounds how many refused letters Redrive's error names.
const maxRefusals = 20

// Redrive publishes dead letters on their original subject again, those for which pick
// returns true (all if it is nil). It returns how many. They are addressed to the
// durable that failed: other natty consumers of the subject acknowledge and skip them;
// consumers that are not natty's get them again. The handler gets the message as its
// publisher sent it, without the headers on which the server acts, except for the
// message id. Delivery.Redrives counts.
//
// Each letter is published first, under a message id of its own, and then deleted from
// the dead letters, for which it has a second more when ctx has ended. A crash in
// between, or a server that is away, leaves it in both places. Redriving it again
// within the duplicate window stores it once.
//
// Some letters stay where they are. Redrive goes on with the others; its error names
// the first 20 that stay, and counts the rest. These are:
//
//   - A letter whose durable is gone, or does not receive its subject any more; or whose
//     stream is gone, or does not store that subject itself, as a mirror does not.
//   - A letter whose subject is full in a stream with MaxMsgsPerSubject, where it would
//     push out a newer message (ErrStreamFull).
//   - A letter whose subject begins with $: a subject of the server's, or a key of a
//     bucket.
//   - A letter that natty did not write, or that cannot be read or published.
//
// Whoever may publish on the dead-letter subject can write a letter, and so has Redrive
// deliver a message to any durable whose stream stores the subject of the letter. Let
// only the consumers publish there, or decide with pick.
func (c *Client) Redrive(ctx context.Context, subject string, pick func(DeadLetter) bool) (int, error) {
	n, refused := 0, 0
	var errs []error
	c.consumers.EachLetter(ctx, subject, func(l consumer.StoredLetter, err error) bool {
		if err == nil {
			if pick != nil && !pick(letterOf(l)) {
				return true
			}
			if err = c.consumers.Redrive(ctx, l); err == nil {
				n++
				return true
			}
			err = fmt.Errorf("letter %d in stream %q: %w", l.At, l.In, err)
		}
		if refused++; refused <= maxRefusals || ctx.Err() != nil {
			errs = append(errs, err)
		}
		return ctx.Err() == nil && !errors.Is(err, ErrClosed)
	})
	if more := refused - len(errs); more > 0 {
		errs = append(errs, fmt.Errorf("and %d more", more))
	}
	if err := errors.Join(errs...); err != nil {
		return n, jsapi.About(fmt.Sprintf("redrive %q", subject), err)
	}
	return n, nil
}
