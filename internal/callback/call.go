// Package callback calls functions of the user's, which may block, panic or end their
// goroutine. It knows nothing of what the functions are for.
package callback

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/natty-go/natty/internal/mutant"
)

// ErrGoexit is the error of a function that ended its goroutine with runtime.Goexit, as
// t.FailNow does.
var ErrGoexit = errors.New("the function ended its goroutine (runtime.Goexit)")

// Call runs f and passes its outcome to then: f's error, its panic as an error with the
// stack, or ErrGoexit. After a Goexit in f, then still runs, but Call does not return.
// A goroutine that must go on uses Call within Loop.
func Call(f func() error, then func(stack []byte, err error)) {
	stack, err := []byte(nil), ErrGoexit
	defer func() { then(stack, err) }()
	stack, err = protect(f)
}

func protect(f func() error) (stack []byte, err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if mutant.LetsPanic {
			panic(p)
		}
		stack = debug.Stack()
		if cause, ok := p.(error); ok {
			err = fmt.Errorf("panic: %w", cause)
		} else {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return nil, f()
}

// Loop runs step until it returns false. If a step ends its goroutine, the loop goes on
// in another one.
func Loop(step func() (more bool)) {
	ended := false
	defer func() {
		if !ended {
			go Loop(step)
		}
	}()
	for step() { // the step does it all
	}
	ended = true
}
