package faulttest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// sampled waits until a consumer knows that the server holds n unsettled messages and has no more.
func sampled(c *natty.Client, n int) func() bool {
	return func() bool {
		h := testkit.Only(c)
		return h.State == natty.ConsumerRunning && h.MaxAckPending > 0 && h.AckPending == n && h.Pending == 0
	}
}

// nats.go reports "no heartbeat" for ever in this case, and goes on waiting (nats.go#1621).
func TestDeletedDurableIsMadeAgainWhereItWas(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]bool{"while pulling": false, "while disconnected": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			link := nattytest.Proxy(t, server.URL())
			c, direct := testkit.ConnectTo(t, link.URL()), testkit.ConnectTo(t, server.URL())
			testkit.Ensure(t, direct, "S", "s")
			report, errs := testkit.OnError()
			var seen testkit.Tally
			stop := testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, AckWait: 3 * time.Minute, OnError: report},
				func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
			testkit.Fill(t, direct, "s", 10)
			testkit.Eventually(t, func() bool { return seen.Distinct() == 10 && sampled(c, 0)() }, "ten are handled")
			js := direct.JetStream()
			before, err := js.Consumer(testkit.Ctx(t), "S", "test_s")
			require.NoError(t, err)
			testkit.Eventually(t, func() bool { return testkit.Only(c).AckFloor == 10 }, "and that is known")
			if cut {
				link.Refuse(true)
				link.Cut()
			}
			require.NoError(t, js.DeleteConsumer(testkit.Ctx(t), "S", "test_s"))
			for i := 10; i < 20; i++ {
				require.NoError(t, direct.Publish(testkit.Ctx(t), "s", fmt.Append(nil, i)))
			}
			link.Refuse(false)
			testkit.Eventually(t, func() bool { return seen.Distinct() == 20 }, "what came meanwhile is handled")
			require.NoError(t, stop())
			assert.Zero(t, seen.Repeats(), "and what was handled before does not come again")
			after, err := js.Consumer(testkit.Ctx(t), "S", "test_s")
			require.NoError(t, err)
			assert.Equal(t, before.CachedInfo().Config, after.CachedInfo().Config)
			deleted := 0
			for len(errs) > 0 {
				if errors.Is(<-errs, jetstream.ErrConsumerNotFound) {
					deleted++
				}
			}
			assert.Equal(t, 1, deleted, "reported once")
		})
	}
}

func TestDurableOfThreeInstancesWithMessagesInFlightIsMadeAgain(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c := testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, c, "S", "s")
	const n = 600
	testkit.Fill(t, c, "s", n)
	var seen testkit.Tally
	var begun atomic.Int32
	hold := make(chan struct{})
	for range 3 {
		instance := testkit.ConnectTo(t, server.URL())
		testkit.Process(t, instance, natty.ConsumerConfig{Subjects: []string{"s"}, Concurrency: 4, MaxPollRecords: 50, AckWait: 2 * time.Second},
			func(_ context.Context, msg *nats.Msg) error {
				if begun.Add(1) > n/2 {
					<-hold
				}
				seen.Add(msg)
				return nil
			})
	}
	testkit.Eventually(t, func() bool { return begun.Load() > n/2+5 }, "half are handled, some are in flight")
	require.NoError(t, c.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "test_s"))
	close(hold)
	testkit.Eventually(t, func() bool { return seen.Distinct() == n }, "all are handled")
	testkit.Eventually(t, testkit.Settled(c, "S", "test_s"), "and acknowledged")
}

