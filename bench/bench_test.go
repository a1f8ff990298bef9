package main

import (
	"bytes"
	"encoding/xml"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Nothing here asserts a speed: that is for the program, on a machine that is at rest.
func TestEveryRowCountsEveryMessageAndEveryLimitIsMeasured(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // where the server keeps its store
	profile := filepath.Join(t.TempDir(), "cpu")
	var out bytes.Buffer
	svg := filepath.Join(t.TempDir(), "chart.svg")
	args := []string{"-rounds", "2", "-messages", "300", "-idle", "50ms", "-cpuprofile", profile, "-svg", svg}
	require.NoError(t, run(t.Context(), args, &out))
	t.Log(out.String())
	for _, r := range rows {
		line := regexp.MustCompile(`(?m)^` + r.name + ` .*$`).FindString(out.String())
		require.NotEmpty(t, line, "no line for %s", r.name)
		require.Equal(t, r.target > 0, strings.Contains(line, "PASS") || strings.Contains(line, "below"), line)
	}
	for _, l := range allLimits() {
		require.Regexp(t, `(?m)^`+l.name+` .*(PASS|above|not measured.*)$`, out.String())
	}
	require.FileExists(t, profile)
	picture, err := os.ReadFile(svg)
	require.NoError(t, err)
	require.Contains(t, string(picture), ">raw vs raw</text>")
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	require.Empty(t, left, "the server's store is removed")
}

func TestOnlyTheRowsThatWereAskedForAreRun(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-rounds", "1", "-messages", "10", "-row", "x1$"}, &out))
	require.Contains(t, out.String(), "Publish x1 ")
	require.NotContains(t, out.String(), "Process")
	out.Reset()
	require.NoError(t, run(t.Context(), []string{"-messages", "10", "-row", "copy, fill"}, &out))
	require.Contains(t, out.String(), "copy, fill ")
}

func TestCheckFailsWhenATargetIsMissed(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	// Ten messages do not occupy 64 handlers.
	err := run(t.Context(), []string{"-rounds", "1", "-messages", "10", "-row", "1 ms x64", "-check"}, &bytes.Buffer{})
	require.ErrorContains(t, err, "miss a target: 1,")
}

func TestWrongFlagsAreRefused(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-rounds", "0"}, {"-messages", "-1"}, {"-idle", "0"}, {"-row", "("}, {"-row", "nosuch"}, {"-none"}, {"-svg", "/nosuch/folder/a.svg"}, {"Publish"}} {
		require.Error(t, run(t.Context(), args, &bytes.Buffer{}), args)
	}
}

func TestTheChartHasARowForEachThatFitsItsAxis(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, drawChart(&out, []*result{
		{row: row{name: "Process <x1>"}, natty: sample{perSecond: 237_323}, ratio: 1, low: 0.9, high: 1.1},
		{row: row{name: "raw vs raw"}, ratio: 1.5, low: 0.9, high: 2.1}, // on a busy machine
		{row: row{name: "1 ms x64", target: 50}, ratio: 56, low: 50, high: 60},
	}, 15))
	require.NoError(t, xml.Unmarshal(out.Bytes(), new(struct{})))
	require.Contains(t, out.String(), "Process &lt;x1&gt;")
	require.Contains(t, out.String(), `class="median" x="350"`, "in the middle of an axis from 0 to 2")
	require.Contains(t, out.String(), "1.00   237,300/s")
	require.Contains(t, out.String(), "raw vs raw")
	require.NotContains(t, out.String(), "x64")
	require.Equal(t, "1,234,600", thousands(1_234_567))
	require.Equal(t, "999", thousands(999))
}

func TestMediansAndRatiosArePairedWithinRounds(t *testing.T) {
	t.Parallel()
	require.InDelta(t, 2, quantile([]float64{3, 1, 2}, 0.5), 0)
	require.InDelta(t, 2.5, quantile([]float64{4, 1, 3, 2}, 0.5), 0)
	require.InDelta(t, 7, quantile([]float64{7}, 0.75), 0)
	res := summarize(row{target: 0.95},
		[]sample{{perSecond: 90, mallocs: 6}, {perSecond: 900, mallocs: 8}, {perSecond: 50, mallocs: 7}},
		[]sample{{perSecond: 100, mallocs: 5}, {perSecond: 1000, mallocs: 5}, {perSecond: 100, mallocs: 5}})
	require.InDelta(t, 0.9, res.ratio, 1e-9)
	require.InDelta(t, 90, res.natty.perSecond, 0)
	require.True(t, res.below())
	res.row.target = 0
	require.False(t, res.below())
	require.False(t, res.above(), "seven allocations, and no limit")
	res.row.maxAllocs = 7
	require.False(t, res.above())
	res.row.maxAllocs = 6
	require.True(t, res.above())
}
