package timeline

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/chaos/check"
	"github.com/natty-go/natty/chaos/history"
)

func TestPageShowsTheRun(t *testing.T) {
	t.Parallel()
	const second = int64(1e9)
	page := string(Page("seed <1>", []history.Event{
		{At: 1 * second, Who: "lead-1", Life: 1, What: history.Started},
		{At: 2 * second, Who: "run", What: history.Phase, Text: history.Chaos},
		{At: 3 * second, Who: "lead-1", Life: 1, What: history.Own, Op: "lead", Seq: 7},
		{At: 5 * second, Who: "lead-1", Life: 1, What: history.Disow, Op: "lead", Seq: 7},
		{At: 9 * second, From: 4 * second, Who: "nemesis", What: history.Fault, Op: "pause", Key: "lead-1", ID: "4"},
		{At: 10 * second, Who: "lead-1", Life: 1, What: history.Unknown, ID: "m<1>"},
	}, []check.Problem{{Check: "one leader", At: 6 * second, Text: "two & more"}}))
	for _, part := range []string{
		"seed &lt;1&gt;", ">lead-1<", "lead, token 7", "fault 4, pause of lead-1", "m&lt;1&gt; is in doubt", "two &amp; more", "prefers-color-scheme: dark",
	} {
		assert.Contains(t, page, part)
	}
	assert.NotContains(t, page, "http", "it needs nothing else")
}

func TestPageOfNothing(t *testing.T) {
	t.Parallel()
	assert.Contains(t, string(Page("nothing", nil, nil)), "None.")
}
