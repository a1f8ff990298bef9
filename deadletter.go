package natty

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of a dead letter, beside those that the message came with.
const (
	headerReason     = "Natty-Reason"     // why it is one
	headerSubject    = "Natty-Subject"    // where it was
	headerStream     = "Natty-Stream"     // in which stream
	headerSequence   = "Natty-Sequence"   // under which sequence
	headerDurable    = "Natty-Durable"    // who failed
	headerDeliveries = "Natty-Deliveries" // how often it was delivered to them
	headerTime       = "Natty-Time"       // when it was given up (RFC 3339)

	// The server acts on Nats-* headers (message ids, TTLs, schedules, roll-ups) or refuses messages with them: a
	// copy carries them under another name.
	natsPrefix     = "Nats-"
	originalPrefix = "Natty-Original-"

	// A redriven message is for one durable, named as stream/durable.
	headerRedrive = "Natty-Redrive"
)

// maxHeaderValue bounds the reason, so that a long error does not make a message too large.
const maxHeaderValue = 1024

// letterFor makes the copy of a message that goes to the dead-letter subject. Its id is the same however often it is
// sent for the same message.
func letterFor(subject string, h *held, reason error) *nats.Msg {
	header := make(nats.Header, len(h.msg.Header)+8)
	for name, values := range h.msg.Header {
		if isServers(name) {
			name = originalPrefix + name[len(natsPrefix):]
		}
		header[name] = values
	}
	header.Del(headerRedrive) // it may be redriven again, for another
	d := h.d
	header.Set(headerReason, headerValue(reason.Error()))
	header.Set(headerSubject, h.msg.Subject)
	header.Set(headerStream, d.Stream)
	header.Set(headerSequence, strconv.FormatUint(d.Sequence, 10))
	header.Set(headerDurable, d.Durable)
	header.Set(headerDeliveries, strconv.Itoa(d.Attempt))
	header.Set(headerTime, time.Now().UTC().Format(time.RFC3339Nano))
	header.Set(jetstream.MsgIDHeader, fmt.Sprintf("natty-dead-%s-%s-%d-%d", d.Stream, d.Durable, d.Sequence, d.Time.UnixNano()))
	return &nats.Msg{Subject: subject, Header: header, Data: h.msg.Data}
}

// isServers reports whether a header is one that the server acts on.
func isServers(name string) bool {
	return len(name) >= len(natsPrefix) && strings.EqualFold(name[:len(natsPrefix)], natsPrefix)
}

// headerValue makes a text fit for a header: one line, not too long.
func headerValue(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxHeaderValue {
		s = strings.ToValidUTF8(s[:maxHeaderValue], "") + "…"
	}
	return strings.TrimSpace(s)
}

// bury stores the copy of a message in the dead-letter subject, and only then takes the message off. When that
// cannot be done the message stays, and comes again.
func (e *engine) bury(h *held, reason error) (byHandler bool, err error) {
	if err := e.storeLetter(h, reason); err != nil {
		return false, err
	}
	return e.tell(answer{msg: h.msg, kind: term}), nil
}

// storeLetter stores the copy of a message in the dead-letter subject.
func (e *engine) storeLetter(h *held, reason error) error {
	ctx, cancel := context.WithTimeout(e.base, e.c.cfg.PublishTimeout)
	defer cancel()
	if _, err := e.c.publish(ctx, letterFor(e.cfg.DeadLetter, h, reason), nil); err != nil {
		return fmt.Errorf("%w: %w", errKept, err)
	}
	return nil
}

// checkDeadLetter refuses a dead-letter subject that no stream holds, or that the consumer itself would receive.
func (c *Client) checkDeadLetter(ctx context.Context, cfg ConsumerConfig, d durable) error {
	if cfg.DeadLetter == "" {
		return nil
	}
	streams, err := c.streamsOf(ctx, cfg.DeadLetter)
	if err != nil {
		return fmt.Errorf("natty: look up the stream of the dead letters %q: %w", cfg.DeadLetter, err)
	}
	if len(streams) == 0 {
		return &ConfigError{
			Field: "dead_letter", Value: cfg.DeadLetter,
			Reason: "is in no stream, so that dead letters would be lost; make a stream that holds it", Err: ErrNoStream,
		}
	}
	if streams[0] != d.stream {
		return nil
	}
	filters := d.config.FilterSubjects
	if d.config.FilterSubject != "" {
		filters = []string{d.config.FilterSubject}
	}
	if len(filters) == 0 {
		filters = []string{">"}
	}
	for _, f := range filters {
		if covers(f, cfg.DeadLetter) {
			return &ConfigError{
				Field: "dead_letter", Value: cfg.DeadLetter,
				Reason: fmt.Sprintf("is received by the consumer itself (filter %q), which would handle its own dead letters; take a subject outside of its filters", f),
			}
		}
	}
	return nil
}

