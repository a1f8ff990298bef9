package faulttest_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
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

// sniff brings what is published to a subject.
func sniff(t *testing.T, url, subject string) chan *nats.Msg {
	t.Helper()
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	ch := make(chan *nats.Msg, 100_000)
	_, err = nc.ChanSubscribe(subject, ch)
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	return ch
}

// Each ends the request at once, for as long as it lasts.
func TestTroubleIsReportedOnceAndAskedAboutSeldom(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		begin  func(t *testing.T, js jetstream.JetStream, cfg jetstream.ConsumerConfig)
		report string
		end    func(t *testing.T, js jetstream.JetStream, cfg jetstream.ConsumerConfig)
	}{
		"the next message is too large for the durable": {
			begin: func(t *testing.T, js jetstream.JetStream, cfg jetstream.ConsumerConfig) {
				cfg.MaxRequestMaxBytes = 500
				_, err := js.UpdateConsumer(testkit.Ctx(t), "S", cfg)
				require.NoError(t, err)
				for range 2 { // the request under way has no such limit
					_, err = js.Publish(testkit.Ctx(t), "s", bytes.Repeat([]byte("x"), 1000))
					require.NoError(t, err)
				}
			},
			report: "max_bytes 500",
			end: func(t *testing.T, js jetstream.JetStream, cfg jetstream.ConsumerConfig) {
				_, err := js.UpdateConsumer(testkit.Ctx(t), "S", cfg)
				require.NoError(t, err)
			},
		},
		"the stream is gone": {
			begin: func(t *testing.T, js jetstream.JetStream, _ jetstream.ConsumerConfig) {
				require.NoError(t, js.DeleteStream(testkit.Ctx(t), "S"))
			},
			report: "its stream was deleted",
			end: func(t *testing.T, js jetstream.JetStream, _ jetstream.ConsumerConfig) {
				_, err := js.CreateStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
				require.NoError(t, err)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			c := testkit.ConnectTo(t, server.URL())
			testkit.Ensure(t, c, "S", "s")
			report, errs := testkit.OnError()
			var handled atomic.Int32
			testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, MaxPollRecords: 1, OnError: report},
				func(context.Context, *nats.Msg) error { handled.Add(1); return nil })
			testkit.Fill(t, c, "s", 1)
			testkit.Eventually(t, func() bool { return handled.Load() == 1 }, "it runs")
			durable, err := c.JetStream().Consumer(testkit.Ctx(t), "S", "test_s")
			require.NoError(t, err)
			cfg := durable.CachedInfo().Config

			test.begin(t, c.JetStream(), cfg)
			testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).LastError+testkit.Only(c).Warning, test.report) }, "Health says so")
			requests := sniff(t, server.URL(), "$JS.API.>")
			<-time.After(2 * time.Second)
			assert.Less(t, len(requests), 20, "it pauses")
			h := testkit.Only(c)
			assert.WithinDuration(t, time.Now(), h.LastErrorAt, testkit.Patience)
			var texts []string
			for len(errs) > 0 {
				texts = append(texts, (<-errs).Error())
			}
			assert.LessOrEqual(t, len(texts), 2, "%q", texts)
			assert.Equal(t, 1, strings.Count(strings.Join(texts, "\n"), test.report), "%q", texts)

			test.end(t, c.JetStream(), cfg)
			require.NoError(t, c.Publish(testkit.Ctx(t), "s", nil))
			testkit.Eventually(t, func() bool { return handled.Load() >= 2 }, "it goes on")
			testkit.Eventually(t, func() bool { h := testkit.Only(c); return h.LastError+h.Warning == "" && h.LastErrorAt.IsZero() },
				"it is over in Health as well")
		})
	}
}

