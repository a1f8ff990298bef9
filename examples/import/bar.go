package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	barWidth   = 30
	drawnEvery = 100 * time.Millisecond
)

// bar shows how far an import is: on a terminal in one line that is drawn again and again, and else, as in a file or a log, in
// a line for each quarter.
type bar struct {
	out      io.Writer
	terminal bool
	total    int64 // bytes
	begin    time.Time
	drawn    time.Time
	quarters int64 // that have been printed
}

func newBar(out io.Writer, total int64) *bar {
	return &bar{out: out, terminal: isTerminal(out), total: max(total, 1), begin: time.Now()}
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// update is told how far it is, in bytes and in rows, after each row.
func (b *bar) update(offset int64, rows int) {
	if b.terminal {
		if rows%64 == 0 && time.Since(b.drawn) >= drawnEvery {
			b.drawn = time.Now()
			fmt.Fprint(b.out, "\r", b.line(offset, rows))
		}
		return
	}
	if q := 4 * offset / b.total; q > b.quarters && q < 4 { // the last is printed when all of it is stored
		b.quarters = q
		fmt.Fprintln(b.out, b.line(offset, rows))
	}
}

// end ends the line, wherever it is.
func (b *bar) end(offset int64, rows int) {
	if b.terminal {
		fmt.Fprint(b.out, "\r")
	}
	fmt.Fprintln(b.out, b.line(offset, rows))
}

// line has the same length whatever it says, so that one drawn over another leaves nothing of that.
func (b *bar) line(offset int64, rows int) string {
	offset = min(offset, b.total) // the file may have grown
	full := int(barWidth * offset / b.total)
	rate := float64(rows) / max(time.Since(b.begin).Seconds(), 1e-3)
	return fmt.Sprintf("   [%s%s] %3d%%  %9d rows  %8.0f/s",
		strings.Repeat("#", full), strings.Repeat("-", barWidth-full), 100*offset/b.total, rows, rate)
}
