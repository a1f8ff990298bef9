package publish

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/respmux"
)

// FuzzHeaders: a message with any headers is sent by Publish and by a Writer with all of
// them and an id, and is not written to. A caller who edits it later does not change what
// a Writer sends again.
func FuzzHeaders(f *testing.F) {
	f.Add("Trace", "1", "Trace", "2", "data")
	f.Add("Nats-Msg-Id", "mine", "nats-msg-id", "other", "")
	f.Add("", "\r\n", "a:b", "\x00\xff", "x")
	f.Add("Nats-Msg-Id", "", "Nats-TTL", "1s", "x")
	f.Add("Nats-Msg-Id", " ", "A", "mine ", "x")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, data string) {
		give := func() *nats.Msg {
			return &nats.Msg{Subject: "a", Data: []byte(data), Header: nats.Header{name1: {value1}, name2: {value2, value1}}}
		}
		id := messageID(give().Header)
		wants := func(got nats.Header) {
			want := give().Header
			if id == "" {
				require.NotEmpty(t, header(got, "Nats-Msg-Id"))
				want["Nats-Msg-Id"] = got["Nats-Msg-Id"]
			}
			require.Equal(t, want, got)
		}

		msg := give()
		clone := Clone(msg)
		clone.Header["Mine"] = []string{"x"}
		assert.Equal(t, give(), msg, "the copy is another one")

		w := writer(WriterConfig{})
		w.pub.API, w.pub.IDs = &jsapi.Client{Mux: &respmux.Mux{Prefix: "_INBOX.x."}}, NewIDs()
		for range 2 { // the second uses the memory of the first
			s := w.spare
			bytes, err := w.check(msg)
			require.NoError(t, err)
			w.pack(s, msg, bytes)
			assert.Equal(t, give(), msg)
			for _, values := range msg.Header {
				values[0] = "edited"
			}
			msg.Data = append(msg.Data[:0], "edited"...)
			wants(w.out.Header)
			require.Equal(t, data, string(w.out.Data))
			if id != "" {
				require.Equal(t, id, s.id)
			}
			require.Contains(t, w.out.Reply, w.pub.API.Mux.Prefix)
			msg = give()
		}
	})
}
