package natty_test

import (
	"context"
	"fmt"
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func ExampleWithObserver() {
	server, err := nattytest.Start()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// What a module for metrics would count.
	observe := natty.ObserverFunc(func(e natty.Event) {
		switch e := e.(type) {
		case natty.ConnectionEvent:
			fmt.Println("connected:", e.Connected)
		case natty.ElectionEvent:
			fmt.Println(e.NodeName, "leads:", e.Leading)
		default: // there may be more kinds in later versions
		}
	})
	client, err := natty.Connect(ctx, natty.Config{Name: "orders", Servers: []string{server.URL()}}, quiet, natty.WithObserver(observe))
	if err != nil {
		fmt.Println(err)
		return
	}
	err = client.Lead(ctx, natty.AsLeaderConfig{Bucket: "elections", Key: "orders", NodeName: "host-1"},
		func(context.Context, *natty.Term) error { return nil })
	if err != nil {
		fmt.Println(err)
	}
	if err := client.Close(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// connected: true
	// host-1 leads: true
	// host-1 leads: false
	// connected: false
}
