package conn

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

func TestRefusedAcksOfADurableAreOneTrouble(t *testing.T) {
	t.Parallel()
	for subject, kind := range map[string]string{
		"$JS.ACK.S.d.1.2.3.4.5":               "publish $JS.ACK.S.d",
		"$JS.ACK.hub.acc.S.d.1.2.3.4.5":       "publish hub.acc.S.d",
		"$JS.ACK.hub.acc.S.d.1.2.3.4.5.token": "publish hub.acc.S.d",
		"orders.new":                          "publish orders.new",
	} {
		err := fmt.Errorf("%w: Permissions Violation for Publish to %q", nats.ErrPermissionViolation, subject)
		r, ok := refusalOf(err)
		require.True(t, ok)
		assert.Equal(t, subject, r.Subject)
		assert.False(t, r.Subscribe)
		assert.Equal(t, kind, r.kind())
	}
	_, ok := refusalOf(errors.New(`Permissions Violation for Publish to "a"`))
	assert.False(t, ok)
	r, ok := refusalOf(nats.ErrMaxSubscriptionsExceeded)
	assert.True(t, ok && r.Subscribe && r.Subject == "")
}

func TestRefusalsAreToldToAllAndReportedOncePerConnection(t *testing.T) {
	t.Parallel()
	link := nattytest.Proxy(t, nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Deny: []string{"p", "$JS.ACK.>"}},
			Subscribe: &server.SubjectPermission{Deny: []string{"s"}},
		}}}
	})).URL())
	opts := nats.GetDefaultOptions()
	opts.Servers, opts.User, opts.Password, opts.RetryOnFailedConnect = []string{link.URL()}, "u", "p", true
	events := make(chan Event, 100)
	cn := dialTo(t, &opts, false, events)
	require.NoError(t, cn.Await(t.Context()))
	refusals := make(chan Refusal, 100)
	stop := cn.Link.OnRefusal(func(r Refusal) { refusals <- r })
	provoke := func() {
		_, err := cn.NC.SubscribeSync("s")
		require.NoError(t, err)
		for i := range 3 {
			require.NoError(t, cn.NC.Publish(fmt.Sprintf("$JS.ACK.S.d.1.%d.3.4.5", i), nil))
			require.NoError(t, cn.NC.Publish("p", nil))
		}
		r := <-refusals
		assert.True(t, r.Subscribe)
		assert.Equal(t, "s", r.Subject)
		for range 6 {
			assert.False(t, (<-refusals).Subscribe)
		}
	}
	reported := func() (n int) {
		for len(events) > 0 {
			if e := <-events; errors.Is(e.Err, nats.ErrPermissionViolation) {
				n++
			}
		}
		return n
	}
	provoke()
	// The last refusal is told before it is found that it is not news.
	require.NoError(t, cn.NC.Publish("p", nil))
	<-refusals
	assert.Equal(t, 3, reported(), "of seven")
	stop()
	require.NoError(t, cn.NC.Publish("p", nil))
	require.NoError(t, cn.NC.Flush())
	cn.Close()
	assert.Empty(t, refusals)
}
