package jsapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/conn"
)

// A code that a new server brings has to be put into the table before natty is used
// with it.
func TestTableHasEveryErrorOfTheServerOnce(t *testing.T) {
	t.Parallel()
	listed := map[jetstream.ErrorCode]string{}
	for _, group := range serverErrors {
		for _, code := range group.codes {
			assert.NotContains(t, listed, code, "%d stands in two groups", code)
			listed[code] = group.reason
		}
	}
	for _, known := range server.ApiErrors {
		code := jetstream.ErrorCode(known.ErrCode)
		assert.Contains(t, listed, code, "missing: %d %q", code, known.Description)
		delete(listed, code)
	}
	assert.Empty(t, listed, "codes that the server does not know")
}

// With the status 400 the server says that it did nothing.
func TestRefusedRequestsWereNotCarriedOut(t *testing.T) {
	t.Parallel()
	passes := []jetstream.ErrorCode{CodeNoPeers, CodeConcurrentLastSeq, 10124, 10202, 10226}
	for _, known := range server.ApiErrors {
		if known.Code != http.StatusBadRequest {
			continue
		}
		err := &jetstream.APIError{Code: known.Code, ErrorCode: jetstream.ErrorCode(known.ErrCode)}
		assert.False(t, Unknown(err), "%v", known)
		assert.Equal(t, slices.Contains(passes, err.ErrorCode), ServerFault(err), "%v", known)
	}
}

func TestErrorsOfTheServerMeanWhatTheTableSays(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		code                             jetstream.ErrorCode
		passing, missing, fault, unknown bool
	}{
		{code: jetstream.JSErrCodeStreamNotFound, missing: true},
		{code: jetstream.JSErrCodeConsumerNotFound, missing: true},
		{code: jetstream.JSErrCodeConsumerDoesNotExist, missing: true},
		{code: CodeNotAvailable, passing: true, fault: true},
		{code: 10118, passing: true, fault: true}, // stream offline
		{code: 10119, passing: true, fault: true}, // consumer offline
		{code: 10194, passing: true, fault: true}, // stream offline, with a reason
		{code: 10167, passing: true, fault: true}, // too many requests
		{code: CodeNoResources, passing: true, fault: true},
		{code: jetstream.JSErrCodeJetStreamNotEnabledForAccount, fault: true},
		{code: CodeNoStorage, fault: true},
		{code: jetstream.JSErrCodeConsumerCreate, fault: true, unknown: true},
		{code: CodeStoreFailed, fault: true, unknown: true},
		{code: CodeWrongLastSeq},
		{code: CodeNoReplicas},
	} {
		err := fmt.Errorf("wrapped: %w", &jetstream.APIError{ErrorCode: test.code})
		assert.Equal(t, test.passing, Passing(err), "passing: %d", test.code)
		assert.Equal(t, test.missing, Missing(err), "missing: %d", test.code)
		assert.Equal(t, test.fault, ServerFault(err), "fault: %d", test.code)
		assert.Equal(t, test.unknown, Unknown(err), "unknown: %d", test.code)
	}
}

func TestStatusSaysWhatANewerCodeMeans(t *testing.T) {
	t.Parallel()
	newer := func(status int) error { return &jetstream.APIError{Code: status, ErrorCode: 19999} }
	assert.True(t, Passing(newer(http.StatusTooManyRequests)))
	assert.True(t, Unknown(newer(http.StatusInternalServerError)))
	assert.True(t, ServerFault(newer(http.StatusServiceUnavailable)))
	assert.False(t, Passing(newer(http.StatusServiceUnavailable)))
	assert.False(t, ServerFault(newer(http.StatusBadRequest)))
	assert.False(t, Missing(newer(http.StatusNotFound)))
}

func TestOtherErrorsAreNotTheServers(t *testing.T) {
	t.Parallel()
	for _, err := range []error{nil, errors.New("x"), nats.ErrTimeout, context.Canceled} {
		assert.False(t, Missing(err), "%v", err)
		assert.False(t, ServerFault(err), "%v", err)
		assert.False(t, Unknown(err), "%v", err)
		assert.Zero(t, Code(err), "%v", err)
	}
}

func TestPassingErrorsAreThoseOfTheMoment(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		nats.ErrNoResponders, nats.ErrTimeout, nats.ErrDisconnected, nats.ErrReconnectBufExceeded,
		context.DeadlineExceeded, jetstream.ErrJetStreamNotEnabled, // nats.go's name for no responders
	} {
		assert.True(t, Passing(err), "%v", err)
	}
	for _, err := range []error{
		nil, context.Canceled, nats.ErrConnectionClosed, nats.ErrPermissionViolation, errors.New("x"), conn.ErrClosed,
		jetstream.ErrStreamNotFound, jetstream.ErrJetStreamNotEnabledForAccount, &jetstream.APIError{ErrorCode: 10065},
	} {
		assert.False(t, Passing(err), "%v", err)
	}
}

func TestWhatWasJustMadeIsAskedForUntilItIsKnown(t *testing.T) {
	t.Parallel()
	asked := 0
	ask := func() error {
		if asked++; asked < 3 {
			return fmt.Errorf("look: %w", jetstream.ErrStreamNotFound)
		}
		return jetstream.ErrConsumerNotFound
	}
	err := UntilKnown(t.Context(), jetstream.ErrStreamNotFound, ask)
	require.ErrorIs(t, err, jetstream.ErrConsumerNotFound, "another error is returned at once")
	assert.Equal(t, 3, asked)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = UntilKnown(ctx, jetstream.ErrStreamNotFound, func() error { return jetstream.ErrStreamNotFound })
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound, "the reason is kept")
}

func TestAboutNamesNattyOnceAndKeepsTheCause(t *testing.T) {
	t.Parallel()
	cause := fmt.Errorf("natty: stream %q: %w", "S", jetstream.ErrStreamNotFound)
	err := About(`key "k"`, cause)
	require.EqualError(t, err, `natty: key "k": stream "S": `+jetstream.ErrStreamNotFound.Error())
	require.ErrorIs(t, err, jetstream.ErrStreamNotFound)
	require.ErrorIs(t, err, cause)
}
