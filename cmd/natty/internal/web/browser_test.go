package web

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/cmd/natty/internal/account"
	"github.com/natty-go/natty/cmd/natty/internal/fixture"
	"github.com/natty-go/natty/nattytest"
)

var screenshots = flag.Bool("screenshots", false, "write the screenshots of the page to docs/img")

const images = "../../../../docs/img"

// browser is a page in a headless chromium.
type browser struct {
	t   *testing.T
	ctx context.Context
}

func open(t *testing.T, url string) *browser {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil && path == "" {
			path = found
		}
	}
	if path == "" {
		t.Skip("NOT RUN: there is no chromium on PATH; install it to test the page in a browser")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.WindowSize(1280, 900), chromedp.Flag("lang", "en-GB"))
	if os.Getuid() == 0 {
		opts = append(opts, chromedp.NoSandbox)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*fixture.Patience)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t, ctx}
	listening := func(e any) {
		if thrown, ok := e.(*runtime.EventExceptionThrown); ok {
			t.Errorf("the page threw %v", thrown.ExceptionDetails)
		}
	}
	require.NoError(t, chromedp.Listen(ctx, listening))
	b.do(chromedp.Navigate(url))
	return b
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	require.NoError(b.t, chromedp.Do(b.ctx, actions...))
}

func (b *browser) click(selector string) { b.t.Helper(); b.do(chromedp.Click(chromedp.CSS(selector))) }

// press focuses an element and presses a key.
func (b *browser) press(selector, key string) {
	b.t.Helper()
	b.do(chromedp.Focus(chromedp.CSS(selector)), chromedp.KeyEvent(key))
}

func (b *browser) fill(selector, text string) {
	b.t.Helper()
	evaluate[any](b, fmt.Sprintf(`document.querySelector(%q).value = ""`, selector))
	b.do(chromedp.SendKeys(chromedp.CSS(selector), text))
}

// evaluate returns the value of a JavaScript expression.
func evaluate[T any](b *browser, expression string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	require.NoError(b.t, err)
	return value
}

// until waits until a JavaScript expression is true.
func (b *browser) until(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, fixture.Patience)
	defer cancel()
	_, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(20*time.Millisecond)))
	if errors.Is(err, context.DeadlineExceeded) {
		require.Fail(b.t, "the page never had "+expression, evaluate[string](b, `document.body.innerText`))
	}
	require.NoError(b.t, err)
}

// shows waits until an element contains a text.
func (b *browser) shows(selector, text string) {
	b.t.Helper()
	b.until(fmt.Sprintf(`[...document.querySelectorAll(%q)].some((e) => e.innerText.includes(%q))`, selector, text))
}

func (b *browser) screenshot(name string, width, height int64, scheme string) {
	b.t.Helper()
	if !*screenshots {
		return
	}
	b.do(chromedp.EmulateViewport(width, height))
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	require.NoError(b.t, err)
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	require.NoError(b.t, err)
	require.NoError(b.t, os.MkdirAll(images, 0o755))
	require.NoError(b.t, os.WriteFile(filepath.Join(images, name), png, 0o644))
	b.do(chromedp.EmulateReset())
}

