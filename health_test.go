package natty_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestWritersAreInHealth(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	t.Cleanup(link.Thaw)
	c := testkit.ConnectTo(t, link.URL())
	testkit.Ensure(t, c, "S", "s.>")
	other, err := c.NewWriter(natty.WriterConfig{MaxPending: 5})
	require.NoError(t, err)
	w, err := c.NewWriter(natty.WriterConfig{})
	require.NoError(t, err)
	require.NoError(t, w.Write(testkit.Ctx(t), &nats.Msg{Subject: "none", Data: []byte("x")}))
	require.Error(t, w.Flush(testkit.Ctx(t)))
	h := c.Health().Writers
	require.Len(t, h, 2)
	assert.Equal(t, natty.WriterHealth{MaxPending: 5, MaxPendingBytes: 64 << 20}, h[0])
	assert.Contains(t, h[1].LastError, "no stream holds")
	assert.Equal(t, natty.WriterHealth{MaxPending: 4096, MaxPendingBytes: 64 << 20, Failed: 1, LastError: h[1].LastError}, h[1])

	link.Freeze()
	require.NoError(t, w.Write(testkit.Ctx(t), &nats.Msg{Subject: "s.a", Data: []byte("12345")}))
	h = c.Health().Writers
	assert.Equal(t, 1, h[1].Pending)
	assert.Equal(t, len("s.a")+5, h[1].PendingBytes)
	link.Thaw()
	require.NoError(t, w.Flush(testkit.Ctx(t)))
	assert.Zero(t, c.Health().Writers[1].Pending)
	require.NoError(t, w.Close(testkit.Ctx(t)))
	require.NoError(t, other.Close(testkit.Ctx(t)))
	assert.Empty(t, c.Health().Writers)
}

func TestDurableThatIsNearItsLimitOfUnacknowledgedMessagesIsReported(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s")
	_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "test_s", MaxAckPending: 10, AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	report, errs := testkit.OnError()
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report},
		func(context.Context, *nats.Msg) error { return natty.RetryAfter(time.Hour, testkit.ErrHandler) })
	testkit.Eventually(t, func() bool { h := testkit.Only(c); return h.State == natty.ConsumerRunning && h.Warning == "" }, "all is well")
	testkit.Fill(t, c, "s", 8)
	testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).Warning, "8 messages") }, "80% is in Health")
	reported := false
	for !reported {
		reported = strings.Contains(testkit.Receive(t, errs).Error(), "max_ack_pending")
	}
}

func TestConsumerThatEndedStaysInHealthUntilItsDurableIsConsumedAgain(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	none := func(context.Context, *nats.Msg) error { return nil }
	err := c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"s"}}, none)
	require.ErrorIs(t, err, natty.ErrNoStream)
	h := c.Health().Consumers
	require.Len(t, h, 1)
	assert.Equal(t, "test_s", h[0].Durable)
	assert.Equal(t, natty.ConsumerStopped, h[0].State)
	assert.Equal(t, err.Error(), h[0].LastError)
	assert.WithinDuration(t, time.Now(), h[0].LastErrorAt, testkit.Patience)

	testkit.Ensure(t, c, "S", "s")
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}}, none)
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
	h = c.Health().Consumers
	require.Len(t, h, 1)
	assert.Empty(t, h[0].LastError)
	require.NoError(t, stop())
	assert.Empty(t, c.Health().Consumers, "it ended without an error")
}

func TestHealthKnowsSinceWhenTheOldestMessageIsHandled(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	begun, release := make(chan time.Time, 2), make(chan struct{})
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 2},
		func(context.Context, *nats.Msg) error { begun <- time.Now(); <-release; return nil })
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
	assert.True(t, testkit.Only(c).OldestHandling.IsZero())
	before := time.Now()
	testkit.Fill(t, c, "s", 1)
	first := testkit.Receive(t, begun)
	testkit.Fill(t, c, "s", 1)
	testkit.Receive(t, begun)
	oldest := testkit.Only(c).OldestHandling
	assert.False(t, oldest.Before(before) || oldest.After(first), "%v is not between %v and %v", oldest, before, first)
	close(release)
	testkit.Eventually(t, func() bool { return testkit.Only(c).OldestHandling.IsZero() }, "none is handled")
}

func TestHealthKnowsSinceWhenAnExclusiveConsumerHandlesItsMessage(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s")
	begun, release := make(chan time.Time, 2), make(chan error)
	testkit.Process(t, c, natty.ConsumerConfig{
		Subjects: []string{"s"}, Exclusive: true, Backoff: natty.Backoff{Min: time.Hour, Max: time.Hour},
	}, func(context.Context, *nats.Msg) error { begun <- time.Now(); return <-release })
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerStandby }, "it stands by")
	for _, outcome := range []error{nil, errors.New("it rests, and is in no handler")} {
		assert.True(t, testkit.Only(c).OldestHandling.IsZero())
		before := time.Now()
		testkit.Fill(t, c, "s", 1)
		first, oldest := testkit.Receive(t, begun), testkit.Only(c).OldestHandling
		assert.False(t, oldest.Before(before) || oldest.After(first), "%v is not between %v and %v", oldest, before, first)
		release <- outcome
		testkit.Eventually(t, func() bool { return testkit.Only(c).OldestHandling.IsZero() }, "none is handled")
	}
}

