package respmux

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

// app is a user who may subscribe to one subject.
func app(allowed string) []*server.User {
	return []*server.User{{Username: "app", Password: "secret", Permissions: &server.Permissions{
		Subscribe: &server.SubjectPermission{Allow: []string{allowed}},
	}}}
}

// open connects, and brings refusals to a Mux.
func open(t *testing.T, url string, opts ...nats.Option) (*nats.Conn, *Mux) {
	t.Helper()
	ready := make(chan struct{})
	var mux *Mux
	nc, err := nats.Connect(url, append(opts, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		<-ready
		subject := ""
		if _, after, found := strings.Cut(err.Error(), `Subscription to "`); found {
			subject, _, _ = strings.Cut(after, `"`)
		}
		mux.Refused(subject, err)
	}))...)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	mux, err = New(nc)
	require.NoError(t, err)
	t.Cleanup(mux.Close)
	close(ready)
	return nc, mux
}

// becomes waits until the Mux can or cannot get answers.
func becomes(t *testing.T, mux *Mux, refused bool) {
	t.Helper()
	require.Eventually(t, func() bool { return errors.Is(mux.Err(), ErrInbox) == refused }, 10*time.Second, time.Millisecond)
}

func TestInboxIsSubscribedToAgainOnceThatIsPermitted(t *testing.T) {
	t.Parallel()
	var later server.Options
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Users = app("nothing")
		later = *o
	}))
	nc, mux := open(t, node.URL(), nats.UserInfo("app", "secret"))
	w, _, reply := mux.Expect("a", 0)
	require.NoError(t, nc.PublishRequest("a", reply, nil))
	err := (<-w.Answer).Err
	require.ErrorIs(t, err, ErrInbox, "who waits learns of it")
	require.ErrorIs(t, err, nats.ErrPermissionViolation)
	require.ErrorContains(t, err, `"_INBOX.>"`)
	becomes(t, mux, true)
	_, err = mux.Request(t.Context(), nc, "a", nil)
	require.ErrorIs(t, err, ErrInbox, "who asks later learns of it at once")
	assert.Empty(t, mux.pending, "nothing is sent")

	later.Users = app("_INBOX.>")
	require.NoError(t, node.Server().ReloadOptions(&later))
	becomes(t, mux, false)
	answer, err := mux.Request(t.Context(), nc, "a", nil)
	require.NoError(t, err)
	assert.True(t, NoResponders(answer))

	later.Users = app("nothing") // and taken away from a subscription that worked
	require.NoError(t, node.Server().ReloadOptions(&later))
	becomes(t, mux, true)
}

func TestInboxBeyondTheLimitOfSubscriptionsIsTriedAgain(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.MaxSubs = 1 }))
	nc, err := nats.Connect(node.URL())
	require.NoError(t, err)
	defer nc.Close()
	_, mux := open(t, node.URL())
	require.Never(t, func() bool { return mux.Err() != nil }, 100*time.Millisecond, time.Millisecond)
	mux.Refused("", nats.ErrMaxSubscriptionsExceeded) // another subscription than this one
	require.Never(t, func() bool { return mux.Err() != nil }, 300*time.Millisecond, time.Millisecond)

	sub, err := nc.SubscribeSync("a")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	late, err := Subscribe(nc, "b", func(*nats.Msg) {}, func(error) {})
	require.NoError(t, err)
	defer late.End()
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { late.Refused("", err) })
	late.Refused("", nats.ErrMaxSubscriptionsExceeded)
	require.Eventually(t, func() bool { return late.Err() != nil }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, late.Err(), nats.ErrMaxSubscriptionsExceeded)
	require.NoError(t, sub.Unsubscribe())
	require.Eventually(t, func() bool { return late.Err() == nil }, 10*time.Second, time.Millisecond)
}
