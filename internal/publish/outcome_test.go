package publish

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/jsapi"
)

// errInvalid stands for the root's ConfigError.
var errInvalid = errors.New("invalid")

// offline returns a Publisher without a connection.
func offline() *Publisher {
	return &Publisher{
		API: &jsapi.Client{NC: &nats.Conn{}, Link: conn.NewLink(), Prefix: jsapi.DefaultPrefix},
		IDs: NewIDs(),
		Invalid: func(field, _, reason string, cause error) error {
			return errors.Join(fmt.Errorf("%w: %s %s", errInvalid, field, reason), cause)
		},
		Failed: func(_, _ string, _ bool, cause error) error { return cause },
	}
}

// knows returns lookups that have found a stream of all subjects just now.
func knows(cfg jetstream.StreamConfig, state jetstream.StreamState) *streams {
	cfg.Name, cfg.Subjects = "S", []string{">"}
	info := &jetstream.StreamInfo{Config: cfg, State: state}
	return &streams{asking: make(chan struct{}, 1), known: []knownStream{{info, time.Now()}}}
}

func refusal(code jetstream.ErrorCode) error { return &jetstream.APIError{ErrorCode: code} }

func TestEveryErrorOfAPublishHasAnOutcome(t *testing.T) {
	t.Parallel()
	somethingElse := errors.New("something else")
	for name, test := range map[string]struct {
		err     error
		is      error // what the caller's error matches beside err
		full    bool  // the stream is
		unknown bool  // the message may be stored
		again   bool  // it is sent again
	}{
		"not available":       {err: refusal(jsapi.CodeNotAvailable), again: true},
		"not the leader":      {err: refusal(jsapi.CodeNotLeader), again: true},
		"id in flight":        {err: refusal(jsapi.CodeDuplicateInFlight), again: true},
		"sequence in flight":  {err: refusal(jetstream.JSErrCodeStreamWrongLastSequenceConstant), again: true},
		"replica behind":      {err: refusal(jsapi.CodeSequenceMismatch), again: true, unknown: true},
		"wrong last sequence": {err: refusal(jetstream.JSErrCodeStreamWrongLastSequence)},
		"wrong last id":       {err: refusal(jsapi.CodeWrongLastID)},
		"store failed, full":  {err: refusal(jsapi.CodeStoreFailed), full: true, is: ErrStreamFull},
		"store failed, room":  {err: refusal(jsapi.CodeStoreFailed), again: true},
		"message too large":   {err: refusal(jetstream.JSErrCodeStreamMessageExceedsMaximum), is: ErrTooLarge},
		"header too large":    {err: refusal(jsapi.CodeHeaderTooLarge), is: ErrTooLarge},
		"account limit":       {err: refusal(jsapi.CodeAccountLimit), is: ErrStreamFull},
		"no resources":        {err: refusal(jsapi.CodeNoResources), is: ErrStreamFull},
		"no memory":           {err: refusal(jsapi.CodeNoMemory), is: ErrStreamFull},
		"no storage":          {err: refusal(jsapi.CodeNoStorage), is: ErrStreamFull},
		"no TTLs":             {err: refusal(jsapi.CodeNoTTLs)},
		"another code":        {err: refusal(jetstream.JSErrCodeBadRequest)},

		"no answer":           {err: errSilent, again: true, unknown: true},
		"connection lost":     {err: nats.ErrDisconnected, again: true, unknown: true},
		"connection closed":   {err: nats.ErrConnectionClosed, is: conn.ErrClosed, unknown: true},
		"no permission":       {err: nats.ErrPermissionViolation},
		"context canceled":    {err: context.Canceled, unknown: true},
		"a foreign answer":    {err: somethingElse, unknown: true},
		"nobody listens":      {err: nats.ErrNoResponders, again: true}, // the lookup fails here
		"send: too large":     {err: &sendError{nats.ErrMaxPayload}, is: ErrTooLarge},
		"send: closed":        {err: &sendError{nats.ErrConnectionClosed}, is: conn.ErrClosed},
		"send: draining":      {err: &sendError{nats.ErrConnectionDraining}, is: conn.ErrClosed},
		"send: bad header":    {err: &sendError{nats.ErrBadHeaderMsg}, is: errInvalid},
		"send: bad subject":   {err: &sendError{nats.ErrBadSubject}, is: errInvalid},
		"send: bad message":   {err: &sendError{nats.ErrInvalidMsg}, is: errInvalid},
		"send: no connection": {err: &sendError{nats.ErrReconnectBufExceeded}, again: true},
		"send: no features":   {err: &sendError{nats.ErrHeadersNotSupported}, again: true},
		"send: broken off":    {err: &sendError{somethingElse}, again: true, unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := jetstream.StreamConfig{Discard: jetstream.DiscardNew, MaxMsgs: 3}
			state := jetstream.StreamState{Msgs: 2}
			if test.full {
				state.Msgs = 3
			}
			p := publication{pub: offline(), msg: &nats.Msg{Subject: "s"}, streams: knows(cfg, state)}
			ack, err := p.classify(canceledCtx, test.err)
			assert.Nil(t, ack)
			require.Error(t, err)
			reason := retryReason(err)
			assert.Equal(t, test.again, reason != nil, "again")
			assert.Equal(t, test.unknown, p.unknown, "unknown")
			if reason != nil {
				err = reason
			}
			cause := test.err
			if sent, ok := errors.AsType[*sendError](cause); ok {
				cause = sent.err
			}
			require.ErrorIs(t, err, cause)
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
		})
	}
}

