package natty_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func ExampleClient_Put() {
	server, err := nattytest.Start() // or a NATS server of your own
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := natty.Connect(ctx, natty.Config{Name: "shop", Servers: []string{server.URL()}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)

	// The first write makes the bucket. This key lives for an hour, unless it is refreshed.
	if err := c.Put(ctx, "sessions", "ada", []byte("logged in"), time.Hour); err != nil {
		fmt.Println(err)
		return
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

func ExampleClient_Watch() {
	server, err := nattytest.Start() // or a NATS server of your own
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := natty.Connect(ctx, natty.Config{Name: "shop", Servers: []string{server.URL()}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)
	if err := c.Put(ctx, "prices", "book.one", []byte("10")); err != nil {
		fmt.Println(err)
		return
	}

	// What is there, then what changes, through restarts and lost connections.
	for e, err := range c.Watch(ctx, "prices", "book.*") {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(e.Key(), string(e.Value()))
		if e.Key() == "book.two" {
			break
		}
		if err := c.Put(ctx, "prices", "book.two", []byte("20")); err != nil {
			fmt.Println(err)
			return
		}
	}
	// Output:
	// book.one 10
	// book.two 20
}

func ExampleNewBucket() {
	server, err := nattytest.Start() // or a NATS server of your own
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := natty.Connect(ctx, natty.Config{Name: "shop", Servers: []string{server.URL()}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close(ctx)

	type stock struct{ Books int }
	b, err := natty.NewBucket[stock](c, natty.BucketConfig{Bucket: "stock"})
	if err != nil {
		fmt.Println(err)
		return
	}
	// Nobody's change is lost: it is made again on what somebody else wrote meanwhile.
	for range 3 {
		err := b.Modify(ctx, "berlin", func(s stock) (stock, error) {
			s.Books++
			return s, nil
		})
		if err != nil {
			fmt.Println(err)
			return
		}
	}

	// A live copy is read without asking anybody.
	copied, err := b.Cached(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	s, ok := copied.Get("berlin")
	fmt.Println(s.Books, ok, copied.Age() < time.Minute)
	// Output:
	// 3 true true
}
