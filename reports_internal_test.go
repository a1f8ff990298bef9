package natty

import (
	"log/slog"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestReportsComeInOrderWhateverTheCallbackDoes(t *testing.T) {
	t.Parallel()
	var got []int
	begun, free := make(chan struct{}), make(chan struct{})
	r := newReports("test", func(n int) {
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
	}, slog.New(slog.DiscardHandler))
	r.add(0)
	<-begun
	for n := range reportsQueue + 10 {
		r.add(n + 1)
	}
	assert.EqualValues(t, 10, r.count(), "what finds no room is counted")
	close(free)
	r.close()
	assert.Len(t, got, reportsQueue+1, "what was queued was told")
	for n, have := range got {
		assert.Equal(t, n, have)
	}

	var none *reports[int]
	none.add(1)
	none.close()
	assert.Zero(t, none.count())
}
