package callback

import (
	"errors"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEveryEndOfAFunctionIsAnOutcome(t *testing.T) {
	t.Parallel()
	failed := errors.New("no such customer")
	for name, test := range map[string]struct {
		f     func() error
		err   error  // what the outcome matches
		text  string // what it says
		stack bool
	}{
		"returns nil":      {f: func() error { return nil }},
		"returns an error": {f: func() error { return failed }, err: failed, text: "no such customer"},
		"panics with an error": {
			f: func() error { panic(failed) }, err: failed, text: "panic: no such customer", stack: true,
		},
		"panics with a value": {f: func() error { panic(7) }, text: "panic: 7", stack: true},
		"ends its goroutine": {
			f: func() error { runtime.Goexit(); return nil }, err: ErrGoexit, text: ErrGoexit.Error(),
		},
		"panics with nil value": {
			f:   func() error { panic(nil) }, //nolint:govet // a user's function may
			err: &runtime.PanicNilError{}, stack: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			type outcome struct {
				stack []byte
				err   error
			}
			got := make(chan outcome, 1)
			go Call(test.f, func(stack []byte, err error) { got <- outcome{stack, err} })
			o := <-got
			assert.Equal(t, test.stack, o.stack != nil)
			if test.text != "" {
				require.EqualError(t, o.err, test.text)
			}
			switch {
			case name == "panics with nil value":
				var isNil *runtime.PanicNilError
				require.ErrorAs(t, o.err, &isNil)
			case test.err != nil:
				require.ErrorIs(t, o.err, test.err)
			case test.text == "":
				require.NoError(t, o.err)
			}
		})
	}
}

func TestALoopGoesOnAfterAStepThatEndsItsGoroutine(t *testing.T) {
	t.Parallel()
	done, n := make(chan struct{}), 0
	go Loop(func() bool {
		n++
		switch n {
		case 2, 3:
			runtime.Goexit()
		case 5:
			close(done)
			return false
		}
		return true
	})
	<-done
	assert.Equal(t, 5, n)
}
