package natty_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// scheduling makes a stream S of s.> that keeps schedules.
func scheduling(t *testing.T, c *natty.Client, cfg jetstream.StreamConfig) jetstream.Stream {
	t.Helper()
	cfg.Name, cfg.Subjects, cfg.AllowMsgSchedules = "S", []string{"s.>"}, true
	s, err := c.EnsureStream(testkit.Ctx(t), cfg)
	require.NoError(t, err)
	return s
}

// schedules lists what the stream S has.
func schedules(t *testing.T, c *natty.Client) []natty.Schedule {
	t.Helper()
	var all []natty.Schedule
	for s, err := range c.Schedules(testkit.Ctx(t), "S") {
		require.NoError(t, err)
		all = append(all, s)
	}
	return all
}

func TestSchedulesAreNeverEarlyAndEachIsPublishedOnce(t *testing.T) {
	t.Parallel()
	for name, retention := range map[string]jetstream.RetentionPolicy{"limits": jetstream.LimitsPolicy, "work queue": jetstream.WorkQueuePolicy} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.ConnectTo(t, nattytest.Server(t).URL())
			scheduling(t, c, jetstream.StreamConfig{Retention: retention})
			const n = 1000
			var got testkit.Tally
			var mu sync.Mutex
			var late []time.Duration
			// No filter: the holders are in the stream, too.
			testkit.Process(t, c, natty.ConsumerConfig{Stream: "S", Concurrency: 8}, func(ctx context.Context, msg *nats.Msg) error {
				at, err := time.Parse(time.RFC3339Nano, string(msg.Data))
				if err != nil {
					return err
				}
				assert.Equal(t, "1", msg.Header.Get("Mine"))
				assert.Equal(t, "s.a", msg.Subject)
				d, _ := natty.DeliveryFrom(ctx)
				mu.Lock()
				late = append(late, d.Time.Sub(at))
				mu.Unlock()
				got.Add(msg)
				return nil
			})
			testkit.Eventually(t, func() bool { return testkit.Only(c).State == natty.ConsumerRunning }, "it runs")
			start := time.Now()
			var makers sync.WaitGroup
			for g := range 8 {
				makers.Go(func() {
					for i := g; i < n; i += 8 {
						at := start.Add(2*time.Second + rand.N(2*time.Second))
						msg := &nats.Msg{Subject: "s.a", Header: nats.Header{"Mine": {"1"}}, Data: []byte(at.Format(time.RFC3339Nano))}
						assert.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: fmt.Sprint("id-", i), At: at, Msg: msg}))
					}
				})
			}
			makers.Wait()
			testkit.Eventually(t, func() bool { return got.Distinct() >= n-1 && len(schedules(t, c)) == 0 }, "all are published")
			testkit.Eventually(t, testkit.Settled(c, "S", "test_all"), "all are handled")
			assert.Zero(t, got.Repeats())
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(late)
			require.Len(t, late, n)
			t.Logf("late: min %v, median %v, 99%% %v, max %v", late[0], late[n/2], late[n*99/100], late[n-1])
			assert.GreaterOrEqual(t, late[0], time.Duration(0), "never early")
			assert.Less(t, late[n-1], testkit.Patience)
		})
	}
}

func TestScheduleSurvivesARestartAndIsPublishedOnce(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	s := scheduling(t, c, jetstream.StreamConfig{})
	at := time.Now().Add(2 * time.Second)
	for i := range 20 {
		require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: fmt.Sprint(i), At: at, Msg: nats.NewMsg("s.a")}))
	}
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(">"))
		return err == nil && info.State.Msgs == 20 && info.State.Subjects["s.a"] == 20
	}, "each is published, and none is left")
	first, err := s.GetMsg(testkit.Ctx(t), 1, jetstream.WithGetMsgSubject("s.a"))
	require.NoError(t, err)
	assert.WithinRange(t, first.Time, at, time.Now(), "sequence %d, never early", first.Sequence)
}

