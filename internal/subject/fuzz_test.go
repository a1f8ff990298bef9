package subject

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
)

// FuzzNames: what natty accepts, the server accepts, and it reaches the server as it is.
// A subject is a part of a protocol line, and filters and names are also written in JSON.
func FuzzNames(f *testing.F) {
	for _, s := range []string{
		"", ".", "a", "a.b", "*", ">", "a.>", "a.>.b", "a..b", "a b", "a\r\nPUB b 0", "a\x00", "größe", "a\xff", "$KV.b.k", "a\u2028b",
		"a/b", `a\b`, `"`, "a\u00a0b", "a\u200bb", strings.Repeat("a", 256), strings.Repeat("a.", 2001) + "a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if InvalidFilter(s) == "" {
			assert.True(t, server.IsValidSubject(s), "%q is accepted as a filter", s)
			assert.Equal(t, s, throughJSON(t, s))
		}
		if Unpublishable(s) == "" {
			assert.True(t, server.IsValidPublishSubject(s), "%q is accepted to publish to", s)
			assert.Equal(t, utf8.ValidString(s), InvalidFilter(s) == "", "%q can be published to, and so received", s)
			assert.Len(t, strings.Fields("PUB "+s+" 0"), 3, "%q", s)
		}
		if InvalidName(s) == "" {
			assert.Equal(t, s, throughJSON(t, s))
			if s != "" {
				assert.Empty(t, Unpublishable("$JS.API.STREAM.INFO."+s), "%q is accepted as a name", s)
				assert.Equal(t, 4, strings.Count("$JS.API.STREAM.INFO."+s, "."), "%q", s)
			}
		}
	})
}

func throughJSON(t *testing.T, s string) (back string) {
	t.Helper()
	data, err := json.Marshal(s)
	assert.NoError(t, err)
	assert.NoError(t, json.Unmarshal(data, &back))
	return back
}
