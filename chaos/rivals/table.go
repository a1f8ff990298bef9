package rivals

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/natty-go/natty/chaos/check"
)

// Row is what one run has shown of a rival.
type Row struct {
	Rival Rival
	Tally check.Tally
}

// columns are those of the table. Each has a value for rivals with one of its roles.
var columns = []struct {
	title string
	roles []string
	value func(t check.Tally) string
}{
	{"acknowledged", []string{Publisher}, func(t check.Tally) string { return fmt.Sprint(t.Acked) }},
	{"publish failed", []string{Publisher}, func(t check.Tally) string { return fmt.Sprint(t.Failed) }},
	{"lost", []string{Consumer}, func(t check.Tally) string { return fmt.Sprint(t.Lost) }},
	{"stored twice", []string{Publisher}, func(t check.Tally) string { return fmt.Sprint(t.Twice) }},
	{"handled again", []string{Consumer}, func(t check.Tally) string { return fmt.Sprint(t.Again) }},
	{"slowest message", []string{Consumer}, func(t check.Tally) string { return seconds(t.Slowest) }},
	{"longest time without handling", []string{Consumer}, func(t check.Tally) string { return seconds(t.NotHandling) }},
	{"stuck", allRoles, func(t check.Tally) string { return fmt.Sprint(len(t.Stuck)) }},
	{"two leaders at once", []string{Candidate}, func(t check.Tally) string {
		if t.Together == 0 {
			return "0"
		}
		return fmt.Sprintf("%d (%s)", t.Together, seconds(t.TogetherFor))
	}},
	{"longest time without a leader", []string{Candidate}, func(t check.Tally) string { return seconds(t.NoLeader) }},
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// Table returns a table in Markdown, and below it who was stuck.
func Table(rows []Row) string {
	var b strings.Builder
	b.WriteString("| rival |")
	for _, c := range columns {
		b.WriteString(" " + c.title + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(columns)) + "\n")
	for _, r := range rows {
		b.WriteString("| " + r.Rival.Name + " |")
		for _, c := range columns {
			value := "–"
			if slices.ContainsFunc(c.roles, func(role string) bool { return slices.Contains(r.Rival.Roles, role) }) {
				value = c.value(r.Tally)
			}
			b.WriteString(" " + value + " |")
		}
		b.WriteString("\n")
	}
	for _, r := range rows {
		for i, who := range r.Tally.Stuck {
			if i == 0 {
				fmt.Fprintf(&b, "\nStuck with %s:\n\n", r.Rival.Name)
			}
			fmt.Fprintf(&b, "- %s\n", who)
		}
	}
	return b.String()
}
