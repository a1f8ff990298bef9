package kv

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// FuzzKeys: a key that is accepted is a subject of its bucket and of no other, which the
// server accepts, and an API subject with it names one key.
func FuzzKeys(f *testing.F) {
	for _, key := range []string{
		"", "a", "a.b", "a/b-c_d=e.F1", "user:42", "ä", ".a", "a.", "a..b", "a b", "*", "a.>", ">", ">>", "a\r\nb", "a\xff", "_term", "a._term",
		strings.Repeat("k", maxKeyLen), strings.Repeat("k", maxKeyLen+1),
	} {
		f.Add("b-1_B", key)
	}
	f.Add("a.b", "k")
	f.Add("a b", "k")
	f.Add(strings.Repeat("b", 253), "k")
	s := offline()
	f.Fuzz(func(t *testing.T, bucket, key string) {
		subject, pattern := s.KeyTarget(bucket, key), s.validKeys(bucket, key) == nil
		if pattern {
			assert.True(t, server.IsValidSubject(subject), "%q", subject)
		}
		if s.ValidOldKey(bucket, key) == nil {
			assert.Equal(t, utf8.ValidString(key), pattern, "%q of %q: a key is a pattern, too", key, bucket)
			assert.True(t, server.IsValidPublishSubject(subject), "%q", subject)
			assert.Equal(t, bucket, strings.Split(subject, ".")[1], "another bucket's")
		}
		if s.ValidKey(bucket, key) == nil {
			require.NoError(t, s.ValidOldKey(bucket, key), "%q: what is written can be read", key)
			assert.Equal(t, strings.ToValidUTF8(key, ""), key)
		}
	})
}

// FuzzStoredValue reads a value from any headers. A bucket's subjects may be published to
// by anybody, and so may the inbox.
func FuzzStoredValue(f *testing.F) {
	for _, header := range []string{
		"", "NATS/1.0\r\n\r\n", "NATS/1.0 404 Message Not Found\r\n\r\n", "NATS/1.0 503\r\n\r\n",
		"NATS/1.0\r\nNats-Sequence: 7\r\nNats-Time-Stamp: 2026-01-02T03:04:05.000000006Z\r\n\r\n",
		"NATS/1.0\r\nNats-Sequence: -7\r\nNats-Time-Stamp: never\r\nKV-Operation: DEL\r\n\r\n",
		"NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nKV-Operation: PURGE\r\nNats-Sequence: 7\r\n\r\n",
	} {
		f.Add([]byte(header), []byte(`{"error":{"code":503}}`))
	}
	f.Fuzz(func(t *testing.T, header, data []byte) {
		h, err := nats.DecodeHeadersMsg(header)
		if err != nil {
			h = nil
		}
		var e entry
		if err := e.take(&nats.Msg{Header: h, Data: data}); err == nil {
			require.NotEmpty(t, h["Nats-Sequence"])
			require.Equal(t, data, e.value)
		}
		state := State{Seq: 5, Header: h, op: operation(h)}
		_, own := state.ttl(), state.ownHeader()
		for name := range own {
			assert.NotEqual(t, "Nats-Msg-Id", name)
		}
	})
}
