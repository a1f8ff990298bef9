package check

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// tallied counts events whose times are in seconds, between second 0 and second 100.
func tallied(events ...history.Event) Tally {
	all := []history.Event{{At: 1, Who: "run", What: history.Phase, Text: history.Chaos}}
	for _, e := range events {
		e.At, e.From = e.At*second, e.From*second
		all = append(all, e)
	}
	all = append(all, history.Event{At: 100 * second, Who: "run", What: history.Phase, Text: history.Calm})
	history.Sort(all)
	return Count(all)
}

func started(who string) history.Event {
	return history.Event{At: 1, Who: who, Life: 1, What: history.Started}
}

func own(at, end int64, who string, token uint64) []history.Event {
	return []history.Event{
		{At: at, Who: who, Life: 1, What: history.Own, Op: work.Leading, Seq: token},
		{At: end, Who: who, Life: 1, What: history.Disow, Op: work.Leading, Seq: token},
	}
}

func message(at int64, who string, what history.What, id string) history.Event {
	return history.Event{At: at, Who: who, Life: 1, What: what, ID: id}
}

func TestTallyOfMessages(t *testing.T) {
	t.Parallel()
	got := tallied(started("pub-1"), started("plain-1"),
		message(10, "pub-1", history.Acked, "fine"), message(80, "pub-1", history.Acked, "lost"),
		message(20, "pub-1", history.Unknown, "failed"), message(81, "plain-1", history.Done, "failed"),
		message(11, "plain-1", history.Done, "fine"), message(12, "plain-1", history.Done, "fine"),
		message(13, "plain-1", history.Done, "fine"),
		message(10, "stream", history.Stored, "fine"), message(11, "stream", history.Stored, "fine"),
		message(80, "stream", history.Stored, "lost"))
	assert.Equal(t, Tally{
		Acked: 2, Failed: 1, Lost: 1, Twice: 1, Again: 2, Slowest: time.Second, NotHandling: 68 * time.Second,
	}, got)
}

func TestTallyOfWhatIsStuck(t *testing.T) {
	t.Parallel()
	got := tallied(started("pub-1"), started("pub-2"), started("pub-3"), started("plain-1"), started("plain-2"),
		started("lead-1"),
		message(60, "pub-1", history.Acked, "a"), message(65, "pub-1", history.Sent, "b"),
		message(90, "pub-2", history.Acked, "c"), message(91, "plain-2", history.Done, "c"),
		message(60, "plain-1", history.Done, "a"), message(99, "pub-3", history.Sent, "d"),
		message(99, "pub-3", history.Unknown, "d"))
	assert.Equal(t, []string{
		"plain-1: it handles nothing", "pub-1: a publish did not return", "pub-3: no publish is acknowledged",
		"the election: nobody leads",
	}, got.Stuck)
}

func TestConsumersAreNotStuckWhenNothingIsPublished(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"pub-1: no publish is acknowledged"}, tallied(started("pub-1"), started("plain-1")).Stuck)
}

func TestTallyOfLeaders(t *testing.T) {
	t.Parallel()
	events := append(own(10, 30, "lead-1", 1), own(25, 60, "lead-2", 2)...)
	events = append(events, own(55, 90, "lead-1", 3)...)
	got := tallied(append(events, started("lead-1"), started("lead-2"))...)
	assert.Equal(t, Tally{Together: 2, TogetherFor: 10 * time.Second, NoLeader: 10 * time.Second}, got)
}

func TestAPausedLeaderIsNoSecondOne(t *testing.T) {
	t.Parallel()
	events := append(own(1, 30, "lead-1", 1), own(15, 99, "lead-2", 2)...)
	events = append(events, started("lead-1"), started("lead-2"),
		history.Event{From: 10, At: 28, Who: "nemesis", What: history.Fault, Op: "pause", Key: "lead-1"})
	got := tallied(events...)
	assert.Equal(t, 1, got.Together)
	assert.Equal(t, time.Second, got.TogetherFor, "what is left after a second to wake up")
}

func TestALeaderThatWasKilledLedUntilItsLastEvent(t *testing.T) {
	t.Parallel()
	got := tallied(started("lead-1"), own(1, 0, "lead-1", 1)[0], message(40, "lead-1", history.Sampled, ""))
	assert.Equal(t, 60*time.Second, got.NoLeader)
}
