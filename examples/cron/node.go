package main

import (
	"context"
	"errors"
	"time"

	"github.com/relistan/go-director"

	"github.com/natty-go/natty"
)

// node is one of the two. They share a server and nothing else, as two processes would.
type node struct {
	name, bucket string
	began        time.Time // the first time at which the job is due is one interval later
	a            *account
}

// run does the job while this node leads, until ctx ends.
func (n node) run(ctx context.Context, cfg natty.Config) (err error) {
	cfg.Name = "cron-" + n.name
	client, err := connect(ctx, cfg)
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()
	done, err := natty.NewBucket[int](client, natty.BucketConfig{Bucket: n.bucket + "-DONE"})
	if err != nil {
		return err
	}
	return client.AsLeader(ctx, natty.AsLeaderConfig{
		Bucket:   n.bucket,
		Key:      "job",
		NodeName: n.name,
		// How often the leader looks whether the job is due. Each node's Looper turns at times of its own: if the job
		// were done on each turn, a new leader would do it too early or too late.
		Looper: director.NewTimedLooper(director.FOREVER, every/10, nil),
	}, func() error { return n.turn(ctx, done) })
}

var errNotDue = errors.New("it is not due")

// turn does the job if it is due. AsLeader's function is not told when the leadership ends, and might go on for a moment after
// that. So a tick is claimed before it is done, by compare-and-set: nobody does it again, and if this node dies now, nobody does
// it at all. Claimed afterwards, it would be done at least once, and now and then twice.
func (n node) turn(ctx context.Context, done *natty.Bucket[int]) error {
	// What has begun is finished, also when the node is to leave: AsLeader waits for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	due := int(time.Since(n.began) / every)
	tick := 0
	err := done.Modify(ctx, "last", func(last int) (int, error) {
		if last >= due {
			return 0, errNotDue
		}
		tick = last + 1 // not due itself: what nobody was there for is made up for
		return tick, nil
	})
	if errors.Is(err, errNotDue) {
		return nil
	}
	if err != nil {
		return err
	}
	began := time.Now()
	time.Sleep(every / 10) // the job
	n.a.note(work{name: n.name, tick: tick, began: began, end: time.Now()})
	return nil
}
