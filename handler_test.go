package natty_test

import (
	"context"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

func TestMuxRefusesMistakes(t *testing.T) {
	t.Parallel()
	mux, ok := natty.NewMux(), func(context.Context, *nats.Msg) error { return nil }
	mux.Handle("a", ok)
	for name, mistake := range map[string]func(){
		"twice":           func() { mux.Handle("a", ok) },
		"no handler":      func() { mux.Handle("b", nil) },
		"invalid subject": func() { mux.Handle("a..b", ok) },
	} {
		assert.Panics(t, mistake, name)
	}
	assert.Equal(t, []string{"a"}, mux.Subjects())
}

func TestMuxCallsTheMostSpecificHandler(t *testing.T) {
	t.Parallel()
	var got string
	mux := natty.NewMux()
	for _, subject := range []string{"a.>", "a.*", "a.b", "*.c", "a.*.d", "a.b.>", "x.*"} {
		mux.Handle(subject, func(context.Context, *nats.Msg) error { got = subject; return testkit.ErrHandler })
	}
	for subject, want := range map[string]string{
		"a.b": "a.b", "a.c": "a.*", "a.x": "a.*", "z.c": "*.c", "a.b.d": "a.b.>", "a.x.d": "a.*.d", "a.x.y.z": "a.>", "x.c": "x.*",
	} {
		require.ErrorIs(t, mux.Process(t.Context(), &nats.Msg{Subject: subject}), testkit.ErrHandler)
		assert.Equal(t, want, got, subject)
	}
	err := mux.Process(t.Context(), &nats.Msg{Subject: "other"})
	require.ErrorContains(t, err, `no handler for subject "other"`)
	assert.False(t, natty.IsPermanent(err), "an instance of another version may have one")
	assert.Equal(t, []string{"a.>", "x.*", "*.c"}, mux.Subjects())
}

func TestOneDurableHasAHandlerForEachSubject(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	var mu sync.Mutex
	got := map[string]string{}
	mux := natty.NewMux()
	for _, subject := range []string{"s.new", "s.*", "s.eu.>"} {
		mux.Handle(subject, func(_ context.Context, msg *nats.Msg) error {
			mu.Lock()
			defer mu.Unlock()
			got[msg.Subject] = subject
			return nil
		})
	}
	testkit.Process(t, c, natty.ConsumerConfig{Durable: "d", Subjects: mux.Subjects()}, mux.Process)
	want := map[string]string{"s.new": "s.new", "s.old": "s.*", "s.eu.1": "s.eu.>"}
	for subject := range want {
		testkit.Fill(t, c, subject, 1)
	}
	testkit.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == len(want) }, "all are handled")
	assert.Equal(t, want, got)
}