func TestSchedulesArePublishedOnceThoughTheStreamsLeaderIsReplaced(t *testing.T) {
	t.Parallel()
	cluster := nattytest.Cluster(t)
	c := testkit.Connect(t, natty.Config{Servers: cluster.URLs()})
	s := scheduling(t, c, jetstream.StreamConfig{Replicas: 3})
	due := map[string]time.Time{}
	// begin schedules messages that are due from a second on, and returns when the first of them is there.
	begin := func() {
		var makers sync.WaitGroup
		first := fmt.Sprint(len(due))
		start := time.Now().Add(time.Second)
		for range 100 {
			id := fmt.Sprint(len(due))
			at := start.Add(time.Duration(rand.N(2000)) * time.Millisecond)
			if id == first {
				at = start
			}
			due[id] = at
			makers.Go(func() {
				assert.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: id, At: at, Msg: &nats.Msg{Subject: "s." + id}}))
			})
		}
		makers.Wait()
		testkit.Eventually(t, func() bool {
			_, err := s.GetLastMsgForSubject(testkit.Ctx(t), "s."+first)
			return err == nil
		}, "the first is published")
	}
	var pending []int
	for _, replace := range []func(){
		func() {
			_, err := c.Conn().RequestWithContext(testkit.Ctx(t), "$JS.API.STREAM.LEADER.STEPDOWN.S", nil)
			require.NoError(t, err)
		},
		func() {
			leader := cluster.StreamLeader("S")
			leader.Stop()
			require.NoError(t, leader.Restart())
		},
	} {
		begin()
		pending = append(pending, len(schedules(t, c)))
		replace()
		cluster.WaitReady()
	}
	testkit.Eventually(t, func() bool { return len(schedules(t, c)) == 0 }, "all are published")
	info, err := s.Info(testkit.Ctx(t), jetstream.WithSubjectFilter(">"))
	require.NoError(t, err)
	t.Logf("%v of %d were pending when the leader was replaced", pending, len(due))
	for id, at := range due {
		assert.EqualValues(t, 1, info.State.Subjects["s."+id], "published once: %s", id)
		m, err := s.GetLastMsgForSubject(testkit.Ctx(t), "s."+id)
		require.NoError(t, err, id)
		assert.False(t, m.Time.Before(at), "never early: %s was due at %v and came at %v", id, at, m.Time)
	}
}

func TestOneScheduleForAnIDHoweverManyInstancesSayIt(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	scheduling(t, c, jetstream.StreamConfig{})
	var all sync.WaitGroup
	for range 10 {
		other := testkit.ConnectTo(t, node.URL())
		all.Go(func() {
			assert.NoError(t, other.Schedule(testkit.Ctx(t), natty.Schedule{ID: "hourly", Cron: "@hourly", TimeZone: "Europe/Berlin", Msg: nats.NewMsg("s.a")}))
		})
	}
	all.Wait()
	require.Len(t, schedules(t, c), 1)
	// The same ID again replaces it, also with a message that has an id of its own.
	msg := &nats.Msg{Subject: "s.b", Data: []byte("b"), Header: nats.Header{"Nats-Msg-Id": {"x"}, "Mine": {"1"}}}
	for _, every := range []time.Duration{time.Hour, 2 * time.Hour} {
		require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "hourly", Every: every, Msg: msg}))
	}
	want := natty.Schedule{ID: "hourly", Every: 2 * time.Hour, Msg: &nats.Msg{Subject: "s.b", Data: []byte("b"), Header: nats.Header{"Mine": {"1"}}}}
	assert.Equal(t, []natty.Schedule{want}, schedules(t, c))
	assert.Equal(t, nats.Header{"Nats-Msg-Id": {"x"}, "Mine": {"1"}}, msg.Header, "the caller's headers are left alone")
	require.NoError(t, c.Unschedule(testkit.Ctx(t), "S", "hourly"))
	require.NoError(t, c.Unschedule(testkit.Ctx(t), "S", "hourly"), "what is not there is no error")
	assert.Empty(t, schedules(t, c))
}

func TestSchedulesRepeatAndTheirMessagesExpire(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := scheduling(t, c, jetstream.StreamConfig{AllowMsgTTL: true, MaxAge: time.Minute, SubjectDeleteMarkerTTL: time.Second})
	require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "every", Every: time.Second, TTL: time.Hour, Msg: nats.NewMsg("s.every")}))
	require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "cron", Cron: "* * * * * *", Msg: nats.NewMsg("s.cron")}))
	require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "past", At: time.Now().Add(-time.Hour), Msg: nats.NewMsg("s.past")}))
	testkit.Eventually(t, func() bool {
		info, err := s.Info(testkit.Ctx(t), jetstream.WithSubjectFilter("s.>"))
		require.NoError(t, err)
		subjects := info.State.Subjects
		return subjects["s.every"] >= 2 && subjects["s.cron"] >= 2 && subjects["s.past"] == 1
	}, "they repeat")
	m, err := s.GetLastMsgForSubject(testkit.Ctx(t), "s.every")
	require.NoError(t, err)
	assert.Equal(t, "1h0m0s", m.Header.Get("Nats-TTL"))
	assert.Len(t, schedules(t, c), 2)
	holder, err := s.GetLastMsgForSubject(testkit.Ctx(t), "$NATTY.schedule.S.cron")
	require.NoError(t, err)
	assert.Equal(t, "never", holder.Header.Get("Nats-TTL"), "MaxAge does not end a schedule")
}

