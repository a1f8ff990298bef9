package natty

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func object(t *testing.T, data string) map[string]any {
	t.Helper()
	m, err := decodeObject([]byte(data))
	require.NoError(t, err)
	return m
}

func TestFiltersAreShownAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	assert.Equal(t, `["s.>","<&"]`, asJSON([]any{"s.>", "<&"}))
}

func TestDifferencesAreWhatIsNotAsWanted(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		have, want string
		diffs      []Difference
	}{
		"nothing wanted":        {`{"a":1}`, `{}`, nil},
		"equal":                 {`{"a":1,"b":"x","c":[1,{"d":2}],"more":true}`, `{"a":1,"b":"x","c":[1,{"d":2}]}`, nil},
		"sorted by name":        {`{"b":1,"a":"x"}`, `{"b":2,"a":"y"}`, []Difference{{"a", `"x"`, `"y"`}, {"b", `1`, `2`}}},
		"missing":               {`{}`, `{"a":{"b":1}}`, []Difference{{"a", `not set`, `{"b":1}`}}},
		"zero and missing":      {`{}`, `{"a":0,"b":false,"c":""}`, nil},
		"zeros in an object":    {`{}`, `{"a":{"b":"","c":[]}}`, nil},
		"time zones":            {`{"a":{"t":"2026-01-02T03:04:05.6+01:00"}}`, `{"a":{"t":"2026-01-02T02:04:05.6Z"}}`, nil},
		"another time":          {`{"t":"2026-01-02T03:04:05Z"}`, `{"t":"2026-01-02T02:04:05Z"}`, []Difference{{"t", `"2026-01-02T03:04:05Z"`, `"2026-01-02T02:04:05Z"`}}},
		"large numbers":         {`{"a":9007199254740993}`, `{"a":9007199254740992}`, []Difference{{"a", `9007199254740993`, `9007199254740992`}}},
		"defaults in an object": {`{"a":{"b":1,"default":2}}`, `{"a":{"b":1}}`, nil},
		"defaults in a list":    {`{"a":[{"b":1,"default":2}]}`, `{"a":[{"b":1}]}`, nil},
		"order of a set":        {`{"subjects":["a","b"]}`, `{"subjects":["b","a"]}`, nil},
		"a set is not longer":   {`{"subjects":["a","b"]}`, `{"subjects":["a"]}`, []Difference{{"subjects", `["a","b"]`, `["a"]`}}},
		"order of a list":       {`{"a":["a","b"]}`, `{"a":["b","a"]}`, []Difference{{"a", `["a","b"]`, `["b","a"]`}}},
		"another kind":          {`{"a":1,"b":[],"c":{}}`, `{"a":[1],"b":{"x":1},"c":"c"}`, []Difference{{"a", `1`, `[1]`}, {"b", `[]`, `{"x":1}`}, {"c", `{}`, `"c"`}}},
	} {
		assert.Equal(t, tt.diffs, differences(object(t, tt.have), object(t, tt.want)), name)
	}
}

func TestMergeKeepsWhatIsNotWanted(t *testing.T) {
	t.Parallel()
	have := object(t, `{"future":{"n":18446744073709551615},"max_age":1,"metadata":{"a":"1","b":"2"},"subjects":["a"]}`)
	want := object(t, `{"max_age":2,"metadata":{"b":"3","c":"4"},"subjects":["b"],"new":{"x":1}}`)
	assert.JSONEq(t, `{"future":{"n":18446744073709551615},"max_age":2,"metadata":{"a":"1","b":"3","c":"4"},"subjects":["b"],"new":{"x":1}}`,
		asJSON(merge(have, want)))
	assert.JSONEq(t, `{"a":"1","b":"2"}`, asJSON(have["metadata"]), "the original is as it was")
}

func TestStreamSettingsAreWhatIsSet(t *testing.T) {
	t.Parallel()
	want, err := streamSettings(jetstream.StreamConfig{Name: "S"})
	require.NoError(t, err)
	assert.JSONEq(t, `{"name":"S","retention":"limits","storage":"file"}`, asJSON(want))
	want, err = streamSettings(jetstream.StreamConfig{Name: "S", Discard: jetstream.DiscardNew, MaxMsgs: -1, AllowDirect: true})
	require.NoError(t, err)
	assert.JSONEq(t, `{"name":"S","retention":"limits","storage":"file","discard":"new","max_msgs":-1,"allow_direct":true}`, asJSON(want))
}

func TestPassingErrorsAreThoseOfTheMoment(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		nats.ErrNoResponders, nats.ErrTimeout, nats.ErrDisconnected, nats.ErrReconnectBufExceeded, context.DeadlineExceeded,
		jetstream.ErrJetStreamNotEnabled, &jetstream.APIError{ErrorCode: 10008}, &jetstream.APIError{ErrorCode: 10009}, &jetstream.APIError{ErrorCode: 10005},
	} {
		assert.True(t, passing(err), "%v", err)
	}
	for _, err := range []error{
		nil, context.Canceled, nats.ErrConnectionClosed, nats.ErrPermissionViolation, errors.New("x"), ErrClosed,
		jetstream.ErrStreamNotFound, jetstream.ErrJetStreamNotEnabledForAccount, &jetstream.APIError{ErrorCode: 10065},
	} {
		assert.False(t, passing(err), "%v", err)
	}
}

func TestElapsedTakesTheClockThatSaysMore(t *testing.T) {
	t.Parallel()
	assert.GreaterOrEqual(t, elapsed(time.Now().Add(-time.Minute)), time.Minute)
	wall := time.Now().Round(0) // without the monotonic clock, as after a sleep it says less
	assert.GreaterOrEqual(t, elapsed(wall.Add(-time.Minute)), time.Minute)
}
