package callback

import (
	"bytes"
	"runtime"
	"strconv"
	"sync"
)

// Inside has the goroutines that run functions of the user's for which somebody waits.
// A function without a ctx cannot be told from others by its ctx when it calls back, so
// the goroutine itself has to do. The zero value has none.
type Inside struct {
	mu         sync.Mutex
	goroutines map[uint64]struct{}
}

// Enter notes that the calling goroutine runs such a function, until leave is called.
func (i *Inside) Enter() (leave func()) {
	id := goroutineID()
	if id == 0 {
		return func() {}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.goroutines == nil {
		i.goroutines = map[uint64]struct{}{}
	}
	i.goroutines[id] = struct{}{}
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.goroutines, id)
	}
}

// Here reports whether the calling goroutine runs such a function. A goroutine that the
// function has started is another one.
func (i *Inside) Here() bool {
	i.mu.Lock()
	none := len(i.goroutines) == 0
	i.mu.Unlock()
	if none {
		return false
	}
	id := goroutineID()
	i.mu.Lock()
	defer i.mu.Unlock()
	_, is := i.goroutines[id]
	return is
}

// goroutineID returns the number of the calling goroutine, as the first line of its
// stack trace has it: "goroutine 7 [running]:". It is 0, which no goroutine has, should
// that line ever look different. Then nobody is Inside.
func goroutineID() uint64 {
	var line [64]byte
	text := bytes.TrimPrefix(line[:runtime.Stack(line[:], false)], []byte("goroutine "))
	digits, _, _ := bytes.Cut(text, []byte(" "))
	id, _ := strconv.ParseUint(string(digits), 10, 64)
	return id
}
