package schedule

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/internal/durable"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/roomtest"
	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keeper keeps schedules in a stream S of s.>.
func keeper(t *testing.T, url string, cfg jetstream.StreamConfig) *Keeper {
	t.Helper()
	api, invalid := roomtest.API(t, url), roomtest.Invalid
	k := &Keeper{API: api, Invalid: invalid, Pause: 200 * time.Millisecond}
	k.Overlapping = (&durable.Manager{API: api, Invalid: invalid}).Overlapping
	k.Pub = &publish.Publisher{
		API: api, IDs: publish.NewIDs(), Timeout: 5 * time.Second, Invalid: invalid,
		Failed: func(subject, _ string, unknown bool, cause error) error {
			return fmt.Errorf("%s (unknown %v): %w", subject, unknown, cause)
		},
	}
	cfg.Name, cfg.Subjects, cfg.AllowMsgSchedules = "S", []string{"s.>", durable.Holders("S")}, true
	_, err := api.JS.CreateStream(t.Context(), cfg)
	require.NoError(t, err)
	return k
}

func (k *Keeper) lastSeq(t *testing.T) uint64 {
	t.Helper()
	s, err := k.API.JS.Stream(t.Context(), "S")
	require.NoError(t, err)
	return s.CachedInfo().State.LastSeq
}

func (k *Keeper) list(t *testing.T) (all []Schedule) {
	t.Helper()
	require.NoError(t, k.Each(t.Context(), "S", func(s Schedule) bool { all = append(all, s); return true }))
	return all
}

func (k *Keeper) put(t *testing.T, s Schedule) {
	t.Helper()
	s.ID = "x"
	if s.Msg == nil {
		s.Msg = nats.NewMsg("s.a")
	}
	require.NoError(t, k.Put(t.Context(), s))
}

// purge does what the server does when a schedule fires that it took earlier.
func (k *Keeper) purge(t *testing.T) {
	t.Helper()
	m := nats.NewMsg("s.fired")
	m.Header.Set("Nats-Scheduler", holderSubject("S", "x"))
	m.Header.Set("Nats-Schedule-Next", "purge")
	_, err := k.API.JS.PublishMsg(t.Context(), m)
	assert.NoError(t, err)
}

func TestScheduleOutlivesTheOneThatItReplacesWhileThatFires(t *testing.T) {
	t.Parallel()
	k := keeper(t, nattytest.Server(t).URL(), jetstream.StreamConfig{})
	k.put(t, Schedule{At: time.Now().Add(slack / 2)})
	var fires sync.WaitGroup
	fires.Go(func() {
		for {
			m, err := k.current(t.Context(), "S", holderSubject("S", "x"))
			if err == nil && m.Msg.Subject == "s.new" {
				k.purge(t)
				return
			}
			if t.Context().Err() != nil {
				return
			}
		}
	})
	k.put(t, Schedule{At: time.Now().Add(time.Hour), Msg: nats.NewMsg("s.new")})
	fires.Wait()
	all := k.list(t)
	require.Len(t, all, 1)
	assert.Equal(t, "s.new", all[0].Msg.Subject)
}

func TestScheduleDueAtOnceIsPublishedOnceThoughItReplacesOneThatFires(t *testing.T) {
	t.Parallel()
	k := keeper(t, nattytest.Server(t).URL(), jetstream.StreamConfig{})
	k.put(t, Schedule{At: time.Now().Add(slack / 2)})
	k.put(t, Schedule{At: time.Now(), Msg: nats.NewMsg("s.new")})
	require.Eventually(t, func() bool { return len(k.list(t)) == 0 }, 5*time.Second, 20*time.Millisecond)
	s, err := k.API.JS.Stream(t.Context(), "S")
	require.NoError(t, err)
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("s.new"))
	require.NoError(t, err)
	assert.EqualValues(t, 1, info.State.Subjects["s.new"])
}