// busy is an account with something of everything, and consumers that work.
func busy(t *testing.T) *nattytest.Node {
	t.Helper()
	node, c := withLetters(t, 3)
	fixture.Refuse(t, c, 1, "orders.binary", "cannot decode the invoice", func(int) []byte { return []byte("\x08\x96\x01\x12\x07invoice\x00\xff") })
	fixture.Stream(t, c, jetstream.StreamConfig{Name: "MAIL", Subjects: []string{"mail.>"}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{}, 3)
	go func() {
		defer func() { ended <- struct{}{} }()
		_ = c.Process(ctx, natty.ConsumerConfig{Stream: "MAIL", Durable: "sender", Concurrency: 2}, func(ctx context.Context, _ *nats.Msg) error {
			select {
			case <-ctx.Done():
			case <-time.After(15 * time.Millisecond):
			}
			return nil
		})
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		for i := 0; ctx.Err() == nil; i++ {
			for range 3 + i%17 {
				_ = c.Publish(ctx, "mail.out", []byte("hello"))
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		_ = c.Lead(ctx, natty.AsLeaderConfig{Bucket: "elections", Key: "mailer", NodeName: "host-1"}, func(ctx context.Context, _ *natty.Term) error {
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(func() {
		stop()
		for range 3 {
			<-ended
		}
	})
	require.NoError(t, c.Publish(t.Context(), "orders.new", []byte("waits")))
	lease, err := c.Lock(t.Context(), natty.LockConfig{Bucket: "locks", Key: "migrate", Owner: "host-2"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = lease.Release(context.WithoutCancel(t.Context())) })
	return node
}

func TestThePageInABrowser(t *testing.T) {
	t.Parallel()
	node := busy(t)
	sv := serve(t, node, false)
	b := open(t, sv.server.URL())
	b.shows("#consumers", "billing")
	b.shows("#consumers .pill.warn", "messages wait, and nobody asks for them")
	b.shows("#leases", "host-1")
	b.shows("#leases", "host-2")
	b.shows("#findings li", "dead letters: 4; the newest says: cannot decode the invoice\n→ look with: natty dead ls dead.orders")
	b.until(`document.querySelectorAll("#consumers svg polyline").length >= 4`)
	b.until(`!location.search.includes("token")`)
	b.shows("#dead button", "dead.orders")
	if *screenshots {
		b.until(`document.querySelector("#consumers svg polyline").points.length > 60`)
	}
	b.screenshot("ui-light.png", 1280, 800, "light")
	b.screenshot("ui-dark.png", 1280, 800, "dark")

	// By the keyboard alone: open the subject, filter, open a letter.
	b.press(`#dead button`, "\r")
	b.shows("#result", "4 letters.")
	b.until(`document.activeElement.id === "h-letters"`)
	b.fill(`#filter [name=reason]`, "INVOICE\r")
	b.shows("#result", "1 letter.")
	b.press(`#list summary`, "\r")
	b.shows("#list pre.hex", "00000000  08 96 01 12 07 69 6e 76")
	b.fill(`#filter [name=reason]`, "")
	b.fill(`#filter [name=older]`, "x\r")
	b.shows("#result.bad", "is no time")
	b.fill(`#filter [name=older]`, "\r")
	b.shows("#result", "4 letters.")
	b.click(`#list li:last-child summary`)
	b.click(`#list li:first-child summary`)
	evaluate[any](b, `document.querySelector("#h-dead").scrollIntoView()`)
	b.screenshot("ui-letters.png", 1280, 1000, "light")
	evaluate[any](b, `document.querySelector("#h-dead").scrollIntoView()`)
	b.screenshot("ui-narrow.png", 390, 844, "light")

	// Redrive two, after a change of mind.
	b.click(`#list li:nth-child(1) > input`)
	b.click(`#list li:nth-child(2) > input`)
	b.shows("#redrive", "Redrive 2…")
	b.click(`#redrive`)
	b.shows("#confirm", "Redrive 2 dead letters?")
	b.screenshot("ui-confirm.png", 1280, 800, "light")
	b.do(chromedp.KeyEvent("\x1b"))
	b.until(`!document.querySelector("#confirm").open`)
	b.click(`#redrive`)
	b.shows("#confirm", "Redrive 2 dead letters?")
	b.click(`#confirm-yes`)
	b.shows("#result", "2 of 2 dead letters redriven. 2 letters.")
	b.click(`#all`)
	b.click(`#purge`)
	b.shows("#confirm", "deleted for good")
	b.click(`#confirm-yes`)
	b.shows("#result", "2 of 2 dead letters purged. No letters match.")
	b.until(`document.querySelectorAll("#dead button").length === 0`)
	b.press(`#examine`, "\r")
	b.until(`!document.querySelector("#examine").disabled && !document.querySelector("#findings").innerText.includes("dead letters")`)

	node.Stop()
	b.shows("#alarm", "there is no connection to the server")
	b.click(`#examine`)
	b.shows("#examined.bad", "Not examined: natty ui: there is no connection to the server")
	b.until(`document.body.classList.contains("stale")`)
	evaluate[any](b, `scrollTo(0, 0)`)
	b.screenshot("ui-away.png", 1280, 500, "light")
	require.NoError(t, node.Restart())
	b.until(`document.querySelector("#alarm").hidden && document.querySelector("#state").innerText.startsWith("live")`)
}

// refused serves the page of a user who may not publish to a subject. The account has a
// durable with a message, dead letters and a lock.
func refused(t *testing.T, deny string) *served {
	t.Helper()
	node := nattytest.Server(t, nattytest.Options(func(o *server.Options) {
		o.Users = []*server.User{{Username: "ops", Password: "secret"}, {
			Username: "guest", Password: "secret",
			Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{deny}}},
		}}
	}))
	at := func(user string) string {
		return "nats://" + user + ":secret@" + strings.TrimPrefix(node.URL(), "nats://")
	}
	c := fixture.Client(t, at("ops"))
	fixture.Streams(t, c)
	fixture.Letters(t, c, 2)
	require.NoError(t, c.Publish(t.Context(), "orders.new", []byte("waits")))
	lease, err := c.Lock(t.Context(), natty.LockConfig{Bucket: "locks", Key: "migrate", Owner: "host-2"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = lease.Release(context.WithoutCancel(t.Context())) })
	return serveURL(t, at("guest"), true)
}

func TestThePageSaysWhatThisUserMayNotRead(t *testing.T) {
	t.Parallel()
	const unknown = "Not known: see What could not be read, below."
	for name, test := range map[string]struct {
		deny    string
		kind    account.Unread
		problem string // up to the subject that is refused
		refused string
		shown   map[string]string
	}{
		"nothing": {
			"$JS.API.STREAM.LIST", account.UnreadStreams, "the streams", "$JS.API.STREAM.LIST", map[string]string{
				"#no-consumers": unknown, "#no-dead": unknown, "#no-leases": unknown, "#totals": "?\nmessages to handle",
			},
		},
		"no consumers": {
			"$JS.API.CONSUMER.LIST.*", account.UnreadConsumers, "the consumers of stream ORDERS", "$JS.API.CONSUMER.LIST.ORDERS",
			map[string]string{
				"#no-consumers": unknown, "#dead": "dead.orders", "#leases": "host-2", "#totals": "?\nconsumers with a warning",
			},
		},
		"no content": {
			"$JS.API.DIRECT.GET.KV_locks", account.UnreadContent,
			"the leases and dead letters in stream KV_locks", "$JS.API.DIRECT.GET.KV_locks", map[string]string{
				"#no-leases": unknown, "#dead": "dead.orders", "#consumers": "billing", "#totals": "≥ 2\ndead letters",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sv := refused(t, test.deny)
			problem := test.problem + " cannot be read: this user may not publish to " + test.refused + "; allow it, or use another user"
			s, err := sv.server.cfg.Account.Read(t.Context())
			require.NoError(t, err)
			require.Len(t, s.Problems, 1)
			assert.Equal(t, test.kind, s.Problems[0].Kind)
			assert.Equal(t, problem, s.Problems[0].Text)

			b := open(t, sv.server.URL())
			b.shows("#problems", "What could not be read\n"+problem)
			b.shows("#state.warn", "live, incomplete, ")
			for selector, text := range test.shown {
				b.shows(selector, text)
			}
			b.shows("#findings li", "user: may not publish to "+test.refused+", so that part of the account was not examined\n→ allow it")
			text := evaluate[string](b, `document.body.innerText`)
			for _, claim := range []string{"There are no", "Nobody leads", "Nothing is wrong", "secret"} {
				assert.NotContains(t, text, claim)
			}
		})
	}
}

func TestThePageForAccessibility(t *testing.T) {
	t.Parallel()
	node, _ := withLetters(t, 2)
	sv := serve(t, node, true)
	b := open(t, sv.server.URL())
	b.shows("#dead button", "dead.orders")
	b.click(`#dead button`)
	b.shows("#result", "2 letters.")
	b.shows("#examined", "1 finding, at ")
	unnamed := evaluate[[]string](b, `[...document.querySelectorAll("button, input, summary, svg, img")].filter((e) =>
		!(e.getAttribute("aria-label") ?? e.closest("label")?.innerText ?? e.innerText ?? "").trim() && e.getAttribute("alt") !== "" && e.checkVisibility()
	).map((e) => e.outerHTML)`)
	assert.Empty(t, unnamed, "everything has a name for screen readers")
	assert.True(t, evaluate[bool](b, `document.querySelector("#actions").hidden`), "--read-only shows no buttons that would be refused")
	b.do(chromedp.EmulateViewport(320, 700))
	assert.False(t, evaluate[bool](b, `document.documentElement.scrollWidth > 320`), "a narrow window does not scroll sideways")
}
