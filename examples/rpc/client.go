package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// protobuf is a natty.Codec for one type of message, such as protobuf[*orderpb.Order].
type protobuf[M proto.Message] struct{}

// ContentType is what other programs call it too.
func (protobuf[M]) ContentType() string { return "application/protobuf" }

// Marshal takes an M.
func (protobuf[M]) Marshal(v any) ([]byte, error) {
	m, ok := v.(M)
	if !ok {
		return nil, fmt.Errorf("expected a %T", *new(M))
	}
	return proto.Marshal(m)
}

// Unmarshal fills a *M, which natty.Typed gives it: M is a pointer itself, and here it gets a message to point to.
func (protobuf[M]) Unmarshal(data []byte, v any) error {
	p, ok := v.(*M)
	if !ok {
		return fmt.Errorf("expected a %T", new(M))
	}
	*p = (*p).ProtoReflect().New().Interface().(M)
	return proto.Unmarshal(data, *p)
}

// answer is what came back.
type answer struct {
	square *wrapperspb.Int64Value
	by     string
	tries  int
}

// ask sends a request until it is answered. A request is not stored: nobody has it when the instance that received it
// dies, and only the one who asked can ask again. So a request must be one that may be done twice.
func ask(ctx context.Context, nc *nats.Conn, subject string, number *wrapperspb.Int64Value) (answer, error) {
	data, err := proto.Marshal(number)
	if err != nil {
		return answer{}, err
	}
	for tries := 1; ; tries++ {
		reply, err := request(ctx, nc, subject, data)
		switch {
		case ctx.Err() != nil:
			return answer{}, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			continue // the instance died with it, or is slow
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrReconnectBufExceeded):
			select { // these come at once
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return answer{}, err
		}
		if code := reply.Header.Get(micro.ErrorCodeHeader); code != "" { // the service's own no
			return answer{}, fmt.Errorf("%v: %s %s", number, code, reply.Header.Get(micro.ErrorHeader))
		}
		a := answer{square: &wrapperspb.Int64Value{}, by: reply.Header.Get("Instance"), tries: tries}
		return a, proto.Unmarshal(reply.Data, a.square)
	}
}

// request waits for an answer for as long as one should take, and not for as long as ctx allows.
func request(ctx context.Context, nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	return nc.RequestWithContext(ctx, subject, data)
}

// account says what became of every request.
type account struct {
	mu       sync.Mutex // guards what follows
	by       map[string]int
	again    int
	answered map[int64]bool // squares
	stored   map[int64]bool // squares
}

func (a *account) note(got answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answered == nil {
		a.answered = map[int64]bool{}
	}
	a.answered[got.square.GetValue()] = true
	a.by[got.by]++
	if got.tries > 1 {
		a.again++
	}
}

// store notes a square that was read from the stream, and returns how many there are.
func (a *account) store(square int64) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stored == nil {
		a.stored = map[int64]bool{}
	}
	a.stored[square] = true
	return len(a.stored)
}

// print writes the account. Its error says how many numbers have no square.
func (a *account) print(out io.Writer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	lost := 0
	for n := int64(1); n <= requests; n++ {
		if !a.answered[n*n] || !a.stored[n*n] {
			lost++
		}
	}
	for _, line := range []struct {
		what string
		n    int
	}{
		{"requests", requests},
		{"answered by A", a.by["A"]},
		{"answered by B", a.by["B"]},
		{"asked again", a.again},
		{"squares in stream", len(a.stored)},
		{"lost", lost},
	} {
		fmt.Fprintf(out, "%-18s %d\n", line.what, line.n)
	}
	if lost > 0 {
		return fmt.Errorf("%d requests were lost", lost)
	}
	return nil
}