func TestARefusalDoesNotMakeAnUnknownOutcomeKnown(t *testing.T) {
	t.Parallel()
	for code := range codes {
		p := publication{pub: offline(), msg: &nats.Msg{Subject: "s"}, unknown: true}
		_, err := p.classify(canceledCtx, refusal(code))
		require.Error(t, err)
		assert.True(t, p.unknown, "code %d", code)
	}
}

func TestEveryErrorOfABatchHasAnOutcome(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err         error
		uncommitted bool
		before      bool // an earlier attempt may be stored
		foreignIDs  bool
		stored      bool
		unknown     bool
		again       bool
	}{
		"incomplete":                  {err: refusal(jsapi.CodeBatchIncomplete), again: true},
		"too many":                    {err: refusal(jsapi.CodeBatchTooManyInFlight), again: true},
		"too large":                   {err: refusal(jsapi.CodeBatchTooLarge)},
		"duplicate":                   {err: refusal(jsapi.CodeBatchDuplicate)},
		"duplicate of ourselves":      {err: refusal(jsapi.CodeBatchDuplicate), before: true, stored: true, unknown: true},
		"duplicate of whom":           {err: refusal(jsapi.CodeBatchDuplicate), before: true, foreignIDs: true, unknown: true},
		"store failed":                {err: refusal(jsapi.CodeStoreFailed), again: true}, // the lookup fails here
		"not the leader":              {err: refusal(jsapi.CodeNotLeader), again: true},
		"commit without an answer":    {err: errSilent, again: true, unknown: true},
		"first without an answer":     {err: errSilent, uncommitted: true, again: true},
		"canceled before the commit":  {err: context.Canceled, uncommitted: true},
		"canceled after the commit":   {err: context.Canceled, unknown: true},
		"connection closed at commit": {err: nats.ErrConnectionClosed, unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := batch{
				pub: offline(), msgs: []*nats.Msg{{Subject: "s"}}, stream: &jetstream.StreamInfo{},
				unknown: test.before, ownIDs: !test.foreignIDs,
			}
			err := b.classify(canceledCtx, !test.uncommitted, test.err)
			assert.Equal(t, test.unknown, b.unknown, "unknown")
			assert.Equal(t, test.stored, err == nil, "stored")
			reason := retryReason(err)
			assert.Equal(t, test.again, reason != nil, "again")
			if reason != nil {
				err = reason
			}
			if !test.stored {
				require.ErrorIs(t, err, test.err)
			}
		})
	}
}
