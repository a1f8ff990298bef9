package natty_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/natty-go/natty"
)

// One of all instances does the work. Its ctx ends before another one can begin, and what it writes with the term is refused
// by the server once another one leads.
func ExampleClient_Lead() {
	ctx := context.Background()
	c, err := natty.Connect(ctx, natty.Config{Name: "reports"})
	if err != nil {
		log.Fatal(err)
	}
	cfg := natty.AsLeaderConfig{Bucket: "elections", Key: "nightly", NodeName: "host-1", BucketTTL: 10 * time.Second}
	err = c.Lead(ctx, cfg, func(ctx context.Context, term *natty.Term) error {
		for n := 0; ; n++ {
			if err := term.Put(ctx, "nightly.progress", fmt.Append(nil, n)); err != nil {
				return err // ctx has ended, or another one leads
			}
		}
	})
	if err != nil {
		log.Fatal(err)
	}
}

// A lock that one process has at a time. What is done under it heeds the lease's ctx.
func ExampleClient_Lock() {
	ctx := context.Background()
	c, err := natty.Connect(ctx, natty.Config{Name: "printing"})
	if err != nil {
		log.Fatal(err)
	}
	lease, err := c.Lock(ctx, natty.LockConfig{Bucket: "locks", Key: "printer"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := lease.Release(ctx); err != nil {
			log.Print(err) // ErrDeposed: somebody else may have had the printer at the end
		}
	}()
	printPage := func(ctx context.Context, fencing uint64) { fmt.Println("printing", fencing, ctx.Err()) }
	printPage(lease.Context(), lease.Token())
}