// What the old leader had given out comes again after AckWait, behind later messages of its key.
func TestOrderOfAKeyIsKeptWhenTheLeaderOfItsDurableMoves(t *testing.T) {
	t.Parallel()
	for name, settled := range map[string]bool{"redelivered": false, "settled elsewhere": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			c := testkit.ConnectTo(t, server.URL())
			s := testkit.Ensure(t, c, "S", "s")
			wait := time.Second
			if settled {
				wait = 8 * time.Second
			}
			_, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "test_s", FilterSubject: "s", AckWait: wait})
			require.NoError(t, err)
			require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("k-1")))
			durable, err := s.Consumer(testkit.Ctx(t), "test_s")
			require.NoError(t, err)
			lost, err := durable.Next()
			require.NoError(t, err)

			pulls := sniff(t, server.URL(), "$JS.API.CONSUMER.MSG.NEXT.>")
			got := make(chan string, 10)
			testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OrderBy: testkit.KeyOf},
				func(_ context.Context, msg *nats.Msg) error { got <- string(msg.Data); return nil })
			request := testkit.Receive(t, pulls)
			begun := time.Now()
			require.NoError(t, c.Conn().PublishMsg(&nats.Msg{Subject: request.Reply,
				Header: nats.Header{"Status": {"409"}, "Description": {"Leadership Change"}}}))
			testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).Warning, "it pulls nothing until") }, "it says that it waits")
			require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("k-2")))
			if settled {
				require.NoError(t, lost.Ack())
				assert.Equal(t, "k-2", testkit.Receive(t, got))
				assert.Less(t, time.Since(begun), wait, "nothing is left to wait for")
				return
			}
			assert.Equal(t, "k-1", testkit.Receive(t, got))
			assert.Equal(t, "k-2", testkit.Receive(t, got))
			testkit.Eventually(t, func() bool { return testkit.Only(c).Warning == "" }, "it waits no more")
		})
	}
}

// The next instance knows nothing of messages that were lost on their way to the last one.
func TestOrderOfAKeyIsKeptWhenAnInstanceStopsWhileItWaitsForLostMessages(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	s := testkit.Ensure(t, c, "S", "s")
	durable, err := s.CreateConsumer(testkit.Ctx(t), jetstream.ConsumerConfig{Durable: "test_s", FilterSubject: "s", AckWait: 2 * time.Second})
	require.NoError(t, err)
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("k-1")))
	_, err = durable.Next() // lost
	require.NoError(t, err)

	pulls := sniff(t, server.URL(), "$JS.API.CONSUMER.MSG.NEXT.>")
	got := make(chan string, 10)
	process := func() (stop func() error) {
		return testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OrderBy: testkit.KeyOf},
			func(_ context.Context, msg *nats.Msg) error { got <- string(msg.Data); return nil })
	}
	stop := process()
	request := testkit.Receive(t, pulls)
	require.NoError(t, c.Conn().PublishMsg(&nats.Msg{Subject: request.Reply,
		Header: nats.Header{"Status": {"409"}, "Description": {"Leadership Change"}}}))
	testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).Warning, "it pulls nothing until") }, "it says that it waits")
	require.NoError(t, c.Publish(testkit.Ctx(t), "s", []byte("k-2")))
	require.NoError(t, stop())
	process()
	assert.Equal(t, "k-1", testkit.Receive(t, got))
	assert.Equal(t, "k-2", testkit.Receive(t, got))
}

// An operator's hundred services on a hundred instances are idle most of the time.
func TestIdleConsumerAsksTheServerSeldom(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]natty.ConsumerConfig{
		"shared": {}, "ordered": {OrderBy: testkit.KeyOf},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			c := testkit.ConnectTo(t, server.URL())
			testkit.Ensure(t, c, "S", "s")
			var seen testkit.Tally
			cfg.Subjects, cfg.Heartbeat = []string{"s"}, 500*time.Millisecond
			testkit.ProcessAtPace(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
			testkit.Fill(t, c, "s", 1)
			testkit.Eventually(t, func() bool { return seen.Distinct() == 1 && testkit.Settled(c, "S", "test_s")() }, "it has worked")
			<-time.After(time.Second) // the last look at what it did
			requests := sniff(t, server.URL(), "$JS.API.>")
			const minutes = 4
			<-time.After(minutes * time.Second)
			assert.LessOrEqual(t, len(requests), 2*minutes+2, "two a minute")
			assert.NotEmpty(t, requests)
		})
	}
}

