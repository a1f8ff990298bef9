package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/natty-go/natty/cmd/natty/internal/account"
	"github.com/natty-go/natty/cmd/natty/internal/screen"
)

// printJSON prints one JSON value, indented.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printable replaces what would change the terminal.
func printable(s string) string { return screen.Printable(s) }

// shellQuote quotes a word for a shell if that needs it.
func shellQuote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/.-_", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// table prints rows in columns. The last column is as wide as it is.
func (a *app) table(rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i := range row {
			row[i] = oneLine(dash(row[i]))
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		fmt.Fprintln(a.out, line.String())
	}
}

// dash stands for what is not there.
func dash(s string) string { return cmp.Or(s, "-") }

func idOf(p account.Place) string { return fmt.Sprintf("%s/%d", p.Stream, p.Sequence) }

func tries(l account.Letter) string {
	text := plural(l.Deliveries, "delivery", "deliveries")
	if l.Redrives > 0 {
		text += fmt.Sprintf(", redriven %d×", l.Redrives)
	}
	return text
}

func reasonOf(l account.Letter) string {
	switch {
	case l.Problem != "":
		return l.Problem
	case l.Foreign:
		return "(not a dead letter of natty's) " + l.Reason
	}
	return l.Reason
}

// ago says how long ago a time was, in its largest unit or two.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return screen.Span(now.Sub(t))
}

// size says how large something is.
func size(n int) string { return screen.Bytes(uint64(max(n, 0))) }
