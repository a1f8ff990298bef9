package securitytest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
)

var update = flag.Bool("update", false, "write the table of the tests into docs/permissions.md")

const (
	document = "../../docs/permissions.md"
	begin    = "<!-- The table is written by: go test ./internal/securitytest -run DocumentHas -update -->\n"
	end      = "<!-- end of the table -->\n"
)

// rendered is the table as it stands in the document.
func rendered() string {
	var b strings.Builder
	b.WriteString("| call | publish to | may be left out, and what is lost then |\n|---|---|---|\n")
	for _, r := range table {
		calls := r.calls
		if r.when != "" {
			calls += ": " + r.when
		}
		var needed, optional []string
		last := ""
		for _, n := range r.needs {
			subject := "`" + n.subject + "`"
			switch {
			case n.lost == "":
				needed = append(needed, subject)
				continue
			case n.subscribe:
				subject = "subscribe to " + subject
			}
			if i := len(optional) - 1; i >= 0 && n.lost == last {
				optional[i] = strings.Replace(optional[i], ": ", ", "+subject+": ", 1)
			} else {
				optional = append(optional, subject+": "+n.lost)
			}
			last = n.lost
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", calls, strings.Join(needed, "<br>"), strings.Join(optional, "<br>"))
	}
	return b.String()
}

func TestDocumentHasTheTableThatIsTested(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(document)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(data), begin)
	require.True(t, ok, "%s has no line %q", document, begin)
	have, after, ok := strings.Cut(rest, end)
	require.True(t, ok, "%s has no line %q", document, end)
	if *update {
		require.NoError(t, os.WriteFile(document, []byte(before+begin+rendered()+end+after), 0o644))
		return
	}
	assert.Equal(t, rendered(), have, "write it with: go test ./internal/securitytest -run DocumentHas -update")
}

// TestEveryMethodOfAClientHasItsRow: a new verb needs a row, or is named here.
func TestEveryMethodOfAClientHasItsRow(t *testing.T) {
	t.Parallel()
	asksNothing := []string{"Close", "Conn", "Format", "Health", "JetStream", "NewWriter"}
	named := regexp.MustCompile("`([A-Za-z.]+)`")
	var rows []string
	for _, r := range table {
		for _, m := range named.FindAllStringSubmatch(r.calls, -1) {
			rows = append(rows, m[1])
		}
	}
	for _, one := range []struct {
		prefix string
		of     reflect.Type
	}{{"", reflect.TypeFor[*natty.Client]()}, {"Bucket.", reflect.TypeFor[*natty.Bucket[string]]()}} {
		for method := range one.of.Methods() {
			name := one.prefix + method.Name
			assert.NotEqual(t, slices.Contains(asksNothing, name), slices.Contains(rows, name), "%s has no row, or needs none", name)
		}
	}
}

// TestRolesOfTheDocumentWork runs the configuration of the document, and each role in it.
func TestRolesOfTheDocumentWork(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(document)
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```conf\n(.*?)```").FindAllStringSubmatch(string(data), -1)
	require.Len(t, blocks, 1)
	node := configured(t, blocks[0][1])
	login := func(user string) *natty.Client {
		return testkit.Connect(t, natty.Config{Servers: []string{node.URL()}, Name: user, User: user, Password: natty.Secret(user + "-secret")},
			natty.WithNATSOptions(nats.CustomInboxPrefix("_INBOX_"+user)))
	}
	ctx := testkit.Ctx(t)
	setup := login("setup")
	testkit.Ensure(t, setup, "ORDERS", "orders.>")
	testkit.Ensure(t, setup, "DEAD", "dead.orders")
	testkit.Bucket(t, setup, jetstream.KeyValueConfig{Bucket: "settings"})
	require.NoError(t, setup.Put(ctx, "settings", "color", []byte("blue")))

	roles := map[string]func(c *natty.Client) error{
		"publisher": func(c *natty.Client) error {
			return errors.Join(c.Publish(ctx, "orders.new", nil), c.Publish(ctx, "orders.paid", nil))
		},
		"worker": func(c *natty.Client) error {
			cfg := natty.ConsumerConfig{Stream: "ORDERS", Durable: "worker", Subjects: []string{"orders.>"}, DeadLetter: "dead.orders"}
			handled := make(chan string, 10)
			stop := testkit.Process(t, c, cfg, func(_ context.Context, m *nats.Msg) error {
				handled <- m.Subject
				if m.Subject == "orders.paid" {
					return natty.Permanent(errors.New("no such order"))
				}
				return nil
			})
			assert.ElementsMatch(t, []string{"orders.new", "orders.paid"}, []string{testkit.Receive(t, handled), testkit.Receive(t, handled)})
			testkit.Eventually(t, func() bool { return len(testkit.Letters(t, setup, "dead.orders")) == 1 }, "there is a dead letter")
			testkit.Eventually(t, testkit.Settled(setup, "ORDERS", "worker"), "all is settled")
			return stop()
		},
		"leader": func(c *natty.Client) error {
			return c.Lead(ctx, natty.AsLeaderConfig{Bucket: "elections", Key: "reports", NodeName: "a", BucketTTL: testkit.LeaseTTL},
				func(ctx context.Context, term *natty.Term) error { return term.Put(ctx, "reports.last", []byte("1")) })
		},
		"reader": func(c *natty.Client) error {
			value, err := c.Get(ctx, "settings", "color")
			assert.Equal(t, "blue", string(value))
			found, keysErr := c.Keys(ctx, "settings")
			assert.Equal(t, []string{"color"}, found)
			for e, err := range c.Watch(ctx, "settings", ">") {
				require.NoError(t, err)
				assert.Equal(t, "color", e.Key())
				break
			}
			require.ErrorIs(t, c.Put(ctx, "settings", "color", nil), nats.ErrPermissionViolation)
			return errors.Join(err, keysErr)
		},
	}
	for _, name := range []string{"publisher", "worker", "leader", "reader"} {
		c := login(name)
		require.NoError(t, roles[name](c), name)
		if name != "reader" {
			assert.Empty(t, c.Health().LastError, name)
		}
	}
}