// Its requests are brief so that it can stop in order. Nothing waits that a long handler holds up.
func TestOrderedConsumerAsksSeldomWhileALongHandlerRuns(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s.>")
	begun, release := make(chan struct{}, 2), make(chan struct{})
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, Concurrency: 2, OrderBy: func(m *nats.Msg) string { return m.Subject }},
		func(context.Context, *nats.Msg) error { begun <- struct{}{}; <-release; return nil })
	defer close(release)
	pulls := sniff(t, server.URL(), "$JS.API.CONSUMER.MSG.NEXT.>")
	testkit.Fill(t, c, "s.a", 1)
	testkit.Receive(t, begun)
	<-time.After(8 * time.Second)
	assert.LessOrEqual(t, len(pulls), 8, "%d requests in eight seconds", len(pulls))
	testkit.Fill(t, c, "s.b", 1)
	testkit.Receive(t, begun)
}

// With a hundred consumers they add up.
func TestIdleConsumerHasFourGoroutines(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]natty.ConsumerConfig{
		"shared": {}, "ordered": {OrderBy: testkit.KeyOf},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.OnServer(t)
			testkit.Ensure(t, c, "S", "s")
			var seen testkit.Tally
			report, errs := testkit.OnError()
			cfg.Subjects, cfg.OnError, cfg.Backoff = []string{"s"}, report, natty.Backoff{Min: time.Millisecond}
			label := pprof.Labels("of", t.Name()) // all goroutines that it starts have it as well
			testkit.RunConsumer(t, c, func(ctx context.Context) (err error) {
				pprof.Do(ctx, label, func(ctx context.Context) {
					err = c.Process(ctx, cfg, func(_ context.Context, msg *nats.Msg) error {
						if seen.Add(msg) == 1 {
							return testkit.ErrHandler
						}
						return nil
					})
				})
				return err
			})
			testkit.Fill(t, c, "s", 1)
			require.ErrorIs(t, testkit.Receive(t, errs), testkit.ErrHandler)
			testkit.Eventually(t, func() bool { return seen.Repeats() == 1 && testkit.Settled(c, "S", "test_s")() }, "it has worked")
			var profile string
			assert.Eventually(t, func() bool {
				var n int
				n, profile = goroutinesOf(t, t.Name())
				return n > 0 && n <= 4
			}, testkit.Patience, 10*time.Millisecond, "at most four")
			if t.Failed() {
				t.Log(profile)
			}
		})
	}
}

// goroutinesOf counts the goroutines with a label, and shows them.
func goroutinesOf(t *testing.T, label string) (n int, profile string) {
	t.Helper()
	var all bytes.Buffer
	require.NoError(t, pprof.Lookup("goroutine").WriteTo(&all, 1))
	for group := range strings.SplitSeq(all.String(), "\n\n") {
		if !strings.Contains(group, `"`+label+`"`) {
			continue
		}
		var count int
		_, err := fmt.Sscanf(group, "%d @", &count)
		require.NoError(t, err, group)
		n, profile = n+count, profile+group+"\n\n"
	}
	return n, profile
}

