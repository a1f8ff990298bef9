package work

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/history"
)

// Streams, and the subjects of the messages of a run: <first>.<group>.<part>.<key>. The
// durable of a group handles its messages.
const (
	Work  = "WORK"  // w.>
	Dead  = "DEAD"  // dead.>
	Small = "SMALL" // small.>; it keeps few messages
	// SmallMax is how many.
	SmallMax = 20
	// Full holds full.>; like Dead it refuses messages while it is full.
	Full = "FULL"
)

// fills reports whether the worker publishes into the stream that is full now and then.
func (w *worker) fills() bool { return Durables[w.Role] == "" && strings.HasSuffix(w.Role, "full") }

// subject returns a random one.
func (w *worker) subject() string {
	if w.fills() {
		return fmt.Sprintf("full.full.a.k%d", rand.IntN(5))
	}
	part := "a"
	if rand.IntN(3) == 0 {
		part = "b"
	}
	group := []string{"plain", "plain", "order", "order", "excl", "dead"}[rand.IntN(6)]
	return fmt.Sprintf("w.%s.%s.k%d", group, part, rand.IntN(5))
}

// NoRoom is the Op of a message that was refused because its stream is full.
const NoRoom = "no-room"

// attempt bounds one call that stores something.
const attempt = 10 * time.Second

// outcome writes down what became of a message.
func (w *worker) outcome(id, subject string, from int64, err error) {
	e := history.Event{What: history.Acked, From: from, ID: id, Subject: subject}
	switch {
	case errors.Is(err, natty.ErrOutcomeUnknown):
		e.What, e.Text = history.Unknown, err.Error()
	case err != nil:
		e.What, e.Text = history.Refused, err.Error()
		if errors.Is(err, natty.ErrStreamFull) {
			e.Op = NoRoom
		}
	}
	w.log.Add(e)
}

// sending writes down that a message is about to be sent.
func (w *worker) sending(id, subject string) int64 {
	now := history.Now()
	w.log.Add(history.Event{At: now, What: history.Sent, ID: id, Subject: subject})
	return now
}

func publishSingly(ctx context.Context, w *worker) error {
	w.each(ctx, 40*time.Millisecond, func(n int) {
		w.publish(ctx, w.id(n), w.subject())
	})
	w.drained(ctx)
	return nil
}

func (w *worker) publish(ctx context.Context, id, subject string) {
	from := w.sending(id, subject)
	brief, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	w.outcome(id, subject, from, w.c.Publish(brief, subject, []byte(id)))
}

// WriterWindow is how many messages the Writer may send before the first is acknowledged.
const WriterWindow = 200

// fullTimeout is how long the Writer for the full stream waits for room: longer than the
// stream is full at times, and shorter at others.
const fullTimeout = 6 * time.Second

func write(ctx context.Context, w *worker) error {
	// What has got out of the window, and OnError was not called for, is stored.
	type sent struct {
		subject string
		from    int64
	}
	var mu sync.Mutex // guards written
	written := map[string]sent{}
	take := func(id string) sent {
		mu.Lock()
		defer mu.Unlock()
		defer delete(written, id)
		return written[id]
	}
	cfg := natty.WriterConfig{MaxPending: WriterWindow, OnError: func(m *nats.Msg, err error) {
		id := string(m.Data)
		w.outcome(id, m.Subject, take(id).from, err)
	}}
	if w.fills() {
		cfg.Timeout = fullTimeout
	}
	writer, err := w.c.NewWriter(cfg)
	if err != nil {
		return err
	}
	flush := func() {
		brief, cancel := context.WithTimeout(ctx, 90*time.Second)
		defer cancel()
		_ = writer.Flush(brief) // OnError has what failed, a little later
		for w.c.Health().Writers[0].Pending > 0 && brief.Err() == nil {
			pause(brief, 10*time.Millisecond)
		}
		mu.Lock()
		defer mu.Unlock()
		for id, m := range written {
			if brief.Err() == nil {
				w.outcome(id, m.subject, m.from, nil)
			}
		}
		clear(written)
	}
	w.each(ctx, 40*time.Millisecond, func(n int) {
		id, subject := w.id(n), w.subject()
		from := w.sending(id, subject)
		mu.Lock()
		written[id] = sent{subject, from}
		mu.Unlock()
		brief, cancel := context.WithTimeout(ctx, attempt)
		defer cancel()
		if err := writer.Write(brief, &nats.Msg{Subject: subject, Data: []byte(id)}); err != nil {
			w.outcome(id, subject, take(id).from, err)
		}
		if n%25 == 0 {
			flush()
		}
	})
	flush()
	w.drained(ctx)
	return nil
}

// batchSize is how many messages a batch has. Their ids end with their place in it.
const batchSize = 4

func publishBatches(ctx context.Context, w *worker) error {
	w.each(ctx, 400*time.Millisecond, func(n int) {
		var msgs []*nats.Msg
		var froms []int64
		for i := range batchSize {
			m := &nats.Msg{Subject: w.subject(), Data: fmt.Append(nil, w.id(n), "/", i)}
			msgs = append(msgs, m)
			froms = append(froms, w.sending(string(m.Data), m.Subject))
		}
		brief, cancel := context.WithTimeout(ctx, attempt)
		defer cancel()
		err := w.c.PublishBatch(brief, msgs)
		for i, m := range msgs {
			w.outcome(string(m.Data), m.Subject, froms[i], err)
		}
	})
	w.drained(ctx)
	return nil
}

func schedule(ctx context.Context, w *worker) error {
	w.each(ctx, 800*time.Millisecond, func(n int) {
		id, subject := w.id(n), "w.sched.a.k0"
		from := w.sending(id, subject)
		due := time.Now().Add(time.Second + rand.N(5*time.Second))
		brief, cancel := context.WithTimeout(ctx, attempt)
		defer cancel()
		err := w.c.Schedule(brief, natty.Schedule{
			ID: fmt.Sprintf("%s-%d-%d", w.Name, w.Life, n), At: due, Msg: &nats.Msg{Subject: subject, Data: []byte(id)},
		})
		w.log.Add(history.Event{What: history.Call, Op: "schedule", ID: id, N: history.FromWall(due)})
		w.outcome(id, subject, from, err)
	})
	w.drained(ctx)
	return nil
}

// publishSmall also writes down the sequence: what is removed cannot be read any more.
func (w *worker) publishSmall(ctx context.Context, id string) {
	const subject = "small.small.a.k0"
	e := history.Event{What: history.Acked, From: w.sending(id, subject), ID: id, Subject: subject}
	brief, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	ack, err := w.c.PublishMsg(brief, &nats.Msg{Subject: subject, Data: []byte(id)})
	if err != nil {
		w.outcome(id, subject, e.From, err)
		return
	}
	e.Seq = ack.Sequence
	w.log.Add(e)
}

// fill publishes more than the small stream can keep, in bursts.
func fill(ctx context.Context, w *worker) error {
	w.each(ctx, 8*time.Second, func(n int) {
		for i := range 3 * SmallMax {
			w.publishSmall(ctx, fmt.Sprint(w.id(n), "/", i))
		}
	})
	w.drained(ctx)
	return nil
}
