package account

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/subject"
)

// Place is where a letter is stored.
type Place struct {
	Stream   string `json:"stored_in"`
	Sequence uint64 `json:"stored_at"`
}

// Letter is a dead letter. It marshals to JSON.
type Letter struct {
	Place
	// Subject, Header and Payload are the message as it was published.
	Subject    string      `json:"subject"`
	Header     nats.Header `json:"header,omitempty"`
	Payload    Payload     `json:"payload"`
	Reason     string      `json:"reason"`
	Origin     string      `json:"origin_stream,omitempty"`
	OriginSeq  uint64      `json:"origin_sequence,omitempty"`
	Durable    string      `json:"durable,omitempty"`
	Deliveries int         `json:"deliveries,omitempty"`
	Redrives   int         `json:"redrives,omitempty"`
	Time       time.Time   `json:"time,omitzero"`
	// Foreign says that natty did not write the letter, so that it cannot be redriven.
	Foreign bool `json:"foreign,omitempty"`
	// Problem says why the letter cannot be read.
	Problem string `json:"problem,omitempty"`
}

// Filter says which letters of a subject to take. The zero Filter takes all.
type Filter struct {
	Origin    string        // wildcards are allowed
	Reason    string        // a part of the reason, in upper or lower case
	Durable   string        // the whole name
	OlderThan time.Duration // a letter without a time is neither older nor newer
	NewerThan time.Duration
	Places    []Place // exactly these, whatever else is set
}

// Check reports a filter that can never work.
func (f Filter) Check() error {
	if f.Origin != "" {
		if wrong := subject.InvalidFilter(f.Origin); wrong != "" {
			return fmt.Errorf("the origin subject %q %s; give tokens separated by single dots, such as orders.>", f.Origin, wrong)
		}
	}
	if f.OlderThan < 0 || f.NewerThan < 0 {
		return errors.New("an age is negative; give one such as 36h")
	}
	if f.NewerThan > 0 && f.OlderThan >= f.NewerThan {
		return fmt.Errorf("no letter is older than %v and newer than %v; exchange the two", f.OlderThan, f.NewerThan)
	}
	return nil
}

func (f Filter) takes(l *Letter, now time.Time) bool {
	if len(f.Places) > 0 {
		return slices.Contains(f.Places, l.Place)
	}
	age := now.Sub(l.Time)
	switch {
	case f.Origin != "" && !subject.Covers(f.Origin, l.Subject),
		f.Reason != "" && !strings.Contains(strings.ToLower(l.Reason), strings.ToLower(f.Reason)),
		f.Durable != "" && f.Durable != l.Durable,
		f.OlderThan > 0 && (l.Time.IsZero() || age < f.OlderThan),
		f.NewerThan > 0 && (l.Time.IsZero() || age > f.NewerThan):
		return false
	}
	return true
}

// Letters iterates over the letters of a subject, oldest first.
func (a *Account) Letters(ctx context.Context, subject string, f Filter) iter.Seq2[Letter, error] {
	return func(yield func(Letter, error) bool) {
		now := time.Now()
		for dead, err := range a.client.DeadLetters(ctx, subject) {
			l := letterOf(dead)
			if err != nil {
				if l.Sequence == 0 {
					if errors.Is(err, natty.ErrNoStream) {
						err = fmt.Errorf("%w; see the subjects that have dead letters with: natty dead ls", err)
					}
					yield(l, err)
					return
				}
				l.Problem = err.Error()
			}
			if f.takes(&l, now) && !yield(l, nil) {
				return
			}
		}
	}
}

func letterOf(d natty.DeadLetter) Letter {
	return Letter{
		Place: Place{d.StoredIn, d.StoredAt}, Subject: d.Subject, Header: d.Header, Payload: Payload(d.Data),
		Reason: d.Reason, Origin: d.Stream, OriginSeq: d.Sequence, Durable: d.Durable, Deliveries: d.Deliveries,
		Redrives: d.Redrives, Time: d.Time, Foreign: d.Stream == "" || d.Durable == "",
	}
}

// Progress is told how many letters are done, after each.
type Progress func(done int)

// Redrive puts letters back, see natty.Client.Redrive. Only those at the places are:
// what was dead-lettered since they were listed stays.
func (a *Account) Redrive(ctx context.Context, subject string, places []Place, progress Progress) (int, error) {
	wanted := setOf(places)
	if len(wanted) == 0 {
		return 0, nil
	}
	picked := 0
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n, err := a.client.Redrive(ctx, subject, func(d natty.DeadLetter) bool {
		if picked > 0 {
			progress(picked)
		}
		place := Place{d.StoredIn, d.StoredAt}
		if _, ok := wanted[place]; !ok {
			if len(wanted) == 0 { // the rest need not be read
				cancel()
			}
			return false
		}
		delete(wanted, place)
		picked++
		return true
	})
	progress(picked)
	if len(wanted) == 0 {
		err = withoutCanceled(err)
	}
	if gone := len(wanted); err == nil && gone > 0 {
		err = fmt.Errorf("%d of %d letters are gone; somebody else has redriven or purged them", gone, len(places))
	}
	return n, err
}

// withoutCanceled takes out of what Redrive returns that it was told to stop.
func withoutCanceled(err error) error {
	var several interface{ Unwrap() []error } // one for each letter that stays
	if !errors.Is(err, context.Canceled) || !errors.As(err, &several) {
		return err
	}
	return errors.Join(slices.DeleteFunc(slices.Clone(several.Unwrap()), func(one error) bool {
		return errors.Is(one, context.Canceled)
	})...)
}

// Purge deletes letters. It returns how many it has deleted.
func (a *Account) Purge(ctx context.Context, places []Place, progress Progress) (int, error) {
	n := 0
	streams := map[string]jetstream.Stream{}
	for i, p := range places {
		if err := a.purge(ctx, streams, p); err != nil {
			return n, fmt.Errorf("letter %d in stream %q stays, and %d after it: %w",
				p.Sequence, p.Stream, len(places)-i-1, explain(err))
		}
		n++
		progress(n)
	}
	return n, nil
}

func (a *Account) purge(ctx context.Context, streams map[string]jetstream.Stream, p Place) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	stream, ok := streams[p.Stream]
	if !ok {
		var err error
		if stream, err = a.js.Stream(ctx, p.Stream); err != nil {
			return err
		}
		streams[p.Stream] = stream
	}
	err := a.ask(ctx, "STREAM.MSG.DELETE."+p.Stream, func(ctx context.Context) error {
		return stream.DeleteMsg(ctx, p.Sequence)
	})
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
		var api *jetstream.APIError
		if errors.As(err, &api) && api.ErrorCode == noMessage {
			return nil // somebody else was faster
		}
	}
	return err
}

// noMessage is the server's code for a sequence at which there is no message.
const noMessage jetstream.ErrorCode = 10043

func setOf(places []Place) map[Place]struct{} {
	set := make(map[Place]struct{}, len(places))
	for _, p := range places {
		set[p] = struct{}{}
	}
	return set
}
