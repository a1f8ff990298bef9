package natty_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
)

func ExampleClient_Put() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	// The first write creates the bucket. This key lives for an hour, unless it is refreshed.
	if err := c.Put(ctx, "sessions", "ada", []byte("logged in"), time.Hour); err != nil {
		panic(err)
	}
	value, err := c.Get(ctx, "sessions", "ada")
	fmt.Println(string(value), err)
	fmt.Println(c.Refresh(ctx, "sessions", "ada"))

	// Of several that create a key, one succeeds.
	err = c.Create(ctx, "sessions", "ada", []byte("me too"))
	fmt.Println(errors.Is(err, jetstream.ErrKeyExists))

	fmt.Println(c.Delete(ctx, "sessions", "ada"))
	_, err = c.Get(ctx, "sessions", "ada")
	fmt.Println(errors.Is(err, jetstream.ErrKeyNotFound))
	// Output:
	// logged in <nil>
	// <nil>
	// true
	// <nil>
	// true
}

// EnsureBucket makes a bucket with settings of yours, or changes one that is there.
func ExampleClient_EnsureBucket() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	_, err := c.EnsureBucket(ctx, jetstream.KeyValueConfig{Bucket: "sessions", TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	for _, key := range []string{"bob", "ada"} {
		if err := c.Put(ctx, "sessions", key, nil); err != nil {
			panic(err)
		}
	}
	fmt.Println(c.Keys(ctx, "sessions"))
	status, err := c.Status(ctx, "sessions")
	fmt.Println(status.TTL(), err)
	fmt.Println(c.DeleteBucket(ctx, "sessions"))
	// Output:
	// [ada bob] <nil>
	// 1h0m0s <nil>
	// <nil>
}

func ExampleClient_Watch() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Put(ctx, "prices", "book.one", []byte("10")); err != nil {
		panic(err)
	}

	// Watch yields the present values, then every change. It survives restarts and lost
	// connections.
	for e, err := range c.Watch(ctx, "prices", "book.*") {
		if err != nil {
			panic(err)
		}
		fmt.Println(e.Key(), string(e.Value()))
		if e.Key() == "book.two" {
			break
		}
		if err := c.Put(ctx, "prices", "book.two", []byte("20")); err != nil {
			panic(err)
		}
	}
	// Output:
	// book.one 10
	// book.two 20
}

func ExampleNewBucket() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	type stock struct{ Books int }
	b, err := natty.NewBucket[stock](c, natty.BucketConfig{Bucket: "stock"})
	if err != nil {
		panic(err)
	}
	// Nobody's change is lost: when somebody else has written meanwhile, Modify calls the
	// function again, with the new value.
	for range 3 {
		err := b.Modify(ctx, "berlin", func(s stock) (stock, error) {
			s.Books++
			return s, nil
		})
		if err != nil {
			panic(err)
		}
	}

	// Cached keeps a copy up to date, which is read without a request to the server.
	cache, err := b.Cached(ctx)
	if err != nil {
		panic(err)
	}
	s, ok := cache.Get("berlin")
	fmt.Println(s.Books, ok, cache.Age() < time.Minute)
	// Output:
	// 3 true true
}

func ExampleClient_GetEntry() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Put(ctx, "prices", "book", []byte("10")); err != nil {
		panic(err)
	}

	// Update writes only if the key is still as it was read.
	e, err := c.GetEntry(ctx, "prices", "book")
	if err != nil {
		panic(err)
	}
	revision, err := c.Update(ctx, "prices", "book", []byte("12"), e.Revision())
	fmt.Println(string(e.Value()), revision > e.Revision(), err)
	// Output:
	// 10 true <nil>
}

func ExampleCache_Changed() {
	c, stop := exampleClient() // natty.Connect, to a server of its own
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	prices, err := natty.NewBucket[int](c, natty.BucketConfig{Bucket: "prices"})
	if err != nil {
		panic(err)
	}
	// Nobody has made the bucket yet: its copy is empty.
	cache, err := prices.Cached(ctx)
	if err != nil {
		panic(err)
	}
	changed := cache.Changed() // before the copy is read, so that no change is missed
	fmt.Println(len(maps.Collect(cache.All())))

	if err := prices.Put(ctx, "book", 10); err != nil {
		panic(err)
	}
	select {
	case <-changed:
	case <-ctx.Done():
	}
	fmt.Println(maps.Collect(cache.All()))
	// Output:
	// 0
	// map[book:10]
}