func TestHandlerThatPassesOnTheHeadersOfAScheduleEndsNoSchedule(t *testing.T) {
	t.Parallel()
	c := testkit.OnServer(t)
	s := scheduling(t, c, jetstream.StreamConfig{})
	w := testkit.NewWriter(t, c, natty.WriterConfig{})
	reminder := natty.Schedule{ID: "again", At: time.Now(), Msg: nats.NewMsg("s.due")}
	require.NoError(t, c.Schedule(testkit.Ctx(t), reminder))
	passed := make(chan error, 1)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.due"}}, func(ctx context.Context, msg *nats.Msg) error {
		assert.NotEmpty(t, msg.Header.Get("Nats-Scheduler"))
		reminder.At = time.Now().Add(time.Hour)
		err := c.Schedule(ctx, reminder)
		on := &nats.Msg{Subject: "s.next", Header: msg.Header}
		_, published := c.PublishMsg(ctx, on)
		passed <- errors.Join(err, published, w.Write(ctx, on), w.Flush(ctx))
		return nil
	})
	require.NoError(t, testkit.Receive(t, passed))
	assert.Len(t, schedules(t, c), 1)
	m, err := s.GetLastMsgForSubject(testkit.Ctx(t), "s.next")
	require.NoError(t, err)
	assert.Empty(t, m.Header.Get("Nats-Scheduler"))
	assert.Empty(t, m.Header.Get("Nats-Schedule-Next"))
}

func TestConsumersNeverSeeAHolder(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]natty.ConsumerConfig{
		"whole stream":           {Stream: "S"},
		"everything":             {Stream: "S", Subjects: []string{">"}},
		"wildcards":              {Stream: "S", Subjects: []string{"*.*.>", "s.a"}, Durable: "d"},
		"exclusive whole stream": {Stream: "S", Exclusive: true},
	} {
		for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy} {
			t.Run(fmt.Sprint(name, " ", retention), func(t *testing.T) {
				t.Parallel()
				c := testkit.ConnectTo(t, nattytest.Server(t).URL())
				scheduling(t, c, jetstream.StreamConfig{Retention: retention})
				came := make(chan string, 10)
				run := func() func() error {
					return testkit.Process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error {
						came <- msg.Subject
						return nil
					})
				}
				stop := run()
				testkit.Eventually(t, func() bool {
					s := testkit.Only(c).State
					return s == natty.ConsumerRunning || s == natty.ConsumerStandby
				}, "it runs")
				require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "late", At: time.Now().Add(time.Hour), Msg: nats.NewMsg("s.late.b")}))
				require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "now", At: time.Now(), Msg: nats.NewMsg("s.a.b")}))
				assert.Equal(t, "s.a.b", testkit.Receive(t, came))
				require.NoError(t, stop())
				stop = run() // its durable is taken over as it is
				testkit.Fill(t, c, "s.c.d", 1)
				assert.Equal(t, "s.c.d", testkit.Receive(t, came))
				require.NoError(t, stop())
				assert.Len(t, schedules(t, c), 1)
			})
		}
	}
}

