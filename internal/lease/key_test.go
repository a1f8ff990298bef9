package lease

import (
	"context"
	"log/slog"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/jsapi"
	"github.com/natty-go/natty/internal/kv"
	"github.com/natty-go/natty/internal/publish"
	"github.com/natty-go/natty/internal/roomtest"
	"github.com/natty-go/natty/nattytest"
)

const testLeaseTTL = 10 * time.Second

// newStandby returns one that waits for a lease of 10 s, without a server.
func newStandby() *standby {
	store := &kv.Store{API: &jsapi.Client{Link: conn.NewLink()}}
	k := New(store).Key(Bucket{Name: "b", TTL: testLeaseTTL}, "k", Events{})
	k.found.maxAge = testLeaseTTL
	return &standby{key: &k, ear: newEar()}
}

// waits returns how long s waits after a look that found now.
func (s *standby) waits(t *testing.T, now KeyState) time.Duration {
	t.Helper()
	began := time.Now()
	require.NoError(t, s.wait(t.Context(), now))
	return time.Since(began)
}

// after sends s a hint later on.
func (s *standby) after(d time.Duration, hint *nats.Msg) {
	time.AfterFunc(d, func() { s.ear.hear(hint) })
}

// renewal is the hint of a write.
func renewal(id string, expected uint64) *nats.Msg {
	return &nats.Msg{Header: nats.Header{
		headerLease: {id}, jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(expected, 10)},
	}}
}

// release is the hint of a removal.
func release(expected uint64) *nats.Msg {
	m := renewal("released", expected)
	m.Header[kv.HeaderOperation] = []string{"DEL"}
	return m
}

func TestStandbyLooksWhenTheOwnersLastWriteExpires(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		hints map[time.Duration]*nats.Msg
		now   KeyState
		want  time.Duration
	}{
		"just written": {now: KeyState{Revision: 5, write: "a"}, want: testLeaseTTL},
		"written a while ago": {
			now: KeyState{Revision: 5, write: "a", age: 7 * time.Second}, want: 3 * time.Second,
		},
		"by a clock that is behind": {now: KeyState{Revision: 5, write: "a", age: -time.Hour}, want: testLeaseTTL},
		"by a clock that is ahead": {
			now: KeyState{Revision: 5, write: "a", age: time.Hour}, want: testLeaseTTL / 40,
		},
		"renewed twice": {
			now: KeyState{Revision: 5, write: "a"}, want: 6*time.Second + testLeaseTTL,
			hints: map[time.Duration]*nats.Msg{3 * time.Second: renewal("b", 5), 6 * time.Second: renewal("c", 8)},
		},
		"a late write of a former owner": {
			now: KeyState{Revision: 5, write: "a"}, want: 3*time.Second + testLeaseTTL,
			hints: map[time.Duration]*nats.Msg{3 * time.Second: renewal("b", 5), 9 * time.Second: renewal("z", 4)},
		},
		"a repetition": {
			now: KeyState{Revision: 5, write: "a"}, want: 3*time.Second + testLeaseTTL,
			hints: map[time.Duration]*nats.Msg{3 * time.Second: renewal("b", 5), 9 * time.Second: renewal("b", 5)},
		},
		"released": {
			now: KeyState{Revision: 5, write: "a"}, want: 2 * time.Second,
			hints: map[time.Duration]*nats.Msg{2 * time.Second: release(5)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newStandby()
				for at, write := range test.hints {
					w.after(at, write)
				}
				assert.Equal(t, test.want, w.waits(t, test.now))
			})
		})
	}
}

func TestStandbyLooksAgainSoonWhileWhatExpiredIsThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, now := newStandby(), KeyState{Revision: 5, write: "a"}
		assert.Equal(t, testLeaseTTL, w.waits(t, now))
		for range 3 {
			assert.Equal(t, testLeaseTTL/40, w.waits(t, now))
		}
		now = KeyState{Revision: 9, write: "c", age: 4 * time.Second} // renewed, and the hint was missed
		assert.Equal(t, testLeaseTTL-now.age, w.waits(t, now))
	})
}

