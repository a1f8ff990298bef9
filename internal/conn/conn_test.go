package conn

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

// dial connects to a server, and returns a channel of the events.
func dial(t *testing.T, url string, lazy bool) (*Conn, <-chan Event) {
	t.Helper()
	opts := nats.GetDefaultOptions()
	opts.Servers, opts.RetryOnFailedConnect = []string{url}, true
	events := make(chan Event, 16)
	return dialTo(t, &opts, lazy, events), events
}

func dialTo(t *testing.T, opts *nats.Options, lazy bool, events chan<- Event) *Conn {
	t.Helper()
	cn, err := Dial(t.Context(), Config{
		Options: opts, Lazy: lazy, Log: slog.New(slog.DiscardHandler), Notify: func(e Event) { events <- e },
	})
	require.NoError(t, err)
	t.Cleanup(cn.Close)
	return cn
}

// failures keeps the subjects whose publishes get no acknowledgement.
type failures chan string

func (f failures) Fail(subject string, _ error) { f <- subject }

func TestLazyConnectionBeginsWithStart(t *testing.T) {
	t.Parallel()
	url := nattytest.Server(t).URL()
	cn, events := dial(t, url, true)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, cn.Await(ended), context.Canceled)
	assert.Empty(t, events)
	cn.Start()
	require.NoError(t, cn.Await(t.Context()))
	assert.Equal(t, Event{Connected: true, Server: url}, <-events)
}

func TestLossIsReportedAndEndsTheWaitForAcks(t *testing.T) {
	t.Parallel()
	link := nattytest.Proxy(t, nattytest.Server(t).URL())
	cn, events := dial(t, link.URL(), false)
	require.NoError(t, cn.Await(t.Context()))
	assert.True(t, (<-events).Connected)
	failed := make(failures, 16)
	cn.Attach(failed)
	link.Cut()
	assert.Empty(t, <-failed, "every subject")
	for e := range events {
		assert.Equal(t, link.URL(), e.Server)
		if e.Connected && e.Err == nil { // an error may come before the change
			break
		}
	}
	assert.Equal(t, 1, cn.Link.State().Reconnects)
	cn.Close()
	assert.True(t, cn.Link.IsGone())
	require.ErrorIs(t, cn.Link.Wait(t.Context(), time.Time{}), ErrClosed)
}

func TestAdoptedConnectionStaysOpenWithItsHandler(t *testing.T) {
	t.Parallel()
	seen := make(chan error, 1)
	nc, err := nats.Connect(nattytest.Server(t).URL(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { seen <- err }))
	require.NoError(t, err)
	defer nc.Close()
	cn := Adopt(nc, slog.New(slog.DiscardHandler), func(Event) {})
	require.NoError(t, cn.Await(t.Context()))
	failed := make(failures, 16)
	cn.Attach(failed)

	denied := errors.Join(nats.ErrPermissionViolation, errors.New(`Permissions Violation for Publish to "a.b"`))
	nc.ErrorHandler()(nc, nil, denied)
	assert.Equal(t, denied, <-seen)
	assert.Equal(t, "a.b", <-failed)
	require.ErrorIs(t, cn.Link.State().LastErr, nats.ErrPermissionViolation)

	cn.Close()
	assert.True(t, nc.IsConnected())
	for len(failed) > 0 {
		<-failed
	}
	nc.ErrorHandler()(nc, nil, denied)
	assert.Equal(t, denied, <-seen)
	assert.Empty(t, failed, "natty is no longer concerned")
}

func TestWaitSaysWhyThereIsNoConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLink()
		err := l.Wait(t.Context(), time.Now().Add(time.Second))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "no answer from any server")

		refused := &answersError{[]error{&refusedError{"check the password", nats.ErrAuthorization}}}
		assert.True(t, l.setReason(refused))
		assert.False(t, l.setReason(nats.ErrAuthorization), "the bare cause says less")
		assert.False(t, l.setReason(errors.New(refused.Error())), "the same text")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = l.Wait(ctx, time.Time{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, nats.ErrAuthorization)

		go l.SetUp("nats://a")
		require.NoError(t, l.Wait(t.Context(), time.Now().Add(time.Hour)))
		assert.False(t, l.SetUp("nats://a"))
		since := time.Now()
		assert.Equal(t, State{Up: true, Since: since, EverUp: true, Server: "nats://a", LastErr: refused}, l.State())
		up, changed := l.Watch()
		assert.True(t, up)
		assert.True(t, l.SetDown())
		assert.False(t, l.SetDown())
		<-changed
		go l.setGone()
		require.ErrorIs(t, l.Wait(t.Context(), time.Time{}), ErrClosed)
		l.setGone()
	})
}

// stuckDialer dials until it is freed.
type stuckDialer chan net.Conn

func (d stuckDialer) Dial(string, string) (net.Conn, error) { return <-d, nil }

func TestInterruptEndsADialThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := make(stuckDialer)
		d := newDialer(&nats.Options{CustomDialer: stuck}, Login{}, nil)
		go func() { synctest.Wait(); d.interrupt() }()
		_, err := d.Dial("tcp", "a:1")
		require.ErrorIs(t, err, context.Canceled)
		late, other := net.Pipe()
		stuck <- late
		_, err = other.Read(make([]byte, 1))
		require.Error(t, err, "a connection that comes too late is closed")

		_, err = d.Dial("tcp", "a:1")
		require.ErrorIs(t, err, errBlocked)
		d.resume()
		mine, _ := net.Pipe()
		go func() { stuck <- mine }()
		got, err := d.Dial("tcp", "a:1")
		require.NoError(t, err)
		assert.Equal(t, mine, got.(*wire).Conn) //nolint:forcetypeassert // what Dial returns
		dialed, err := d.last()
		assert.True(t, dialed)
		require.NoError(t, err)
		d.interrupt()
		_, err = got.Read(make([]byte, 1))
		require.Error(t, err, "it ends the connection too")
	})
}

func TestAlertsAreExplainedByTheirNumber(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint8]string{42: "client's certificate", 116: "client's certificate", 40: "TLS handshake"} {
		assert.Contains(t, alertAdvice(alertError(n)), want)
	}
	assert.Empty(t, alertAdvice(alertError(80)))
	assert.Empty(t, alertAdvice(errors.New("no alert")))
}

type alertError uint8

func (alertError) Error() string { return "alert" }
