package check

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/chaos/history"
	"github.com/natty-go/natty/chaos/work"
)

// story reads a history written by hand. Each line is one event: when (in seconds), who,
// what, and fields as name=value. A name without a life has its first one.
func story(t *testing.T, text string) *History {
	t.Helper()
	var events []history.Event
	for line := range strings.Lines(strings.TrimSpace(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		require.GreaterOrEqual(t, len(fields), 3, line)
		e := history.Event{At: seconds(t, fields[0]), What: history.What(fields[2])}
		var is bool
		var n string
		if e.Who, n, is = strings.Cut(fields[1], "#"); is {
			e.Life, _ = strconv.Atoi(n)
		}
		for _, field := range fields[3:] {
			set(t, &e, field)
		}
		if e.What == history.Sampled && e.Sample == nil {
			e.Sample = &history.Sample{}
		}
		events = append(events, e)
	}
	history.Sort(events)
	return New(events)
}

func seconds(t *testing.T, text string) int64 {
	t.Helper()
	f, err := strconv.ParseFloat(text, 64)
	require.NoError(t, err)
	return int64(f * 1e9)
}

func set(t *testing.T, e *history.Event, field string) {
	t.Helper()
	name, value, _ := strings.Cut(field, "=")
	n, _ := strconv.Atoi(value) // some fields are no numbers
	sample := func() *history.Sample {
		if e.Sample == nil {
			e.Sample = &history.Sample{}
		}
		return e.Sample
	}
	switch name {
	case "id":
		e.ID = value
	case "on":
		e.Subject = value
	case "key":
		e.Key = value
	case "op":
		e.Op = value
	case "text":
		e.Text = value
	case "seq":
		e.Seq = uint64(n)
	case "want":
		e.Want = uint64(n)
	case "n":
		e.N = int64(n)
	case "due":
		e.N = seconds(t, value)
	case "from":
		e.From = seconds(t, value)
	case "out":
		sample().Out = uint64(n)
	case "goroutines":
		sample().Goroutines = n
	case "health":
		sample().Health = strings.ReplaceAll(value, "_", " ")
	default:
		t.Fatal(field)
	}
}

// tale is a history, and how many problems a checker is to find in it.
type tale struct {
	name  string
	text  string
	wrong int
}

func tell(t *testing.T, check func(*History) []Problem, tales ...tale) {
	t.Helper()
	for _, s := range tales {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			assert.Len(t, check(story(t, s.text)), s.wrong)
		})
	}
}

func TestStored(t *testing.T) {
	t.Parallel()
	const sent = "1 pub-1#1 sent id=a on=w.plain.a.k0\n"
	tell(t, Stored,
		tale{"acknowledged and stored", sent + "2 pub-1#1 acked id=a on=w.plain.a.k0\n1.5 stream stored id=a on=w.plain.a.k0 seq=1", 0},
		tale{"acknowledged and lost", sent + "2 pub-1#1 acked id=a on=w.plain.a.k0", 1},
		tale{"stored twice", sent + "3 stream stored id=a seq=1\n4 stream stored id=a seq=2", 1},
		tale{"in doubt and not stored", sent + "2 pub-1#1 unknown id=a on=w.plain.a.k0", 0},
		tale{"refused and stored", sent + "2 pub-1#1 refused id=a on=w.plain.a.k0\n3 stream stored id=a seq=1", 1},
		tale{"refused by a full stream", "2 pubfull-1#1 refused id=a op=no-room on=full.full.a.k0\n1 nemesis fault op=fill key=FULL from=1", 0},
		tale{"refused by a stream with room", "20 pubfull-1#1 refused id=a op=no-room on=full.full.a.k0\n3 nemesis fault op=fill key=FULL from=1", 1},
		tale{"pushed out of the small stream", "2 pub-1#1 acked id=a on=small.small.a.k0", 0},
	)
}

func TestBatches(t *testing.T) {
	t.Parallel()
	const sent = "1 batch-1#1 sent id=a/0 on=w.plain.a.k0\n1 batch-1#1 sent id=a/1 on=w.plain.a.k0\n"
	tell(t, Batches,
		tale{"whole", sent + "2 stream stored id=a/0 seq=1\n2 stream stored id=a/1 seq=2", 0},
		tale{"nothing", sent, 0},
		tale{"a part", sent + "2 stream stored id=a/1 seq=1", 1},
	)
}