// The hint of a release is a message of its own, which may come before the stream has
// stored it.
func TestStandbyLooksAgainSoonWhileAReleaseIsNotThereYet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, now := newStandby(), KeyState{Revision: 5, write: "a"}
		w.after(time.Second, release(5))
		assert.Equal(t, time.Second, w.waits(t, now))
		assert.Less(t, w.waits(t, now), 10*time.Millisecond)
		for range 10 { // it was lost on the way to the stream, maybe
			assert.Less(t, w.waits(t, now), 2*time.Second, "not so often")
		}
		now = KeyState{Revision: 6, write: "c"} // somebody else was faster
		assert.Equal(t, testLeaseTTL, w.waits(t, now))
	})
}

// testLease returns a key of a bucket that is there.
func testLease(t *testing.T) (*Key, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	api, quiet := roomtest.API(t, nattytest.Server(t).URL()), slog.New(slog.DiscardHandler)
	pub := &publish.Publisher{
		API: api, IDs: publish.NewIDs(), Timeout: 5 * time.Second, Log: quiet,
		Invalid: roomtest.Invalid,
		Failed:  func(_, _ string, _ bool, cause error) error { return cause },
	}
	store := &kv.Store{API: api, Pub: pub, Log: quiet, Life: t.Context(), Replicas: 1}
	k := New(store).Key(Bucket{Name: "b", TTL: testLeaseTTL}, "k", Events{})
	require.NoError(t, k.Ready(ctx))
	return &k, ctx
}

func TestWriteOfALeaseIsFoundWhenItsAnswerWasLost(t *testing.T) {
	t.Parallel()
	k, ctx := testLease(t)
	w := k.write("me", 0)
	_, _, err := k.store(ctx, w)
	require.NoError(t, err)
	again, _, err := k.store(ctx, w) // refused: it stands there already
	require.NoError(t, err)
	now, err := k.Look(ctx)
	require.NoError(t, err)
	assert.Equal(t, now.Revision, again)
	assert.Equal(t, "me", now.Owner)
	assert.True(t, now.Owned)
	assert.Less(t, now.age.Abs(), time.Second)

	other := k.write("other", 0)
	_, _, err = k.store(ctx, other)
	require.ErrorIs(t, err, kv.ErrRefused)
}

// The caller has given up when the write is on its way, and a look does not find it yet.
func TestWriteThatIsTakenBackOnItsWayIsRefused(t *testing.T) {
	t.Parallel()
	k, ctx := testLease(t)
	free := KeyState{}
	for range 2 { // where nothing was, and behind a marker
		w := k.write("gone", free.Revision)
		require.Eventually(t, func() bool {
			k.undo(w)
			now, err := k.Look(ctx)
			return err == nil && now.Revision > free.Revision && !now.Owned
		}, 20*time.Second, time.Millisecond)
		_, _, err := k.store(ctx, w)
		require.ErrorIs(t, err, kv.ErrRefused)
		free, err = k.Look(ctx)
		require.NoError(t, err)
	}
	w := k.write("gone", free.Revision)
	_, _, err := k.store(ctx, w)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		k.undo(w)
		now, err := k.Look(ctx)
		return err == nil && !now.Owned
	}, 20*time.Second, time.Millisecond, "a write that is stored")
	now, err := k.Look(ctx)
	require.NoError(t, err)
	owner := k.write("owner", now.Revision)
	revision, _, err := k.store(ctx, owner)
	require.NoError(t, err)
	k.undo(w)
	now, err = k.Look(ctx)
	require.NoError(t, err)
	assert.Equal(t, revision, now.Revision, "another one's stays")
}

func TestLateWriteOfAFormerOwnerIsRefused(t *testing.T) {
	t.Parallel()
	k, ctx := testLease(t)
	former, err := k.Take(ctx, "former", 0)
	require.NoError(t, err)
	defer former.end(nil)
	late := map[string]*kv.Write{
		"renewal": k.write("former", former.revision),
		"release": k.removal(former.revision),
		"fenced":  k.fenced("state", nil, k.Key, former.revision),
	}
	require.NoError(t, former.Release(ctx))
	for name, w := range late {
		_, _, err = k.store(ctx, w)
		require.ErrorIs(t, err, kv.ErrRefused, "%s of a free lease", name)
	}
	now, err := k.Look(ctx)
	require.NoError(t, err)
	owner, err := k.Take(ctx, "owner", now.Revision)
	require.NoError(t, err)
	defer owner.end(nil)
	assert.Greater(t, owner.Token, former.Token)
	for name, w := range late {
		_, _, err = k.store(ctx, w)
		require.ErrorIs(t, err, kv.ErrRefused, "%s of another's lease", name)
	}
	now, err = k.Look(ctx)
	require.NoError(t, err)
	assert.Equal(t, owner.Token, now.Revision, "the owner's write stands")
	require.NoError(t, owner.Release(ctx))
}

