// Package jsapi owns the requests to JetStream's API: how one is sent and repeated, what
// each error of the server means, and what each version of the server can do. It reads
// answers as they are on the wire, so that settings newer than nats.go survive. It makes
// no public errors, and knows nothing of publishing, of keys, or of how messages are
// consumed. Read first:
//
//	api.go       a request, once or until its error no longer passes
//	errors.go    the table of the server's errors
//	converge.go  how a stream, bucket or consumer gets the settings asked for
//	version.go   what a server is too old for
//	via.go       calls of nats.go that end as soon as the server refuses them
package jsapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natty-go/natty/internal/backoff"
	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/respmux"
)

// APITimeout bounds a call to JetStream's API, with all its repetitions, whose ctx has
// no deadline.
const APITimeout = 5 * time.Second

// LongestTTL is the longest TTL that natty gives a message. The server adds it to the
// time of day, in nanoseconds since 1970, which overflows in the year 2262: the message
// would then expire at once.
const LongestTTL = 100 * 365 * 24 * time.Hour

// DefaultPrefix begins the subjects of the API, unless it is that of another domain or
// account.
const DefaultPrefix = "$JS.API."

// ErrNoStream says that no stream holds a subject, or that no stream has a name.
var ErrNoStream = errors.New("no stream holds the subject")

// Client is JetStream's API over one connection.
type Client struct {
	NC     *nats.Conn
	JS     jetstream.JetStream
	Link   *conn.Link
	Mux    *respmux.Mux
	Prefix string       // of the API's subjects, with the dot at its end
	Log    *slog.Logger // of what is made and changed; nil: nowhere
	// Drift makes the error for something that exists with settings that cannot be
	// changed.
	Drift func(kind, name string, differ []Difference, cause error) error
}

// Call sends a request to the API once. It returns the answer whole, or the server's
// error as a *jetstream.APIError. nats.go's typed calls lose parts of the answer: a
// configuration that is read, changed and written back must keep fields newer than
// nats.go. And if the server denies the request, Call fails at once, where nats.go
// waits until ctx ends.
func (a *Client) Call(ctx context.Context, endpoint string, request any) ([]byte, error) {
	if err := a.Link.Wait(ctx, time.Time{}); err != nil {
		return nil, err
	}
	var body []byte
	if request != nil {
		var err error
		if body, err = json.Marshal(request); err != nil {
			return nil, err
		}
	}
	msg, err := a.Request(ctx, endpoint, body)
	if err != nil {
		return nil, err
	}
	var resp struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &resp); err != nil {
		return nil, fmt.Errorf("unreadable answer from %s: %w", endpoint, err)
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	return msg.Data, nil
}

// Request sends a request to the API once, and returns the message that answers it.
func (a *Client) Request(ctx context.Context, endpoint string, body []byte) (*nats.Msg, error) {
	return a.ask(ctx, a.Prefix+endpoint, body)
}

// Ask sends a request to a subject that is not the API's, such as the reply subject of a
// message, and waits for its answer.
func (a *Client) Ask(ctx context.Context, subject string, body []byte) error {
	_, err := a.ask(ctx, subject, body)
	return err
}

func (a *Client) ask(ctx context.Context, subject string, body []byte) (*nats.Msg, error) {
	msg, err := a.Mux.Request(ctx, a.NC, subject, body)
	switch {
	case err != nil:
		return nil, WhenClosed(err)
	case respmux.NoResponders(msg):
		return nil, nats.ErrNoResponders
	}
	return msg, nil
}

// WhenClosed adds conn.ErrClosed to nats.go's errors for a connection that is gone for
// good. Other errors it returns as they are.
func WhenClosed(err error) error {
	gone := errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrConnectionDraining)
	if !gone || errors.Is(err, conn.ErrClosed) {
		return err
	}
	return fmt.Errorf("%w: %w", conn.ErrClosed, err)
}

// CallTimeout bounds each attempt of a call, so that a lost answer does not cost all of
// ctx.
var CallTimeout = backoff.Exp{Min: time.Second, Max: 4 * time.Second}

// Persist repeats an API call while its error may pass (see Passing): within ctx, or
// within APITimeout if ctx has no deadline. What nats.go does in the call should go
// through Via.
func (a *Client) Persist(ctx context.Context, call func(ctx context.Context) error) error {
	if err := ctx.Err(); err != nil {
		if down := a.Link.Wait(ctx, time.Time{}); down != nil && !a.Link.Up() {
			return down // it says why there is no connection
		}
		return fmt.Errorf("ctx had ended before the request: %w", err)
	}
	ctx, cancel := WithTimeout(ctx, APITimeout)
	defer cancel()
	pauses := backoff.Exp{Min: 20 * time.Millisecond, Max: 500 * time.Millisecond}
	var reason error
	for n := 1; ; n++ {
		err := a.Link.Wait(ctx, time.Time{})
		if err != nil {
			return err
		}
		each, cancel := context.WithTimeout(ctx, CallTimeout.Base(n))
		err = a.try(each, call)
		cancel()
		if err == nil || !Passing(err) || errors.Is(err, respmux.ErrInbox) { // it may last
			return WhenClosed(err)
		}
		if reason == nil || !errors.Is(err, context.DeadlineExceeded) {
			reason = err // "no answer" says less than an earlier error
		}
		if ended := pauses.Wait(ctx, n); ended != nil {
			return gaveUp(ended, reason)
		}
	}
}

