package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/instances"
	"github.com/natty-go/natty/examples/internal/setup"
)

// instanceBucket is what an instance learns from its environment, beside what setup.Server reads.
const instanceBucket = "SINGLETON_BUCKET"

// instance is the whole of each of the three processes: a service that does the job while it leads, until it is told to stop.
func instance(ctx context.Context, name, bucket string, in io.Reader, out io.Writer) (err error) {
	ctx, stop := instances.UntilTold(ctx, in)
	defer stop()
	cfg, stopServer, err := setup.Server("singleton")
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

	fmt.Fprintln(out, name, "ready")
	return client.Lead(ctx, natty.AsLeaderConfig{
		Bucket:    bucket,
		Key:       "job", // a bucket has room for many elections
		NodeName:  name,
		BucketTTL: 2 * time.Second, // for how long nobody works after a leader has died; the default is ten seconds
	}, func(ctx context.Context, term *natty.Term) error {
		for ctx.Err() == nil { // it ends before another one can lead
			began := time.Now()
			if !step(ctx) {
				return nil // stands by again, or is told to stop
			}
			fmt.Fprintln(out, name, "worked", term.Token(), began.UnixNano(), time.Now().UnixNano())
		}
		return nil
	})
}

// step is a bit of the job. False says that it could not be done to the end.
func step(ctx context.Context) bool {
	select {
	case <-time.After(5 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}
