package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/check"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryReadingIsInTheDatabaseOnceOrADeadLetter(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, "", &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 500, check.Number(t, printed, "published"))
	require.GreaterOrEqual(t, check.Number(t, printed, "batches"), 10)
	require.Positive(t, check.Number(t, printed, "handled twice"), "a batch comes again after its commit")
	require.Equal(t, 496, check.Number(t, printed, "rows in the database"))
	require.Equal(t, 4, check.Number(t, printed, "dead-lettered"))
	require.Equal(t, 0, check.Number(t, printed, "lost"))
	require.Equal(t, 3, strings.Count(printed, "CHECK constraint failed: kwh >= 0"))
	require.Equal(t, 1, strings.Count(printed, "dead letter no reading: not a reading: invalid character"))
	require.Equal(t, 1, strings.Count(printed, "the power failed"))
	nothingLeft()
}

func TestADatabaseOfOnesOwnIsKeptAndTakesAnotherStream(t *testing.T) {
	noStreams := check.Server(t)
	file := filepath.Join(t.TempDir(), "my readings.db")
	for range 2 {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), nil, file, &out))
		require.Equal(t, 496, check.Number(t, out.String(), "rows in the database"))
	}
	s := opened(t, file)
	var rows int
	require.NoError(t, s.db.QueryRowContext(t.Context(), "SELECT count(*) FROM readings").Scan(&rows))
	require.Equal(t, 2*496, rows)
	noStreams()
}

func TestAnInterruptLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"published", "restarting"} {
		t.Run(text, func(t *testing.T) {
			noStreams := check.Server(t)
			ctx, cancel := context.WithCancel(t.Context())
			require.ErrorIs(t, run(ctx, nil, "", &check.CancelOn{Text: text, Cancel: cancel}), context.Canceled)
			noStreams()
		})
	}
}

func TestAFileThatIsNoDatabaseIsNamed(t *testing.T) {
	check.ServerInside(t)
	file := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(file, []byte(strings.Repeat("not a database. ", 100)), 0o600))
	require.ErrorContains(t, run(t.Context(), nil, file, &bytes.Buffer{}), file+": file is not a database")
}

func TestAnArgumentIsRefused(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"a"}, "", &bytes.Buffer{}), "unexpected argument a")
}

// opened opens a database until the test ends.
func opened(t *testing.T, file string) *store {
	t.Helper()
	s, err := open(t.Context(), file)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.close()) })
	return s
}

// batch makes messages as they come from the stream S.
func batch(bodies ...string) []*nats.Msg {
	var msgs []*nats.Msg
	for i, body := range bodies {
		msgs = append(msgs, &nats.Msg{
			Sub: &nats.Subscription{}, Reply: fmt.Sprintf("$JS.ACK.S.D.1.%d.%d.1700000000000000000.0", i+1, i+1), Data: []byte(body),
		})
	}
	return msgs
}

const good = `{"meter":"M-1","kwh":1}`

func TestABatchThatComesAgainChangesNothing(t *testing.T) {
	t.Parallel()
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	for range 2 {
		require.NoError(t, s.insert(t.Context(), batch(good, good)))
	}
	rows, err := s.sequences(t.Context(), "S")
	require.NoError(t, err)
	require.Equal(t, []uint64{1, 2}, rows)
}

func TestOnlyWhatTheDatabaseRefusesFails(t *testing.T) {
	t.Parallel()
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	var partial *natty.PartialError
	require.ErrorAs(t, s.insert(t.Context(), batch(good, `{"meter":"","kwh":1}`, good, `{`, `{"meter":"M-1","kwh":-1}`)), &partial)
	require.Len(t, partial.Errs, 3)
	for _, i := range []int{1, 3, 4} {
		require.ErrorIs(t, partial.Errs[i], errRefused)
	}
	rows, err := s.sequences(t.Context(), "S")
	require.NoError(t, err)
	require.Equal(t, []uint64{1, 3}, rows)
}

func TestOfABatchThatFailsNothingIsCommitted(t *testing.T) {
	t.Parallel()
	s := opened(t, filepath.Join(t.TempDir(), "db"))
	msgs := append(batch(good), &nats.Msg{Data: []byte(good)}) // the second does not say where it comes from
	err := s.insert(t.Context(), msgs)
	require.ErrorIs(t, err, nats.ErrMsgNotBound)
	require.NotErrorIs(t, err, errRefused)
	rows, err := s.sequences(t.Context(), "S")
	require.NoError(t, err)
	require.Empty(t, rows)
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, "", io.Discard) })
}