func TestOnlyWhatMayHaveBeenDueIsLookedAfter(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t)
	k := keeper(t, node.URL(), jetstream.StreamConfig{})
	later := Schedule{At: time.Now().Add(time.Hour)}
	for _, step := range []struct {
		name   string
		s      Schedule
		stores uint64
	}{
		{"new", Schedule{Every: time.Hour}, 1},
		{"the same", Schedule{Every: time.Hour}, 0},
		{"replaces one that repeats and has not fired", Schedule{Cron: "@yearly"}, 1},
		{"replaces one of which nobody knows when it is due", later, 2},
		{"replaces one that is due later", Schedule{At: later.At.Add(time.Second)}, 1},
		{"with other data", Schedule{At: later.At.Add(time.Second), Msg: &nats.Msg{Subject: "s.a", Data: []byte("b")}}, 1},
	} {
		before := k.lastSeq(t)
		k.put(t, step.s)
		assert.Equal(t, step.stores, k.lastSeq(t)-before, step.name)
		assert.Len(t, k.list(t), 1, step.name)
	}
}

// nats.go sends no blanks around a header's value, spaces for its line breaks, and no
// header without values.
func TestScheduleIsTheSameThoughItsHeadersAreNotSentAsTheyAre(t *testing.T) {
	t.Parallel()
	k := keeper(t, nattytest.Server(t).URL(), jetstream.StreamConfig{})
	header := nats.Header{"A": {" a\n", "b\nc"}, "Blank": {" "}, "Empty": {}}
	s := Schedule{Cron: " @yearly ", Msg: &nats.Msg{Subject: "s.a", Header: header}}
	k.put(t, s)
	before := k.lastSeq(t)
	k.put(t, s)
	assert.Equal(t, before, k.lastSeq(t))
	all := k.list(t)
	require.Len(t, all, 1)
	assert.Equal(t, nats.Header{"A": {"a", "b c"}, "Blank": {""}}, all[0].Msg.Header)
	assert.Equal(t, nats.Header{"A": {" a\n", "b\nc"}, "Blank": {" "}, "Empty": {}}, header, "the caller's")
}

// What repeats gives a newer holder its own next time, which the server tells nobody.
func TestNextTimeOfWhatRepeatsIsRead(t *testing.T) {
	t.Parallel()
	k := keeper(t, nattytest.Server(t).URL(), jetstream.StreamConfig{})
	k.put(t, Schedule{Every: time.Second})
	p := put{Keeper: k, cfg: jetstream.StreamConfig{Name: "S"}}
	require.Eventually(t, func() bool { return k.lastSeq(t) > 1 }, 5*time.Second, 10*time.Millisecond)
	old, err := k.current(t.Context(), "S", holderSubject("S", "x"))
	require.NoError(t, err)
	next, err := p.nextOf(t.Context(), old)
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now().Add(time.Second), next, time.Second)
	_, err = k.API.JS.Publish(t.Context(), "s.a", nil)
	require.NoError(t, err)
	next, err = p.nextOf(t.Context(), old)
	require.NoError(t, err)
	if m, err := k.API.LeaderGet(t.Context(), "S", map[string]any{"last_by_subj": "s.a"}); err == nil && len(m.Header) == 0 {
		assert.True(t, next.IsZero(), "another message says nothing of it")
	}
}

func TestSchedulesAreListedThoughTheyAreReplaced(t *testing.T) {
	t.Parallel()
	for _, n := range []int{50, 200} { // one by one, and by a consumer
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			listWhileReplacing(t, n)
		})
	}
}