// Whoever runs already has filters that let holders through; it learns of the subject of the holders by its next look.
func TestRunningConsumersGetNoHolderWhenSchedulesAreSwitchedOn(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]natty.ConsumerConfig{
		"whole stream":           {Stream: "S"},
		"everything":             {Stream: "S", Subjects: []string{">"}, Durable: "d"},
		"wildcards":              {Stream: "S", Subjects: []string{"*.*.>"}, Durable: "d"},
		"exclusive whole stream": {Stream: "S", Exclusive: true},
	} {
		for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy} {
			t.Run(fmt.Sprint(name, " ", retention), func(t *testing.T) {
				t.Parallel()
				c := testkit.ConnectTo(t, nattytest.Server(t).URL())
				s, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, Retention: retention})
				require.NoError(t, err)
				came := make(chan string, 10)
				testkit.ProcessAtPace(t, c, cfg, func(_ context.Context, msg *nats.Msg) error {
					came <- msg.Subject
					return nil
				})
				testkit.Fill(t, c, "s.a.first", 1)
				require.Equal(t, "s.a.first", testkit.Receive(t, came))
				scheduling(t, c, jetstream.StreamConfig{Retention: retention})
				schedule := func(id string, at time.Time) error {
					return c.Schedule(testkit.Ctx(t), natty.Schedule{ID: id, At: at, Msg: nats.NewMsg("s.a." + id)})
				}
				if retention == jetstream.WorkQueuePolicy { // else the consumer would end it
					testkit.Eventually(t, func() bool { return schedule("late", time.Now().Add(time.Hour)) == nil }, "the consumer leaves out holders")
				}
				require.NoError(t, schedule("late", time.Now().Add(time.Hour)))
				require.NoError(t, schedule("now", time.Now()))
				require.Equal(t, "s.a.now", testkit.Receive(t, came))
				testkit.Eventually(t, func() bool { return !slices.Contains(filtersOf(t, s), "") }, "the server keeps holders back")
				if cfg.Durable == "" { // its filters follow the stream
					_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>", "t.>"}, Retention: retention})
					require.NoError(t, err)
					testkit.Fill(t, c, "t.a", 1)
					require.Equal(t, "t.a", testkit.Receive(t, came))
					assert.ElementsMatch(t, []string{"s.>", "t.>"}, filtersOf(t, s))
				}
				assert.Len(t, schedules(t, c), 1)
				assert.Empty(t, came)
			})
		}
	}
}

// Else what is published there is never delivered.
func TestWholeStreamDurablesFollowSubjectsThatOthersGiveTheStream(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := scheduling(t, c, jetstream.StreamConfig{})
	came := make(chan string, 10)
	testkit.ProcessAtPace(t, c, natty.ConsumerConfig{Stream: "S"}, func(_ context.Context, msg *nats.Msg) error {
		came <- msg.Subject
		return nil
	})
	testkit.Fill(t, c, "s.a", 1)
	require.Equal(t, "s.a", testkit.Receive(t, came))
	cfg := s.CachedInfo().Config
	cfg.Subjects = append(cfg.Subjects, "t.>")
	_, err := c.JetStream().UpdateStream(testkit.Ctx(t), cfg)
	require.NoError(t, err)
	testkit.Eventually(t, func() bool { return slices.Contains(filtersOf(t, s), "t.>") }, "a look finds the subject")
	testkit.Fill(t, c, "t.a", 1)
	require.Equal(t, "t.a", testkit.Receive(t, came))
}

// filtersOf returns the filters of the one consumer that a stream has, "" for one that lets holders through.
func filtersOf(t *testing.T, s jetstream.Stream) []string {
	t.Helper()
	config := testkit.Receive(t, s.ListConsumers(testkit.Ctx(t)).Info()).Config
	filters := config.FilterSubjects
	if config.FilterSubject != "" {
		filters = []string{config.FilterSubject}
	}
	if len(filters) == 0 || slices.ContainsFunc(filters, func(f string) bool { return f == ">" || f == "*.*.>" }) {
		return []string{""}
	}
	return filters
}

func TestScheduleRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	scheduling(t, c, jetstream.StreamConfig{})
	testkit.Ensure(t, c, "PLAIN", "plain")
	for name, cfg := range map[string]jetstream.StreamConfig{
		"INTEREST": {Retention: jetstream.InterestPolicy},
		"SHORT":    {MaxAge: time.Minute},
		"QUEUE":    {Retention: jetstream.WorkQueuePolicy},
	} {
		cfg.Name, cfg.Subjects, cfg.AllowMsgSchedules = name, []string{name}, true
		_, err := c.EnsureStream(testkit.Ctx(t), cfg)
		require.NoError(t, err)
	}
	_, err := c.JetStream().CreateConsumer(testkit.Ctx(t), "QUEUE", jetstream.ConsumerConfig{Durable: "greedy", AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	at, msg := time.Now().Add(time.Hour), nats.NewMsg("s.a")
	for want, s := range map[string]natty.Schedule{
		"ID: is empty":                           {At: at, Msg: msg},
		"holds a space":                          {ID: "a b", At: at, Msg: msg},
		"Msg: is nil":                            {ID: "x", At: at},
		"where natty keeps schedules":            {ID: "x", At: at, Msg: nats.NewMsg("$NATTY.schedule.S.y")},
		"cannot be published to":                 {ID: "x", At: at, Msg: nats.NewMsg("s.*")},
		"none of At, Every and Cron; set one":    {ID: "x", Msg: msg},
		"2 of At, Every and Cron; set one alone": {ID: "x", At: at, Cron: "@hourly", Msg: msg},
		"below one second":                       {ID: "x", Every: time.Millisecond, Msg: msg},
		"whole seconds":                          {ID: "x", At: at, TTL: 1500 * time.Millisecond, Msg: msg},
		"needs AllowMsgTTL":                      {ID: "x", At: at, TTL: time.Second, Msg: msg},
		"without Cron":                           {ID: "x", At: at, TimeZone: "Europe/Berlin", Msg: msg},
		"expected six fields":                    {ID: "x", Cron: "* * *", Msg: msg},
		"use At or Every":                        {ID: "x", Cron: "@every 1s", Msg: msg},
		"time zone database":                     {ID: "x", Cron: "@daily", TimeZone: "Mars/Base", Msg: msg},
		"set AllowMsgSchedules":                  {ID: "x", At: at, Msg: nats.NewMsg("plain")},
		"Interest retention":                     {ID: "x", At: at, Msg: nats.NewMsg("INTEREST")},
		"max_age of 1m0s":                        {ID: "x", At: at, Msg: nats.NewMsg("SHORT")},
		`consumer "greedy" (all subje`:           {ID: "x", At: at, Msg: nats.NewMsg("QUEUE")},
	} {
		err := c.Schedule(testkit.Ctx(t), s)
		var config *natty.ConfigError
		require.ErrorAs(t, err, &config, want)
		assert.Contains(t, err.Error(), want)
	}
	err = c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "x", At: at, Msg: nats.NewMsg("nowhere")})
	require.ErrorIs(t, err, natty.ErrNoStream)
	require.ErrorContains(t, err, "EnsureStream")
	err = c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "x", At: at, Msg: &nats.Msg{Subject: "s.a", Data: make([]byte, 2<<20)}})
	require.ErrorIs(t, err, natty.ErrTooLarge)
	require.ErrorContains(t, err, `schedule "x" for "s.a"`)
	assert.Empty(t, schedules(t, c))
	for _, err := range c.Schedules(testkit.Ctx(t), "NOWHERE") {
		require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
	}
}

func TestEnsureStreamKeepsTheSubjectOfTheSchedules(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	own := "$NATTY.schedule.S.*"
	subjects := func(cfg jetstream.StreamConfig) []string {
		cfg.Name = "S"
		s, err := c.EnsureStream(testkit.Ctx(t), cfg)
		require.NoError(t, err)
		return s.CachedInfo().Config.Subjects
	}
	assert.Equal(t, []string{"S"}, subjects(jetstream.StreamConfig{}))
	assert.ElementsMatch(t, []string{"S", own}, subjects(jetstream.StreamConfig{AllowMsgSchedules: true}))
	assert.ElementsMatch(t, []string{"S", own}, subjects(jetstream.StreamConfig{AllowMsgSchedules: true}))
	assert.ElementsMatch(t, []string{"s", own}, subjects(jetstream.StreamConfig{Subjects: []string{"s"}}))
	_, err := c.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "T", Subjects: []string{">"}, AllowMsgSchedules: true})
	var config *natty.ConfigError
	require.ErrorAs(t, err, &config)
	assert.Contains(t, err.Error(), "overlaps with $NATTY.schedule.T.*")
}

func TestEnsureStreamRefusesWhatWouldLoseSchedules(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	scheduling(t, c, jetstream.StreamConfig{})
	require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "daily", Cron: "@daily", Msg: nats.NewMsg("s.a")}))
	all := &jetstream.SubjectTransformConfig{Source: ">", Destination: "t.>"}
	for want, cfg := range map[string]jetstream.StreamConfig{
		`the schedule "daily"`:              {Name: "S", MaxAge: time.Hour},
		"first set AllowMsgTTL":             {Name: "S", MaxAge: time.Hour, AllowMsgTTL: true, SubjectDeleteMarkerTTL: time.Second},
		"moves the schedules of stream S":   {Name: "S", SubjectTransform: all},
		"moves the schedules of stream NEW": {Name: "NEW", AllowMsgSchedules: true, SubjectTransform: all},
	} {
		_, err := c.EnsureStream(testkit.Ctx(t), cfg)
		var config *natty.ConfigError
		require.ErrorAs(t, err, &config, want)
		assert.Contains(t, err.Error(), want)
	}
	assert.Len(t, schedules(t, c), 1)
}

