package publish

import (
	"fmt"

	"github.com/natty-go/natty/internal/conn"
)

// cuts is what a message knows of the connections that the server ended for something
// that was sent on them.
type cuts struct {
	payload bool // a payload ended one, and nothing else makes the outcome unknown
	behind  int  // the size of the largest message that was sent behind this one
	line    int  // how many a control line ended
}

// leastLine is the shortest control line that is taken for the cause of a cut. Servers
// accept 4096 bytes unless somebody has lowered that.
const leastLine = 256

// classifyCut decides what it means that the server ended the connection while the
// message waited for its answer. The server does not say for which message it did so.
//
// For a payload the next attempt finds out, because it knows the server's new limit. The
// server never tells its limit for control lines. A message with a long one that was in
// flight at two cuts counts as the cause, since it would end every connection.
func (p *publication) classifyCut(cut *conn.ServerError) error {
	line := len("HPUB ") + len(p.msg.Subject) + len(p.msg.Reply)
	if cut.LineTooLong() && line >= leastLine {
		p.cuts.line++
		if p.cuts.line > 1 {
			return fmt.Errorf("%w: its subjects have %d bytes, which ended two connections in a row; "+
				"use a shorter subject, or raise the server's max_control_line: %w", ErrTooLarge, line, cut)
		}
	}
	first := !p.unknown
	err := p.conclude(unknown, cut)
	// A Writer has many messages on their way. Those before the cause may be stored.
	p.cuts.payload = first && cut.PayloadTooLarge() && p.streams == nil
	return err
}

// causedCut reports whether this message is what ended a connection for its payload, and
// so is not stored. With another one over the limit behind it nobody can tell: the
// server may have stored this one before somebody lowered the limit.
func (p *publication) causedCut(limit int64) bool {
	return p.cuts.payload && int64(p.cuts.behind) <= limit
}