// An instance of an older version asks for s.a alone. What it makes begins with that, and
// would never deliver what another instance asks for and has been passed.
func TestDurableThatAnInstanceMadeThatAsksForLessSkipsNothing(t *testing.T) {
	t.Parallel()
	for name, instead := range map[string]bool{"before it is missed": false, "instead": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := nattytest.Server(t)
			link := nattytest.Proxy(t, server.URL())
			c, direct := testkit.ConnectTo(t, link.URL()), testkit.ConnectTo(t, server.URL())
			testkit.Ensure(t, direct, "S", "s.*")
			var seen, older testkit.Tally
			report, errs := testkit.OnError()
			cfg := natty.ConsumerConfig{Subjects: []string{"s.a", "s.b"}, Durable: "d", OnError: report}
			testkit.ProcessAtPace(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
			testkit.Fill(t, direct, "s.b", 10)
			testkit.Eventually(t, func() bool { return testkit.Only(c).AckFloor == 10 }, "ten are handled, and that is known")

			publish := func() {
				for i := 10; i < 20; i++ {
					require.NoError(t, direct.Publish(testkit.Ctx(t), "s.b", fmt.Append(nil, i)))
				}
				require.NoError(t, direct.Publish(testkit.Ctx(t), "s.a", []byte("last")))
			}
			makeLess := func() {
				less := cfg
				less.Subjects, less.OnError = []string{"s.a"}, nil
				testkit.Process(t, direct, less, func(_ context.Context, msg *nats.Msg) error { older.Add(msg); return nil })
				testkit.Eventually(t, func() bool { return older.Distinct() == 1 }, "the older one has passed them")
			}
			if instead {
				made := make(chan struct{})
				var once sync.Once
				_, err := direct.Conn().Subscribe("$JS.API.CONSUMER.NAMES.S", func(*nats.Msg) { once.Do(func() { close(made) }) })
				require.NoError(t, err)
				require.NoError(t, direct.Conn().Flush())
				link.Delay(200 * time.Millisecond)
				require.NoError(t, direct.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "d"))
				publish()
				<-made // it has missed the durable, and is about to recreate it
				makeLess()
				link.Delay(0)
			} else {
				link.Refuse(true)
				link.Cut()
				require.NoError(t, direct.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "d"))
				publish()
				makeLess()
				link.Refuse(false)
			}
			testkit.Eventually(t, func() bool { return seen.Distinct() >= 20 }, "what came meanwhile is handled")
			testkit.Eventually(t, testkit.Settled(direct, "S", "d"), "and acknowledged")
			told := ""
			for len(errs) > 0 {
				told += (<-errs).Error() + "\n"
			}
			assert.Contains(t, told, "its filters no longer receive s.b; it was reset to behind sequence 10, so that nothing is skipped")
		})
	}
}

// The server resets a durable that began with new messages to its own floor only, and
// refuses anything else. The consumer ended with that refusal.
func TestDurableThatBeganWithNewMessagesIsNotReset(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	c, direct := testkit.ConnectTo(t, link.URL()), testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, direct, "S", "s.*")
	var seen, older testkit.Tally
	report, errs := testkit.OnError()
	cfg := natty.ConsumerConfig{
		Subjects: []string{"s.a", "s.b"}, Durable: "d", DeliverPolicy: jetstream.DeliverNewPolicy, OnError: report,
	}
	stop := testkit.ProcessAtPace(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Eventually(t, sampled(c, 0), "it is there")
	testkit.Fill(t, direct, "s.b", 10)
	testkit.Eventually(t, func() bool { return testkit.Only(c).AckFloor == 10 }, "ten are handled, and that is known")

	link.Refuse(true)
	link.Cut()
	require.NoError(t, direct.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "d"))
	less := cfg
	less.Subjects, less.OnError = []string{"s.a"}, nil
	testkit.Process(t, direct, less, func(_ context.Context, msg *nats.Msg) error { older.Add(msg); return nil })
	testkit.Eventually(t, sampled(direct, 0), "an older instance has made it")
	require.NoError(t, direct.Publish(testkit.Ctx(t), "s.b", []byte("skipped")))
	require.NoError(t, direct.Publish(testkit.Ctx(t), "s.a", []byte("a")))
	testkit.Eventually(t, func() bool { return older.Distinct() == 1 }, "and has passed the other")
	link.Refuse(false)

	var told error
	for told == nil || !strings.Contains(told.Error(), "its filters no longer receive s.b") {
		told = testkit.Receive(t, errs)
	}
	require.ErrorContains(t, told, "messages of s.b between the sequences 10 and 12 may have been skipped")
	require.NoError(t, direct.Publish(testkit.Ctx(t), "s.b", []byte("next")))
	testkit.Eventually(t, func() bool { return seen.Counts()["next"] == 1 }, "it goes on")
	require.NoError(t, stop())
}

// It was left paused, and then began with the first message of the stream.
func TestDurableWhoseConsumerStopsWhileItIsRecreatedBeginsBehindItsFloor(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	link := nattytest.Proxy(t, server.URL())
	c, direct := testkit.ConnectTo(t, link.URL()), testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, direct, "S", "s")
	stop := testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{"s"}},
		func(context.Context, *nats.Msg) error { return nil })
	testkit.Fill(t, direct, "s", 10)
	testkit.Eventually(t, func() bool { return testkit.Only(c).AckFloor == 10 }, "ten are handled, and that is known")
	created := recreated(t, direct, func() {})
	link.Delay(50 * time.Millisecond)
	require.NoError(t, direct.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "test_s"))
	<-created // the answer is on its way
	require.NoError(t, stop())
	beginsBehind(t, direct, 10)
}

