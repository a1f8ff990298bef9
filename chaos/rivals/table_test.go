package rivals

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/natty-go/natty/chaos/check"
)

func TestTableHasNoValuesForRolesThatARivalHasNot(t *testing.T) {
	t.Parallel()
	got := Table([]Row{
		{Rival{Name: "messages", Roles: messages}, check.Tally{
			Acked: 10, Failed: 1, Lost: 2, Twice: 3, Again: 4, Slowest: 12 * time.Second, NotHandling: 1500 * time.Millisecond,
			Stuck: []string{"plain-1: it handles nothing"},
		}},
		{Rival{Name: "lease", Roles: []string{Candidate}}, check.Tally{
			Together: 2, TogetherFor: time.Second, NoLeader: 6 * time.Second,
		}},
	})
	assert.Equal(t, `| rival | acknowledged | publish failed | lost | stored twice | handled again | slowest message | `+
		`longest time without handling | stuck | two leaders at once | longest time without a leader |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| messages | 10 | 1 | 2 | 3 | 4 | 12.0 s | 1.5 s | 1 | – | – |
| lease | – | – | – | – | – | – | – | 0 | 2 (1.0 s) | 6.0 s |

Stuck with messages:

- plain-1: it handles nothing
`, got)
}
