package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/examples/internal/check"
	"github.com/natty-go/natty/examples/internal/instances"
)

// asProgram makes the test's binary this program. An instance is it anyway.
const asProgram = "EXCLUSIVE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" || instances.Name() != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// handOver returns what the account says about it.
func handOver(t *testing.T, printed string) time.Duration {
	t.Helper()
	found := regexp.MustCompile(`(?m)^hand-over +([0-9.]+) s$`).FindStringSubmatch(printed)
	require.NotNil(t, found, printed)
	seconds, err := strconv.ParseFloat(found[1], 64)
	require.NoError(t, err)
	return time.Duration(seconds * float64(time.Second))
}

func TestAnInstanceThatIsStoppedHandsOverAtOnce(t *testing.T) {
	nothingLeft := check.ServerInside(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, false, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 400, check.Number(t, printed, "handled by A")+check.Number(t, printed, "handled by B"))
	require.Positive(t, check.Number(t, printed, "handled by A"))
	require.Positive(t, check.Number(t, printed, "handled by B"))
	require.Equal(t, 0, check.Number(t, printed, "handled twice"))
	require.Equal(t, 0, check.Number(t, printed, "out of order"))
	require.Equal(t, 0, check.Number(t, printed, "lost"))
	require.Less(t, handOver(t, printed), 5*time.Second, "the server does not wait for it")
	nothingLeft()
}

func TestAnInstanceThatIsKilledIsFollowedAfterTenSeconds(t *testing.T) {
	noStreams := check.Server(t)
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, true, &out))
	printed := out.String()
	t.Log(printed)
	require.Equal(t, 0, check.Number(t, printed, "out of order"))
	require.Equal(t, 0, check.Number(t, printed, "lost"))
	require.LessOrEqual(t, check.Number(t, printed, "handled twice"), 100, "what was not acknowledged")
	require.Greater(t, handOver(t, printed), 3*time.Second, "nobody told the server")
	require.Less(t, handOver(t, printed), 20*time.Second)
	noStreams()
}

func TestAnInterruptEndsTheInstancesAndLeavesNothing(t *testing.T) {
	for _, text := range []string{"B is process", "stands by", "is active", "stopping"} {
		t.Run(text, func(t *testing.T) {
			nothingLeft := check.ServerInside(t)
			ctx, cancel := context.WithCancel(t.Context())
			require.ErrorIs(t, run(ctx, nil, false, &check.CancelOn{Text: text, Cancel: cancel}), context.Canceled)
			nothingLeft()
		})
	}
}

func TestTheInstancesEndWhenTheProgramIsKilled(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	program := exec.Command(self)
	program.Env = append(os.Environ(), asProgram+"=yes", "NATS_URL=", "TMPDIR="+t.TempDir())
	program.Stderr = writer // which the instances inherit: it ends with the last of the three
	output, err := program.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, program.Start())
	writer.Close()
	lines := bufio.NewScanner(output)
	for lines.Scan() && !strings.Contains(lines.Text(), "is active") {
		t.Log(lines.Text())
	}
	require.NoError(t, program.Process.Kill())
	require.Error(t, program.Wait())
	require.NoError(t, reader.SetReadDeadline(time.Now().Add(30*time.Second)))
	said, err := io.ReadAll(reader)
	require.NoError(t, err, "somebody still runs")
	t.Logf("%s", said)
}

func TestInstancesThatCannotWorkAreReported(t *testing.T) {
	check.Server(t)
	p, err := instances.Start(t.Context(), natty.Config{}, io.Discard, names, instanceStream+"=NO-SUCH-STREAM")
	require.NoError(t, err)
	never := func() bool { return false }
	require.EqualError(t, p.Follow(func(name, what string) { t.Error(name, what) }, never), "all instances have ended")
	err = p.Close()
	require.ErrorContains(t, err, "instance A: exit status 1")
	require.ErrorContains(t, err, "instance B: exit status 1")
}

func TestAnArgumentIsRefused(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(t.Context(), []string{"a"}, false, &bytes.Buffer{}), "unexpected argument a")
}

func TestAccountFindsWhatWasSkippedAndWhatCameBack(t *testing.T) {
	t.Parallel()
	a := &account{out: &bytes.Buffer{}, by: map[string]int{}}
	for _, line := range []string{"A 1", "A 2", "A 3", "B 2", "B 3", "B 4", "B 6", "A 6", "B x"} {
		name, what, _ := strings.Cut(line, " ")
		a.note(name, what)
	}
	var out bytes.Buffer
	a.out = &out
	require.EqualError(t, a.print(), "395 numbers were not handled, and 2 were out of order")
	require.Equal(t, 3, check.Number(t, out.String(), "handled twice"))
	require.Equal(t, 4, check.Number(t, out.String(), "handled by A"))
}

func TestAnInterruptWhileTheStreamIsMadeLeavesNothingOnTheServer(t *testing.T) {
	check.Interrupted(t, func(ctx context.Context) error { return run(ctx, nil, false, io.Discard) })
}
