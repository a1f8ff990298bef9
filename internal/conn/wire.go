package conn

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// ServerError is an error with which the server ended the connection, because of
// something that was sent on it. It wraps nats.ErrDisconnected.
type ServerError struct {
	Text string // as the server wrote it
}

func (e *ServerError) Error() string { return "the server ended the connection: " + e.Text }

func (e *ServerError) Unwrap() error { return nats.ErrDisconnected }

// PayloadTooLarge reports whether a message was over the server's max_payload.
func (e *ServerError) PayloadTooLarge() bool {
	return strings.EqualFold(e.Text, "maximum payload violation")
}

// LineTooLong reports whether the subjects of a message were over the server's
// max_control_line.
func (e *ServerError) LineTooLong() bool {
	return strings.EqualFold(e.Text, "maximum control line exceeded")
}

// wire is a connection to a server as nats.go reads and writes it. It keeps some errors
// of the server from nats.go. nats.go closes for good, instead of reconnecting, at every
// -ERR that it does not know, such as "Maximum Payload Violation" after the server's
// limit was lowered. The server closes the connection behind such an error. So nats.go
// reads a lost connection instead, and dials again.
//
// To read what the server says, wire must make the TLS handshake in nats.go's place. It
// does so when nats.go would: before the first write, or before the first read with
// TLSHandshakeFirst.
type wire struct {
	net.Conn
	opts       *nats.Options
	serverName string // what the server's certificate must be for, unless the options say so
	onError    func(*ServerError)
	deadline   time.Time // for reading, as nats.go has set it
	info       []byte    // the server's first line, until it is complete
	greeted    bool      // the first line is complete
	secure     bool      // TLS is to be used
	shook      bool      // the handshake is made, or not wanted
	inClear    error     // why there is no TLS, though it is wanted
	welcome    bool      // the server has answered the first PING: nats.go is connected
	heard      heard     // until then
	last       [5]byte   // the last bytes before the welcome
	lineStart  bool      // what is read next begins a line
	ready      []byte    // was read, and is for the next Reads
	held       []byte    // behind ready: may be an error that nats.go must not see
	framed     bool      // the server sends WebSocket frames, see frames.go
}

func newWire(
	conn net.Conn, opts *nats.Options, serverName string, skipTLS bool, onError func(*ServerError),
) *wire {
	return &wire{
		Conn: conn, opts: opts, serverName: serverName, onError: onError, shook: skipTLS, lineStart: true,
	}
}

// Write makes the handshake first, once it is known whether TLS is wanted. Without it
// nothing is written where TLS was asked for: nats.go may read the server's first line
// in another way.
func (w *wire) Write(p []byte) (int, error) {
	if !w.shook {
		w.shook = true
		switch {
		case w.secure:
			w.inClear = w.handshake()
		case w.opts.Secure:
			w.inClear = nats.ErrSecureConnWanted
		}
	}
	if w.inClear != nil {
		return 0, w.inClear
	}
	n, err := w.Conn.Write(p)
	if err != nil && !w.welcome {
		err = w.whyRefused(err)
	}
	return n, err
}

// handshake does what nats.go's own handshake does.
func (w *wire) handshake() error {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if w.opts.TLSConfig != nil {
		config = w.opts.TLSConfig.Clone()
	}
	if cb := w.opts.TLSCertCB; cb != nil {
		cert, err := cb()
		if err != nil {
			return err
		}
		config.Certificates = []tls.Certificate{cert}
	}
	if cb := w.opts.RootCAsCB; cb != nil {
		pool, err := cb()
		if err != nil {
			return err
		}
		config.RootCAs = pool
	}
	config.ServerName = cmp.Or(config.ServerName, w.serverName)
	raw := &eavesdropper{w.Conn, &w.heard}
	conn := tls.Client(raw, config)
	if err := conn.Handshake(); err != nil { //nolint:noctx // bounded by the deadline that nats.go has set
		return w.heard.reason(fmt.Errorf("%w: %w", nats.ErrTLS, err))
	}
	raw.heard = nil
	w.Conn = conn
	return nil
}

