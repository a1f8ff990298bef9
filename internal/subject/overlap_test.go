package subject

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTwoFiltersAreComparedTokenByToken(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b            string
		covers, covered bool
		want            string // what both receive
	}{
		{a: "a", b: "a", covers: true, covered: true, want: "a"},
		{a: "a", b: "b"},
		{a: "a", b: "a.b"},
		{a: "*", b: "a", covers: true, want: "a"},
		{a: "*", b: "a.b"},
		{a: ">", b: "a.b", covers: true, want: "a.b"},
		{a: ">", b: "*.b", covers: true, want: "*.b"},
		{a: ">", b: ">", covers: true, covered: true, want: ">"},
		{a: "a.>", b: "a"},
		{a: "a.>", b: "a.*", covers: true, want: "a.*"},
		{a: "a.*", b: "a.*", covers: true, covered: true, want: "a.*"},
		{a: "a.*", b: "*.b", want: "a.b"},
		{a: "*.b.>", b: "a.*.c", want: "a.b.c"},
		{a: "*.b.>", b: "a.>", want: "a.b.>"},
		{a: "a.*.c", b: "a.b.d"},
	} {
		name := test.a + " and " + test.b
		overlap := test.want != ""
		assert.Equal(t, test.covers, Covers(test.a, test.b), name)
		assert.Equal(t, test.covered, Covers(test.b, test.a), name)
		assert.Equal(t, overlap, Overlap(test.a, test.b), name)
		assert.Equal(t, overlap, Overlap(test.b, test.a), name)
		if overlap {
			assert.Equal(t, test.want, Common(test.a, test.b), name)
			assert.Equal(t, test.want, Common(test.b, test.a), name)
		}
	}
}

func FuzzCommon(f *testing.F) {
	for _, s := range [][3]string{{"a.*", "*.b", "a.b"}, {">", "a.>", "a.b.c"}, {"*.b.>", "a.*", "a.b"}} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, a, b, subject string) {
		if InvalidFilter(a) != "" || InvalidFilter(b) != "" || Unpublishable(subject) != "" {
			t.Skip()
		}
		both := Covers(a, subject) && Covers(b, subject)
		switch {
		case !Overlap(a, b):
			assert.False(t, both, "%q, %q: they overlap in %q", a, b, subject)
		default:
			common := Common(a, b)
			assert.Empty(t, InvalidFilter(common))
			assert.Equal(t, both, Covers(common, subject), "%q, %q: %q", a, b, subject)
			assert.True(t, Covers(a, common) && Covers(b, common), "%q, %q: %q", a, b, common)
		}
		if strings.Count(a, ".") == strings.Count(b, ".") && Covers(a, b) && Covers(b, a) {
			assert.Equal(t, a, b)
		}
	})
}

func TestAnEmptyListOfFiltersReceivesEverything(t *testing.T) {
	t.Parallel()
	assert.True(t, OverlapAny(nil, []string{"a"}))
	assert.True(t, OverlapAny([]string{"a"}, nil))
	assert.True(t, OverlapAny([]string{"a", "b"}, []string{"c", "b"}))
	assert.False(t, OverlapAny([]string{"a", "b"}, []string{"c", "d"}))
}

func TestListsAreTheSameInAnyOrder(t *testing.T) {
	t.Parallel()
	a := []string{"b", "a"}
	assert.True(t, Same(a, []string{"a", "b"}))
	assert.Equal(t, []string{"b", "a"}, a, "the lists stay as they are")
	assert.False(t, Same(a, []string{"a", "a"}))
	assert.True(t, Same(nil, []string{}))
}

func TestFiltersCoverAStreamIfOneOfThemCoversEachSubject(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		filters, subjects []string
		want              bool
	}{
		{nil, []string{"a.>"}, true},
		{nil, nil, true},
		{[]string{"a.>"}, []string{"a.>"}, true},
		{[]string{">"}, []string{"a.*", "b"}, true},
		{[]string{"a.*", "b"}, []string{"a.x", "b"}, true},
		{[]string{"a.*"}, []string{"a.>"}, false},
		{[]string{"a.x"}, []string{"a.*"}, false},
		{[]string{"a"}, []string{"a", "b"}, false},
		{[]string{"a"}, nil, false}, // a mirror
	} {
		assert.Equal(t, test.want, CoverAll(test.filters, test.subjects), "%v of %v", test.filters, test.subjects)
	}
}