func TestSchedules(t *testing.T) {
	t.Parallel()
	const made = "1 sched-1#1 call op=schedule id=a due=5\n1 sched-1#1 acked id=a on=w.sched.a.k0\n"
	tell(t, Schedules,
		tale{"in time", made + "5.2 stream stored id=a on=w.sched.a.k0", 0},
		tale{"too early", made + "4.5 stream stored id=a on=w.sched.a.k0", 1},
		tale{"never", made, 1},
	)
}

func TestHandled(t *testing.T) {
	t.Parallel()
	const stored = "0 plain-1#1 started\n1 stream stored id=a on=w.plain.a.k0 seq=1\n"
	tell(t, Handled,
		tale{"handled", stored + "2 plain-1#1 done id=a", 0},
		tale{"dead", stored + "2 stream letter id=a", 0},
		tale{"begun and not done", stored + "2 plain-1#1 begun id=a", 1},
		tale{"nobody is there to handle it", "1 stream stored id=a on=w.plain.a.k0 seq=1", 0},
	)
}

func TestLetters(t *testing.T) {
	t.Parallel()
	var deadly, mending, fine string
	for i := range 20 {
		id := fmt.Sprint("m", i)
		switch d, _ := work.Deadly(id); {
		case !d:
			fine = id
		case work.Mends(id):
			mending = id
		default:
			deadly = id
		}
	}
	stored := func(id string) string {
		return "0 dead-1#1 started\n1 stream stored on=w.dead.a.k0 id=" + id + "\n"
	}
	done := func(id string) string { return "2 dead-1#1 done on=w.dead.a.k0 id=" + id + "\n" }
	letter := func(id string) string { return "3 run letter on=w.dead.a.k0 id=" + id + "\n" }
	redriven := func(id string, n int) string {
		return fmt.Sprintf("2 stream redriven on=w.dead.a.k0 seq=9 id=%s n=%d\n", id, n)
	}
	later := func(line string) string { return strings.Replace(line, "2 ", "4 ", 1) }
	anew := "3 dead-1#2 begun seq=1 id=" + deadly + "\n"
	tell(t, Letters,
		tale{"a letter", stored(deadly) + letter(deadly), 0},
		tale{"no letter", stored(deadly), 1},
		tale{"a letter of what is fine", stored(fine) + letter(fine), 1},
		tale{"accepted once it was put back", stored(mending) + redriven(mending, 1) + done(mending), 0},
		tale{"put back and lost", stored(mending) + redriven(mending, 1), 1},
		tale{"put back, and a letter again", stored(deadly) + redriven(deadly, 1) + letter(deadly), 0},
		tale{"accepted though it is deadly", stored(deadly) + done(deadly), 1},
		tale{"put back in two ways", stored(deadly) + redriven(deadly, 1) + redriven(deadly, 1) + letter(deadly), 1},
		tale{
			"put back again after the duplicate window", stored(deadly) + redriven(deadly, 1) +
				strings.Replace(redriven(deadly, 1), "2 ", "123 ", 1) + letter(deadly), 0,
		},
		tale{
			"put back again after it ran anew", stored(deadly) + redriven(deadly, 1) + anew + later(redriven(deadly, 1)) + letter(deadly), 0,
		},
		tale{
			"both are put back once more", stored(deadly) + redriven(deadly, 1) + anew + later(redriven(deadly, 1)) +
				strings.Repeat(later(redriven(deadly, 2)), 2) + letter(deadly), 0,
		},
		tale{
			"one of them twice", stored(deadly) + redriven(deadly, 1) + anew + later(redriven(deadly, 1)) +
				strings.Repeat(later(redriven(deadly, 2)), 3) + letter(deadly), 1,
		},
		tale{"put back again", stored(deadly) + redriven(deadly, 1) + redriven(deadly, 2) + letter(deadly), 0},
	)
}

func TestProblemsAreInTheOrderOfTime(t *testing.T) {
	t.Parallel()
	h := story(t, "0 plain-1#1 started\n2 stream stored id=b on=w.plain.a.k0\n1 pub-1#1 acked id=a on=w.plain.a.k0")
	problems, _ := Run(h.Events)
	require.Len(t, problems, 2)
	assert.Equal(t, "stored once", problems[0].Check)
	assert.Equal(t, "stored is handled", problems[1].Check)
}