func listWhileReplacing(t *testing.T, n int) {
	t.Helper()
	k := keeper(t, nattytest.Server(t).URL(), jetstream.StreamConfig{})
	at := time.Now().Add(time.Hour)
	put := func(ctx context.Context, i, round int) error {
		return k.Put(ctx, Schedule{ID: fmt.Sprint(i), At: at.Add(time.Duration(round) * time.Second), Msg: nats.NewMsg("s.a")})
	}
	for i := range n {
		require.NoError(t, put(t.Context(), i, 0))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var replacing sync.WaitGroup
	replacing.Go(func() {
		for round := 1; ctx.Err() == nil; round++ {
			for i := 0; i < n && ctx.Err() == nil; i++ {
				if err := put(t.Context(), i, round); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for range 20 {
		ids := map[string]int{}
		for _, s := range k.list(t) {
			ids[s.ID]++
		}
		assert.Len(t, ids, n)
		for id, times := range ids {
			assert.Equal(t, 1, times, id)
		}
	}
	cancel()
	replacing.Wait()
}

// A consumer brings them, where the stream allows one.
func TestManySchedulesAreListedWithAFewRequests(t *testing.T) {
	t.Parallel()
	const n = 2*bulkBatch + 1
	at := time.Now().Add(time.Hour).UTC()
	for name, test := range map[string]struct {
		cfg  jetstream.StreamConfig
		most int
	}{
		"limits":                      {jetstream.StreamConfig{}, 10},
		"work queue":                  {jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy}, n + 10},
		"no further consumer allowed": {jetstream.StreamConfig{MaxConsumers: 1}, n + 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keeper(t, nattytest.Server(t).URL(), test.cfg)
			config := jetstream.ConsumerConfig{Durable: "d", FilterSubject: "s.>"}
			_, err := k.API.JS.CreateConsumer(t.Context(), "S", config)
			require.NoError(t, err)
			for i := range n {
				s := Schedule{ID: fmt.Sprint(i), At: at, Msg: nats.NewMsg("s.a")}
				s.Msg.Data, s.Msg.Header = []byte(s.ID), nats.Header{"Id": {s.ID}}
				_, err := k.API.JS.PublishMsgAsync(s.holder(jetstream.StreamConfig{Name: "S"}))
				require.NoError(t, err)
			}
			<-k.API.JS.PublishAsyncComplete()
			before := k.API.NC.Stats().OutMsgs
			all := k.list(t)
			assert.LessOrEqual(t, int(k.API.NC.Stats().OutMsgs-before), test.most)
			require.Len(t, all, n)
			for i, s := range all { // in the order in which they were made
				id := fmt.Sprint(i)
				want := Schedule{ID: id, At: at, Msg: &nats.Msg{
					Subject: "s.a", Data: []byte(id), Header: nats.Header{"Id": {id}},
				}}
				require.Equal(t, want, s)
			}
			require.Eventually(t, func() bool {
				stream, err := k.API.JS.Stream(t.Context(), "S")
				return err == nil && stream.CachedInfo().State.Consumers == 1
			}, 10*time.Second, 5*time.Millisecond, "the consumer is removed")
		})
	}
}

func TestRefusedSchedules(t *testing.T) {
	t.Parallel()
	k := keeper(t, nattytest.Server(t).URL(), jetstream.StreamConfig{
		MaxMsgSize: 1000, AllowMsgTTL: true, SubjectDeleteMarkerTTL: 10 * time.Second,
	})
	at, msg := time.Now().Add(time.Hour), nats.NewMsg("s.a")
	for want, s := range map[string]Schedule{
		"another pause":                   {ID: "x", Every: 1400 * time.Millisecond, Msg: msg},
		"above ten years":                 {ID: "x", Every: 11 * year, Msg: msg},
		"above a hundred years":           {ID: "x", At: at, TTL: 250 * year, Msg: msg},
		"not valid UTF-8":                 {ID: "x\xff", At: at, Msg: msg},
		"with the ID in its headers":      {ID: strings.Repeat("i", 200), At: at, Msg: &nats.Msg{Subject: "s.a", Data: make([]byte, 750)}},
		"bytes of headers":                {ID: "x", At: at, Msg: &nats.Msg{Subject: "s.a", Header: nats.Header{"Mine": {strings.Repeat("h", 65500)}}}},
		"is raised by the server to the ": {ID: "x", At: at, TTL: time.Second, Msg: msg},
	} {
		err := k.Validate(s)
		if err == nil {
			err = k.Put(t.Context(), s)
		}
		require.ErrorContains(t, err, want)
	}
	assert.Empty(t, k.list(t))
	require.NoError(t, k.Validate(Schedule{ID: "x", At: at, TTL: 100 * year, Msg: msg}))
	k.put(t, Schedule{At: at, TTL: 10 * time.Second})
}

// A message that just fits is published, and nothing that is refused would have been.
func TestLargestScheduleIsPublished(t *testing.T) {
	t.Parallel()
	cfg := jetstream.StreamConfig{MaxMsgSize: 600}
	k := keeper(t, nattytest.Server(t).URL(), cfg)
	id := strings.Repeat("i", 200)
	s := Schedule{ID: id, At: time.Now(), Msg: &nats.Msg{Subject: "s.a", Header: nats.Header{"Mine": {"1", "2"}}}}
	s.Msg.Data = make([]byte, 600-headerSize(s.fired("S")))
	require.NoError(t, k.Put(t.Context(), s))
	require.Eventually(t, func() bool {
		m, err := k.API.LeaderGet(t.Context(), "S", map[string]any{"last_by_subj": "s.a"})
		return err == nil && len(m.Header)+len(m.Data) == 600
	}, 5*time.Second, 20*time.Millisecond)
}

func TestTransformThatMovesSchedulesIsRefused(t *testing.T) {
	t.Parallel()
	k := &Keeper{Invalid: func(field, value, reason string, _ error) error { return fmt.Errorf("%s %q %s", field, value, reason) }}
	for source, refused := range map[string]bool{"": true, ">": true, "*.>": true, "$NATTY.schedule.*.*": true, "s.>": false} {
		err := k.CheckTransform(jetstream.StreamConfig{Name: "S", SubjectTransform: &jetstream.SubjectTransformConfig{Source: source, Destination: "t.>"}})
		assert.Equal(t, refused, err != nil, "%q: %v", source, err)
	}
	assert.NoError(t, k.CheckTransform(jetstream.StreamConfig{Name: "S"}))
}

func TestWhatMaxAgeMayRemove(t *testing.T) {
	t.Parallel()
	made := time.Now()
	day := 24 * time.Hour
	at := func(d time.Duration) Schedule { return Schedule{At: made.Add(d)} }
	for name, test := range map[string]struct {
		cfg  jetstream.StreamConfig
		s    Schedule
		safe bool
		want bool
	}{
		"no MaxAge":                      {jetstream.StreamConfig{}, Schedule{Every: time.Hour}, false, false},
		"repeats":                        {jetstream.StreamConfig{MaxAge: day}, Schedule{Every: time.Hour}, false, true},
		"repeats, never, in files":       {jetstream.StreamConfig{MaxAge: day}, Schedule{Every: time.Hour}, true, true},
		"repeats, never, in memory":      {jetstream.StreamConfig{MaxAge: day, Storage: jetstream.MemoryStorage}, Schedule{Every: time.Hour}, true, false},
		"repeats, never, with markers":   {jetstream.StreamConfig{MaxAge: day, SubjectDeleteMarkerTTL: 1}, Schedule{Every: time.Hour}, true, false},
		"repeats, with markers":          {jetstream.StreamConfig{MaxAge: day, SubjectDeleteMarkerTTL: 1}, Schedule{Every: time.Hour}, false, true},
		"within half of MaxAge":          {jetstream.StreamConfig{MaxAge: day}, at(day / 2), false, false},
		"too late for a server's outage": {jetstream.StreamConfig{MaxAge: day}, at(day/2 + 1), true, true},
	} {
		assert.Equal(t, test.want, agesOut(test.cfg, test.s, made, test.safe), name)
	}
}

func TestMaxAgeThatWouldRemoveSchedulesIsRefused(t *testing.T) {
	t.Parallel()
	k := keeper(t, nattytest.Server(t).URL(), jetstream.StreamConfig{})
	change := func(changes map[string]any) error {
		have, err := k.API.CurrentConfig(t.Context(), "STREAM.INFO.S")
		require.NoError(t, err)
		return k.CheckChange(t.Context(), have, jsapi.Merge(have, changes))
	}
	hour := map[string]any{"max_age": int64(time.Hour), "allow_msg_ttl": true, "subject_delete_marker_ttl": int64(time.Second)}
	require.NoError(t, change(hour), "there is none yet")
	k.put(t, Schedule{At: time.Now().Add(20 * time.Minute)})
	require.NoError(t, change(hour))
	k.put(t, Schedule{At: time.Now().Add(40 * time.Minute)})
	require.ErrorContains(t, change(hour), "first set AllowMsgTTL without MaxAge")

	s, err := k.API.JS.Stream(t.Context(), "S")
	require.NoError(t, err)
	cfg := s.CachedInfo().Config
	cfg.AllowMsgTTL = true
	_, err = k.API.JS.UpdateStream(t.Context(), cfg)
	require.NoError(t, err)
	k.put(t, k.list(t)[0]) // as the error advises
	require.NoError(t, change(hour))
	require.ErrorContains(t, change(map[string]any{"max_age": int64(time.Hour)}), `the schedule "x"`)
	require.ErrorContains(t, change(map[string]any{"subject_transform": map[string]any{"src": ">", "dest": "t.>"}}), "moves the schedules")
}
