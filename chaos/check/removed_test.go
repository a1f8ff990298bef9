package check

import (
	"fmt"
	"strings"
	"testing"

	"github.com/natty-go/natty/chaos/work"
)

// filled is a history in which the small stream removed the messages 1 to 3 at second 25,
// and all others were handled.
func filled(rest string) string {
	var b strings.Builder
	b.WriteString("0 small-1#1 started\n1 run phase text=chaos\n200 run phase text=quiet\n201 run phase text=over\n" + rest)
	b.WriteString("\n")
	for seq := 1; seq <= work.SmallMax+3; seq++ {
		at := 2
		if seq > work.SmallMax {
			at = 25
		}
		fmt.Fprintf(&b, "%d filling-1#1 sent id=m%d on=small.small.a.k0\n", at, seq)
		fmt.Fprintf(&b, "%d filling-1#1 acked id=m%d on=small.small.a.k0 seq=%d\n", at, seq, seq)
		if seq > 3 {
			fmt.Fprintf(&b, "%d small-1#1 done id=m%d on=small.small.a.k0\n", at+1, seq)
		}
	}
	return b.String()
}

func TestRemovals(t *testing.T) {
	t.Parallel()
	const report = "40 small-1#1 report op=removed "
	tell(t, Handled,
		tale{"reported", filled(report + "seq=4 n=3"), 0},
		tale{"reported without a count", filled(report + "seq=4"), 0},
		tale{"in silence", filled(""), 1},
		tale{"one that the report does not name", filled(report + "seq=3 n=2"), 1},
		tale{"the report is older", filled("1 small-1#1 report op=removed seq=9"), 1},
		tale{"more than there were", filled(report + "seq=4 n=4"), 1},
		tale{"while the process started", filled("27 small-1#2 started"), 0},
		tale{"long before the process started", filled("60 small-1#2 started"), 1},
		tale{"as many redeliveries", filled("3 small-1#1 begun id=m9 n=2\n3 small-1#1 begun id=m8 n=2\n3 small-1#1 begun id=m7 n=2"), 0},
		tale{"fewer redeliveries", filled("3 small-1#1 begun id=m9 n=2"), 1},
		tale{"the run was over", strings.ReplaceAll(strings.ReplaceAll(filled(""), "200 run", "30 run"), "201 run", "31 run"), 0},
		tale{"it is still there", filled(report + "seq=4 n=3\n30 filling-1#1 sent id=new on=small.small.a.k0\n" +
			"30 filling-1#1 acked id=new on=small.small.a.k0 seq=500"), 1},
		tale{"it had failed", filled("3 small-1#1 failed id=m1\n3 small-1#1 failed id=m2\n3 small-1#1 failed id=m3"), 0},
	)
}
