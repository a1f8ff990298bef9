package natty_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

type codecOrder struct {
	ID   int       `json:"id"`
	Name string    `json:"name"`
	At   time.Time `json:"at,omitzero"`
}

// text64 is a codec that is not JSON, and fills pointers by itself, as one for protobuf does.
type text64 struct{}

var errNoText = errors.New("it says hunter2, which is no text")

func (text64) ContentType() string { return "text/base64" }

func (text64) Marshal(v any) ([]byte, error) {
	s, ok := v.(*string)
	if !ok {
		return nil, errNoText
	}
	return base64.StdEncoding.AppendEncode(nil, []byte(*s)), nil
}

func (text64) Unmarshal(data []byte, v any) error {
	s, err := base64.StdEncoding.AppendDecode(nil, data)
	if err != nil {
		return errNoText
	}
	*v.(**string) = new(string(s))
	return nil
}

// typed is what a consumer with a typed handler does with a message, without a server.
func decoded[T any](header nats.Header, data string, codec natty.Codec) (T, error) {
	var got T
	h := natty.JSON(func(_ context.Context, v T) error { got = v; return nil })
	if codec != nil {
		h = natty.Typed(codec, func(_ context.Context, v T) error { got = v; return nil })
	}
	return got, h(context.Background(), &nats.Msg{Header: header, Data: []byte(data)})
}

// permanent reports whether err is a Permanent one: its type is not exported.
func permanent(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if assert.ObjectsAreEqual(natty.Permanent(errors.Unwrap(err)), err) {
			return true
		}
	}
	return false
}

func TestWhatIsPublishedTypedIsHandledTyped(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	orders, pointers, texts := make(chan codecOrder, 1), make(chan *codecOrder, 1), make(chan *string, 1)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.order"}, Durable: "values"}, natty.JSON(func(ctx context.Context, o codecOrder) error {
		d, ok := natty.DeliveryFrom(ctx)
		assert.True(t, ok)
		assert.Equal(t, 1, d.Attempt)
		orders <- o
		return nil
	}))
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.order"}, Durable: "pointers"}, natty.JSON(func(_ context.Context, o *codecOrder) error {
		pointers <- o
		return nil
	}))
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.text"}}, natty.Typed(text64{}, func(_ context.Context, s *string) error {
		texts <- s
		return nil
	}))

	want := codecOrder{ID: 7, Name: "one book"}
	require.NoError(t, natty.PublishJSON(testkit.Ctx(t), c, "s.order", want, jetstream.WithMsgID("7")))
	require.NoError(t, natty.PublishTyped(testkit.Ctx(t), c, text64{}, "s.text", new("grüße")))
	assert.Equal(t, want, testkit.Receive(t, orders))
	assert.Equal(t, &want, testkit.Receive(t, pointers))
	assert.Equal(t, "grüße", *testkit.Receive(t, texts))

	s, err := c.JetStream().Stream(testkit.Ctx(t), "S")
	require.NoError(t, err)
	for subject, contentType := range map[string]string{"s.order": "application/json", "s.text": "text/base64"} {
		m, err := s.GetLastMsgForSubject(testkit.Ctx(t), subject)
		require.NoError(t, err)
		assert.Equal(t, contentType, m.Header.Get("Content-Type"))
	}
}

func TestWhatCannotBeDecodedIsADeadLetterWhoseReasonDoesNotQuoteIt(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	testkit.Ensure(t, c, "DEAD", "dead.>")
	report, errs := testkit.OnError()
	handled := make(chan codecOrder, 10)
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, DeadLetter: "dead.s", OnError: report},
		natty.JSON(func(_ context.Context, o codecOrder) error { handled <- o; return nil }))
	want := map[string]string{
		`{"id":"hunter2"}`: "the value before byte 15 is no int",
		`{"id":1`:          "it is not JSON at byte 7",
		`hunter2`:          "it is not JSON at byte 1",
		`{"at":"hunter2"}`: "the decoder returned a *time.ParseError",
		`{"id":314159.26}`: "the value before byte 15 is no int",
		``:                 "it is not JSON at byte 0",
	}
	for data := range want {
		require.NoError(t, c.Publish(testkit.Ctx(t), "s.a", []byte(data)))
	}
	require.NoError(t, natty.PublishJSON(testkit.Ctx(t), c, "s.a", codecOrder{ID: 1}))
	assert.Equal(t, codecOrder{ID: 1}, testkit.Receive(t, handled))
	for range want {
		err := testkit.Receive(t, errs)
		failed, ok := errors.AsType[*natty.HandlerError](err)
		require.True(t, ok, err)
		assert.True(t, failed.Final)
		assert.NotContains(t, err.Error(), "hunter2")
	}
	all := testkit.Letters(t, c, "dead.s")
	require.Len(t, all, len(want))
	for _, l := range all {
		assert.Equal(t, "cannot be decoded as application/json into natty_test.codecOrder: "+want[string(l.Data)], l.Reason)
		assert.Equal(t, 1, l.Deliveries)
	}
}

