package nattywatermill_test

import (
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/testkit"
)

// It does what the suite's TestReconnect does, in a way that the race detector accepts.
func TestNothingIsLostWhileTheServerRestarts(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			pub, sub := b.make(t, "group", way.cfg)
			messages, err := sub.Subscribe(t.Context(), "topic")
			require.NoError(t, err)

			const publishers, each = 10, 100
			var publishing sync.WaitGroup
			published := make(chan string, publishers*each)
			for range publishers {
				publishing.Go(func() {
					for range each {
						msg := message.NewMessage(watermill.NewUUID(), []byte("x"))
						for pub.Publish("topic", msg) != nil {
							<-time.After(10 * time.Millisecond) // the server is away
						}
						published <- msg.UUID
					}
				})
			}
			restarted := make(chan error, 1)
			got := map[string]int{}
			for len(got) < publishers*each {
				msg := testkit.Receive(t, messages)
				got[msg.UUID]++
				msg.Ack()
				if len(got) == publishers*each/3 && got[msg.UUID] == 1 {
					go func() { restarted <- b.node.Restart() }()
				}
			}
			require.NoError(t, testkit.Receive(t, restarted))
			publishing.Wait()
			close(published)
			for uuid := range published {
				assert.Contains(t, got, uuid)
			}
			stream, err := b.client.JetStream().Stream(t.Context(), "WATERMILL")
			require.NoError(t, err)
			require.EqualValues(t, publishers*each, testkit.Stored(t, stream), "publishes that were retried are stored once")
		})
	}
}