// DeadLetter is a message that a consumer gave up.
type DeadLetter struct {
	// Subject, Header and Data are the message as it was published.
	Subject string
	Header  nats.Header
	Data    []byte
	// Reason is the error of the last attempt.
	Reason string
	// Stream and Sequence are where the message was, Durable is who failed, after how many Deliveries.
	Stream     string
	Sequence   uint64
	Durable    string
	Deliveries int
	// Time is when it was given up.
	Time time.Time

	letter storedMsg // the letter itself
	in     string    // the stream of the letter
}

// readLetter takes a letter apart. One that was not written by natty has only what it holds.
func readLetter(stream string, m storedMsg) (DeadLetter, error) {
	d := DeadLetter{Data: m.Data, letter: m, in: stream, Subject: m.Subject}
	if len(m.Header) == 0 {
		return d, nil
	}
	h, err := nats.DecodeHeadersMsg(m.Header)
	if err != nil {
		return d, fmt.Errorf("natty: headers of dead letter %d in stream %q: %w", m.Sequence, stream, err)
	}
	d.Reason, d.Stream, d.Durable = h.Get(headerReason), h.Get(headerStream), h.Get(headerDurable)
	if s := h.Get(headerSubject); s != "" {
		d.Subject = s
	}
	// What does not parse stays zero: the letter is still there to be read.
	d.Sequence, _ = strconv.ParseUint(h.Get(headerSequence), 10, 64)
	d.Deliveries, _ = strconv.Atoi(h.Get(headerDeliveries))
	d.Time, _ = time.Parse(time.RFC3339Nano, h.Get(headerTime))
	for _, name := range []string{
		headerReason, headerSubject, headerStream, headerSequence, headerDurable, headerDeliveries, headerTime, jetstream.MsgIDHeader,
	} {
		h.Del(name)
	}
	d.Header = make(nats.Header, len(h))
	for name, values := range h {
		if rest, ok := strings.CutPrefix(name, originalPrefix); ok {
			name = natsPrefix + rest
		}
		d.Header[name] = values
	}
	return d, nil
}

// DeadLetters iterates over what is in a dead-letter subject now, oldest first, and then ends; wildcards are
// allowed. It reads from the stream's leader and changes nothing. An error ends it.
func (c *Client) DeadLetters(ctx context.Context, subject string) iter.Seq2[DeadLetter, error] {
	return func(yield func(DeadLetter, error) bool) {
		if err := c.eachLetter(ctx, subject, func(l DeadLetter) bool { return yield(l, nil) }); err != nil {
			yield(DeadLetter{}, fmt.Errorf("natty: dead letters of %q: %w", subject, err))
		}
	}
}

func (c *Client) eachLetter(ctx context.Context, subject string, yield func(DeadLetter) bool) error {
	if wrong := validFilter(subject); wrong != "" {
		return &ConfigError{Field: "subject", Value: subject, Reason: wrong + "; expected tokens separated by single dots"}
	}
	streams, err := c.streamsOf(ctx, subject)
	if err != nil {
		return err
	}
	for _, stream := range streams {
		var info streamInfo
		if err := c.query(ctx, "STREAM.INFO."+stream, nil, &info); err != nil {
			return err
		}
		for seq := info.State.FirstSeq; seq <= info.State.LastSeq; {
			m, err := c.leaderGet(ctx, stream, map[string]any{"seq": seq, "next_by_subj": subject})
			if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence > info.State.LastSeq {
				break
			}
			if err != nil {
				return err
			}
			letter, err := readLetter(stream, *m)
			if err != nil {
				return err
			}
			if !yield(letter) {
				return nil
			}
			seq = m.Sequence + 1
		}
	}
	if len(streams) == 0 {
		return ErrNoStream
	}
	return nil
}

