package account

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFilters(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := Letter{
		Place: Place{"DEAD", 7}, Subject: "orders.new", Reason: "No such customer", Durable: "billing", Time: now.Add(-time.Hour),
	}
	for _, f := range []Filter{
		{}, {Origin: "orders.*"}, {Origin: ">"}, {Reason: "such CUSTOMER"}, {Durable: "billing"}, {OlderThan: 59 * time.Minute},
		{NewerThan: 61 * time.Minute}, {Places: []Place{{"DEAD", 7}}, Reason: "is not looked at"},
	} {
		require.NoError(t, f.Check())
		assert.True(t, f.takes(&l, now), "%+v", f)
	}
	for _, f := range []Filter{
		{Origin: "orders"}, {Origin: "*"}, {Reason: "other"}, {Durable: "bill"}, {OlderThan: 61 * time.Minute},
		{NewerThan: 59 * time.Minute}, {Places: []Place{{"DEAD", 8}}}, {Reason: "such", Durable: "other"},
	} {
		assert.False(t, f.takes(&l, now), "%+v", f)
	}
	for _, f := range []Filter{{Origin: "a..b"}, {Origin: ">.a"}, {OlderThan: -1}, {OlderThan: 2, NewerThan: 1}} {
		require.Error(t, f.Check(), "%+v", f)
	}
	l.Time = time.Time{}
	assert.False(t, Filter{OlderThan: 1}.takes(&l, now))
	assert.False(t, Filter{NewerThan: 1}.takes(&l, now))
}

func TestAPayloadIsTextOrHex(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]string{
		"":          `{"size":0,"text":""}`,
		"a\tb\r\nü": `{"size":7,"text":"a\tb\r\nü"}`,
		"\x1b[31m":  `{"size":5,"hex":"1b5b33316d"}`,
		"\xff\x00":  `{"size":2,"hex":"ff00"}`,
		"\u202etxt": `{"size":6,"hex":"e280ae747874"}`,
	} {
		got, err := json.Marshal(Payload(data))
		require.NoError(t, err)
		assert.JSONEq(t, want, string(got))
	}
	assert.Contains(t, Payload("\x00ab").Dump(), "00 61 62")
}
