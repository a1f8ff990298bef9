package check

import (
	"strings"
	"testing"
)

func TestCopies(t *testing.T) {
	t.Parallel()
	const begin = "0 cache-1#1 started\n1 run phase text=quiet\n2 run bucket key=a text=x\n" +
		"2 cache-1#1 mirrored op=whole text=cache\n2 cache-1#1 mirrored op=whole text=watch\n2 cache-1#1 mirrored op=watch key=a text=x\n"
	tell(t, Copies,
		tale{"equal", begin + "2 cache-1#1 mirrored op=cache key=a text=x", 0},
		tale{"a key is missing", begin, 1},
		tale{"an old value", begin + "2 cache-1#1 mirrored op=cache key=a text=y", 1},
		tale{"a deleted key", begin + "2 cache-1#1 mirrored op=cache key=a text=x\n2 cache-1#1 mirrored op=cache key=b text=x", 1},
		tale{"it says nothing", "0 cache-1#1 started\n1 run phase text=quiet", 2},
	)
}

func TestSilence(t *testing.T) {
	t.Parallel()
	const begin = "1 stream stored id=a on=w.plain.a.k0\n1 stream stored id=b on=w.plain.a.k0\n2 plain-1#1 done id=a on=w.plain.a.k0\n"
	const end = "\n40 plain-1#1 done id=b on=w.plain.a.k0"
	const two = "9 plain-1#1 sample\n10 plain-1#1 "
	const publisher = "0 pub-1#1 started\n1 run phase text=chaos\n2 pub-1#1 sample\n"
	tell(t, Silence,
		tale{"soon", begin + "9 plain-1#1 done id=b on=w.plain.a.k0", 0},
		tale{"silent", begin + "9 plain-1#1 sample" + end, 1},
		tale{"Health said why", begin + "9 plain-1#1 sample\n20 plain-1#1 sample health=consumer_plain:_starting" + end, 0},
		tale{"it was not connected", begin + "9 plain-1#1 sample\n20 plain-1#1 sample health=not_connected:_gone" + end, 0},
		tale{"Health said why, long before", begin + "3 plain-1#1 sample health=not_connected\n20 plain-1#1 sample" + end, 1},
		tale{"Health of another consumer", begin + "9 plain-1#1 sample\n20 plain-1#1 sample health=consumer_order:_starting" + end, 1},
		tale{"it failed for good", begin + "9 plain-1#1 failed id=b on=w.plain.a.k0\n10 plain-1#1 sample\n50 run letter id=b on=dead.plain", 0},
		tale{"it leaves it to others", begin + "9 plain-1#1 sample\n20 plain-1#1 sample health=consumer_plain:_running_which_it_does_not_ask_for" + end, 1},
		tale{"a report said why", begin + two + "report op=consumer text=gone" + end, 0},
		tale{"a report of a worker of another role", begin + "9 plain-1#1 sample\n20 order-1#1 report op=consumer text=gone" + end, 1},
		tale{"a report of something else", begin + two + "report op=removed text=gone" + end, 1},
		tale{"a handler's error", begin + two + "report op=handler text=unlucky" + end, 1},
		tale{"nobody ran", begin + "40 plain-1#2 done id=b on=w.plain.a.k0", 0},
		tale{"stored in the silence", "2 plain-1#1 done id=a on=w.plain.a.k0\n3 stream stored id=b on=w.plain.a.k0\n9 plain-1#1 sample" + end, 1},
		tale{"nothing to do", "2 plain-1#1 done id=a on=w.plain.a.k0\n30 stream stored id=b on=w.plain.a.k0\n9 plain-1#1 sample" + end, 0},
		tale{"others are handled", begin + "9 plain-1#1 sample\n20 plain-1#1 begun id=c on=w.plain.a.k0" + end, 0},
		tale{"a publisher", publisher + "20 pub-1#1 acked id=a\n40 run phase text=healed", 0},
		tale{"a silent publisher", publisher + "40 pub-1#1 acked id=a\n50 run phase text=healed", 1},
		tale{"never", begin + "9 plain-1#1 sample\n50 run phase text=quiet", 1},
	)
}

func TestToldOnce(t *testing.T) {
	t.Parallel()
	line := "1 plain-1#1 report op=consumer text=away-after-3s\n"
	inPeace := line + strings.Replace(line, "1 ", "40 ", 1) + strings.Replace(line, "1 ", "80 ", 1)
	tell(t, ToldOnce,
		tale{"once", line, 0},
		tale{"again and again", strings.Repeat(line, 3), 1},
		tale{"once more", strings.Repeat(line, 2), 0},
		tale{
			"now and then", line + strings.Replace(line, "1 ", "12 ", 1) + strings.Replace(line, "1 ", "23 ", 1) +
				strings.Replace(line, "1 ", "34 ", 1) + strings.Replace(line, "1 ", "45 ", 1), 1,
		},
		tale{"in peace", "0 plain-1#1 started\n0 excl-1#1 started\n" + inPeace, 1},
		tale{"each time after a fault", "0 plain-1#1 started\n" + inPeace + "99 nemesis fault from=30 op=kill-server key=server-1\n" +
			"150 nemesis fault from=60 op=kill key=plain-2\n", 0},
		tale{"after faults of others", "0 plain-1#1 started\n0 excl-1#1 started\n" + inPeace +
			"50 nemesis fault from=30 op=kill key=excl-1\n50 nemesis fault from=30 op=remake-bucket key=plain\n", 1},
		tale{"after each connection", strings.Repeat(line+"1 plain-1#1 report op=connection text=EOF\n", 5), 0},
		tale{"errors of handlers", strings.Repeat("1 plain-1#1 report op=handler text=unlucky\n", 20), 0},
	)
}

func TestRequests(t *testing.T) {
	t.Parallel()
	tell(t, Requests,
		tale{"few", "1 a-1#1 sample out=10\n3 a-1#1 sample out=100", 0},
		tale{"many", "1 a-1#1 sample out=10\n3 a-1#1 sample out=2000", 1},
		tale{"a window", "1 writer-1#1 sample out=10\n3 writer-1#1 sample out=700", 0},
		tale{"a window that is no Writer's", "1 a-1#1 sample out=10\n3 a-1#1 sample out=700", 1},
		tale{"many windows", "1 writer-1#1 sample out=10\n3 writer-1#1 sample out=2000", 1},
	)
}

func TestFlat(t *testing.T) {
	t.Parallel()
	tell(t, Flat,
		tale{"flat", "1 a-1#1 sample goroutines=30\n20 run phase text=quiet\n21 a-1#1 sample goroutines=40", 0},
		tale{"a leak", "1 a-1#1 sample goroutines=30\n20 run phase text=quiet\n21 a-1#1 sample goroutines=90", 1},
	)
}

func TestEndings(t *testing.T) {
	t.Parallel()
	tell(t, Endings,
		tale{"in order", "1 a-1#1 ended", 0},
		tale{"too slow", "1 run report op=run text=slow", 1},
		tale{"it could not close in a fault", "1 a-1#1 report op=close text=why\n2 run phase text=over", 0},
		tale{"it could not close", "1 run phase text=over\n2 a-1#1 report op=close text=why", 1},
		tale{"its role has ended", "1 a-1#1 report op=ended text=why", 1},
	)
}
