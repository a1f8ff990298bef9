package securitytest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/internal/testkit"
	"github.com/natty-go/natty/nattytest"
)

// forms are those in which fmt and JSON can show the password.
var forms = func() []string {
	plain := []byte(password)
	return []string{
		password, hex.EncodeToString(plain), strings.ToUpper(hex.EncodeToString(plain)), fmt.Sprintf("% x", plain), fmt.Sprintf("% X", plain),
		strings.Trim(fmt.Sprintf("%d", plain), "[]"), strings.TrimRight(base64.StdEncoding.EncodeToString(plain), "="),
	}
}()

// exposes reports whether a text holds the password.
func exposes(text string) bool {
	for _, form := range forms {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

var verbs = []string{
	"%v", "%+v", "%#v", "%s", "%q", "%+q", "%#q", "%x", "%X", "% x", "%#x", "%d", "%t", "%e", "%c", "%U", "%o", "%b", "%T", "%99v", "%-9s", "%.3s", "%!",
}

// inside puts a value into all that may hold one.
func inside[T any](v T) []any {
	type holder struct{ V T }
	type pointer struct{ V *T }
	return []any{
		v, &v, []T{v}, []*T{&v}, [1]T{v}, map[string]T{"a": v}, map[string]*T{"a": &v}, holder{v}, &holder{v}, pointer{&v}, []holder{{v}},
		struct{ V any }{v}, struct{ V []any }{[]any{v, &v}}, map[string]any{"a": []T{v}}, any(v),
	}
}

// shown is all that can be printed, logged or marshalled of a value.
func shown(values []any) (all []string) {
	for _, v := range values {
		for _, verb := range verbs {
			all = append(all, fmt.Sprintf(verb, v))
		}
		all = append(all, fmt.Sprint(v), fmt.Sprintln("x", v), fmt.Errorf("x: %v", v).Error())
		if data, err := json.Marshal(v); err == nil {
			all = append(all, string(data))
		}
		var log lines
		log.logger().Info("a", "b", v, "c", []any{v})
		log.logger().LogAttrs(context.Background(), slog.LevelInfo, "a", slog.Any("b", v), slog.GroupAttrs("c", slog.Any("d", v)))
		all = append(all, log.String())
	}
	return all
}

// errorTexts are the texts of an error and of everything that it wraps.
func errorTexts(err error) (all []string) {
	if err == nil {
		return nil
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%q"} {
		all = append(all, fmt.Sprintf(verb, err))
	}
	switch e := err.(type) { //nolint:errorlint // each error of the chain is looked at
	case interface{ Unwrap() error }:
		all = append(all, errorTexts(e.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			all = append(all, errorTexts(err)...)
		}
	}
	return all
}

// lines is a log at debug level in both of slog's formats.
type lines struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}
	return slog.New(slog.NewMultiHandler(slog.NewTextHandler(l, opts), slog.NewJSONHandler(l, opts)))
}

// places has every place for a secret. file holds the secret.
var places = []func(secret, file string) natty.Config{
	func(secret, _ string) natty.Config { return natty.Config{User: "ann", Password: natty.Secret(secret)} },
	func(secret, _ string) natty.Config { return natty.Config{Token: natty.Secret(secret)} },
	func(secret, _ string) natty.Config { return natty.Config{Password: natty.Secret(secret)} }, // refused
	func(secret, _ string) natty.Config {
		return natty.Config{User: "ann", Password: natty.Secret(secret), Token: natty.Secret(secret)} // refused, too
	},
	func(secret, _ string) natty.Config {
		return natty.Config{Servers: []string{"nats://ann:" + secret + "@127.0.0.1:1"}}
	},
	func(secret, _ string) natty.Config {
		return natty.Config{Servers: []string{"nats://127.0.0.1:1", "nats://" + secret + "@127.0.0.1:1"}}
	},
	func(_, file string) natty.Config { return natty.Config{CredsFile: file} },
	func(_, file string) natty.Config { return natty.Config{NKeyFile: file} },
	func(_, file string) natty.Config {
		return natty.Config{TLS: natty.TLSConfig{CertFile: file, KeyFile: file}}
	},
	func(_, file string) natty.Config { return natty.Config{TLS: natty.TLSConfig{CAFile: file}} },
}

// inService are service files with a place for a secret, or several.
var inService = []string{
	`{"name":"t","user":"a","password":%s,"consumers":[{"name":"a","type":"nats","nats":{"subjects":["s"],"token":%[1]s}}]}`,
	`{"name":"t","pasword":%s,"token":[%[1]s],"consumers":[{"token":{"a":%[1]s}}]}`,
}

// FuzzSecrets puts a secret with anything around it into a place for one, and looks for
// it in all that can be printed, logged, marshalled or returned.
func FuzzSecrets(f *testing.F) {
	for i, around := range [][2]string{
		{"", ""}, {"a:", "@b"}, {"%", "%zz"}, {"/", "?#"}, {`"`, `\`}, {"\x00", "\xff"}, {"\n", "\r\n"}, {"${", "}"}, {",", ","}, {"nats://u:", "@h"},
		{"-----BEGIN NATS USER JWT-----\n", "\n------END NATS USER JWT------\n"}, {"SU", ""}, {"-----BEGIN PRIVATE KEY-----\n", "\n-----END PRIVATE KEY-----\n"},
		{"1/", ""}, {" ", " "}, {"[", "]"},
	} {
		for place := i % 4; place < len(places)+len(inService); place += 4 {
			f.Add(uint8(place), around[0], around[1])
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, n uint8, before, after string) {
		secret, place := before+password+after, int(n)%(len(places)+len(inService))
		check := func(texts []string) {
			for _, text := range texts {
				require.False(t, exposes(text), "place %d, %q: %s", place, secret, text)
			}
		}
		if place >= len(places) {
			quoted, err := json.Marshal(secret)
			require.NoError(t, err)
			s, err := natty.ParseService(fmt.Appendf(nil, inService[place-len(places)], quoted))
			check(errorTexts(err))
			if err == nil {
				check(shown(append(inside(*s), inside(s.Consumers)...)))
			}
			return
		}
		file := filepath.Join(dir, "secret")
		require.NoError(t, os.WriteFile(file, []byte(secret), 0o600))
		cfg := places[place](secret, file)
		if cfg.Servers != nil && strings.Contains(secret, ",") && strings.Contains(secret, "://") {
			t.Skip("it looks like the next server of the list")
		}
		check(shown(inside(cfg)))
		check(shown(append(inside(cfg.Password), inside(cfg.Token)...)))
		if cfg.Servers == nil {
			cfg.Servers = []string{"nats://127.0.0.1:1"}
		}
		connects(t, cfg, check)
	})
}

// connects makes a Client for a server that is not there, if cfg allows that, and gives
// check what it says.
func connects(t *testing.T, cfg natty.Config, check func([]string)) {
	t.Helper()
	var log lines
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := natty.Connect(ended, cfg, natty.WithLogger(log.logger()))
	require.Error(t, err)
	check(errorTexts(err))
	check(shown([]any{err}))
	cfg.LazyConnect = true
	c, err := natty.Connect(t.Context(), cfg, natty.WithLogger(log.logger()))
	check(errorTexts(err))
	if err == nil {
		check(shown([]any{c, c.Health()}))
		check(errorTexts(c.Publish(ended, "a", nil)))
		require.NoError(t, c.Close(t.Context()))
	}
	check([]string{log.String()})
}

// events collects what an Observer is told.
type events struct {
	mu  sync.Mutex // guards all
	all []any
}

func (o *events) Observe(e natty.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, e)
}

// TestRunningClientShowsNoSecret lets everything go wrong that a Client reports.
func TestRunningClientShowsNoSecret(t *testing.T) {
	t.Parallel()
	node := nattytest.Server(t, nattytest.User("ann", password))
	for name, cfg := range map[string]natty.Config{
		"password": {Servers: []string{node.URL()}, User: "ann", Password: password},
		"URL":      {Servers: []string{strings.Replace(node.URL(), "//", "//ann:"+password+"@", 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			var log lines
			told := &events{}
			cfg.Name = name
			c := testkit.Connect(t, cfg, natty.WithLogger(log.logger()), natty.WithObserver(told))
			testkit.Ensure(t, c, "S", "s.>")
			testkit.Ensure(t, c, "DEAD", "dead")
			e := &env{T: t, app: c}
			stop := testkit.Process(t, c, natty.ConsumerConfig{
				Stream: "S", Durable: name, Subjects: []string{"s." + name}, DeadLetter: "dead", OnError: e.OnError,
			}, func(ctx context.Context, _ *nats.Msg) error {
				same, _ := natty.ClientFrom(ctx)
				return natty.Permanent(fmt.Errorf("%v %+v %#v: %w", same, same, same, errors.ErrUnsupported))
			})
			testkit.Fill(t, c, "s."+name, 1)
			testkit.Eventually(t, func() bool { return len(testkit.Letters(t, c, "dead")) > 0 }, "there is a letter")
			var all []string
			for _, l := range testkit.Letters(t, c, "dead") {
				all = append(all, shown(inside(l))...)
			}
			all = append(all, errorTexts(c.Publish(testkit.Ctx(t), "nowhere", nil))...)
			reconnects := c.Health().Reconnects
			require.NoError(t, node.Restart())
			testkit.Eventually(t, func() bool { h := c.Health(); return h.Connected && h.Reconnects > reconnects }, "it reconnects")
			require.NoError(t, stop())
			all = append(all, shown(inside(c.Health()))...)
			all = append(all, shown([]any{c})...)
			told.mu.Lock()
			assert.NotEmpty(t, told.all)
			all = append(all, shown(told.all)...)
			told.mu.Unlock()
			all = append(all, log.String(), e.reports())
			for _, text := range all {
				assert.False(t, exposes(text), "%s", text)
			}
			assert.Contains(t, log.String(), "127.0.0.1:", "the host is shown")
		})
	}
}
