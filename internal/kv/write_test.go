package kv

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/publish"
)

var errLost = errors.New("the answer is lost")

// losing returns a Sender that loses the answers to the first attempts.
func losing(s *Store, attempts int) Sender {
	return Sender{Send: func(ctx context.Context, msg *nats.Msg, n int) (*jetstream.PubAck, bool, bool, error) {
		ack, _, _, err := s.Pub.NewAttempts(msg).Try(ctx, publish.AttemptTimeout.Min)
		if n <= attempts {
			return nil, true, false, errLost
		}
		return ack, false, false, err
	}}
}

func write(id string, expected uint64) *Write {
	return &Write{
		Bucket: "b", Key: "k", Fence: "k", Data: []byte(id), Expected: expected,
		ID: id, IDHeader: jetstream.MsgIDHeader,
	}
}

func TestWriteThatLostItsAnswerIsFound(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	w := write("mine", 0)
	revision, sent, err := s.Write(ctx, w, losing(s, 1))
	require.NoError(t, err)
	assert.EqualValues(t, 1, revision)
	assert.NotZero(t, sent)
	assert.Zero(t, w.Strays)
}

func TestWriteBehindAnotherOneIsRefusedAndSaysWhatIsThere(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	require.NoError(t, s.put(ctx, "k"))
	w := write("mine", 0)
	_, _, err := s.Write(ctx, w, losing(s, 0))
	require.ErrorIs(t, err, ErrRefused)
	assert.Zero(t, w.Strays, "it is known not to be stored")
	assert.Equal(t, "put", string(w.Found.Data))

	_, _, err = s.Write(ctx, w, losing(s, 1))
	require.ErrorIs(t, err, ErrRefused)
	assert.Equal(t, 1, w.Strays, "it may have been stored, and overwritten since")
}

func TestWriteOfAKeyIsFencedByAnother(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	fence := write("fence", 0)
	fence.Key, fence.Fence = "fence", "fence"
	at, _, err := s.Write(ctx, fence, losing(s, 0))
	require.NoError(t, err)
	for id := range 2 { // it does not matter what the key has
		w := write(string(rune('a'+id)), at)
		w.Fence = "fence"
		_, _, err = s.Write(ctx, w, losing(s, id))
		require.NoError(t, err)
	}
	require.NoError(t, s.put(ctx, "fence"))
	w := write("late", at)
	w.Fence = "fence"
	_, _, err = s.Write(ctx, w, losing(s, 0))
	require.ErrorIs(t, err, ErrRefused)
}

func TestOnlyALeaderThatLagsBehindHasARevisionBelowTheExpectedOne(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	at, _, err := s.Write(ctx, write("first", 0), losing(s, 0))
	require.NoError(t, err)
	// As if the leader did not know yet of the revision that the next write builds on.
	next := write("next", at+1)
	found, err := s.resolve(ctx, next, Sender{Lag: func(context.Context) bool { return true }})
	require.NoError(t, err, "it is to be sent again")
	assert.Zero(t, found)
	_, err = s.resolve(ctx, next, Sender{})
	require.ErrorIs(t, err, ErrRefused, "in a bucket whose revisions may fall")
	// But a leader that knows more decides.
	_, _, err = s.Write(ctx, write("second", at), losing(s, 0))
	require.NoError(t, err)
	next.Expected = at
	_, err = s.resolve(ctx, next, Sender{Lag: func(context.Context) bool { return true }})
	require.ErrorIs(t, err, ErrRefused)
}

func TestWriteThatEndsWithoutAnAnswerSaysWhatTheLastAnswerWas(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	full := &jetstream.APIError{Code: 503, ErrorCode: 10077, Description: "maximum bytes exceeded"}
	_, _, err := s.Write(ctx, write("mine", 0), Sender{
		Send: func(ctx context.Context, _ *nats.Msg, n int) (*jetstream.PubAck, bool, bool, error) {
			if n == 1 {
				return nil, false, false, full
			}
			<-ctx.Done()
			return nil, true, false, ctx.Err()
		},
		Look: time.Second,
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, full)
}

func TestFailedLookEndsAWriteOnlyWithoutABound(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	require.NoError(t, s.DeleteBucket(ctx, "b"))
	_, err := s.resolve(ctx, write("mine", 0), Sender{})
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
	_, err = s.resolve(ctx, write("mine", 0), Sender{Look: time.Second})
	require.NoError(t, err)
}

func TestMarkersThatComeAndGoDoNotKeepAKeyFromBeingCreated(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	require.NoError(t, s.put(ctx, "k"))
	require.NoError(t, s.Delete(ctx, "b", "k"))
	require.NoError(t, s.create(ctx, []byte("mine")))
	require.ErrorIs(t, s.create(ctx, nil), jetstream.ErrKeyExists)
	_, err := s.Update(ctx, "b", "k", nil, 1)
	require.Equal(t, changedError{have: 3, want: 1}, err)
	require.Equal(t, changedError{have: 3, want: 0}, s.replace(ctx, State{}), "it changed after the look")
	require.NoError(t, s.replace(ctx, State{Seq: 3}))
}

func TestRefusalOfAWriteThatMayBeStoredIsUnknown(t *testing.T) {
	t.Parallel()
	s, ctx := online(t, jetstream.KeyValueConfig{})
	require.NoError(t, s.put(ctx, "k"))
	w := swap{c: s, create: true, Write: *write("", 0)}
	w.Strays = 1
	_, err := w.run(ctx, State{})
	require.ErrorIs(t, err, errUnknown)
	require.NotErrorIs(t, err, jetstream.ErrKeyExists)
}

func TestWriteThatOnlyItsIDKeepsOutIsNotSentBeyondTheDuplicateWindow(t *testing.T) {
	t.Parallel()
	s := offline()
	s.buckets.Store("b", bucketState{seen: time.Now(), window: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	w := swap{c: s, Write: *write("mine", 0)}
	require.NoError(t, w.mayRepeat(ctx), "the first time")
	w.Strays, w.reason = 1, errLost
	require.NoError(t, w.mayRepeat(ctx), "within the window")
	w.first = time.Now().Add(-59 * time.Second)
	err := w.mayRepeat(ctx)
	require.ErrorContains(t, err, "duplicate window (1m0s)")
	require.ErrorIs(t, err, errLost)
	w.Expected = 5
	require.NoError(t, w.mayRepeat(ctx), "its revision keeps a second one out")
	w.moved = true
	require.Error(t, w.mayRepeat(ctx))
}

func TestKnownOutcomeIsNotMadeUnknownInTheLastMoment(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), leastAttempt/2)
	defer cancel()
	w := swap{c: offline(), Write: *write("mine", 0)}
	require.NoError(t, w.mayRepeat(ctx), "the first time")
	w.reason = errLost
	err := w.mayRepeat(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, errLost)
	w.Strays, w.Expected = 1, 5
	require.NoError(t, w.mayRepeat(ctx), "it is unknown already")
}
