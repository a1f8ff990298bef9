package consumer

import (
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/internal/deadletter"
)

// FuzzNamesInALetter: names of a letter that anybody wrote go into subjects of
// JetStream's API. Those that are accepted stay within their place there.
func FuzzNamesInALetter(f *testing.F) {
	for _, name := range []string{
		"S", "S.d", "*", ">", "S 5\r\nPUB x 0", "S\tx", "S\x00", "", "S/d", "größe", "\xff", strings.Repeat("a", 256), "$SYS", "S.>",
	} {
		f.Add(name, "d", "s.a")
		f.Add("S", name, "s.a")
		f.Add("S", "d", name)
	}
	f.Fuzz(func(t *testing.T, stream, durable, subject string) {
		if checkNames(deadletter.Letter{Stream: stream, Durable: durable, Subject: subject}) != nil {
			return
		}
		api := "$JS.API.CONSUMER.INFO." + stream + "." + durable
		assert.True(t, server.IsValidPublishSubject(api), "%q", api)
		assert.Equal(t, 5, strings.Count(api, "."), "%q", api)
		assert.Len(t, strings.Fields(api), 1, "%q", api)
		assert.True(t, server.IsValidPublishSubject(subject), "%q", subject)
		assert.Len(t, strings.Fields(subject), 1, "%q", subject)
		assert.False(t, strings.HasPrefix(subject, "$"))
	})
}
