package kv

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shrinking is a leader's list of subjects, some of which go away between two pages.
type shrinking struct {
	subjects []string
	size     int   // of a page
	leave    []int // how many of the first subjects are gone before each page
	reads    int
}

func (s *shrinking) read(offset int) (*page, error) {
	there := s.subjects
	if s.reads < len(s.leave) {
		s.subjects = s.subjects[s.leave[s.reads]:]
		there = s.subjects
	}
	s.reads++
	if s.reads > 1000 {
		return nil, errors.New("it does not end")
	}
	p := &page{Total: len(there)}
	p.State.Subjects = map[string]uint64{}
	for _, subject := range there[min(offset, len(there)):min(offset+s.size, len(there))] {
		p.State.Subjects[subject] = 1
	}
	return p, nil
}

func TestListHasEveryKeyThatIsThereFromTheFirstPageToTheLast(t *testing.T) {
	t.Parallel()
	for _, leave := range [][]int{
		nil, {0, 1, 1, 1, 1, 1}, {0, 30, 0, 40, 0, 30}, {0, 100}, {0, 0, 0, 0, 99}, slices.Repeat([]int{7}, 12),
	} {
		for _, size := range []int{2, 3, 10, 99, 100, 200} {
			all := make([]string, 100)
			for i := range all {
				all[i] = fmt.Sprintf("$KV.b.%03d", i)
			}
			leader := &shrinking{subjects: all, size: size, leave: leave}
			got, err := list("$KV.b.", leader.read)
			require.NoError(t, err)
			for _, subject := range leader.subjects {
				assert.Contains(t, got.keys, subject[len("$KV.b."):], "pages of %d, %v leave", size, leave)
			}
			assert.Equal(t, 100-slices.Max(append([]int{0}, leave[:min(1, len(leave))]...)), got.first.Total)
		}
	}
}

func TestListEndsWithTheFirstError(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	_, err := list("$KV.b.", func(int) (*page, error) { return nil, refused })
	require.ErrorIs(t, err, refused)
}
