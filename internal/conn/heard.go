package conn

import (
	"bytes"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// heard is what the server says before it welcomes a client. A server that refuses a
// client says why and hangs up at once. What nats.go does next, such as to send its
// login, then fails with "broken pipe" or the like, and the reason stays unread.
type heard struct {
	line []byte // the beginning of the last line, until it is complete
	text string // of the last error
}

// listen reads what the server sent.
func (h *heard) listen(data []byte) {
	for {
		line, rest, complete := bytes.Cut(data, []byte("\n"))
		h.line = append(h.line, line[:min(len(line), maxErrorLine-len(h.line))]...)
		if !complete {
			return
		}
		if text, ok := errorText(append(h.line, '\n')); ok {
			h.text = text
		}
		h.line, data = h.line[:0], rest
	}
}

// refusedBecause has nats.go's errors for what a server says when it refuses a client.
var refusedBecause = []struct {
	text string // the beginning, in lower case
	err  error
}{
	{"maximum connections exceeded", nats.ErrMaxConnectionsExceeded},
	{"maximum account active connections exceeded", nats.ErrMaxAccountConnectionsExceeded},
	{"authorization violation", nats.ErrAuthorization},
	{"user authentication expired", nats.ErrAuthExpired},
	{"user authentication revoked", nats.ErrAuthRevoked},
	{"account authentication expired", nats.ErrAccountAuthExpired},
}

// reason returns why the server refuses the client, or failure if it has not said so.
func (h *heard) reason(failure error) error {
	if h.text == "" {
		return failure
	}
	for _, r := range refusedBecause {
		if strings.HasPrefix(strings.ToLower(h.text), r.text) {
			return r.err
		}
	}
	return &ServerError{h.text}
}

// whyRefused returns what the server said before the connection failed, or failure.
func (w *wire) whyRefused(failure error) error {
	if w.heard.text == "" {
		rest := make([]byte, maxErrorLine)
		_ = w.Conn.SetReadDeadline(time.Now().Add(errorGrace))
		n, _ := w.Conn.Read(rest) // the failure says enough
		_ = w.Conn.SetReadDeadline(w.deadline)
		w.heard.listen(rest[:n])
	}
	return w.heard.reason(failure)
}

// eavesdropper listens to a TLS handshake: a server may refuse it in plain text.
type eavesdropper struct {
	net.Conn
	heard *heard // nil when the handshake is over
}

func (e *eavesdropper) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	if e.heard != nil {
		e.heard.listen(p[:n])
	}
	return n, err
}