// Read reads what the server sends, except for errors that would end nats.go's
// connection for good.
func (w *wire) Read(p []byte) (int, error) {
	if !w.shook && w.opts.Secure && w.opts.TLSHandshakeFirst {
		w.shook = true
		if err := w.handshake(); err != nil {
			return 0, err
		}
	}
	for {
		if len(w.ready) > 0 {
			n := copy(p, w.ready)
			w.ready = w.ready[n:]
			return n, nil
		}
		if len(w.held) > 0 {
			if err := w.decide(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := w.Conn.Read(p)
		if !w.welcome {
			w.greet(p[:n])
			return n, err
		}
		if keep := w.suspect(p[:n]); keep > 0 && err == nil {
			w.held = bytes.Clone(p[n-keep : n])
			n -= keep
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// greet reads what comes before the server's first PONG. Until then nothing is kept from
// nats.go. It returns any error of the server from its attempt to connect, and tries
// again.
func (w *wire) greet(data []byte) {
	w.heard.listen(data)
	const pong = "PONG\r\n"
	seen := append(w.last[:], data...) // a copy, because last is full
	w.welcome = bytes.Contains(seen, []byte(pong))
	copy(w.last[:], seen[len(seen)-len(w.last):])
	if w.greeted {
		return
	}
	line, _, complete := bytes.Cut(data, []byte("\n"))
	w.info = append(w.info, line...)
	if !complete {
		return
	}
	w.greeted = true
	var info struct {
		Required  bool `json:"tls_required"`
		Available bool `json:"tls_available"`
	}
	// nats.go reports what is wrong with the line.
	_ = json.Unmarshal(bytes.TrimPrefix(w.info, []byte("INFO ")), &info)
	w.secure = info.Required || w.opts.Secure && info.Available
	w.info = nil
}

const (
	errorBegin = "-ERR '"
	errorEnd   = "'\r\n"
	// maxErrorLine is more than any error is long that nats.go does not know.
	maxErrorLine = 512
)

// suspect returns how many bytes at the end of data may belong to an error that must not
// reach nats.go. The server sends nothing behind such an error, so that only the last
// line counts. That line can be the end of a message's data instead.
func (w *wire) suspect(data []byte) (keep int) {
	if len(data) == 0 {
		return 0
	}
	if w.framed {
		return suspectFramed(data)
	}
	began := w.lineStart
	w.lineStart = data[len(data)-1] == '\n'
	end := len(data)
	if w.lineStart {
		end--
	}
	from := max(0, end-maxErrorLine)
	i := bytes.LastIndexByte(data[from:end], '\n')
	if i < 0 && (from > 0 || !began) {
		return 0
	}
	line := data[from+i+1:]
	if n := min(len(line), len(errorBegin)); string(line[:n]) != errorBegin[:n] {
		return 0
	}
	if text, complete := errorText(line); w.lineStart && (!complete || known(text)) {
		return 0
	}
	return len(line)
}

// errorText returns the text of an error, and whether line is one.
func errorText(line []byte) (text string, ok bool) {
	line, begins := bytes.CutPrefix(line, []byte(errorBegin))
	line, ends := bytes.CutSuffix(line, []byte(errorEnd))
	return string(line), begins && ends
}

// knownErrors begin the errors at which nats.go does not close for good: it reports
// them, or reconnects.
var knownErrors = []string{
	"stale connection", "maximum connections exceeded", "maximum account active connections exceeded",
	"unknown protocol operation", "permissions violation", "maximum subscriptions exceeded",
	"authorization violation", "user authentication expired", "user authentication revoked",
	"account authentication expired",
}

func known(text string) bool {
	text = strings.ToLower(text)
	for _, e := range knownErrors {
		if strings.HasPrefix(text, e) {
			return true
		}
	}
	return false
}

// errorGrace is how long the server gets to close the connection behind an error. A
// message whose data ends like an error waits for as long.
const errorGrace = 100 * time.Millisecond

// decide waits for what follows the bytes that are held. They are an error if the
// connection ends behind them, and data otherwise. An incomplete line waits without a
// limit: nats.go could do nothing with it.
func (w *wire) decide() error {
	held := w.held
	w.held = nil
	if line, closed := closedBehind(held); w.framed && closed {
		return w.refuse(line)
	}
	_, complete := errorText(held)
	if complete {
		_ = w.Conn.SetReadDeadline(time.Now().Add(errorGrace))
		defer func() { _ = w.Conn.SetReadDeadline(w.deadline) }()
	}
	more := make([]byte, 4096)
	n, err := w.Conn.Read(more)
	switch {
	case n > 0 || err == nil: // an error beside it comes again with the next Read
		all := slices.Concat(held, more[:n])
		w.lineStart = true // before all
		keep := w.suspect(all)
		w.ready, w.held = all[:len(all)-keep], all[len(all)-keep:]
		return nil
	case complete && !errors.Is(err, os.ErrDeadlineExceeded):
		return w.refuse(held)
	}
	w.ready = held
	return nil
}

// refuse returns the error of the server's that a line is, for nats.go to reconnect.
func (w *wire) refuse(line []byte) error {
	text, _ := errorText(line)
	refused := &ServerError{text}
	w.onError(refused)
	return refused
}

// SetDeadline implements net.Conn.
func (w *wire) SetDeadline(t time.Time) error {
	w.deadline = t
	return w.Conn.SetDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (w *wire) SetReadDeadline(t time.Time) error {
	w.deadline = t
	return w.Conn.SetReadDeadline(t)
}
