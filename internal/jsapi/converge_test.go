package jsapi

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty/internal/conn"
	"github.com/natty-go/natty/internal/respmux"
	"github.com/natty-go/natty/nattytest"
)

func object(t *testing.T, data string) map[string]any {
	t.Helper()
	m, err := decodeObject([]byte(data))
	require.NoError(t, err)
	return m
}

func TestFiltersAreShownAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	assert.Equal(t, `["s.>","<&"]`, AsJSON([]any{"s.>", "<&"}))
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
		AsJSON(Merge(have, want)))
	assert.JSONEq(t, `{"a":"1","b":"2"}`, AsJSON(have["metadata"]), "the original is as it was")
}

func TestStreamSettingsAreWhatIsSet(t *testing.T) {
	t.Parallel()
	want, err := StreamSettings(jetstream.StreamConfig{Name: "S"})
	require.NoError(t, err)
	assert.JSONEq(t, `{"name":"S","retention":"limits","storage":"file"}`, AsJSON(want))
	want, err = StreamSettings(jetstream.StreamConfig{Name: "S", Discard: jetstream.DiscardNew, MaxMsgs: -1, AllowDirect: true})
	require.NoError(t, err)
	assert.JSONEq(t, `{"name":"S","retention":"limits","storage":"file","discard":"new","max_msgs":-1,"allow_direct":true}`, AsJSON(want))
}

func TestResourceIsMadeOnceAndThenRead(t *testing.T) {
	t.Parallel()
	nc, err := nats.Connect(nattytest.Server(t).URL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	c := conn.Adopt(nc, slog.New(slog.DiscardHandler), func(conn.Event) {})
	t.Cleanup(c.Close)
	require.NoError(t, c.Await(t.Context()))
	mux, err := respmux.New(nc)
	require.NoError(t, err)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	a := &Client{NC: nc, JS: js, Link: c.Link, Mux: mux, Prefix: DefaultPrefix}

	made := 0
	r := Resource{
		Kind: "stream", Name: "S", Info: "STREAM.INFO.S", Update: "STREAM.UPDATE.S",
		Create: func(ctx context.Context) error {
			made++
			_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.MemoryStorage})
			return err
		},
	}
	have, err := a.ReadOrMake(t.Context(), r)
	require.NoError(t, err)
	assert.Nil(t, have, "it was made")
	have, err = a.ReadOrMake(t.Context(), r)
	require.NoError(t, err)
	assert.Equal(t, "S", have["name"])
	assert.Equal(t, 1, made)

	r.Want = map[string]any{"description": "x"}
	stream, err := a.MakeStream(t.Context(), r)
	require.NoError(t, err)
	assert.Equal(t, "x", stream.CachedInfo().Config.Description)
	assert.Equal(t, []string{"s"}, stream.CachedInfo().Config.Subjects, "the rest stays")

	// Somebody deletes it between the look and the change.
	r.Want, made = map[string]any{"description": "y"}, 0
	r.Accept = func(map[string]any) error {
		if made > 0 {
			return nil
		}
		return js.DeleteStream(t.Context(), "S")
	}
	require.NoError(t, a.Converge(t.Context(), r))
	assert.Equal(t, 1, made)
	r.Accept = nil

	// Another instance is faster: it makes the stream between the look and the attempt.
	require.NoError(t, js.DeleteStream(t.Context(), "S"))
	faster := r.Create
	r.Create = func(ctx context.Context) error {
		require.NoError(t, faster(ctx))
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"another"}, Storage: jetstream.MemoryStorage})
		return err
	}
	have, err = a.ReadOrMake(t.Context(), r)
	require.NoError(t, err)
	assert.Equal(t, []any{"s"}, have["subjects"])

	refused := errors.New("no")
	require.NoError(t, js.DeleteStream(t.Context(), "S"))
	r.Create = func(context.Context) error { return refused }
	_, err = a.ReadOrMake(t.Context(), r)
	assert.Same(t, refused, err, "as it is")
	require.EqualError(t, a.Converge(t.Context(), r), `natty: stream "S": no`)
}
