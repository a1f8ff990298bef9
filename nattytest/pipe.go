package nattytest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	chunkSize    = 32 << 10
	maxHeldBytes = 64 << 20
)

// gate lets the bytes of one direction of a Link pass, or holds them. The zero value is
// open.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // nil while the gate is open; open closes it
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// blocked returns nil while the gate is open, else a channel that is closed when the
// gate opens.
func (g *gate) blocked() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

// wait waits until the gate is open. It returns false if done is closed first.
func (g *gate) wait(done <-chan struct{}) bool {
	for {
		opened := g.blocked()
		if opened == nil {
			return true
		}
		select {
		case <-opened:
		case <-done:
			return false
		}
	}
}

// session is one connection through a Link: the client's side, the server's side, and a
// pipe for each direction.
type session struct {
	client *net.TCPConn
	done   chan struct{} // closed at the end of the session
	work   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	server   *net.TCPConn
	up, down *pipe
	ended    bool
}

// connect adds the server's side. If the session has ended meanwhile, connect resets
// conn and returns false.
func (s *session) connect(conn *net.TCPConn, l *Link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		closeConn(conn, true)
		return false
	}
	s.server = conn
	s.up = &pipe{session: s, link: l, gate: &l.requests, from: s.client, to: conn, queue: newQueue()}
	s.down = &pipe{session: s, link: l, gate: &l.replies, from: conn, to: s.client, queue: newQueue()}
	return true
}

// end closes both sides, with a reset if asked. Bytes that are still held are lost.
func (s *session) end(reset bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	close(s.done)
	closeConn(s.client, reset)
	if s.server != nil {
		closeConn(s.server, reset)
	}
}

func closeConn(conn *net.TCPConn, reset bool) {
	if reset {
		_ = conn.SetLinger(0) // fails only on a connection that has ended
	}
	conn.Close()
}

// interruptWrites returns when no byte is being written behind the gate g, which is
// shut.
func (s *session) interruptWrites(g *gate) {
	s.mu.Lock()
	pipes := []*pipe{s.up, s.down}
	s.mu.Unlock()
	for _, p := range pipes {
		if p != nil && p.gate == g {
			p.interruptWrite()
		}
	}
}

// pipe carries the bytes of one direction. Its reader stamps them with the time at
// which they are due at the other side. Its writer passes them on at that time.
type pipe struct {
	session  *session
	link     *Link
	gate     *gate
	from, to *net.TCPConn
	queue    *queue

	writing sync.Mutex // held from the look at the gate until the write is over
}

func (p *pipe) start() {
	p.session.work.Go(p.read)
	p.session.work.Go(p.write)
}

func (p *pipe) read() {
	buf := make([]byte, chunkSize)
	for {
		n, err := p.from.Read(buf)
		due := time.Now().Add(time.Duration(p.link.delay.Load()))
		if n > 0 && !p.queue.put(chunk{data: bytes.Clone(buf[:n]), due: due}, p.session.done) {
			return
		}
		if err != nil {
			// The end of a connection is delayed and frozen as its bytes are.
			p.queue.put(chunk{due: due, end: true, reset: !errors.Is(err, io.EOF)}, p.session.done)
			return
		}
	}
}

func (p *pipe) write() {
	for {
		c, ok := p.queue.take(p.session.done)
		if !ok || !waitUntil(c.due, p.session.done) {
			return
		}
		switch {
		case !c.end:
			if p.pass(c.data) {
				continue
			}
			p.stopReading()
		case !p.gate.wait(p.session.done):
		case c.reset:
			p.session.end(true)
		default:
			_ = p.to.CloseWrite() // fails only on a connection that has ended
		}
		return
	}
}

// stopReading ends this direction after its receiver has gone. It does not end the
// session: the receiver's last bytes may still be on their way in the other direction,
// which ends by itself.
func (p *pipe) stopReading() {
	p.queue.discard()
	_ = p.from.CloseRead() // fails only on a connection that has ended
}

// pass writes data. While the gate is shut, it keeps the rest. It returns false when
// the connection has ended.
func (p *pipe) pass(data []byte) bool {
	for len(data) > 0 {
		if !p.gate.wait(p.session.done) {
			return false
		}
		n, err := p.writeIfOpen(data)
		data = data[n:]
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
	}
	return true
}

func (p *pipe) writeIfOpen(data []byte) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.gate.blocked() != nil {
		return 0, nil
	}
	return p.to.Write(data)
}

// interruptWrite interrupts a write that waits for a slow receiver, and returns when
// the write is over. The writer then finds the gate shut, and keeps the bytes that it
// has not written.
func (p *pipe) interruptWrite() {
	_ = p.to.SetWriteDeadline(time.Unix(1, 0)) // fails only on a connection that has ended
	p.writing.Lock()
	defer p.writing.Unlock()
	_ = p.to.SetWriteDeadline(time.Time{}) // fails only on a connection that has ended
}

func waitUntil(due time.Time, done <-chan struct{}) bool {
	left := time.Until(due)
	if left <= 0 {
		return true
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
		return false
	}
}

// chunk is a piece of a connection's bytes, or the connection's end, and the time at
// which it is due at the other side.
type chunk struct {
	data       []byte
	due        time.Time
	end, reset bool
}

// queue holds chunks between one reader and one writer, up to maxHeldBytes. A channel
// would bound the number of chunks instead: large ones would take too much memory,
// small ones would give too little throughput.
type queue struct {
	// Both buffer one signal. With one reader and one writer, no signal is lost.
	filled, emptied chan struct{}

	mu        sync.Mutex // guards what follows
	chunks    []chunk
	bytes     int
	discarded bool // the writer has ended; what is put is dropped
}

func newQueue() *queue {
	return &queue{filled: make(chan struct{}, 1), emptied: make(chan struct{}, 1)}
}

// put waits for room and adds c. It returns false if done is closed first.
func (q *queue) put(c chunk, done <-chan struct{}) bool {
	for {
		q.mu.Lock()
		fits := q.discarded || q.bytes < maxHeldBytes
		if fits && !q.discarded {
			q.chunks = append(q.chunks, c)
			q.bytes += len(c.data)
		}
		q.mu.Unlock()
		if fits {
			signal(q.filled)
			return true
		}
		select {
		case <-q.emptied:
		case <-done:
			return false
		}
	}
}

// take waits for a chunk and removes it. It returns false if done is closed first.
func (q *queue) take(done <-chan struct{}) (chunk, bool) {
	for {
		q.mu.Lock()
		if len(q.chunks) > 0 {
			c := q.chunks[0]
			q.chunks[0] = chunk{} // else the backing array keeps the data
			q.chunks = q.chunks[1:]
			q.bytes -= len(c.data)
			q.mu.Unlock()
			signal(q.emptied)
			return c, true
		}
		q.mu.Unlock()
		select {
		case <-q.filled:
		case <-done:
			return chunk{}, false
		}
	}
}

// discard drops all chunks, and those that are put later.
func (q *queue) discard() {
	q.mu.Lock()
	q.chunks, q.bytes, q.discarded = nil, 0, true
	q.mu.Unlock()
	signal(q.emptied)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