func TestTheDecodersOwnErrorIsBelowTheReason(t *testing.T) {
	t.Parallel()
	_, err := decoded[*codecOrder](nil, `{"id":"x"}`, nil)
	mismatch, ok := errors.AsType[*json.UnmarshalTypeError](err)
	require.True(t, ok)
	assert.Equal(t, "id", mismatch.Field)
	assert.True(t, permanent(err))

	_, err = decoded[*string](nil, "hunter2!", text64{})
	require.ErrorIs(t, err, errNoText)
	require.EqualError(t, err, "cannot be decoded as text/base64 into *string: the decoder returned a *errors.errorString")
	assert.True(t, permanent(err))
}

func TestAnotherContentTypeIsRefusedAndNoneAccepted(t *testing.T) {
	t.Parallel()
	for _, accepted := range []string{
		"application/json", "application/json; charset=utf-8", "Application/JSON", " application/json ;", "application/vnd.order+json", "",
	} {
		n, err := decoded[int](nats.Header{"Content-Type": {accepted}}, "7", nil)
		require.NoError(t, err, accepted)
		assert.Equal(t, 7, n, accepted)
	}
	for _, refused := range []string{"application/protobuf", "text/json", "application/jsonl", "application/xjson", "json", "hunter2", ";"} {
		n, err := decoded[int](nats.Header{"Content-Type": {refused}}, "7", nil)
		require.EqualError(t, err, `not decoded: its Content-Type is not "application/json"; publish it with that, or consume it with another codec`, refused)
		assert.True(t, permanent(err))
		assert.Zero(t, n)
	}
	n, err := decoded[int](nil, "7", nil)
	require.NoError(t, err)
	assert.Equal(t, 7, n)
}

func TestTheHandlersErrorIsTheVerdict(t *testing.T) {
	t.Parallel()
	h := natty.JSON(func(context.Context, int) error { return testkit.ErrHandler })
	assert.Equal(t, testkit.ErrHandler, h(t.Context(), &nats.Msg{Data: []byte("1")}))
}

// broken is a codec with a fault.
type broken struct{ text64 }

func (broken) Unmarshal([]byte, any) error { panic("no memory") }

func TestACodecThatPanicsFailsAsAHandlerDoes(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	testkit.Ensure(t, c, "S", "s.>")
	report, errs := testkit.OnError()
	testkit.Process(t, c, natty.ConsumerConfig{Subjects: []string{"s.>"}, OnError: report, Backoff: natty.Backoff{Min: time.Millisecond}},
		natty.Typed(broken{}, func(context.Context, string) error { return nil }))
	testkit.Fill(t, c, "s.a", 1)
	for range 2 {
		failed, ok := errors.AsType[*natty.HandlerError](testkit.Receive(t, errs))
		require.True(t, ok)
		assert.False(t, failed.Final)
		assert.NotEmpty(t, failed.Stack)
	}
}

func TestATypedHandlerOfNothingIsRefused(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	for _, h := range []natty.Handler{
		natty.JSON[int](nil),
		natty.Typed[int](text64{}, nil),
		natty.Typed(nil, func(context.Context, int) error { return nil }),
	} {
		assert.Nil(t, h)
		config, ok := errors.AsType[*natty.ConfigError](c.Process(testkit.Ctx(t), natty.ConsumerConfig{Subjects: []string{"s"}}, h))
		require.True(t, ok)
		assert.Equal(t, "h", config.Field)
	}
}