// Otherwise the server gives the messages that are held to another instance as well.
func TestProgressIsReportedWhileAnOrderedConsumerLooksForLostMessages(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	direct, c := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, link.URL())
	testkit.Ensure(t, direct, "S", "s")
	begun, release := make(chan struct{}, 2), make(chan struct{})
	defer close(release)
	const wait = 1500 * time.Millisecond
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: wait, OrderBy: testkit.KeyOf},
		func(context.Context, *nats.Msg) error { begun <- struct{}{}; <-release; return nil })
	testkit.Fill(t, direct, "s", 1)
	testkit.Receive(t, begun)
	reports := sniff(t, server.URL(), "$JS.ACK.S.test_s.>")
	// A reconnect. The answer to the question behind it is lost with the next cut.
	link.Delay(30 * time.Millisecond)
	link.Cut()
	for testkit.Receive(t, reports).Reply == "" { //nolint:revive // it is a plain report
	}
	link.Cut()
	link.Delay(0)
	end := time.After(2 * wait)
	for last := time.Now(); ; {
		select {
		case <-reports:
			last = time.Now()
		case <-time.After(time.Until(last.Add(wait))):
			require.Fail(t, "no progress was reported within AckWait")
		case <-end:
			return
		}
	}
}

func TestBusyConsumerAsksTheServerSixTimesAMinute(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	var seen testkit.Tally
	testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, Heartbeat: 100 * time.Millisecond},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	infos := sniff(t, server.URL(), "$JS.API.*.INFO.>")
	const minutes = 3
	end := time.Now().Add(minutes * time.Second)
	for n := 0; time.Now().Before(end); n++ {
		require.NoError(t, c.Publish(testkit.Ctx(t), "s", fmt.Append(nil, n)))
		<-time.After(20 * time.Millisecond)
	}
	asked := len(infos)
	assert.LessOrEqual(t, asked, 6*minutes+2)
	assert.GreaterOrEqual(t, asked, minutes, "how far the group got is sampled")
}

func TestVerdictsThatCannotBeSentAtTheEndAreAnErrorOfProcess(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	c := testkit.ConnectTo(t, link.URL())
	testkit.Ensure(t, c, "S", "s")
	begun, release := make(chan struct{}, 1), make(chan struct{})
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}},
		func(context.Context, *nats.Msg) error { begun <- struct{}{}; <-release; return nil })
	testkit.Fill(t, c, "s", 1)
	testkit.Receive(t, begun)
	link.Refuse(true)
	link.Cut()
	testkit.Eventually(t, func() bool { return !c.Health().Connected }, "it is cut off")
	close(release)
	testkit.Eventually(t, func() bool { return testkit.Only(c).Handling == 0 }, "it is handled")
	err := stop()
	require.ErrorIs(t, err, nats.ErrDisconnected)
	assert.ErrorContains(t, err, "1 verdicts found no connection")
}

func TestNothingIsObservedAfterAConsumerHasStopped(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var events []natty.ConsumerEvent
	c := testkit.Connect(t, natty.Config{Servers: []string{nattytest.Server(t).URL()}},
		natty.WithObserver(natty.ObserverFunc(func(e natty.Event) {
			if one, ok := e.(natty.ConsumerEvent); ok {
				mu.Lock()
				defer mu.Unlock()
				events = append(events, one)
			}
		})))
	testkit.Ensure(t, c, "S", "s")
	begun, release, left := make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, DrainTimeout: time.Millisecond},
		func(context.Context, *nats.Msg) error {
			defer close(left)
			begun <- struct{}{}
			<-release
			return testkit.ErrHandler
		})
	testkit.Fill(t, c, "s", 1)
	testkit.Receive(t, begun)
	require.ErrorIs(t, stop(), natty.ErrDrainTimeout)
	close(release)
	<-left
	h := testkit.Only(c)
	assert.Equal(t, natty.ConsumerStopped, h.State, "it ended with an error, and stays listed")
	assert.Contains(t, h.LastError, natty.ErrDrainTimeout.Error())
	require.NoError(t, c.Close(testkit.Ctx(t))) // all events have been sent
	mu.Lock()
	defer mu.Unlock()
	last := events[len(events)-1]
	assert.Equal(t, natty.ConsumerStopped, last.State)
	assert.ErrorIs(t, last.Err, natty.ErrDrainTimeout)
}
