package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty/examples/internal/check"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// line returns what the account says about an import: read, stored, duplicates, failed.
func line(t *testing.T, printed, which string) [4]int {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + which + ` +(\d+) +(\d+) +(\d+) +(\d+) +\d+$`).FindStringSubmatch(printed)
	require.NotNil(t, found, printed)
	var numbers [4]int
	for i := range numbers {
		n, err := strconv.Atoi(found[i+1])
		require.NoError(t, err)
		numbers[i] = n
	}
	return numbers
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "own.csv")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}

func TestImportingAgainStoresNothing(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, 5000, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, [4]int{5000, 4997, 0, 3}, line(t, printed, "first"))
	require.Equal(t, [4]int{5000, 0, 4997, 3}, line(t, printed, "again"))
	for _, at := range []string{"line 1252: ", "line 2502: ", "line 3752: "} {
		require.Equal(t, 2, strings.Count(printed, at), at)
	}
	require.Equal(t, 2, strings.Count(printed, " 100%       5000 rows"))
	require.NotContains(t, printed, "\r", "it is no terminal")
	nothingLeft()
}

func TestOfRowsThatAreTheSameOneIsStored(t *testing.T) {
	noStreams := check.Server(t)
	file := writeFile(t, "\ufeffid,text\n1,\"two\nlines\"\n2,b\n1,\"two\nlines\"\n1,b\n")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{file}, 0, &out))
	require.Equal(t, [4]int{4, 3, 1, 0}, line(t, out.String(), "first"))
	require.Equal(t, [4]int{4, 0, 4, 0}, line(t, out.String(), "again"))
	noStreams()
}

func TestARowThatIsTooLongFailsAloneAndTheProgramWithIt(t *testing.T) {
	noStreams := check.Server(t)
	file := writeFile(t, "text\na\n"+strings.Repeat("long", longest)+"\n"+strings.Repeat("longer than the server takes", 100_000)+"\nb\n")
	var out bytes.Buffer
	require.EqualError(t, run(t.Context(), []string{file}, 0, &out), "2 rows failed that should be stored")
	require.Equal(t, [4]int{4, 2, 0, 2}, line(t, out.String(), "first"))
	require.Equal(t, [4]int{4, 0, 2, 2}, line(t, out.String(), "again"))
	require.Contains(t, out.String(), "   line 3: message too large: 65547 bytes\n")
	require.Contains(t, out.String(), "   line 4: message too large: ")
	noStreams()
}

func TestAnInterruptSaysWhatIsStoredAndLeavesNothingOnTheServer(t *testing.T) {
	for _, text := range []string{"importing", " rows  ", "importing it again"} {
		t.Run(strings.TrimSpace(text), func(t *testing.T) {
			noStreams := check.Server(t)
			ctx, cancel := context.WithCancel(t.Context())
			out := check.CancelOn{Text: text, Cancel: cancel}
			require.ErrorIs(t, run(ctx, nil, 5000, &out), context.Canceled)
			if text == " rows  " {
				first := line(t, out.String(), "first")
				require.Less(t, first[0], 5000)
				require.Equal(t, first[0], first[1]+first[3], "what was written has an outcome")
				require.LessOrEqual(t, first[3], 1, "the one that is too long")
			}
			noStreams()
		})
	}
}

func TestABadFileIsRefusedWithThePlaceAndARemedy(t *testing.T) {
	for name, test := range map[string]struct{ content, want string }{
		"empty":          {"", "own.csv: it is empty; write the names"},
		"same column":    {"id,name,id\n1,a,2\n", `own.csv:1: two columns are named "id"; give each`},
		"too few fields": {"id,name\n1,a\n2\n", "own.csv: record on line 3: wrong number of fields"},
	} {
		t.Run(name, func(t *testing.T) {
			noStreams := check.Server(t)
			require.ErrorContains(t, run(t.Context(), []string{writeFile(t, test.content)}, 0, &bytes.Buffer{}), test.want)
			noStreams()
		})
	}
}

func TestArgumentsThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"a", "b"}, 0, &bytes.Buffer{}), "usage: import")
	require.ErrorContains(t, run(t.Context(), nil, 0, &bytes.Buffer{}), "0 rows; make it 1 or more")
	require.ErrorIs(t, run(t.Context(), []string{filepath.Join(t.TempDir(), "none")}, 0, &bytes.Buffer{}), os.ErrNotExist)
}

func TestUnreachableServerIsReported(t *testing.T) {
	t.Setenv("NATS_URL", "nats://127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, run(ctx, nil, 10, &bytes.Buffer{}), "nats://127.0.0.1:1")
}

func TestBarIsOneLineOnATerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	b := newBar(&out, 1000)
	require.False(t, b.terminal)
	b.terminal = true
	for rows := range 500 {
		b.update(int64(rows), rows) // the first is drawn, and the next a moment later
	}
	b.end(1001, 500)
	lines := strings.Split(out.String(), "\r")
	require.Empty(t, lines[0])
	require.Greater(t, len(lines), 2)
	for _, l := range lines[1 : len(lines)-1] {
		require.Len(t, l, len(lines[1]), "each covers the one before")
	}
	last := lines[len(lines)-1]
	require.Contains(t, last, "["+strings.Repeat("#", barWidth)+"] 100%        500 rows ")
	require.True(t, strings.HasSuffix(last, "/s\n"))
	require.Equal(t, 1, strings.Count(out.String(), "\n"))
}

func TestAccountFindsWhatIsNotStoredOrTwice(t *testing.T) {
	t.Parallel()
	own := source{own: true, tooLong: 1}
	good := func() (first, again *tally) {
		return &tally{read: 10, stored: 9, failed: 1, took: time.Second}, &tally{read: 10, failed: 1, took: time.Second}
	}
	for want, spoil := range map[string]func(first, again *tally){
		"":                                     func(_, _ *tally) {},
		"1 rows failed that should be stored":  func(_, again *tally) { again.failed++ },
		"2 rows are not stored, though no two": func(first, _ *tally) { first.stored -= 2 },
		"2 rows were stored when they were":    func(_, again *tally) { again.stored += 2 },
		"1 rows are too long, and only 0":      func(first, _ *tally) { first.failed, first.stored = 0, 10 },
	} {
		first, again := good()
		spoil(first, again)
		err := account(&bytes.Buffer{}, own, []*tally{first, again})
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
	}
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, 10, io.Discard) })
}
