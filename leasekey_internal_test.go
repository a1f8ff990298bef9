package natty

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/nattytest"
)

const testLeaseTTL = 10 * time.Second

// standby is one that waits for a lease of 10 s, without a server.
func standby() *waiting {
	k := &leaseKey{c: &Client{link: newLink()}, ttl: testLeaseTTL}
	return &waiting{key: k, hints: make(chan *nats.Msg, 64)}
}

// waits returns how long it waits after it found the key to be held like this.
func (w *waiting) waits(t *testing.T, now holding) time.Duration {
	t.Helper()
	began := time.Now()
	require.NoError(t, w.wait(t.Context(), now))
	return time.Since(began)
}

// after sends w a hint of a write later on.
func (w *waiting) after(d time.Duration, write leaseWrite) {
	time.AfterFunc(d, func() { w.hints <- write.message() })
}

func renewal(id string, expected uint64) leaseWrite {
	return leaseWrite{id: id, subject: "k", fence: "k", expected: expected}
}

func TestStandbyLooksWhenTheOwnersLastWriteExpires(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		hints map[time.Duration]leaseWrite
		now   holding
		want  time.Duration
	}{
		"just written":              {now: holding{revision: 5, write: "a"}, want: testLeaseTTL},
		"written a while ago":       {now: holding{revision: 5, write: "a", age: 7 * time.Second}, want: 3 * time.Second},
		"by a clock that is behind": {now: holding{revision: 5, write: "a", age: -time.Hour}, want: testLeaseTTL},
		"by a clock that is ahead":  {now: holding{revision: 5, write: "a", age: time.Hour}, want: testLeaseTTL / 40},
		"renewed twice": {
			now: holding{revision: 5, write: "a"}, want: 6*time.Second + testLeaseTTL,
			hints: map[time.Duration]leaseWrite{3 * time.Second: renewal("b", 5), 6 * time.Second: renewal("c", 8)},
		},
		"a late write of a former owner": {
			now: holding{revision: 5, write: "a"}, want: 3*time.Second + testLeaseTTL,
			hints: map[time.Duration]leaseWrite{3 * time.Second: renewal("b", 5), 9 * time.Second: renewal("z", 4)},
		},
		"a repetition": {
			now: holding{revision: 5, write: "a"}, want: 3*time.Second + testLeaseTTL,
			hints: map[time.Duration]leaseWrite{3 * time.Second: renewal("b", 5), 9 * time.Second: renewal("b", 5)},
		},
		"released": {
			now: holding{revision: 5, write: "a"}, want: 2 * time.Second,
			hints: map[time.Duration]leaseWrite{2 * time.Second: {id: "b", subject: "k", fence: "k", expected: 5, remove: true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := standby()
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
		w, now := standby(), holding{revision: 5, write: "a"}
		assert.Equal(t, testLeaseTTL, w.waits(t, now))
		for range 3 {
			assert.Equal(t, testLeaseTTL/40, w.waits(t, now))
		}
		now = holding{revision: 9, write: "c", age: 4 * time.Second} // renewed, and the hint was missed
		assert.Equal(t, testLeaseTTL-now.age, w.waits(t, now))
	})
}

// The hint of a release is a message of its own, which may come before the stream has stored it.
func TestStandbyLooksAgainSoonWhileAReleaseIsNotThereYet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, now := standby(), holding{revision: 5, write: "a"}
		w.after(time.Second, leaseWrite{id: "b", subject: "k", fence: "k", expected: 5, remove: true})
		assert.Equal(t, time.Second, w.waits(t, now))
		assert.Less(t, w.waits(t, now), 10*time.Millisecond)
		for range 10 { // it was lost on the way to the stream, maybe
			assert.Less(t, w.waits(t, now), 2*time.Second, "not so often")
		}
		now = holding{revision: 6, write: "c"} // somebody else was faster
		assert.Equal(t, testLeaseTTL, w.waits(t, now))
	})
}

// testLease returns a key of a bucket that is there.
func testLease(t *testing.T) (*leaseKey, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	c, err := Connect(ctx, Config{Name: "test", Servers: []string{nattytest.Server(t).URL()}}, WithLogger(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close(context.Background())) })
	require.NoError(t, c.ensureLeaseBucket(ctx, leaseBucket{name: "b", ttl: testLeaseTTL}))
	k := c.leaseKey("b", "k", testLeaseTTL, false)
	return &k, ctx
}

