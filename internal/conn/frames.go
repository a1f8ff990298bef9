package conn

import (
	"bytes"
	"net"

	"github.com/nats-io/nats.go"
)

// A server that is reached by WebSocket sends frames: a header of two to ten bytes, and
// behind it what it would send over TCP. It sends a close frame behind an error that
// ends the connection, often in the same packet.

// newFramedWire is newWire for a WebSocket without TLS and compression.
func newFramedWire(conn net.Conn, opts *nats.Options, onError func(*ServerError)) *wire {
	w := newWire(conn, opts, "", true, onError)
	w.framed = true
	return w
}

// closeFrame is the first byte of a close frame.
const closeFrame = 0x88

// suspectFramed is suspect for frames. An error begins behind a header instead of the
// end of a line, so that any bytes may come before it.
func suspectFramed(data []byte) (keep int) {
	tail := data[max(0, len(data)-maxErrorLine):]
	if i := bytes.LastIndex(tail, []byte(errorBegin)); i >= 0 && mayBeFatal(tail[i:]) {
		return len(tail) - i
	}
	for n := min(len(tail), len(errorBegin)-1); n > 0; n-- {
		if bytes.HasSuffix(tail, []byte(errorBegin[:n])) {
			return n
		}
	}
	return 0
}

// mayBeFatal reports whether data, which begins like an error, may be one that ends the
// connection, with the close frame behind it.
func mayBeFatal(data []byte) bool {
	text, rest, complete := cutError(data)
	if !complete {
		return bytes.IndexByte(data, '\n') < 0
	}
	return !known(text) && (len(rest) == 0 || rest[0] == closeFrame)
}

// closedBehind reports whether a close frame follows an error, and returns the error's
// line.
func closedBehind(held []byte) (line []byte, closed bool) {
	_, rest, complete := cutError(held)
	return held[:len(held)-len(rest)], complete && len(rest) > 0 && rest[0] == closeFrame
}

// cutError returns the text of the error that data begins with, and what follows it.
// An error that is not complete has nothing behind it.
func cutError(data []byte) (text string, rest []byte, complete bool) {
	behind, begins := bytes.CutPrefix(data, []byte(errorBegin))
	line, rest, ends := bytes.Cut(behind, []byte(errorEnd))
	return string(line), rest, begins && ends
}