// To a cluster, the durable that it has made already is another one than it is asked for:
// its pause ends at another time. So it was taken for another instance's.
func TestDurableWhoseMakerIsCutOffWhileItIsRecreatedBeginsBehindItsFloor(t *testing.T) {
	t.Parallel()
	c, direct, link := inCluster(t)
	testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{"s"}},
		func(context.Context, *nats.Msg) error { return nil })
	testkit.Fill(t, direct, "s", 10)
	testkit.Eventually(t, func() bool { return testkit.Only(c).AckFloor == 10 }, "ten are handled, and that is known")
	created := recreated(t, direct, func() {
		link.Refuse(true)
		link.Cut()
	})
	link.Delay(50 * time.Millisecond)
	require.NoError(t, direct.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "test_s"))
	<-created
	testkit.Eventually(t, func() bool { return strings.Contains(testkit.Only(c).Warning, "cannot be recreated yet") },
		"it has given up its first attempt")
	link.Delay(0)
	link.Refuse(false)
	beginsBehind(t, direct, 10)
}

// In a cluster the others find the durable as it is. They took its pause for somebody
// else's.
func TestPauseOfTheInstanceThatRecreatesADurableIsNotReportedByOthers(t *testing.T) {
	t.Parallel()
	c, direct, link := inCluster(t)
	report, errs := testkit.OnError()
	var seen testkit.Tally
	testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Fill(t, direct, "s", 10)
	testkit.Eventually(t, func() bool { return testkit.Only(c).AckFloor == 10 }, "ten are handled, and that is known")
	js := direct.JetStream()
	d, err := js.Consumer(testkit.Ctx(t), "S", "test_s")
	require.NoError(t, err)
	another := d.CachedInfo().Config
	another.PauseUntil = new(time.Now().Add(time.Minute))
	missed := make(chan struct{})
	var once sync.Once
	_, err = direct.Conn().Subscribe("$JS.API.CONSUMER.NAMES.S", func(*nats.Msg) { once.Do(func() { close(missed) }) })
	require.NoError(t, err)
	require.NoError(t, direct.Conn().Flush())
	link.Delay(200 * time.Millisecond)
	require.NoError(t, js.DeleteConsumer(testkit.Ctx(t), "S", "test_s"))
	<-missed // and it is about to be recreated
	_, err = js.CreateConsumer(testkit.Ctx(t), "S", another)
	require.NoError(t, err)
	refused := recreated(t, direct, func() {})
	link.Delay(0)
	<-refused
	<-time.After(300 * time.Millisecond) // long enough for c to read that it is paused
	_, err = js.ResumeConsumer(testkit.Ctx(t), "S", "test_s")
	require.NoError(t, err)
	testkit.Eventually(t, func() bool { return seen.Repeats() == 10 }, "it goes on")
	for len(errs) > 0 {
		assert.NotContains(t, (<-errs).Error(), "paused")
	}
}

// inCluster returns two Clients of a cluster with a stream S: c is behind a link, and knows
// no other server.
func inCluster(t *testing.T) (c, direct *natty.Client, link *nattytest.Link) {
	t.Helper()
	nodes := nattytest.Cluster(t)
	link = nattytest.Proxy(t, nodes.URLs()[0])
	direct = testkit.ConnectTo(t, nodes.URLs()[1])
	c = testkit.Connect(t, natty.Config{Servers: []string{link.URL()}}, natty.WithNATSOptions(nats.IgnoreDiscoveredServers()))
	_, err := direct.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3})
	require.NoError(t, err)
	return c, direct, link
}

// recreated closes a channel when a durable of stream S is about to be made, and then was.
func recreated(t *testing.T, c *natty.Client, then func()) <-chan struct{} {
	t.Helper()
	created := make(chan struct{})
	var once sync.Once
	_, err := c.Conn().Subscribe("$JS.API.CONSUMER.CREATE.S.>", func(*nats.Msg) {
		once.Do(func() { then(); close(created) })
	})
	require.NoError(t, err)
	require.NoError(t, c.Conn().Flush())
	return created
}