// The last message of a subject leaves a marker when it is removed, which a handler took
// for the job.
func TestMarkersInAStreamWithSchedulesAreNotHandled(t *testing.T) {
	t.Parallel()
	for name, exclusive := range map[string]bool{"shared": false, "exclusive": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.OnServer(t)
			s := scheduling(t, c, jetstream.StreamConfig{
				AllowMsgTTL: true, SubjectDeleteMarkerTTL: time.Minute, MaxAge: time.Hour, MaxMsgsPerSubject: 1,
			})
			var ran testkit.Tally
			cfg := natty.ConsumerConfig{Subjects: []string{"s.>"}, Durable: "d", Exclusive: exclusive}
			testkit.Process(t, c, cfg, func(_ context.Context, msg *nats.Msg) error { ran.Add(msg); return nil })
			job := &nats.Msg{Subject: "s.job", Data: []byte("once")}
			require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "once", At: time.Now(), TTL: time.Second, Msg: job}))
			testkit.Eventually(t, func() bool {
				m, err := s.GetLastMsgForSubject(testkit.Ctx(t), "s.job")
				return err == nil && m.Header.Get(jetstream.MarkerReasonHeader) != ""
			}, "the message has expired")
			require.NoError(t, c.Publish(testkit.Ctx(t), "s.other", []byte("next")))
			testkit.Eventually(t, func() bool { return ran.Counts()["next"] == 1 }, "what is behind the marker is handled")
			testkit.Eventually(t, testkit.Settled(c, "S", "d"), "and the marker is acknowledged")
			assert.Equal(t, map[string]int{"once": 1, "next": 1}, ran.Counts())
		})
	}
}

// The server respects the TTL of a holder, and with markers removes nothing when it starts.
func TestScheduleDueWhileTheServerWasDownOutlivesMaxAge(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	c := testkit.ConnectTo(t, node.URL())
	s := scheduling(t, c, jetstream.StreamConfig{AllowMsgTTL: true, SubjectDeleteMarkerTTL: 10 * time.Second, MaxAge: time.Second, Duplicates: time.Second})
	at := time.Now().Add(1200 * time.Millisecond)
	require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "once", At: at, Msg: nats.NewMsg("s.once")}))
	require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "daily", Cron: "@daily", Msg: nats.NewMsg("s.daily")}))
	node.Stop()
	<-time.After(time.Until(at.Add(100 * time.Millisecond))) // it is due, and above MaxAge
	require.NoError(t, node.Restart())
	testkit.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		m, err := s.GetLastMsgForSubject(ctx, "s.once")
		return err == nil && !m.Time.Before(at)
	}, "it is published")
	left := schedules(t, c)
	require.Len(t, left, 1)
	assert.Equal(t, "daily", left[0].ID)
}

func TestStreamThatSourcesAnotherHandsOutNoHolders(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	scheduling(t, c, jetstream.StreamConfig{})
	_, err := c.JetStream().CreateStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "COPY", Sources: []*jetstream.StreamSource{{
		Name: "S", SubjectTransforms: []jetstream.SubjectTransformConfig{{Source: ">", Destination: "copy.>"}},
	}}})
	require.NoError(t, err)
	came := make(chan string, 10)
	testkit.Process(t, c, natty.ConsumerConfig{Stream: "COPY", Durable: "d"}, func(_ context.Context, msg *nats.Msg) error {
		came <- msg.Subject
		return nil
	})
	require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "now", At: time.Now(), Msg: nats.NewMsg("s.now")}))
	assert.Equal(t, "copy.s.now", testkit.Receive(t, came))
	assert.Empty(t, came)
}

func TestScheduleNeedsNoPermissionToReadTheOldOne(t *testing.T) {
	t.Parallel()
	c, root, _ := denied(t, server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.GET.>"}}})
	_, err := root.EnsureStream(testkit.Ctx(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowMsgSchedules: true})
	require.NoError(t, err)
	for _, every := range []time.Duration{time.Hour, 2 * time.Hour} {
		require.NoError(t, c.Schedule(testkit.Ctx(t), natty.Schedule{ID: "x", Every: every, Msg: nats.NewMsg("s.a")}))
	}
	left := schedules(t, root)
	require.Len(t, left, 1)
	assert.Equal(t, 2*time.Hour, left[0].Every)
}
