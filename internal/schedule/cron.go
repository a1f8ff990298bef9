package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The server finds the next time of a cron pattern in a way that loses times in some
// zones (2.15). It goes through days at midnight. In a zone whose clocks go forward at
// midnight, such as America/Santiago, one of these midnights does not exist; from there
// to the end of its search the server goes through days at 23:00, and misses all earlier
// hours. If it finds nothing within five years when it publishes a message, it drops the
// schedule instead, and the message with it. This file searches as the server does, so
// that natty can refuse such a schedule.

// pattern is a cron pattern: which values each field allows.
type pattern struct {
	second, minute, hour, day, month, weekday field
}

type field struct {
	allowed uint64 // bit by bit
	star    bool
}

func (f field) has(n int) bool { return f.allowed&(1<<uint(n)) != 0 }

var (
	monthNames = strings.Fields("jan feb mar apr may jun jul aug sep oct nov dec")
	dayNames   = strings.Fields("sun mon tue wed thu fri sat")
)

// parseCron reads six fields. What it cannot read is left to the server to refuse.
func parseCron(s string) (p pattern, ok bool) {
	fields := strings.Fields(s)
	if len(fields) != 6 {
		return p, false
	}
	for i, to := range []struct {
		f           *field
		least, most int
		names       []string
	}{
		{&p.second, 0, 59, nil}, {&p.minute, 0, 59, nil}, {&p.hour, 0, 23, nil},
		{&p.day, 1, 31, nil}, {&p.month, 1, 12, monthNames}, {&p.weekday, 0, 6, dayNames},
	} {
		for part := range strings.SplitSeq(fields[i], ",") {
			if !to.f.add(part, to.least, to.most, to.names) {
				return p, false
			}
		}
	}
	return p, true
}

// add reads "*", "3", "3-5", each with a step such as "/2" behind it.
func (f *field) add(part string, least, most int, names []string) bool {
	span, step, stepped := strings.Cut(part, "/")
	by := 1
	if stepped {
		var err error
		if by, err = strconv.Atoi(step); err != nil || by < 1 {
			return false
		}
	}
	from, to, ranged := strings.Cut(span, "-")
	first, last := least, most
	if from == "*" || from == "?" {
		f.star = f.star || by == 1
	} else {
		first = number(from, least, names)
		switch {
		case ranged:
			last = number(to, least, names)
		case !stepped:
			last = first
		}
	}
	if first < least || last > most || first > last {
		return false
	}
	for n := first; n <= last; n += by {
		f.allowed |= 1 << uint(n)
	}
	return true
}

// number reads a number or a name; -1 stands for neither.
func number(s string, least int, names []string) int {
	if i := slices.Index(names, strings.ToLower(s)); i >= 0 {
		return i + least
	}
	if n, err := strconv.Atoi(s); err == nil {
		return n
	}
	return -1
}

func (p pattern) onDay(t time.Time) bool {
	day, weekday := p.day.has(t.Day()), p.weekday.has(int(t.Weekday()))
	if p.day.star || p.weekday.star {
		return day && weekday
	}
	return day || weekday
}

// next returns the time after t at which the server publishes, in the zone of t; none
// if it finds none within five years.
func (p pattern) next(t time.Time) (next time.Time, found bool) {
	next = t.Truncate(time.Second).Add(time.Second)
	limit, cut := next.Year()+5, false
	at := func(year int, month time.Month, day, hour int) {
		if !cut {
			next, cut = time.Date(year, month, day, hour, 0, 0, 0, t.Location()), true
		}
	}
	forward := func(matches func() bool, start func(), step func() bool) (wrapped bool) {
		for !matches() {
			start()
			if step() {
				return true
			}
		}
		return false
	}
	add := func(d time.Duration) { next = next.Add(d) }
	for next.Year() <= limit {
		if forward(func() bool { return p.month.has(int(next.Month())) },
			func() { at(next.Year(), next.Month(), 1, 0) },
			func() bool { next = next.AddDate(0, 1, 0); return next.Month() == time.January }) ||
			forward(func() bool { return p.onDay(next) },
				func() { at(next.Year(), next.Month(), next.Day(), 0) },
				func() bool { next = next.AddDate(0, 0, 1); return next.Day() == 1 }) ||
			forward(func() bool { return p.hour.has(next.Hour()) },
				func() { at(next.Year(), next.Month(), next.Day(), next.Hour()) },
				func() bool { add(time.Hour); return next.Hour() == 0 }) ||
			forward(func() bool { return p.minute.has(next.Minute()) },
				func() { next, cut = truncated(next, time.Minute, cut), true },
				func() bool { add(time.Minute); return next.Minute() == 0 }) ||
			forward(func() bool { return p.second.has(next.Second()) },
				func() { cut = true },
				func() bool { add(time.Second); return next.Second() == 0 }) {
			continue
		}
		return next, true
	}
	return next, false
}

func truncated(t time.Time, to time.Duration, already bool) time.Time {
	if already {
		return t
	}
	return t.Truncate(to)
}

// occurrences is how many times of a schedule natty looks at. A pattern of which the
// server may lose all times is one for a date, once a year.
const occurrences = 12

// lost says why the server would drop a cron schedule without a word, or "".
func (s Schedule) lost(now time.Time) string {
	if s.TimeZone == "" {
		return ""
	}
	zone, err := time.LoadLocation(s.TimeZone)
	p, ok := parseCron(s.Cron)
	if err != nil || !ok {
		return ""
	}
	n := occurrences
	last := ""
	for t := now.In(zone); ; {
		after, found := p.next(t)
		if !found {
			return fmt.Sprintf("is dropped by the server%s, because its search finds no time within five years from then. "+
				"It misses hours where the clocks of %s go forward at midnight; leave out TimeZone, or give another hour",
				last, s.TimeZone)
		}
		if n--; n == 0 {
			return ""
		}
		last = " instead of publishing at " + after.Format(time.RFC3339)
		t = after
	}
}