func TestHealthSaysInWordsWhatIsWrong(t *testing.T) {
	t.Parallel()
	consumer := func(change func(*natty.ConsumerHealth)) natty.Health {
		c := natty.ConsumerHealth{Stream: "S", Durable: "d", State: natty.ConsumerRunning}
		change(&c)
		return natty.Health{Connected: true, Consumers: []natty.ConsumerHealth{c}}
	}
	for name, test := range map[string]struct {
		health        natty.Health
		live, ready   string // "": all is well
		explains      string
		nothingToTell bool
	}{
		"all is well": {health: consumer(func(*natty.ConsumerHealth) {}), nothingToTell: true},
		"a standby":   {health: consumer(func(c *natty.ConsumerHealth) { c.State = natty.ConsumerStandby }), nothingToTell: true},
		"not connected yet": {
			health: natty.Health{LastError: "natty: no such host"},
			ready:  "not connected since 0001-01-01T00:00:00Z: no such host", explains: "no such host",
		},
		"not connected, with a consumer": {
			health: natty.Health{Consumers: []natty.ConsumerHealth{{State: natty.ConsumerDisconnected}}},
			ready:  "not connected since", explains: "not connected since",
		},
		"closed": {
			health: natty.Health{Closed: true}, live: "gone for good", ready: "gone for good", explains: "gone for good",
		},
		"a consumer that ended": {
			health: consumer(func(c *natty.ConsumerHealth) { c.State, c.LastError = natty.ConsumerStopped, "natty: why" }),
			live:   `consumer "d" on stream "S" has ended: why`, ready: `is stopped: why`, explains: "has ended: why",
		},
		"a consumer that starts": {
			health: consumer(func(c *natty.ConsumerHealth) { c.State = natty.ConsumerStarting }), ready: "is starting", explains: "is starting",
		},
		"a warning": {
			health:   consumer(func(c *natty.ConsumerHealth) { c.Warning = "the durable is paused" }),
			explains: `consumer "d" on stream "S": the durable is paused`,
		},
		"an old handler": {
			health: consumer(func(c *natty.ConsumerHealth) {
				c.Handling, c.OldestHandling = 2, time.Now().Add(-4*time.Hour)
			}),
			explains: "the oldest of 2 running handlers runs for 4h",
		},
		"in flight elsewhere": {
			health: consumer(func(c *natty.ConsumerHealth) { c.AckPending = 7 }), explains: "the server waits for AckWait",
		},
		"one replica": {
			health: func() natty.Health {
				h := consumer(func(c *natty.ConsumerHealth) { c.Replicas = 1 })
				h.Cluster = "c1"
				return h
			}(), explains: `one replica in cluster "c1"`,
		},
		"an old server": {health: natty.Health{Connected: true, ServerVersion: "2.10.7"}, explains: "the server is 2.10.7"},
		"a writer": {
			health:   natty.Health{Connected: true, Writers: []natty.WriterHealth{{MaxPending: 1, MaxPendingBytes: 9, Pending: 1}}},
			explains: "the window of a Writer is full",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			says := func(err error, want string) {
				if want == "" {
					assert.NoError(t, err)
				} else {
					assert.ErrorContains(t, err, want)
				}
			}
			says(test.health.Live(), test.live)
			says(test.health.Ready(), test.ready)
			all := test.health.Explain()
			assert.Equal(t, test.nothingToTell, len(all) == 0, "%q", all)
			assert.Contains(t, strings.Join(all, "\n"), test.explains)
		})
	}
}

// get returns the status and the body of a page of the health endpoint.
func get(t *testing.T, h http.Handler, method, path string) (status int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	return w.Code, w.Body.String()
}

func TestHealthEndpointAnswersBeforeTheFirstConnectionAndAfterTheLast(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	server.Stop()
	c := testkit.Connect(t, natty.Config{Servers: []string{server.URL()}, LazyConnect: true})
	service := &natty.Service{}
	pages := natty.HealthHandler(c)
	testkit.Eventually(t, func() bool { return c.Health().LastError != "" }, "it was tried")
	status, body := get(t, pages, http.MethodGet, "/livez")
	assert.Equal(t, http.StatusOK, status, body)
	assert.Equal(t, "ok\n", body)
	status, body = get(t, pages, http.MethodGet, "/health/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Contains(t, body, "not connected since")
	status, body = get(t, natty.HealthHandler(c, service), http.MethodGet, "/")
	assert.Equal(t, http.StatusOK, status)
	var page struct {
		Live, Ready string
		Explain     []string
		Health      []natty.Health
	}
	require.NoError(t, json.Unmarshal([]byte(body), &page))
	assert.Equal(t, "ok", page.Live)
	assert.Contains(t, page.Ready, "Run was not called")
	assert.Len(t, page.Health, 2)
	assert.Len(t, page.Explain, 2)

	require.NoError(t, server.Restart())
	testkit.Eventually(t, func() bool { return c.Health().Ready() == nil }, "it is connected")
	h := c.Health()
	assert.NotEmpty(t, h.ServerVersion)
	assert.Empty(t, h.Explain())
	status, _ = get(t, pages, http.MethodHead, "/readyz")
	assert.Equal(t, http.StatusOK, status)
	status, _ = get(t, pages, http.MethodPost, "/readyz")
	assert.Equal(t, http.StatusMethodNotAllowed, status)

	require.NoError(t, c.Close(testkit.Ctx(t)))
	status, body = get(t, pages, http.MethodGet, "/livez")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Contains(t, body, "gone for good")
}

func TestHealthNamesAStreamWithOneReplicaInACluster(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Cluster(t).URLs()[0])
	testkit.Ensure(t, c, "S", "s")
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}}, func(context.Context, *nats.Msg) error { return nil })
	testkit.Eventually(t, func() bool {
		return strings.Contains(strings.Join(c.Health().Explain(), "\n"), "one replica in cluster")
	}, "it says so")
}