func TestAnswerThatWouldBeTheSameAgainIsFinal(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		nats.ErrMaxPayload: true, nats.ErrPermissionViolation: true,
		nats.ErrConnectionClosed: true, conn.ErrClosed: true,
		&jetstream.APIError{Code: 400, ErrorCode: jsapi.CodeAccountLimit}: false,
		&jetstream.APIError{Code: 404, ErrorCode: 10059}:                  false,
		nats.ErrNoResponders: false, nats.ErrDisconnected: false, context.DeadlineExceeded: false,
		&jetstream.APIError{Code: 400, ErrorCode: jsapi.CodeWrongLastSeq}:      false,
		&jetstream.APIError{Code: 400, ErrorCode: jsapi.CodeConcurrentLastSeq}: false,
		&jetstream.APIError{Code: 503, ErrorCode: jsapi.CodeNotAvailable}:      false,
		&jetstream.APIError{Code: 400, ErrorCode: jsapi.CodeMsgTooLarge}:       true,
	} {
		assert.Equal(t, want, isFinal(err), "%v", err)
	}
}

// Hints do not come through a leaf node, for example.
func TestStandbyThatHearsNothingLooksTwiceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newStandby()
		assert.Equal(t, testLeaseTTL, w.waits(t, KeyState{Revision: 5, write: "a"}))
		assert.Equal(t, deafPause, w.waits(t, KeyState{Revision: 9, write: "b"}), "nothing was heard of that")
		assert.NotEmpty(t, w.deaf())
	})
}

// As while the servers that keep the bucket have no majority.
func TestStandbyDoesNotAdviseToDeleteALeaseThatWillExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newStandby()
		var told error
		w.key.Trouble = func(err error) { told = err }
		for told == nil {
			w.waits(t, KeyState{Revision: 5, write: "a"})
		}
		require.ErrorContains(t, told, "majority")
		require.NotContains(t, told.Error(), "delete")
	})
}

// A bucket that was deleted says nothing of who still leads.
func TestStandbyTakesNothingInANewBucketWhileTheLastLeaseMayLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newStandby()
		w.after(time.Second, renewal("b", 5))
		w.after(3*time.Second, release(6))
		w.waits(t, KeyState{Revision: 5, write: "a"})
		assert.Equal(t, testLeaseTTL-2*time.Second, w.hold(KeyState{}))
		assert.Zero(t, w.hold(KeyState{Revision: 7}), "released")

		// The owner may have renewed between the last look and the end of the bucket.
		w.ear.domain = true
		const trust = testLeaseTTL * 4 / 5
		w.vanished = time.Time{}
		assert.Equal(t, trust, w.hold(KeyState{}), "without hints")
		time.Sleep(time.Second) // fake time
		assert.Equal(t, trust-time.Second, w.hold(KeyState{}), "counted from when it was missed")
		assert.Equal(t, deafPause, w.waits(t, KeyState{}), "there may be another owner by then")
	})
}

func TestStandbyTellsOnceOfAKeyThatDoesNotExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, told := newStandby(), 0
		w.key.Trouble = func(error) { told++ }
		stuck := KeyState{Revision: 5, ttl: kv.TTLNever}
		// until waits until it is told, and returns how long that took.
		until := func(n int) time.Duration {
			began := time.Now()
			for told < n {
				w.waits(t, stuck)
			}
			return time.Since(began) - testLeaseTTL // the wait after it
		}
		assert.InDelta(t, 2*testLeaseTTL, until(1), float64(testLeaseTTL/20))
		for range 5 {
			assert.Equal(t, testLeaseTTL, w.waits(t, stuck), "it looks less often from then on")
		}
		assert.Equal(t, 1, told)
		stuck.Revision, w.heard = 7, true // put anew
		assert.InDelta(t, 2*testLeaseTTL, until(2), float64(testLeaseTTL/20))

		// A server that was away has yet to remove what has expired meanwhile.
		stuck.Revision, w.heard = 8, true
		w.waits(t, stuck)
		w.since = time.Time{}
		assert.InDelta(t, 2*testLeaseTTL, until(3), float64(testLeaseTTL/20))
	})
}
