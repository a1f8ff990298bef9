package work

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/history"
)

// Durables are the groups of workers that handle messages together.
var Durables = map[string]string{"plain": Work, "order": Work, "excl": Work, "dead": Work, "small": Small, "full": Full}

// Buries reports whether a durable dead-letters what fails for good.
func Buries(durable string) bool { return durable == "dead" || durable == "full" }

// PlainFilters is how many filters both versions of the plain consumer ask for together.
const PlainFilters = 3

var errUnlucky = errors.New("unlucky")

// handling writes down that a handler runs, and how it ends.
func (w *worker) handling(h natty.Handler) natty.Handler {
	return func(ctx context.Context, msg *nats.Msg) error {
		d, _ := natty.DeliveryFrom(ctx)
		e := history.Event{ID: string(msg.Data), Subject: msg.Subject, Seq: d.Sequence, N: int64(d.Attempt)}
		add := func(what history.What, text string) {
			e := e
			e.What, e.Text = what, text
			w.log.Add(e)
		}
		add(history.Begun, "")
		ended := context.AfterFunc(ctx, func() { add(history.Distrust, "") })
		defer func() {
			if p := recover(); p != nil {
				add(history.Failed, fmt.Sprint("panic: ", p))
				panic(p) // natty's to deal with
			}
		}()
		err := h(ctx, msg)
		ended()
		switch {
		case err == nil:
			add(history.Done, "")
		case natty.IsPermanent(err):
			add(history.Fatal, err.Error())
		default:
			add(history.Failed, err.Error())
		}
		return err
	}
}

// sometimes fails one time in n, every other time with a panic, and takes up to d.
func sometimes(n int, d time.Duration) natty.Handler {
	return func(ctx context.Context, _ *nats.Msg) error {
		pause(ctx, d)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch rand.IntN(2 * n) {
		case 0:
			return errUnlucky
		case 1:
			panic(errUnlucky)
		}
		return nil
	}
}

// consume runs a consumer until ctx ends.
func (w *worker) consume(ctx context.Context, cfg natty.ConsumerConfig, h natty.Handler) error {
	cfg.OnError = w.onError
	if cfg.Durable == "" {
		cfg.Durable = w.Role
	}
	cfg.DrainTimeout = 10 * time.Second
	return w.c.Process(ctx, cfg, w.handling(h))
}

// consumePlain is in two versions: the older one knows fewer subjects.
func consumePlain(ctx context.Context, w *worker) error {
	cfg := natty.ConsumerConfig{
		Stream: Work, Subjects: []string{"w.plain.a.>", "w.sched.>"}, Concurrency: 4, AckWait: 5 * time.Second,
		Backoff: natty.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second},
	}
	if w.Version > 1 {
		cfg.Subjects = append(cfg.Subjects, "w.plain.b.>")
		cfg.Concurrency = 8
	}
	return w.consume(ctx, cfg, sometimes(30, 60*time.Millisecond))
}

func consumeOrdered(ctx context.Context, w *worker) error {
	return w.consume(ctx, natty.ConsumerConfig{
		Stream: Work, Subjects: []string{"w.order.>"}, Concurrency: 4, AckWait: 5 * time.Second,
		OrderBy: func(m *nats.Msg) string { return KeyOf(m.Subject) },
		Backoff: natty.Backoff{Min: 50 * time.Millisecond, Max: time.Second},
	}, sometimes(20, 30*time.Millisecond))
}

func consumeExclusively(ctx context.Context, w *worker) error {
	cfg := natty.ConsumerConfig{
		Stream: Work, Subjects: []string{"w.excl.>"}, Exclusive: true, AckWait: 6 * time.Second,
		Backoff: natty.Backoff{Min: 20 * time.Millisecond, Max: 500 * time.Millisecond},
	}
	if w.Version > 1 {
		cfg.AckWait = 5 * time.Second
	}
	return w.consume(ctx, cfg, sometimes(50, 10*time.Millisecond))
}

// Deadly reports whether the handler of a message fails for good, and whether it says so
// at its first attempt.
func Deadly(id string) (deadly, atOnce bool) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails (package hash)
	return h.Sum32()%3 != 0, h.Sum32()%3 == 1
}

// Mends reports whether a deadly message is accepted once it was redriven.
func Mends(id string) bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // as above
	return h.Sum32()%2 == 0
}

// DeadLetters is the subject of dead letters.
const DeadLetters = "dead.work"

var errDeadly = errors.New("deadly")

func consumeDeadly(ctx context.Context, w *worker) error {
	stream, subject := Work, "w.dead.>"
	if w.Role == "full" {
		stream, subject = Full, "full.>"
	}
	return w.consume(ctx, natty.ConsumerConfig{
		Stream: stream, Subjects: []string{subject}, Concurrency: 2, AckWait: 5 * time.Second,
		MaxDeliver: 3, DeadLetter: DeadLetters, Backoff: natty.Backoff{Min: 20 * time.Millisecond, Max: 200 * time.Millisecond},
	}, func(ctx context.Context, m *nats.Msg) error {
		pause(ctx, 20*time.Millisecond)
		d, _ := natty.DeliveryFrom(ctx)
		switch deadly, atOnce := Deadly(string(m.Data)); {
		case d.Redrives > 0 && Mends(string(m.Data)):
			return nil
		case atOnce:
			return natty.Permanent(errDeadly)
		case deadly:
			return errDeadly
		}
		return nil
	})
}

// consumeSmall consumes from a stream that removes messages at its limit. It is slow and
// holds few, so that there are some to remove.
func consumeSmall(ctx context.Context, w *worker) error {
	return w.consume(ctx, natty.ConsumerConfig{
		Stream: Small, Subjects: []string{"small.>"}, AckWait: 5 * time.Second, MaxPollRecords: 5,
	}, sometimes(50, 200*time.Millisecond))
}

// GroupOf returns the durable that handles messages of a subject.
func GroupOf(subject string) string {
	tokens := strings.Split(subject, ".")
	if len(tokens) < 2 {
		return ""
	}
	if tokens[1] == "sched" {
		return "plain"
	}
	return tokens[1]
}

// KeyOf returns the last token of a subject.
func KeyOf(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }
