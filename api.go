package natty

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Error codes of the server (nats-server, server/errors.json) that decide something and have
// no name, or only part of one, in nats.go. Never the text of an error: it changes between versions.
const (
	codeNoPeers           jetstream.ErrorCode = 10005
	codeNotAvailable      jetstream.ErrorCode = 10008
	codeNotLeader         jetstream.ErrorCode = 10009
	codeAccountLimit      jetstream.ErrorCode = 10002
	codeNoResources       jetstream.ErrorCode = 10023
	codeNoMemory          jetstream.ErrorCode = 10028
	codeNoStorage         jetstream.ErrorCode = 10047
	codeInvalidJSON       jetstream.ErrorCode = 10025 // also for a setting that it does not know
	codeNoMessage         jetstream.ErrorCode = 10057
	codeMsgTooLarge       jetstream.ErrorCode = 10054
	codeSequenceMismatch  jetstream.ErrorCode = 10063
	codeWrongLastID       jetstream.ErrorCode = 10070
	codeWrongLastSeq      jetstream.ErrorCode = 10071
	codeNoReplicas        jetstream.ErrorCode = 10074
	codeStoreFailed       jetstream.ErrorCode = 10077
	codeHeaderTooLarge    jetstream.ErrorCode = 10097
	codeQueueHasConsumer  jetstream.ErrorCode = 10099 // a WorkQueue stream, and one that receives all of it
	codeQueueOverlap      jetstream.ErrorCode = 10100
	codeMaxAckPending     jetstream.ErrorCode = 10121
	codeNoConsumer        jetstream.ErrorCode = 10149
	codeConsumerExists    jetstream.ErrorCode = 10148
	codeDuplicateInFlight jetstream.ErrorCode = 10158
	codeConcurrentLastSeq jetstream.ErrorCode = 10164
	codeNoTTLs            jetstream.ErrorCode = 10166 // in this stream

	codeBatchIncomplete      jetstream.ErrorCode = 10176
	codeBatchTooLarge        jetstream.ErrorCode = 10199
	codeBatchDuplicate       jetstream.ErrorCode = 10201
	codeBatchTooManyInFlight jetstream.ErrorCode = 10210

	codeTimeZoneInvalid jetstream.ErrorCode = 10223 // of a schedule
)

// apiTimeout bounds one request to JetStream's API, and all of a call whose ctx has no deadline.
const apiTimeout = 5 * time.Second

// errorCode returns the server's code in err, or 0.
func errorCode(err error) jetstream.ErrorCode {
	if apiErr, ok := errors.AsType[*jetstream.APIError](err); ok {
		return apiErr.ErrorCode
	}
	return 0
}

// passing reports whether an API request that failed with err may succeed when it is repeated as it is:
// no connection, no leader, no answer, or (as just after a cluster's start) too few servers to place replicas on.
func passing(err error) bool {
	switch errorCode(err) {
	case codeNotAvailable, codeNotLeader, codeNoPeers, jetstream.JSErrCodeJetStreamNotEnabled: // nats.go's word for no responders
		return true
	case 0:
		return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) ||
			errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrDisconnected) ||
			errors.Is(err, nats.ErrReconnectBufExceeded)
	}
	return false
}

// missing reports that the stream or the durable is not there. A durable may be gone again just after it was made: to the
// request that makes it, one that is being deleted still is there (server 2.15).
func missing(err error) bool {
	return errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound) || errorCode(err) == codeNoConsumer
}

// serverFault reports that the server failed where there was nothing wrong with the request. It fails for a moment to make
// a durable while it still removes the files of the one before (server 2.15).
func serverFault(err error) bool {
	refused, ok := errors.AsType[*jetstream.APIError](err)
	return ok && refused.Code >= http.StatusInternalServerError
}

// api sends a request to JetStream's API and returns the answer, or the server's error as a
// *jetstream.APIError. It exists beside nats.go's typed calls for the answers that those lose parts of: a
// configuration that is read, changed and written back must keep fields newer than nats.go. And it learns at once
// when the server denies the request, where nats.go's requests wait in vain.
func (c *Client) api(ctx context.Context, endpoint string, request any) ([]byte, error) {
	if err := c.link.wait(ctx, time.Time{}); err != nil {
		return nil, err
	}
	var body []byte
	if request != nil {
		var err error
		if body, err = json.Marshal(request); err != nil {
			return nil, err
		}
	}
	msg, err := c.request(ctx, endpoint, body)
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

// request sends a request to the API, and returns the answer as it comes.
func (c *Client) request(ctx context.Context, endpoint string, body []byte) (*nats.Msg, error) {
	msg, err := c.acks.request(ctx, c.nc, c.cfg.apiPrefix()+endpoint, body)
	switch {
	case err != nil:
		return nil, whenClosed(err)
	case isNoResponders(msg):
		return nil, nats.ErrNoResponders
	}
	return msg, nil
}

// whenClosed adds ErrClosed to nats.go's word for a connection that is gone for good, and leaves other errors as they are.
func whenClosed(err error) error {
	gone := errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrConnectionDraining)
	if !gone || errors.Is(err, ErrClosed) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// callTimeout bounds one call to the API: an answer that got lost must not cost the whole of ctx.
var callTimeout = Backoff{Min: time.Second, Max: 4 * time.Second}

// persist repeats an API call for as long as its error may pass, within ctx, or apiTimeout where ctx
// has no deadline.
func (c *Client) persist(ctx context.Context, call func(ctx context.Context) error) error {
	ctx, cancel := withDefaultTimeout(ctx, apiTimeout)
	defer cancel()
	backoff := Backoff{Min: 20 * time.Millisecond, Max: 500 * time.Millisecond}
	var reason error
	for n := 1; ; n++ {
		err := c.link.wait(ctx, time.Time{})
		if err != nil {
			return err
		}
		each, cancel := context.WithTimeout(ctx, callTimeout.base(n))
		err = call(each)
		cancel()
		if err == nil || !passing(err) {
			return whenClosed(err)
		}
		if reason == nil || !errors.Is(err, context.DeadlineExceeded) {
			reason = err // no answer at all tells less than an earlier one
		}
		if ended := sleep(ctx, backoff.delay(n)); ended != nil {
			if code := errorCode(reason); code != 0 && code != jetstream.JSErrCodeJetStreamNotEnabled {
				return fmt.Errorf("%w: %w", ended, reason)
			}
			return fmt.Errorf("JetStream does not answer; is it enabled for this account: %w: %w", ended, reason)
		}
	}
}

func withDefaultTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// sleep waits for d, or returns ctx's error when that ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// query repeats an API request for as long as its error may pass, and decodes the answer.
func (c *Client) query(ctx context.Context, endpoint string, request, answer any) error {
	return c.persist(ctx, func(ctx context.Context) error {
		data, err := c.api(ctx, endpoint, request)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, answer)
	})
}

// streamsOf returns the names of the streams that hold messages of a subject, wildcards allowed.
func (c *Client) streamsOf(ctx context.Context, subject string) (names []string, err error) {
	err = c.persist(ctx, func(ctx context.Context) (err error) {
		names, err = c.streamNames(ctx, subject)
		return err
	})
	return names, err
}

// streamNames is streamsOf without repetition.
func (c *Client) streamNames(ctx context.Context, subject string) ([]string, error) {
	data, err := c.api(ctx, "STREAM.NAMES", map[string]string{"subject": subject})
	if err != nil {
		return nil, err
	}
	var names struct {
		Streams []string `json:"streams"`
	}
	return names.Streams, json.Unmarshal(data, &names)
}

// storedMsg is a message as the stream's leader returns it.
type storedMsg struct {
	Subject  string `json:"subject"`
	Sequence uint64 `json:"seq"`
	Header   []byte `json:"hdrs"`
	Data     []byte `json:"data"`

	Time time.Time `json:"time"` // when it was stored, by the server's clock
}

// leaderGet reads one message from the stream's leader. nats.go's reads may be answered by a replica
// that lags behind (nats-server#6557), which is not enough where the answer decides.
func (c *Client) leaderGet(ctx context.Context, stream string, request any) (m *storedMsg, err error) {
	err = c.persist(ctx, func(ctx context.Context) (err error) {
		m, err = c.leaderGetOnce(ctx, stream, request)
		return err
	})
	return m, err
}

// leaderGetOnce is leaderGet without repetition.
func (c *Client) leaderGetOnce(ctx context.Context, stream string, request any) (*storedMsg, error) {
	data, err := c.api(ctx, "STREAM.MSG.GET."+stream, request)
	if err != nil {
		return nil, err
	}
	var resp struct {
		Message *storedMsg `json:"message"`
	}
	if err := json.Unmarshal(data, &resp); err != nil {
		return nil, err
	}
	if resp.Message == nil {
		return nil, jetstream.ErrMsgNotFound
	}
	return resp.Message, nil
}
