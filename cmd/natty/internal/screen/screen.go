package screen

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/natty-go/natty/cmd/natty/internal/account"
)

// Screen says what the terminal is like.
type Screen struct {
	Width, Height int // 0: as large as it takes
	Colours       bool
}

// The colours, for terminals that have them. What they say is in the text too.
const (
	bold   = "\033[1m"
	dim    = "\033[2m"
	red    = "\033[31m"
	yellow = "\033[33m"
	reset  = "\033[0m"
)

// line is a line of the screen.
type line struct{ text, colour string }

// Lines returns the lines of a Snapshot. trouble is why there is no newer one.
func (sc Screen) Lines(s *account.Snapshot, trouble error) []string {
	var all []line
	add := func(colour, format string, args ...any) {
		all = append(all, line{fmt.Sprintf(format, args...), colour})
	}
	if trouble != nil {
		add(red, "NO NEWS: %v", trouble)
	}
	if s == nil {
		return sc.fit(all)
	}
	add(bold, "natty top  %s  %s %s at %s, rtt %.1f ms", s.Time.Format(time.TimeOnly), s.Server.Name, s.Server.Version, s.Server.URL, s.Server.RTT)
	var lag uint64
	for _, c := range s.Consumers {
		lag += c.Lag
	}
	var dead uint64
	for _, d := range s.Dead {
		dead += d.Count
	}
	known := func(n uint64, kind account.Unread) string {
		switch {
		case !s.Lacks(kind):
			return Count(n)
		case n == 0:
			return "?"
		}
		return "≥ " + Count(n) // what could not be read may hold more
	}
	add("", "streams %s, consumers %s, lag %s, leaders and locks %s, dead letters %s",
		known(uint64(len(s.Streams)), account.UnreadStreams),
		known(uint64(len(s.Consumers)), account.UnreadConsumers), known(lag, account.UnreadConsumers),
		known(uint64(len(s.Leases)), account.UnreadContent), known(dead, account.UnreadContent))
	all = append(all, line{})
	all = append(all, sc.consumers(s)...)
	if len(s.Leases) > 0 {
		all = append(all, line{})
		all = append(all, sc.leases(s)...)
	}
	if len(s.Dead) > 0 {
		all = append(all, line{})
		all = append(all, sc.dead(s)...)
	}
	for _, p := range s.Problems {
		add(yellow, "! %s", p.Text)
	}
	return sc.fit(all)
}

// fit cuts the lines to the screen, and colours them.
func (sc Screen) fit(all []line) []string {
	if sc.Height > 0 && len(all) > sc.Height {
		hidden := len(all) - sc.Height + 1
		all = append(all[:sc.Height-1:sc.Height-1], line{fmt.Sprintf("… %d more lines; make the window larger, or use --once", hidden), dim})
	}
	var out []string
	for _, l := range all {
		text := cut(strings.TrimRight(l.text, " "), sc.Width)
		if sc.Colours && l.colour != "" && text != "" {
			text = l.colour + text + reset
		}
		out = append(out, text)
	}
	return out
}

// cut shortens a text to a width; 0 is any.
func cut(s string, width int) string {
	s = Printable(strings.NewReplacer("\n", " ", "\t", " ").Replace(s))
	if width <= 0 || utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// column is a column of a table. The one with the lowest rank goes first when the
// screen is narrow.
type column struct {
	title string
	rank  int
	right bool
}

type row struct {
	cells  []string
	colour string
}

// most is how wide a cell may be while others need room.
const most = 40

// table returns the lines of a table, and which columns it has no room for.
func (sc Screen) table(columns []column, rows []row) ([]line, []bool) {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.title)
		for _, r := range rows {
			widths[i] = max(widths[i], min(utf8.RuneCountInString(r.cells[i]), most))
		}
	}
	last := len(columns) - 1 // takes what is left
	if sc.Width > 0 {
		widths[last] = utf8.RuneCountInString(columns[last].title)
	}
	gone := sc.narrow(columns, widths)
	one := func(cells []string) string {
		var b strings.Builder
		for i, cell := range cells {
			if gone[i] {
				continue
			}
			if i != last {
				cell = cut(cell, widths[i])
			}
			pad := strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(cell)))
			if columns[i].right {
				cell = pad + cell
			} else {
				cell += pad
			}
			b.WriteString(cell + "  ")
		}
		return b.String()
	}
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	all := []line{{one(titles), dim}}
	for _, r := range rows {
		all = append(all, line{one(r.cells), r.colour})
	}
	return all, gone
}

