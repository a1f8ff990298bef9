package subject

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSubjectsThatServersRefuseAreFound(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]struct{ subject, filter string }{
		"":                        {"is empty", "is empty"},
		".":                       {"empty token", "empty token"},
		".a":                      {"empty token", "empty token"},
		"a.":                      {"empty token", "empty token"},
		"a..b":                    {"empty token", "empty token"},
		"a b":                     {"space", "space"},
		"a\tb":                    {"space", "space"},
		"a\r\nPUB b 0":            {"space", "space"},
		"a\x00":                   {"control character", "control character"},
		"a\u00a0b":                {"space", "space"},
		strings.Repeat("a", 4001): {"longer than 4000", "longer than 4000"},
		">.a":                     {"", "before its end"},
		"a.>.b":                   {"", "before its end"},
		">.>":                     {"", "before its end"},
		"a.\xff":                  {"", "not valid UTF-8"}, // JSON would make another one of it
		"a":                       {},
		"a.b-c_d.0.$x":            {},
		"größe.订单":                {},
		"*":                       {},
		">":                       {},
		"*.a.>":                   {},
		"a>.b*":                   {}, // no wildcards: whole tokens only
		"a.>>":                    {},
		">>":                      {},
		strings.Repeat("a", 4000): {},
	} {
		for got, want := range map[string]string{Invalid(s): want.subject, InvalidFilter(s): want.filter} {
			if want == "" {
				assert.Empty(t, got, s)
			} else {
				assert.Contains(t, got, want, s)
			}
		}
	}
}

func TestOnlyASpelledOutSubjectIsPublishable(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "a b", "a.", "*", ">", "a.*", "*.a", "a.>"} {
		assert.NotEmpty(t, Unpublishable(s), s)
	}
	for _, s := range []string{"a", "a.b", "a*", "a>", "$KV.b.k"} {
		assert.Empty(t, Unpublishable(s), s)
	}
}

func TestNamesThatServersRefuseAreFound(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a.b", "a*", "a>", "a/b", `a\b`, "a b", "a\nb", "a\x00", "a\xff", strings.Repeat("a", 256)} {
		assert.NotEmpty(t, InvalidName(s), s)
	}
	for _, s := range []string{"a", "A-b_0", "größe", strings.Repeat("a", 255)} {
		assert.Empty(t, InvalidName(s), s)
	}
}

// Durables in the field have these names: a change would make new ones beside them.
func TestDerivedDurablesKeepTheirNames(t *testing.T) {
	t.Parallel()
	for _, want := range []struct{ service, subject, name string }{
		{"orders", "orders.new", "orders_orders-new"},
		{"orders", "orders.*.new", "orders_orders-any-new"},
		{"orders", "orders.>", "orders_orders-all"},
		{"orders", ">", "orders_all"},
		{"my-orders", "a_b.c", "my-orders_a_b-c"},
		{"orders", "orders.any", "orders_orders-any--220c2c915ec942e6"},
		{"orders", "orders-new", "orders_orders-new--29449584a363a0a9"},
		{"my_orders", "a", "my_orders_a--483c16720ea40aab"},
		{"my--orders", "a", "my-orders_a--f29e80e6257ebc69"},
		{"größe", "a", "gr-e_a--8fc51d6b68a77105"},
		{"", "a", "_a--022a6979e6dab7aa"},
	} {
		assert.Equal(t, want.name, DurableName(want.service, want.subject))
	}
	long := DurableName(strings.Repeat("a", 300), "b")
	assert.Len(t, long, MaxNameLen)
}

func FuzzDerivedDurable(f *testing.F) {
	for _, pair := range [][4]string{
		{"orders", "a.b", "orders", "a-b"},
		{"orders", "a.*", "orders", "a.any"},
		{"orders", "a.>", "orders", "a.all"},
		{"my_orders", "a", "my", "orders_a"},
		{"my", "orders_a", "my", "orders.a"},
		{"a-", "b", "a", "-b"},
		{"a--b", "c", "a-b", "c"},
		{"", "a", "_", "a"},
		{strings.Repeat("a", 300), "b", strings.Repeat("a", 300), "c"},
		{"a", "b", "a", "b--0123456789abcdef"},
		{"ä", "b", "ö", "b"},
	} {
		f.Add(pair[0], pair[1], pair[2], pair[3])
	}
	f.Fuzz(func(t *testing.T, service1, subject1, service2, subject2 string) {
		if InvalidFilter(subject1) != "" || InvalidFilter(subject2) != "" {
			t.Skip()
		}
		name1, name2 := DurableName(service1, subject1), DurableName(service2, subject2)
		for _, name := range []string{name1, name2} {
			if wrong := InvalidName(name); name == "" || wrong != "" {
				t.Errorf("%q %s", name, wrong)
			}
		}
		if same := service1 == service2 && subject1 == subject2; same != (name1 == name2) {
			t.Errorf("(%q, %q) and (%q, %q): %q and %q", service1, subject1, service2, subject2, name1, name2)
		}
	})
}
