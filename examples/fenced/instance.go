package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

// What an instance learns from its environment, beside what setup.Server reads.
const (
	instanceBucket  = "FENCED_BUCKET"
	instanceStorage = "FENCED_STORAGE"
)

// stateKey is what leaders write, in the bucket of their election.
const stateKey = "state"

// instance is the whole of each of the two processes: a service that writes while it leads, until it is told to stop.
func instance(ctx context.Context, name string, in io.Reader, out io.Writer) (err error) {
	ctx, stop := instances.UntilTold(ctx, in)
	defer stop()
	cfg, stopServer, err := setup.Server("fenced")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	client, err := connect(ctx, cfg)
	if err != nil && ctx.Err() != nil {
		return nil // told to stop already
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()

	w := writer{name: name, client: client, bucket: os.Getenv(instanceBucket), storage: os.Getenv(instanceStorage), out: out, told: ctx}
	defer fmt.Fprintln(out, name, "ended")
	return client.Lead(ctx, natty.AsLeaderConfig{
		Bucket:    w.bucket,
		Key:       "writer",
		NodeName:  name,
		BucketTTL: time.Second, // how long it takes until another one follows a leader that is paused; the default is ten seconds
	}, w.lead)
}

// writer writes numbers, where the last leader's end.
type writer struct {
	name, bucket, storage string
	client                *natty.Client
	out                   io.Writer
	told                  context.Context //nolint:containedctx // it ends when the instance is told to stop
}

// stubborn is how often a writer writes after its term.
const stubborn = 5

// lead writes for as long as it leads, and a little longer. A leader is to heed its ctx, which ends with the term; this one
// does not look at it, as if it were in the middle of something, so that there is something to refuse.
func (w writer) lead(ctx context.Context, term *natty.Term) error {
	n, err := w.last(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(w.out, w.name, "leads", term.Token())
	for late := 0; late < stubborn && w.told.Err() == nil; {
		if ctx.Err() != nil {
			late++
		}
		n++
		data, token := state(n, term.Token()), term.Token()
		w.try("nats", token, n, func(ctx context.Context) error { return term.Put(ctx, stateKey, []byte(data)) })
		w.try("storage", token, n, func(ctx context.Context) error { return store(ctx, w.storage, token, data) })
		time.Sleep(5 * time.Millisecond)
	}
	if w.told.Err() == nil {
		fmt.Fprintln(w.out, w.name, "gave up")
	}
	return nil // to stand by again, or to end
}

// state is what is written.
func state(n int, token uint64) string { return fmt.Sprintf("%d of token %d", n, token) }

// last returns where the last leader ended.
func (w writer) last(ctx context.Context) (n int, err error) {
	state, err := w.client.Get(ctx, w.bucket, stateKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil
	}
	if err == nil {
		_, err = fmt.Sscan(string(state), &n)
	}
	return n, err
}

// try writes, and says what came of it and when it began.
func (w writer) try(where string, token uint64, n int, write func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	began, outcome := time.Now(), "written"
	err := write(ctx)
	switch {
	case errors.Is(err, natty.ErrDeposed):
		outcome = "refused"
	case err != nil:
		outcome = "failed"
	}
	fmt.Fprintln(w.out, w.name, where, outcome, token, n, began.UnixNano())
}