func TestWriteOfALeaseIsFoundWhenItsAnswerWasLost(t *testing.T) {
	t.Parallel()
	k, ctx := testLease(t)
	w := k.write("me", 0)
	_, _, err := k.store(ctx, &w)
	require.NoError(t, err)
	again, _, err := k.store(ctx, &w) // refused: it stands there already
	require.NoError(t, err)
	now, err := k.look(ctx)
	require.NoError(t, err)
	assert.Equal(t, now.revision, again)
	assert.Equal(t, "me", now.holder)
	assert.True(t, now.held)
	assert.Less(t, now.age.Abs(), time.Second)

	other := k.write("other", 0)
	_, _, err = k.store(ctx, &other)
	require.ErrorIs(t, err, errLost)
}

func TestLateWriteOfAFormerOwnerIsRefused(t *testing.T) {
	t.Parallel()
	k, ctx := testLease(t)
	former, err := k.take(ctx, "former", 0)
	require.NoError(t, err)
	defer former.end(nil)
	late := map[string]leaseWrite{
		"renewal": k.write("former", former.revision),
		"release": k.removal(former.revision),
		"fenced":  k.fenced("state", nil, k.subject, former.revision),
	}
	require.NoError(t, former.Release(ctx))
	for name, w := range late {
		_, _, err = k.store(ctx, &w)
		require.ErrorIs(t, err, errLost, "%s of a free lease", name)
	}
	now, err := k.look(ctx)
	require.NoError(t, err)
	owner, err := k.take(ctx, "owner", now.revision)
	require.NoError(t, err)
	defer owner.end(nil)
	assert.Greater(t, owner.Token(), former.Token())
	for name, w := range late {
		_, _, err = k.store(ctx, &w)
		require.ErrorIs(t, err, errLost, "%s of another's lease", name)
	}
	now, err = k.look(ctx)
	require.NoError(t, err)
	assert.Equal(t, owner.Token(), now.revision, "the owner's write stands")
	require.NoError(t, owner.Release(ctx))
}

func TestLeaderThatLagsBehindDeposesNobody(t *testing.T) {
	t.Parallel()
	k, ctx := testLease(t)
	w := k.write("me", 0)
	revision, _, err := k.store(ctx, &w)
	require.NoError(t, err)
	// As if the leader did not know yet of the revision that the next write builds on.
	next := k.write("me", revision+1)
	found, err := k.resolve(ctx, &next)
	require.NoError(t, err, "it is to be asked again")
	assert.Zero(t, found)
	// But one that knows more has the last word.
	other := k.write("other", revision)
	_, _, err = k.store(ctx, &other)
	require.NoError(t, err)
	next.expected = revision
	_, err = k.resolve(ctx, &next)
	require.ErrorIs(t, err, errLost)
}

func TestAnswerThatWouldBeTheSameAgainIsFinal(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		nats.ErrMaxPayload: true, nats.ErrPermissionViolation: true, nats.ErrConnectionClosed: true, ErrClosed: true,
		nats.ErrNoResponders: false, nats.ErrDisconnected: false, context.DeadlineExceeded: false,
		&jetstream.APIError{Code: 400, ErrorCode: codeWrongLastSeq}:      false,
		&jetstream.APIError{Code: 400, ErrorCode: codeConcurrentLastSeq}: false,
		&jetstream.APIError{Code: 503, ErrorCode: codeNotAvailable}:      false,
		&jetstream.APIError{Code: 400, ErrorCode: codeMsgTooLarge}:       true,
	} {
		assert.Equal(t, want, final(err), "%v", err)
	}
}

func TestStandbyTellsOnceOfAKeyThatDoesNotExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, told := standby(), 0
		w.key.trouble = func(error) { told++ }
		stuck := holding{revision: 5}
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
		stuck.revision = 7 // put anew
		assert.InDelta(t, 2*testLeaseTTL, until(2), float64(testLeaseTTL/20))

		// A server that was away has yet to remove what has expired meanwhile.
		stuck.revision = 8
		w.waits(t, stuck)
		w.found = time.Time{}
		assert.InDelta(t, 2*testLeaseTTL, until(3), float64(testLeaseTTL/20))
	})
}
