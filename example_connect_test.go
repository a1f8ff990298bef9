package natty_test

import (
	"context"
	"fmt"
	"time"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattytest"
)

func ExampleConnect() {
	server, err := nattytest.Start()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// Waits for a server until ctx ends. What can never work, such as a wrong password, is an error at once.
	client, err := natty.Connect(ctx, natty.Config{
		Name:    "orders",
		Servers: []string{server.URL()}, // default: $NATS_URL
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("connected:", client.Health().Connected)

	// Waits for running handlers, and for the server to have seen what was sent last.
	if err := client.Close(ctx); err != nil {
		fmt.Println(err)
	}
	fmt.Println("connected:", client.Health().Connected)
	// Output:
	// connected: true
	// connected: false
}
