package faulttest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// twoWays returns a client that connects through a link, and around it when it connects again.
func twoWays(t testing.TB, server *nattytest.Node) (*natty.Client, *nattytest.Link) {
	t.Helper()
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	c := testkit.Connect(t, natty.Config{Servers: []string{link.URL(), server.URL()}}, natty.WithNATSOptions(nats.DontRandomize()))
	require.Equal(t, link.URL(), c.Health().Server)
	return c, link
}

// inTerm leads until the end of the test, and returns the term.
func inTerm(t testing.TB, c *natty.Client, cfg natty.AsLeaderConfig) *natty.Term {
	t.Helper()
	terms := make(chan *natty.Term, 1)
	testkit.Lead(t, c, cfg, func(ctx context.Context, term *natty.Term) error {
		terms <- term
		<-ctx.Done()
		return nil
	})
	return testkit.Receive(t, terms)
}

// answers returns a function that waits until the server has seen a message with these bytes, and returns its answer.
func answers(t testing.TB, server *nattytest.Node, subject string) func(data string) string {
	t.Helper()
	nc := testkit.ConnectTo(t, server.URL()).Conn()
	seen, answered := make(chan *nats.Msg, 1000), make(chan *nats.Msg, 1000)
	for subject, ch := range map[string]chan *nats.Msg{subject: seen, "_INBOX.>": answered} {
		_, err := nc.ChanSubscribe(subject, ch)
		require.NoError(t, err)
	}
	require.NoError(t, nc.Flush())
	return func(data string) string {
		t.Helper()
		m := testkit.Receive(t, seen)
		for string(m.Data) != data {
			m = testkit.Receive(t, seen)
		}
		answer := testkit.Receive(t, answered)
		for answer.Subject != m.Reply {
			answer = testkit.Receive(t, answered)
		}
		return string(answer.Data)
	}
}

// What is stuck in a connection that is given up comes in later, when the network says so.
func TestOlderPutIsNotStoredOverANewerOneOfItsTerm(t *testing.T) {
	t.Parallel()
	for name, putOlder := range map[string]func(t *testing.T, c *natty.Client, put func(context.Context) error){
		"of unknown outcome": func(t *testing.T, c *natty.Client, put func(context.Context) error) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			require.ErrorIs(t, put(ctx), natty.ErrOutcomeUnknown)
			require.NoError(t, c.Conn().ForceReconnect())
		},
		"that was repeated, and comes in after the duplicate window": func(t *testing.T, c *natty.Client, put func(context.Context) error) {
			sent := c.Conn().Stats().OutMsgs
			done := make(chan error, 1)
			go func() { done <- put(testkit.Ctx(t)) }()
			// Behind a look at the key, which gets no answer.
			testkit.Eventually(t, func() bool { return c.Conn().Stats().OutMsgs > sent+1 }, "it is sent")
			require.NoError(t, c.Conn().ForceReconnect())
			require.NoError(t, testkit.Receive(t, done))
			<-time.After(300 * time.Millisecond) // more than the window
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			c, link := twoWays(t, server)
			cfg := testkit.Electing("a")
			cfg.BucketTTL = 30 * time.Second // there is time to connect again
			term := inTerm(t, c, cfg)
			direct := testkit.ConnectTo(t, server.URL())
			stream, err := direct.JetStream().Stream(testkit.Ctx(t), "KV_elections")
			require.NoError(t, err)
			settings := stream.CachedInfo().Config
			settings.Duplicates = 100 * time.Millisecond
			_, err = direct.JetStream().UpdateStream(testkit.Ctx(t), settings)
			require.NoError(t, err)
			require.NoError(t, term.Put(testkit.Ctx(t), "state", nil)) // what the key is was looked up
			answer := answers(t, server, "$KV.elections.state")

			link.Freeze()
			putOlder(t, c, func(ctx context.Context) error { return term.Put(ctx, "state", []byte("older")) })
			require.NoError(t, term.Put(testkit.Ctx(t), "state", []byte("newer")))
			assert.Contains(t, answer("newer"), `"seq"`)
			link.Thaw()
			assert.Contains(t, answer("older"), "10071", "what came late is refused")
			value, err := direct.Get(testkit.Ctx(t), "elections", "state")
			require.NoError(t, err)
			assert.Equal(t, "newer", string(value))

			// And the term goes on.
			require.NoError(t, term.Put(testkit.Ctx(t), "state", []byte("newest")))
			leader, err := direct.GetLeader(testkit.Ctx(t), "elections", "job")
			require.NoError(t, err)
			assert.Equal(t, "a", leader)
			var config *natty.ConfigError
			require.ErrorAs(t, term.Put(testkit.Ctx(t), "job._term", nil), &config)
		})
	}
}

func TestFenceThatIsRenewedWithoutAnAnswerIsTheTermsStill(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, link := twoWays(t, server)
	cfg := testkit.Electing("a")
	cfg.BucketTTL = 30 * time.Second
	term := inTerm(t, c, cfg)
	require.NoError(t, term.Put(testkit.Ctx(t), "state", nil))
	renewals := make(chan *nats.Msg, 100)
	_, err := testkit.ConnectTo(t, server.URL()).Conn().ChanSubscribe("$KV.elections.job._term", renewals)
	require.NoError(t, err)

	// The write comes in, and its answer does not.
	link.FreezeReplies()
	for _, unknown := range []bool{true, false} { // the second one waits for the fence
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := term.Put(ctx, "state", []byte("old"))
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, unknown, errors.Is(err, natty.ErrOutcomeUnknown))
	}
	testkit.Receive(t, renewals)
	require.NoError(t, c.Conn().ForceReconnect())
	require.NoError(t, term.Put(testkit.Ctx(t), "state", []byte("new")))
	value, err := testkit.ConnectTo(t, server.URL()).Get(testkit.Ctx(t), "elections", "state")
	require.NoError(t, err)
	assert.Equal(t, "new", string(value))
}

func TestPutThatLosesItsConnectionForGoodSaysThatItMayBeWritten(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	c := testkit.Connect(t, natty.Config{Servers: []string{link.URL()}, DisableReconnect: true})
	cfg := testkit.Electing("a")
	cfg.BucketTTL = 30 * time.Second // the term outlives the connection
	term := inTerm(t, c, cfg)
	require.NoError(t, term.Put(testkit.Ctx(t), "state", nil))
	answer := answers(t, server, "$KV.elections.state")
	link.FreezeReplies()
	done := make(chan error, 1)
	go func() { done <- term.Put(testkit.Ctx(t), "state", []byte("stored")) }()
	require.Contains(t, answer("stored"), `"seq"`)
	link.Cut()
	require.ErrorIs(t, testkit.Receive(t, done), natty.ErrOutcomeUnknown)
}
