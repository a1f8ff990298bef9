package securitytest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// need is one permission.
type need struct {
	subject   string // with placeholders, see names
	subscribe bool
	lost      string // what does not work without it, if the call itself does; "": the call fails
	noted     bool   // with lost: the loss is in Health
}

// names are what the placeholders in the table stand for in the tests.
var names = strings.NewReplacer(
	"<stream>", "S", "<durable>", "d", "<derived durable>", "test_s-a", "<subject>", "s.a", "<dead-letter subject>", "dead", "<dead-letter stream>", "DEAD",
	"<bucket>", "B", "<key>", "k", "<other key>", "own", "<schedule>", "later",
)

// inbox is where answers come: every call needs it.
var inbox = need{subject: "_INBOX.>", subscribe: true}

func (n need) concrete() string { return names.Replace(n.subject) }

// refused is how a report names the permission that is missing: as a quoted subject, or
// the begin of one.
func (n need) refused() string {
	fixed, _, wild := strings.Cut(strings.ReplaceAll(n.concrete(), "*", ">"), ">")
	if wild {
		return `"` + fixed
	}
	return `"` + fixed + `"`
}

// row is a call, and the permissions that it needs.
type row struct {
	calls   string // as they stand in the document
	when    string // in which case
	needs   []need
	prepare func(e *env)
	call    func(e *env) error
}

// env is what one call runs in: an account of its own.
type env struct {
	*testing.T

	root    *natty.Client // may do everything
	app     *natty.Client // may do what is granted
	refused string        // the report to wait for; "": the call is to work
	noted   string        // the report of what does not work, if the call does

	mu       sync.Mutex // guards reported
	reported []string
}

// OnError collects what a consumer of app reports.
func (e *env) OnError(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reported = append(e.reported, err.Error())
}

// reports are what app says by itself: to OnError, and in Health.
func (e *env) reports() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.app.Health()
	all := append(slices.Clone(e.reported), h.LastError)
	for _, c := range h.Consumers {
		all = append(all, c.LastError, c.Warning)
	}
	for _, l := range h.Elections {
		all = append(all, l.LastError, l.Warning)
	}
	return strings.Join(all, "\n")
}

// run runs something that goes on by itself until it is done, or until it reports what is
// refused.
func (e *env) run(run func(ctx context.Context) error, done func() bool) error {
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(testkit.Patience)
	for {
		select {
		case err := <-ended:
			return err
		case <-late:
			cancel()
			return errors.Join(errors.New("nothing happened; reported was: "+e.reports()), <-ended)
		case <-tick.C:
		}
		if e.refused != "" && strings.Contains(e.reports(), e.refused) {
			reported := e.reports()
			cancel()
			return errors.Join(errors.New(reported), <-ended)
		}
		if e.refused == "" && done() {
			cancel()
			return <-ended
		}
	}
}

// variant is a row with all of its permissions, or all but one.
type variant struct {
	row
	without *need
}

func variants(r row) (all []variant) {
	r.needs = append([]need{inbox}, r.needs...)
	all = append(all, variant{row: r})
	for i := range r.needs {
		all = append(all, variant{r, &r.needs[i]})
	}
	return all
}

func (v variant) granted() (publish, subscribe []string) {
	for i, n := range v.needs {
		switch {
		case v.without == &v.needs[i]:
		case n.subscribe:
			subscribe = append(subscribe, n.concrete())
		default:
			publish = append(publish, n.concrete())
		}
	}
	return publish, subscribe
}

// accounts makes a server with an account for each variant, with the users root and app.
func accounts(t *testing.T, all []variant) *nattytest.Node {
	t.Helper()
	list := func(subjects []string) string {
		if len(subjects) == 0 {
			return `{deny: ">"}`
		}
		return fmt.Sprintf("{allow: %s}", strings.ReplaceAll(fmt.Sprintf("%q", subjects), `" "`, `", "`))
	}
	var conf strings.Builder
	conf.WriteString("accounts {\n")
	for i, v := range all {
		publish, subscribe := v.granted()
		fmt.Fprintf(&conf, `A%d {jetstream: enabled, users: [{user: root%d, password: secret},
			{user: app%d, password: secret, permissions: {publish: %s, subscribe: %s}}]}`+"\n", i, i, i, list(publish), list(subscribe))
	}
	conf.WriteString("}\n")
	return configured(t, conf.String())
}

// configured starts a server with the accounts and users of a configuration.
func configured(t *testing.T, conf string) *nattytest.Node {
	t.Helper()
	file := filepath.Join(t.TempDir(), "server.conf")
	require.NoError(t, os.WriteFile(file, []byte(conf), 0o600))
	read, err := server.ProcessConfigFile(file)
	require.NoError(t, err, "%s", conf)
	return nattytest.Server(t, nattytest.Options(func(o *server.Options) { o.Accounts, o.Users = read.Accounts, read.Users }))
}

// TestEveryCallNeedsThePermissionsOfTheTableAndNoMore grants exactly what a row lists,
// and then all but one of it.
func TestEveryCallNeedsThePermissionsOfTheTableAndNoMore(t *testing.T) {
	t.Parallel()
	for _, r := range table {
		t.Run(strings.ReplaceAll(r.calls+" "+r.when, "/", "-"), func(t *testing.T) {
			t.Parallel()
			all := variants(r)
			node := accounts(t, all)
			for i, v := range all {
				name := "with all"
				if v.without != nil {
					name = "without " + v.without.subject
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					e := &env{T: t, root: testkit.Login(t, node.URL(), fmt.Sprint("root", i))}
					if v.prepare != nil {
						v.prepare(e)
					}
					e.app = testkit.Login(t, node.URL(), fmt.Sprint("app", i))
					switch {
					case v.without == nil:
					case v.without.lost == "":
						e.refused = v.without.refused()
					case v.without.noted:
						e.noted = v.without.refused()
					}
					v.check(e)
				})
			}
		})
	}
}

func (v variant) check(e *env) {
	begun := time.Now()
	err := v.call(e)
	took := time.Since(begun).Round(time.Millisecond)
	if e.refused != "" {
		require.Error(e, err, "it works without the permission")
		require.ErrorContains(e, err, e.refused, "the refused subject is named")
		assert.Less(e, took, testkit.Patience/2, "it does not wait for the end of its ctx")
		e.Logf("after %v: %v", took, err)
		return
	}
	require.NoError(e, err)
	if v.without == nil {
		assert.Empty(e, e.app.Health().LastError, "all was granted")
	}
	if e.noted != "" {
		testkit.Eventually(e, func() bool { return strings.Contains(e.reports(), e.noted) }, "the loss is named")
	}
}
