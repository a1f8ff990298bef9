package serverurl

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestAListIsSplitAtTheCommasBetweenServers(t *testing.T) {
	t.Parallel()
	for list, want := range map[string][]string{
		"":                         nil,
		" , ,":                     nil,
		"a":                        {"nats://a"},
		"a:4222,b:4222":            {"nats://a:4222", "nats://b:4222"},
		" tls://a , ws://b/path ,": {"tls://a", "ws://b/path"},
		"nats://u:p@a,b":           {"nats://u:p@a", "nats://b"},
		"u:p@a,b":                  {"nats://u:p@a", "nats://b"},
		"a,nats://u:p@b":           {"nats://a", "nats://u:p@b"},
		// Commas in passwords.
		"nats://u:p,q@a,b":             {"nats://u:p,q@a", "nats://b"},
		"u:p,q@a":                      {"nats://u:p,q@a"},
		"tls://a,nats://u:p,q,r,s@b,c": {"tls://a", "nats://u:p,q,r,s@b", "nats://c"},
		"nats://u:p,q@a,b,r@c":         {"nats://u:p,q@a,b,r@c"},
	} {
		assert.Equal(t, want, Split(list), "%q", list)
	}
}

func TestWhatIsNoServerIsRefused(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"nats://a", "nats://a:4222", "tls://[::1]:4222", "nats://u:p@a", "nats://token@a", "nats://u:p%2Cq%40@a", "wss://a/path?q=1", "http://a",
	} {
		assert.NotNil(t, Parse(s), s)
	}
	for _, s := range []string{
		"", "a", "a:4222", "nats://", "nats://:4222", "nats://a:port", "nats://u:p%zz@a", "nats:a@b", "nats://u:p,q@a",
		"nats://u:12/3@a", "nats://u:12?3@a", "nats://u:12#3@a", "nats://u:1 2@a", "nats://u:1\n2@a",
	} {
		assert.Nil(t, Parse(s), s)
	}
}

func TestRedactShowsSchemesAndHostsOnly(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"":                                    "",
		"a":                                   "nats://a",
		"tls://a:4222,nats://u:p@b":           "tls://a:4222,nats://[redacted]@b",
		"nats://token@a":                      "nats://[redacted]@a",
		"ws://a/secret?token=secret#secret":   "ws://a",
		"nats://u:12,3@a":                     "[redacted]",
		"nats://b,nats://u:12/3@a":            "nats://b,[redacted]",
		"nats://u:12,secret,3,4@a,tls://b":    "[redacted],tls://b",
		"tls://b,u:12,secret,secret,secret@a": "[redacted]",
	} {
		assert.Equal(t, want, Redact(list), "%q", list)
		assert.Equal(t, want, redactEach(list), "%q, once it is split", list)
	}
}

// redactEach redacts a list whose servers are kept one by one.
func redactEach(list string) string {
	servers := Split(list)
	for i, s := range servers {
		servers[i] = Redact(s)
	}
	return strings.Join(servers, ",")
}

// lists are lists with room for a password at the %.
var lists = []string{"nats://u:%@a", "u:%@a", "nats://%@a:1", "tls://a,nats://u:%@b,ws://c", "a,nats://u:%@b,c"}

func FuzzNoPasswordSurvivesRedact(f *testing.F) {
	for _, around := range [][2]string{
		{"", ""}, {"1,", ""}, {"1/", ""}, {"1?", "#"}, {"1#", "/"}, {"a,", ",b"}, {"a,", ",b,c"}, {"1,2,", ",3,"}, {"@", "@"},
		{",@", ","}, {"%", "%zz"}, {"://", "://"}, {" ", "\n"}, {"[", "]"}, {":", ":"}, {"\\", "%2C"}, {"u:", ""}, {"//", "//"},
	} {
		for i := range lists {
			f.Add(uint8(i), around[0], around[1])
		}
	}
	const secret = "hunter2"
	f.Fuzz(func(t *testing.T, i uint8, before, after string) {
		password := before + secret + after
		if strings.Contains(password, ",") && strings.Contains(password, "://") {
			t.Skip("it looks like the next server of the list")
		}
		list := strings.Replace(lists[int(i)%len(lists)], "%", password, 1)
		for _, shown := range []string{Redact(list), redactEach(list)} {
			if strings.Contains(strings.ToLower(shown), secret) {
				t.Errorf("%q is shown as %q", list, shown)
			}
		}
	})
}

func TestWithoutLoginKeepsTheRestOfAURL(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"nats://u:p@h:1":   "nats://h:1",
		"nats://token@h":   "nats://h",
		"ws://u:p@h/a?b=c": "ws://h/a?b=c",
		"nats://h:1":       "nats://h:1",
		"nats://u:p/@h":    "nats://u:p/@h", // no URL: whoever checks the list says so
	} {
		assert.Equal(t, want, WithoutLogin(s), s)
	}
}
