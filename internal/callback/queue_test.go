package callback

import (
	"bytes"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestValuesArriveInOrderWhateverTheCallbackDoes(t *testing.T) {
	t.Parallel()
	var got []int
	var log bytes.Buffer
	begun, free := make(chan struct{}), make(chan struct{})
	q := New("test", func(n int) {
		if n == 0 {
			close(begun)
			<-free
		}
		got = append(got, n)
		switch n % 3 {
		case 1:
			panic("no")
		case 2:
			runtime.Goexit()
		}
	}, slog.New(slog.NewTextHandler(&log, nil)))
	q.Add(0)
	<-begun
	for n := range queueSize + 10 {
		q.Add(n + 1)
	}
	assert.EqualValues(t, 10, q.Count(), "values without room are counted")
	close(free)
	q.Close()
	assert.Len(t, got, queueSize+1, "queued values are delivered")
	q.Add(0)
	assert.False(t, q.running, "nothing is taken any more")
	for n, have := range got {
		assert.Equal(t, n, have)
	}
	assert.Equal(t, 1, strings.Count(log.String(), "too slow"), "once until the queue is empty")
	assert.Contains(t, log.String(), "callback=test panic=no stack=")
}

func TestCloseDoesNotWaitForACallbackThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		q := New("test", func(int) { <-free }, slog.New(slog.DiscardHandler))
		q.Add(1)
		start := time.Now()
		q.Close()
		assert.Equal(t, grace, time.Since(start))
		close(free)
	})
}

func TestNoCallbackMeansNoQueue(t *testing.T) {
	t.Parallel()
	q := New[int]("test", nil, nil)
	q.Add(1)
	q.Close()
	assert.Zero(t, q.Count())
	assert.Nil(t, q)
}

func TestQueueHasAGoroutineOnlyWhileThereAreValues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got []int
		q := New("test", func(n int) { got = append(got, n) }, slog.New(slog.DiscardHandler))
		for n := range 3 {
			q.Add(n)
			synctest.Wait()
			assert.False(t, q.running)
		}
		assert.Equal(t, []int{0, 1, 2}, got)
		q.Close()
	})
}