// gaveUp says what ended a call, and what had kept it from succeeding. Only an answer
// tells that JetStream is missing: who waits in vain may have given little time.
func gaveUp(ended, reason error) error {
	switch code := Code(reason); {
	case code == jetstream.JSErrCodeJetStreamNotEnabled, errors.Is(reason, nats.ErrNoResponders):
		return fmt.Errorf("JetStream does not answer; is it enabled for this account: %w: %w", ended, reason)
	case code == 0 && (errors.Is(reason, context.DeadlineExceeded) || errors.Is(reason, nats.ErrTimeout)):
		return fmt.Errorf("no answer from JetStream yet: %w", ended)
	}
	return fmt.Errorf("%w: %w", ended, reason)
}

// Because adds a cause, if there is one, to err. A cause that wraps err is enough.
func Because(err, cause error) error {
	switch {
	case cause == nil:
		return err
	case errors.Is(cause, err):
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// WithTimeout limits ctx to d, unless ctx has a deadline already.
func WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// Outlast returns a ctx that ends d after another one. It is for what must not be left
// half done because that one ends just now.
func Outlast(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(d, cancel) })
	return lasting, func() { stop(); cancel() }
}

// Query repeats an API request while its error may pass, and decodes the answer.
func (a *Client) Query(ctx context.Context, endpoint string, request, answer any) error {
	return a.Persist(ctx, func(ctx context.Context) error {
		data, err := a.Call(ctx, endpoint, request)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, answer)
	})
}

// StreamsOf returns the names of the streams that hold a subject, which may have
// wildcards.
func (a *Client) StreamsOf(ctx context.Context, subject string) (names []string, err error) {
	err = a.Persist(ctx, func(ctx context.Context) (err error) {
		names, err = a.StreamNames(ctx, subject)
		return err
	})
	return names, err
}

// StreamNames is StreamsOf without repetition.
func (a *Client) StreamNames(ctx context.Context, subject string) ([]string, error) {
	data, err := a.Call(ctx, "STREAM.NAMES", map[string]string{"subject": subject})
	if err != nil {
		return nil, err
	}
	var names struct {
		Streams []string `json:"streams"`
	}
	return names.Streams, json.Unmarshal(data, &names)
}

// StoredMsg is a message as the stream's leader returns it.
type StoredMsg struct {
	Subject  string `json:"subject"`
	Sequence uint64 `json:"seq"`
	Header   []byte `json:"hdrs"`
	Data     []byte `json:"data"`

	Time time.Time `json:"time"` // when the server stored it, by the server's clock
}

// LeaderGet reads one message from the stream's leader. A replica that lags behind may
// answer nats.go's reads (nats-server#6557), which is not enough where the answer
// decides.
func (a *Client) LeaderGet(ctx context.Context, stream string, request any) (m *StoredMsg, err error) {
	err = a.Persist(ctx, func(ctx context.Context) (err error) {
		m, err = a.LeaderGetOnce(ctx, stream, request)
		return err
	})
	return m, err
}

// LeaderGetOnce is LeaderGet without repetition.
func (a *Client) LeaderGetOnce(ctx context.Context, stream string, request any) (*StoredMsg, error) {
	data, err := a.Call(ctx, "STREAM.MSG.GET."+stream, request)
	if err != nil {
		return nil, err
	}
	var resp struct {
		Message *StoredMsg `json:"message"`
	}
	if err := json.Unmarshal(data, &resp); err != nil {
		return nil, err
	}
	if resp.Message == nil {
		return nil, jetstream.ErrMsgNotFound
	}
	return resp.Message, nil
}

// ConsumerInfo reads the settings and the state of a consumer.
func (a *Client) ConsumerInfo(ctx context.Context, stream, name string) (*jetstream.ConsumerInfo, error) {
	info := &jetstream.ConsumerInfo{}
	return info, a.Query(ctx, "CONSUMER.INFO."+stream+"."+name, nil, info)
}

// EachConsumer calls f for each consumer of a stream.
func (a *Client) EachConsumer(
	ctx context.Context, stream string, f func(name string, config jetstream.ConsumerConfig),
) error {
	for offset := 0; ; {
		var page struct {
			Total     int                       `json:"total"`
			Consumers []*jetstream.ConsumerInfo `json:"consumers"`
		}
		if err := a.Query(ctx, "CONSUMER.LIST."+stream, map[string]int{"offset": offset}, &page); err != nil {
			return err
		}
		for _, one := range page.Consumers {
			f(one.Name, one.Config)
		}
		offset += len(page.Consumers)
		if offset >= page.Total || len(page.Consumers) == 0 {
			return nil
		}
	}
}

// ConsumerNames returns the names of the consumers of a stream.
func (a *Client) ConsumerNames(ctx context.Context, stream string) (names []string, err error) {
	for {
		var page struct {
			Total int      `json:"total"`
			Names []string `json:"consumers"`
		}
		request := map[string]int{"offset": len(names)}
		if err := a.Query(ctx, "CONSUMER.NAMES."+stream, request, &page); err != nil {
			return nil, err
		}
		names = append(names, page.Names...)
		if len(names) >= page.Total || len(page.Names) == 0 {
			return names, nil
		}
	}
}