// narrow says which columns have no room. If the rest still does not fit, the first
// column shrinks.
func (sc Screen) narrow(columns []column, widths []int) []bool {
	gone := make([]bool, len(columns))
	if sc.Width <= 0 {
		return gone
	}
	for {
		total, lowest := -2, -1
		for i, c := range columns {
			if gone[i] {
				continue
			}
			total += widths[i] + 2
			if c.rank > 0 && (lowest < 0 || c.rank < columns[lowest].rank) {
				lowest = i
			}
		}
		if total <= sc.Width {
			return gone
		}
		if lowest < 0 {
			widths[0] = max(8, widths[0]-(total-sc.Width))
			return gone
		}
		gone[lowest] = true
	}
}

func (sc Screen) consumers(s *account.Snapshot) []line {
	columns := []column{
		{"CONSUMER", 0, false}, {"LAG", 0, true}, {"RATE", 6, true}, {"IN FLIGHT", 5, true}, {"AGAIN", 2, true},
		{"WAITING", 1, true}, {"OLDEST", 7, true}, {"WARNING", 4, false},
	}
	consumers := slices.Clone(s.Consumers)
	slices.SortStableFunc(consumers, func(x, y account.Consumer) int {
		return cmp.Or(cmp.Compare(y.Lag, x.Lag), cmp.Compare(y.Warning, x.Warning))
	})
	var rows []row
	for _, c := range consumers {
		colour := ""
		if c.Warning != "" {
			colour = yellow
		}
		oldest := "-"
		if c.Oldest != nil {
			oldest = Span(s.Time.Sub(*c.Oldest))
		}
		flight := fmt.Sprint(c.InFlight)
		if c.MaxInFlight > 0 {
			flight += "/" + Count(uint64(c.MaxInFlight))
		}
		rows = append(rows, row{[]string{
			c.Stream + "/" + c.Name, Count(c.Lag), Rate(c.Rate), flight, fmt.Sprint(c.Redelivered), fmt.Sprint(c.Waiting), oldest, c.Warning,
		}, colour})
	}
	switch {
	case len(rows) == 0 && s.Lacks(account.UnreadConsumers):
		return []line{{"No consumers were found, in what could be read.", yellow}}
	case len(rows) == 0:
		return []line{{"There are no consumers.", dim}}
	}
	all, gone := sc.table(columns, rows)
	if !gone[len(columns)-1] {
		return all
	}
	for i, c := range consumers { // there is no room for the warning, and colours may be off
		if c.Warning != "" {
			rows[i].cells[0] = "! " + rows[i].cells[0]
		}
	}
	all, _ = sc.table(columns, rows)
	return all
}

func (sc Screen) leases(s *account.Snapshot) []line {
	columns := []column{{"LEASE", 0, false}, {"KIND", 2, false}, {"RENEWED", 1, true}, {"OWNER", 0, false}}
	var rows []row
	for _, l := range s.Leases {
		rows = append(rows, row{[]string{l.Bucket + "/" + l.Key, l.Kind, Span(s.Time.Sub(l.Renewed)) + " ago", l.Owner}, ""})
	}
	all, _ := sc.table(columns, rows)
	return all
}

func (sc Screen) dead(s *account.Snapshot) []line {
	columns := []column{{"DEAD LETTERS", 0, false}, {"COUNT", 0, true}, {"NEWEST", 2, true}, {"ITS REASON", 1, false}}
	var rows []row
	for _, d := range s.Dead {
		newest := "-"
		if !d.Newest.IsZero() {
			newest = Span(s.Time.Sub(d.Newest)) + " ago"
		}
		rows = append(rows, row{[]string{d.Subject, Count(d.Count), newest, d.Reason}, red})
	}
	all, _ := sc.table(columns, rows)
	return all
}