func TestWhatCannotBeEncodedIsNotSent(t *testing.T) {
	t.Parallel()
	c := testkit.ConnectTo(t, nattytest.Server(t).URL())
	s := testkit.Ensure(t, c, "S", "s.>")
	for want, err := range map[string]error{
		`natty: publish to "s.a": encode a chan int: json: unsupported type: chan int`:                       natty.PublishJSON(testkit.Ctx(t), c, "s.a", make(chan int)),
		`natty: publish to "s.a": encode a int: it says hunter2, which is no text`:                           natty.PublishTyped(testkit.Ctx(t), c, text64{}, "s.a", 1),
		`natty: publish to "s.a": p: is nil; give a Client`:                                                  natty.PublishJSON(testkit.Ctx(t), nil, "s.a", 1),
		`natty: publish to "s.a": codec: is nil; give one, or use PublishJSON`:                               natty.PublishTyped(testkit.Ctx(t), c, nil, "s.a", 1),
		`natty: publish to "s.*": subject "s.*": holds a wildcard; publish to a subject that is spelled out`: natty.PublishJSON(testkit.Ctx(t), c, "s.*", 1),
	} {
		failed, ok := errors.AsType[*natty.PublishError](err)
		require.True(t, ok, err)
		assert.False(t, failed.Unknown)
		require.EqualError(t, err, want)
	}
	info, err := s.Info(testkit.Ctx(t))
	require.NoError(t, err)
	assert.Zero(t, info.State.Msgs)
}

func FuzzJSONHandler(f *testing.F) {
	f.Add("application/json", []byte(`{"id":1,"name":"one book","at":"2026-11-20T21:00:00Z"}`))
	f.Add("", []byte(`{"id":"1"}`))
	f.Add("application/vnd.order+json; v=2", []byte("null"))
	f.Add("text/plain", []byte("[[[["))
	f.Fuzz(func(t *testing.T, contentType string, data []byte) {
		before := bytes.Clone(data)
		called := false
		h := natty.JSON(func(context.Context, codecOrder) error { called = true; return nil })
		err := h(t.Context(), &nats.Msg{Header: nats.Header{"Content-Type": {contentType}}, Data: data})
		if called != (err == nil) || err != nil && !permanent(err) {
			t.Errorf("called %v, %v", called, err)
		}
		if !bytes.Equal(before, data) {
			t.Error("data was written to")
		}
	})
}

func TestJSONBatchIndexesAreThoseOfTheValues(t *testing.T) {
	t.Parallel()
	batch := []*nats.Msg{{Data: []byte("1")}, {Data: []byte("{")}, {Data: []byte("3")}, {Data: []byte("4")}}
	var got []int
	outcome := error(nil)
	h := natty.JSONBatch(func(_ context.Context, vs []int) error { got = vs; return outcome })
	verdicts := func() map[int]error {
		var partial *natty.PartialError
		require.ErrorAs(t, h(t.Context(), batch), &partial)
		return partial.Errs
	}
	failed := verdicts()
	assert.Equal(t, []int{1, 3, 4}, got)
	assert.True(t, natty.IsPermanent(failed[1]), "what cannot be decoded")
	for _, i := range []int{0, 2, 3} {
		require.NoError(t, failed[i])
	}

	outcome = &natty.PartialError{Errs: map[int]error{1: natty.RetryAfter(time.Second, testkit.ErrHandler)}}
	failed = verdicts()
	wait, ok := natty.RetryDelay(failed[2])
	assert.True(t, ok)
	assert.Equal(t, time.Second, wait)
	require.NoError(t, failed[0])
	require.NoError(t, failed[3])

	outcome = testkit.ErrHandler
	failed = verdicts()
	for _, i := range []int{0, 2, 3} {
		require.ErrorIs(t, failed[i], testkit.ErrHandler)
	}
	outcome = &natty.PartialError{Errs: map[int]error{3: natty.Permanent(testkit.ErrHandler)}} // there are three values
	failed = verdicts()
	for _, i := range []int{0, 2, 3} {
		require.ErrorContains(t, failed[i], "index 3")
		assert.False(t, natty.IsPermanent(failed[i]))
	}

	outcome = nil
	require.NoError(t, h(t.Context(), batch[:1]))
	got = nil
	require.Error(t, h(t.Context(), batch[1:2]))
	assert.Nil(t, got, "there is nothing to handle")
	assert.Nil(t, natty.JSONBatch[int](nil))
}
