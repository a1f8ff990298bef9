package work

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/chaos/procs"
)

func TestGroupAndKeyOfASubject(t *testing.T) {
	t.Parallel()
	for subject, want := range map[string][2]string{
		"w.plain.a.k3": {"plain", "k3"}, "w.sched.a.k0": {"plain", "k0"}, "small.small.a.k0": {"small", "k0"}, "w": {"", "w"},
	} {
		assert.Equal(t, want, [2]string{GroupOf(subject), KeyOf(subject)}, subject)
	}
}

func TestEachSubjectThatIsPublishedHasADurable(t *testing.T) {
	t.Parallel()
	for range 200 {
		s := (&worker{}).subject()
		assert.Equal(t, Work, Durables[GroupOf(s)], s)
	}
	for _, role := range []string{"pubfull", "writerfull", "batchfull"} {
		w := &worker{WorkerConfig: procs.WorkerConfig{Role: role}}
		assert.Equal(t, Full, Durables[GroupOf(w.subject())], role)
	}
}

func TestSomeMessagesAreDeadlyAtOnceSomeLaterAndSomeNever(t *testing.T) {
	t.Parallel()
	found := map[[2]bool]int{}
	for i := range 300 {
		deadly, atOnce := Deadly(fmt.Sprint("pub-1.1.", i))
		found[[2]bool{deadly, atOnce}]++
	}
	assert.Len(t, found, 3)
	assert.Zero(t, found[[2]bool{false, true}])
}

func TestSummaryOfHealthSaysOnlyWhatExplainsALackOfProgress(t *testing.T) {
	t.Parallel()
	w := &worker{}
	w.failure.Store("unlucky")
	health := func(connected bool, c natty.ConsumerHealth) string {
		c.Durable = "plain"
		return w.summary(natty.Health{Connected: connected, LastError: "gone", Consumers: []natty.ConsumerHealth{c}})
	}
	assert.Empty(t, health(true, natty.ConsumerHealth{State: natty.ConsumerRunning}))
	assert.Empty(t, health(true, natty.ConsumerHealth{State: natty.ConsumerStandby}))
	assert.Empty(t, health(true, natty.ConsumerHealth{State: natty.ConsumerRunning, LastError: "unlucky"}))
	assert.Equal(t, "consumer plain: running  no leader", health(true, natty.ConsumerHealth{State: natty.ConsumerRunning, LastError: "no leader"}))
	assert.Equal(t, "consumer plain: running paused ", health(true, natty.ConsumerHealth{State: natty.ConsumerRunning, Warning: "paused"}))
	assert.Equal(t, "not connected: gone\nconsumer plain: disconnected  ", health(false, natty.ConsumerHealth{State: natty.ConsumerDisconnected}))
}
