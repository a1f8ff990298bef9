package screen

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/cmd/natty/internal/account"
)

func snapshot() *account.Snapshot {
	now := time.Date(2026, 5, 4, 10, 11, 12, 0, time.UTC)
	oldest, rate := now.Add(-3*time.Hour), 123.4
	return &account.Snapshot{
		Time:   now,
		Server: account.Server{Name: "n1", Version: "2.14.0", URL: "nats://127.0.0.1:4222"},
		Consumers: []account.Consumer{
			{Stream: "ORDERS", Name: "idle"},
			{
				Stream: "ORDERS", Name: "billing\x1b[31m", Lag: 12_345, InFlight: 7, MaxInFlight: 20_000, Oldest: &oldest,
				Rate: &rate, Warning: "messages wait, and nobody asks for them",
			},
		},
		Leases: []account.Lease{{Kind: "leader", Bucket: "elections", Key: "mailer", Owner: "host-1", Renewed: now.Add(-2 * time.Second)}},
		Dead:   []account.Dead{{Subject: "dead.orders", Count: 3, Reason: "no such\ncustomer", Newest: now.Add(-time.Minute)}},
	}
}

func TestEveryWidthFits(t *testing.T) {
	t.Parallel()
	for width := 20; width < 200; width++ {
		for _, line := range (Screen{Width: width, Height: 50}).Lines(snapshot(), errors.New("no server")) {
			assert.LessOrEqual(t, utf8.RuneCountInString(line), width, line)
			assert.NotContains(t, line, "\x1b", "neither colours nor what a name holds")
		}
	}
}

func TestANarrowScreenKeepsWhatMatters(t *testing.T) {
	t.Parallel()
	text := strings.Join(Screen{Width: 40}.Lines(snapshot(), nil), "\n")
	assert.Contains(t, text, "12.3k")
	assert.Contains(t, text, "3h00m")
	assert.Contains(t, text, "\n! ORDERS/billing", "it has a warning, for which there is no room")
	assert.Contains(t, text, "\nORDERS/idle")
	assert.NotContains(t, text, "WAITING")
	assert.Contains(t, text, "dead.orders")
}

func TestAWideScreenHasEverything(t *testing.T) {
	t.Parallel()
	text := strings.Join(Screen{Width: 160}.Lines(snapshot(), nil), "\n")
	assert.Regexp(t, `ORDERS/billing\S+ +12.3k +123/s +7/20.0k +0 +0 +3h00m +messages wait, and nobody asks for them`, text)
	assert.Less(t, strings.Index(text, "billing"), strings.Index(text, "idle"), "the greatest lag comes first")
	assert.NotContains(t, text, "! ORDERS")
	assert.Regexp(t, `elections/mailer +leader +2s ago +host-1`, text)
	assert.Regexp(t, `dead.orders +3 +1m00s ago +no such customer`, text)
}

func TestConsumersThatCouldNotBeReadAreNotSaidToBeMissing(t *testing.T) {
	t.Parallel()
	s := &account.Snapshot{}
	assert.Contains(t, strings.Join(Screen{}.Lines(s, nil), "\n"), "There are no consumers.")
	s.Problems = []account.Problem{{Kind: account.UnreadStreams, Text: "the streams cannot be read"}}
	text := strings.Join(Screen{}.Lines(s, nil), "\n")
	assert.NotContains(t, text, "There are no consumers.")
	assert.Contains(t, text, "streams ?, consumers ?, lag ?, leaders and locks ?, dead letters ?\n")
	assert.Contains(t, text, "\n! the streams cannot be read")

	s = snapshot()
	s.Problems = []account.Problem{{Kind: account.UnreadContent, Text: "the leases cannot be read"}}
	text = strings.Join(Screen{}.Lines(s, nil), "\n")
	assert.Regexp(t, `streams \d+, consumers 2, lag 12.3k, leaders and locks ≥ 1, dead letters ≥ 3\n`, text)
}

func TestALowScreenSaysWhatIsHidden(t *testing.T) {
	t.Parallel()
	lines := Screen{Width: 80, Height: 5}.Lines(snapshot(), nil)
	assert.Len(t, lines, 5)
	assert.Contains(t, lines[4], "more lines")
}

func TestColoursEnd(t *testing.T) {
	t.Parallel()
	for _, line := range (Screen{Width: 80, Colours: true}).Lines(snapshot(), errors.New("no server")) {
		if strings.Contains(line, "\x1b[") {
			assert.True(t, strings.HasSuffix(line, reset), line)
		}
	}
}

func TestSpans(t *testing.T) {
	t.Parallel()
	for d, text := range map[time.Duration]string{
		-time.Second: "0ms", 5 * time.Millisecond: "5ms", 59 * time.Second: "59s", 61 * time.Second: "1m01s",
		25 * time.Hour: "25h00m", 49 * time.Hour: "2d",
	} {
		assert.Equal(t, text, Span(d))
	}
}