// beginsBehind waits until the durable test_s of stream S delivers what is behind a floor.
func beginsBehind(t *testing.T, c *natty.Client, floor uint64) {
	t.Helper()
	var info *jetstream.ConsumerInfo
	testkit.Eventually(t, func() bool {
		d, err := c.JetStream().Consumer(testkit.Ctx(t), "S", "test_s")
		if err != nil {
			return false
		}
		info = d.CachedInfo()
		return !info.Paused
	}, "it delivers")
	assert.Equal(t, floor, info.AckFloor.Stream)
	assert.Zero(t, info.NumPending)
}

// The server takes a while to remove a folder with many files. It had removed those of the
// recreated durable as well.
func TestRecreatedDurableIsStillThereAfterARestart(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c, direct := testkit.ConnectTo(t, node.URL()), testkit.ConnectTo(t, node.URL())
	testkit.Ensure(t, direct, "S", "s")
	testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Subjects: []string{"s"}},
		func(context.Context, *nats.Msg) error { return nil })
	testkit.Fill(t, direct, "s", 10)
	testkit.Eventually(t, func() bool { return sampled(c, 0)() && testkit.Only(c).AckFloor == 10 }, "the floor is known")
	folder := filepath.Join(node.Server().StoreDir(), "$G", "streams", "S", "obs", "test_s")
	for i := range 2_000 {
		require.NoError(t, os.WriteFile(filepath.Join(folder, strconv.Itoa(i)), nil, 0o600))
	}
	require.NoError(t, direct.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "test_s"))
	var before *jetstream.ConsumerInfo
	testkit.Eventually(t, func() bool {
		d, err := direct.JetStream().Consumer(testkit.Ctx(t), "S", "test_s")
		if err != nil || d.CachedInfo().Paused {
			return false
		}
		before = d.CachedInfo()
		return true
	}, "it is recreated")

	require.NoError(t, node.Restart())
	direct = testkit.ConnectTo(t, node.URL())
	after, err := direct.JetStream().Consumer(testkit.Ctx(t), "S", "test_s")
	require.NoError(t, err)
	assert.Equal(t, before.Created, after.CachedInfo().Created)
	assert.EqualValues(t, 10, after.CachedInfo().AckFloor.Stream)
}

func TestStreamThatIsDeletedAndMadeAgainIsBegunAnew(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, direct := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL())
	testkit.Ensure(t, direct, "S", "s")
	report, errs := testkit.OnError()
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report, DeliverPolicy: jetstream.DeliverNewPolicy},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
	testkit.Fill(t, direct, "s", 10)
	testkit.Eventually(t, func() bool { return seen.Distinct() == 10 }, "messages flow")
	require.NoError(t, direct.JetStream().DeleteStream(testkit.Ctx(t), "S"))
	require.Error(t, testkit.Receive(t, errs))
	// Old blocks of a deleted stream can reappear in one made at once under its name (seen with nats-server 2.15.2).
	<-time.After(50 * time.Millisecond)
	testkit.Ensure(t, direct, "S", "s")
	for i := 10; i < 20; i++ {
		require.NoError(t, direct.Publish(testkit.Ctx(t), "s", fmt.Append(nil, i)))
	}
	testkit.Eventually(t, func() bool { return seen.Distinct() == 20 }, "messages flow again, from the first")
	assert.Zero(t, seen.Repeats())
}

func TestDeletedDurableOfAnInterestStreamIsReportedAsALoss(t *testing.T) {
	t.Parallel()
	server := nattytest.Server(t)
	c, direct := testkit.ConnectTo(t, server.URL()), testkit.ConnectTo(t, server.URL())
	_, err := direct.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Retention: jetstream.InterestPolicy})
	require.NoError(t, err)
	report, errs := testkit.OnError()
	var seen testkit.Tally
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s"}, OnError: report},
		func(_ context.Context, msg *nats.Msg) error { seen.Add(msg); return nil })
	testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
	require.NoError(t, direct.JetStream().DeleteConsumer(testkit.Ctx(t), "S", "test_s"))
	for err := testkit.Receive(t, errs); ; err = testkit.Receive(t, errs) {
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			assert.ErrorContains(t, err, "Interest stream drops")
			break
		}
	}
	require.NoError(t, direct.Publish(testkit.Ctx(t), "s", []byte("after")))
	testkit.Eventually(t, func() bool { return seen.Distinct() == 1 }, "messages flow again")
}
