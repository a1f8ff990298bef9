package publish

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/internal/jsapi"
)

func TestAMessageThatIsReadBackIsOwnIfItIsNotOlderThanTheFirstAttempt(t *testing.T) {
	t.Parallel()
	first := time.Now()
	server := first.Add(time.Hour) // its clock is another one
	// The answer with the server's time was there three seconds after the first attempt.
	p := publication{
		id: "a", first: first, looked: first.Add(3 * time.Second),
		stream: &jetstream.StreamInfo{TimeStamp: server.Add(3 * time.Second)},
	}
	message := func(id string, after time.Duration) *jsapi.StoredMsg {
		return &jsapi.StoredMsg{Header: []byte("NATS/1.0\r\nNats-Msg-Id: " + id + "\r\n\r\n"), Time: server.Add(after)}
	}
	for _, test := range []struct {
		m         *jsapi.StoredMsg
		same, own bool
	}{
		{message("a", time.Millisecond), true, true},
		{message("a", -time.Millisecond), true, false},
		{message("b", time.Millisecond), false, false},
	} {
		same, own := p.isOwn(test.m)
		assert.Equal(t, test.same, same)
		assert.Equal(t, test.own, own)
	}
	p.ownID = true
	_, own := p.isOwn(message("a", -time.Millisecond))
	assert.True(t, own, "nobody else has an id that natty made")
}
