package conn

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBadFileLeavesTheLastGoodOneAndIsNewsOnceUntilItIsOver(t *testing.T) {
	t.Parallel()
	value, bad := "a", error(nil)
	r, err := NewRotated(func() (string, error) { return value, bad })
	require.NoError(t, err)
	type report struct {
		trouble string
		news    bool
	}
	var reports []report
	r.onTrouble(func(trouble error, news bool) {
		text := ""
		if trouble != nil {
			text = trouble.Error()
		}
		reports = append(reports, report{text, news})
	})
	assert.Equal(t, "a", r.Get())
	assert.Empty(t, reports)
	const instead = "the last good one is used instead: "
	for _, why := range []string{"empty", "missing", "empty"} {
		value, bad = "b", errors.New(why)
		assert.Equal(t, "a", r.Get())
	}
	bad = nil
	assert.Equal(t, "b", r.Get())
	bad = errors.New("empty")
	assert.Equal(t, "b", r.Get())
	assert.Equal(t, []report{
		{instead + "empty", true}, {instead + "missing", false}, {instead + "empty", false}, {"", true},
		{instead + "empty", true},
	}, reports)

	bad = errors.New("empty")
	_, err = NewRotated(func() (string, error) { return value, bad })
	require.ErrorIs(t, err, bad, "the first one must be good")
}

func TestStateNamesTheFilesThatCannotBeUsedUntilThatIsOver(t *testing.T) {
	t.Parallel()
	l := NewLink()
	refused, empty, missing := errors.New("refused"), errors.New("is empty"), errors.New("is missing")
	l.setFile("login", empty)
	require.Equal(t, empty, l.State().LastErr)
	l.setReason(refused)
	l.setFile("certificate", missing)
	for _, want := range []error{refused, empty, missing} {
		require.ErrorIs(t, l.State().LastErr, want)
	}
	l.setFile("login", nil)
	require.EqualError(t, l.State().LastErr, "refused; also: is missing")
	l.setFile("certificate", nil)
	assert.Equal(t, refused, l.State().LastErr)
}