// Redrive puts dead letters back on their original subject, those that pick accepts (all for nil), and returns how
// many. They are addressed to the durable that failed: other natty consumers of the subject acknowledge and skip them;
// consumers that are not natty's see them again. Each is published first, under an id of its own, and deleted from
// the dead letters after that: a crash half-way leaves it in both places, and redriving it again inside the
// duplicate window stores it once.
//
// A letter is refused, with an error that ends Redrive, where putting it back would push newer messages out of a
// stream with MaxMsgsPerSubject, and where it was not written by natty.
func (c *Client) Redrive(ctx context.Context, subject string, pick func(DeadLetter) bool) (int, error) {
	n := 0
	var failed error
	err := c.eachLetter(ctx, subject, func(l DeadLetter) bool {
		if pick != nil && !pick(l) {
			return true
		}
		if failed = c.redrive(ctx, l); failed != nil {
			failed = fmt.Errorf("letter %d in stream %q: %w", l.letter.Sequence, l.in, failed)
			return false
		}
		n++
		return true
	})
	if err = errors.Join(err, failed); err != nil {
		return n, fmt.Errorf("natty: redrive %q: %w", subject, err)
	}
	return n, nil
}

// forAnother reports whether a message was redriven for another durable than this one.
func (e *engine) forAnother(m *nats.Msg) bool {
	to := header(m.Header, headerRedrive)
	if to == "" || to == e.self {
		return false
	}
	e.c.log.Info("natty: skipped a message that was redriven for another durable", "durable", e.self, "for", to)
	return true
}

func (c *Client) redrive(ctx context.Context, l DeadLetter) error {
	if l.Stream == "" || l.Durable == "" {
		return errors.New("it is no dead letter of natty's: it does not say where it comes from")
	}
	// Without it nobody would take the message: other durables skip it, and an Interest stream would not even store it.
	err := c.query(ctx, "CONSUMER.INFO."+l.Stream+"."+l.Durable, nil, &struct{}{})
	if missing(err) {
		return fmt.Errorf("durable %q on stream %q, which it is for, is gone; publish what is in the letter anew, or make the durable again: %w", l.Durable, l.Stream, err)
	}
	if err != nil {
		return err
	}
	if err := c.mayReturn(ctx, l.Subject); err != nil {
		return err
	}
	header := make(nats.Header, len(l.Header)+2)
	for name, values := range l.Header {
		if !strings.HasPrefix(name, natsPrefix) { // conditions and schedules had their time
			header[name] = values
		}
	}
	header.Set(headerRedrive, l.Stream+"/"+l.Durable)
	header.Set(jetstream.MsgIDHeader, fmt.Sprintf("natty-redrive-%s-%d-%d", l.in, l.letter.Sequence, l.Time.UnixNano()))
	if _, err := c.publish(ctx, &nats.Msg{Subject: l.Subject, Header: header, Data: l.Data}, nil); err != nil {
		return err
	}
	err = c.query(ctx, "STREAM.MSG.DELETE."+l.in, map[string]any{"seq": l.letter.Sequence, "no_erase": true}, &struct{}{})
	if errorCode(err) == codeNoMessage {
		return nil // another Redrive was faster
	}
	return err
}

// mayReturn refuses a subject that is full: an old message would push out a newer one.
func (c *Client) mayReturn(ctx context.Context, subject string) error {
	streams, err := c.streamsOf(ctx, subject)
	if err != nil {
		return err
	}
	if len(streams) == 0 {
		return fmt.Errorf("%w: %q, where it comes from", ErrNoStream, subject)
	}
	var info streamInfo
	if err := c.query(ctx, "STREAM.INFO."+streams[0], map[string]any{"subjects_filter": subject}, &info); err != nil {
		return err
	}
	limit := info.Config.MaxMsgsPerSubject
	if limit > 0 && int64(info.State.Subjects[subject]) >= limit && info.Config.Discard == jetstream.DiscardOld {
		return fmt.Errorf("%w: %q keeps %d messages of %q (max_msgs_per_subject), all newer: putting this one back would remove one of them",
			ErrStreamFull, streams[0], limit, subject)
	}
	return nil
}

// streamInfo is the part of a stream's description that decides here.
type streamInfo struct {
	Config  jetstream.StreamConfig `json:"config"`
	Created time.Time              `json:"created"`
	State   struct {
		FirstSeq uint64            `json:"first_seq"`
		LastSeq  uint64            `json:"last_seq"`
		Subjects map[string]uint64 `json:"subjects"`
	} `json:"state"`
}
