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
	chunkSize = 32 << 10
	heldBytes = 64 << 20
)

// gate lets a direction of a Link pass or holds it. The zero value lets pass.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // nil while open; closed by open
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

// blocked returns nil while the gate is open, else what is closed when it opens.
func (g *gate) blocked() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

// wait returns true when the gate is open, false when done ends first.
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

// pair is one connection through a Link: the client's side, the server's side, and a pipe each way.
type pair struct {
	client *net.TCPConn
	done   chan struct{} // closed when the pair is aborted or over
	work   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	server   *net.TCPConn
	up, down *pipe
	over     bool
}

// connect adds the server's side. It returns false, and resets conn, if the pair was aborted meanwhile.
func (p *pair) connect(conn *net.TCPConn, l *Link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		_ = conn.SetLinger(0) // fails only on a connection that has ended
		conn.Close()
		return false
	}
	p.server = conn
	p.up = &pipe{pair: p, link: l, gate: &l.requests, from: p.client, to: conn, queue: newQueue()}
	p.down = &pipe{pair: p, link: l, gate: &l.replies, from: conn, to: p.client, queue: newQueue()}
	return true
}

// abort ends the pair with a reset on both sides; what is held is lost.
func (p *pair) abort() { p.end(true) }

// finish ends the pair after all of it has passed.
func (p *pair) finish() { p.end(false) }

func (p *pair) end(reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	p.over = true
	close(p.done)
	for _, conn := range []*net.TCPConn{p.client, p.server} {
		if conn == nil {
			continue
		}
		if reset {
			_ = conn.SetLinger(0) // fails only on a connection that has ended
		}
		conn.Close()
	}
}

// settle returns when no byte is being written behind the gate g, which is shut.
func (p *pair) settle(g *gate) {
	p.mu.Lock()
	pipes := []*pipe{p.up, p.down}
	p.mu.Unlock()
	for _, way := range pipes {
		if way != nil && way.gate == g {
			way.settle()
		}
	}
}

// pipe carries the bytes of one direction: a reader stamps them with the time when they are due, a writer passes them on.
type pipe struct {
	pair     *pair
	link     *Link
	gate     *gate
	from, to *net.TCPConn
	queue    *queue

	writing sync.Mutex // held from looking at the gate until the write is over
}

func (w *pipe) run() {
	w.pair.work.Go(w.read)
	w.pair.work.Go(w.write)
}

func (w *pipe) read() {
	buf := make([]byte, chunkSize)
	for {
		n, err := w.from.Read(buf)
		due := time.Now().Add(time.Duration(w.link.delay.Load()))
		if n > 0 && !w.queue.put(chunk{data: bytes.Clone(buf[:n]), due: due}, w.pair.done) {
			return
		}
		if err != nil {
			// The end of a connection is on its way like everything else, and waits behind a freeze.
			w.queue.put(chunk{due: due, end: true, reset: !errors.Is(err, io.EOF)}, w.pair.done)
			return
		}
	}
}

func (w *pipe) write() {
	for {
		c, ok := w.queue.take(w.pair.done)
		if !ok || !waitUntil(c.due, w.pair.done) {
			return
		}
		if !c.end {
			if !w.pass(c.data) {
				w.giveUp()
				return
			}
			continue
		}
		if !w.gate.wait(w.pair.done) {
			return
		}
		if c.reset {
			w.pair.abort()
			return
		}
		_ = w.to.CloseWrite() // fails only on a connection that has ended
		return
	}
}

// giveUp ends this direction after its receiver has gone. It does not abort the pair: what the receiver said last may still
// be on its way in the other direction, which learns of the end by itself.
func (w *pipe) giveUp() {
	w.queue.discard()
	_ = w.from.CloseRead() // fails only on a connection that has ended
}

// pass writes data, and holds what is left of it while the gate is shut. It returns false when the connection is over.
func (w *pipe) pass(data []byte) bool {
	for len(data) > 0 {
		if !w.gate.wait(w.pair.done) {
			return false
		}
		n, err := w.writeIfOpen(data)
		data = data[n:]
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
	}
	return true
}

func (w *pipe) writeIfOpen(data []byte) (int, error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	if w.gate.blocked() != nil {
		return 0, nil
	}
	return w.to.Write(data)
}

// settle interrupts a write that waits for a slow reader and returns when it is over. The writer then sees that the gate is
// shut, and keeps what it did not write.
func (w *pipe) settle() {
	_ = w.to.SetWriteDeadline(time.Unix(1, 0)) // fails only on a connection that has ended
	w.writing.Lock()
	defer w.writing.Unlock()
	_ = w.to.SetWriteDeadline(time.Time{}) // fails only on a connection that has ended
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

// chunk is a piece of a stream and the time when it is due at the other side, or the stream's end.
type chunk struct {
	data       []byte
	due        time.Time
	end, reset bool
}

// queue holds chunks between one reader and one writer, up to heldBytes. A channel would bound their number instead:
// a few large chunks would be too much memory, many small ones too little throughput.
type queue struct {
	// Both have room for one signal, which is enough for one reader and one writer: a signal sent is never lost.
	filled, emptied chan struct{}

	mu      sync.Mutex // guards what follows
	chunks  []chunk
	bytes   int
	useless bool // nobody takes any more
}

func newQueue() *queue {
	return &queue{filled: make(chan struct{}, 1), emptied: make(chan struct{}, 1)}
}

// put waits for room; false: done ended first.
func (q *queue) put(c chunk, done <-chan struct{}) bool {
	for {
		q.mu.Lock()
		fits := q.useless || q.bytes < heldBytes
		if fits && !q.useless {
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

// take waits for a chunk; false: done ended first.
func (q *queue) take(done <-chan struct{}) (chunk, bool) {
	for {
		q.mu.Lock()
		if len(q.chunks) > 0 {
			c := q.chunks[0]
			q.chunks[0] = chunk{} // or the backing array would keep the data
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

// discard drops what is there and all that is put later.
func (q *queue) discard() {
	q.mu.Lock()
	q.chunks, q.bytes, q.useless = nil, 0, true
	q.mu.Unlock()
	signal(q.emptied)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
