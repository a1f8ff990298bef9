package nattyprom_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/natty-go/natty"
	"github.com/natty-go/natty/nattyprom"
	"github.com/natty-go/natty/nattytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testCtx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, m *nattyprom.Collector) *natty.Client {
	t.Helper()
	cfg := natty.Config{Name: "test", Servers: []string{nattytest.Server(t).URL()}}
	c, err := natty.Connect(testCtx(t), cfg, natty.WithTracer(m), natty.WithLogger(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close(context.Background())) })
	for name, subject := range map[string]string{"S": "s.>", "DEAD": "dead.>"} {
		_, err = c.EnsureStream(testCtx(t), jetstream.StreamConfig{Name: name, Subjects: []string{subject}})
		require.NoError(t, err)
	}
	return c
}

func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			assert.NoError(t, err)
		}
	})
}

// scrape returns what Prometheus would get.
func scrape(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(testCtx(t), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
	return string(body)
}

// TestDashboardAndAlertsNameWhatARunningServiceShows runs a service of which every part
// does something, and scrapes it.
func TestDashboardAndAlertsNameWhatARunningServiceShows(t *testing.T) {
	t.Parallel()
	m := nattyprom.New(nil, nattyprom.WithDestination(nil)) // the defaults
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(m))
	c := connect(t, m)
	m.Watch("orders", c)
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	t.Cleanup(server.Close)

	cfg := natty.ConsumerConfig{
		Durable: "d", Subjects: []string{"s.*"}, MaxDeliver: 2, DeadLetter: "dead.s",
		Backoff: natty.Backoff{Min: time.Millisecond, Max: time.Millisecond},
	}
	run(t, func(ctx context.Context) error {
		return c.Process(ctx, cfg, func(_ context.Context, msg *nats.Msg) error {
			if string(msg.Data) == "bad" {
				return errors.New("no such customer")
			}
			return nil
		})
	})
	leads := make(chan struct{})
	run(t, func(ctx context.Context) error {
		return c.Lead(ctx, natty.AsLeaderConfig{Bucket: "b", Key: "k", NodeName: "n\xff"}, func(ctx context.Context, _ *natty.Term) error {
			close(leads)
			<-ctx.Done()
			return ctx.Err()
		})
	})
	<-leads
	w, err := c.NewWriter(natty.WriterConfig{})
	require.NoError(t, err)
	require.NoError(t, w.Write(testCtx(t), &nats.Msg{Subject: "nowhere"}))
	require.Error(t, w.Flush(testCtx(t)))
	for _, data := range []string{"good", "bad"} {
		require.NoError(t, c.Publish(testCtx(t), "s.a", []byte(data)))
	}
	var body string
	for _, want := range []string{
		`natty_handled_messages_total{durable="d",outcome="acked",stream="S"} 1`,
		`natty_handled_messages_total{durable="d",outcome="retried",stream="S"} 1`,
		`natty_handled_messages_total{durable="d",outcome="dead_lettered",stream="S"} 1`,
		`natty_handled_messages_total{durable="d",outcome="terminated",stream="S"} 0`,
		`natty_handle_duration_seconds_count{durable="d",stream="S"} 3`,
		`natty_published_messages_total{destination="s.>",result="ok"} 2`,
		`natty_published_messages_total{destination="dead.>",result="ok"} 1`,
		`natty_published_messages_total{destination="nowhere",result="no_stream"} 1`,
		`natty_publish_duration_seconds_count{destination="s.>"} 2`,
		`natty_consumer_state{client="orders",durable="d",state="running",stream="S"} 1`,
		`natty_consumer_state{client="orders",durable="d",state="stopped",stream="S"} 0`,
		`natty_consumer_max_ack_pending_messages{client="orders",durable="d",stream="S"} 20000`,
		`natty_election_leading{bucket="b",client="orders",key="k",node="n�"} 1`,
		`natty_connection_up{client="orders"} 1`,
		`natty_live{client="orders"} 1`,
		`natty_ready{client="orders"} 1`,
		`natty_writer_failed_messages{client="orders"} 1`,
	} {
		require.Eventually(t, func() bool {
			body = scrape(t, server.URL)
			return strings.Contains(body, want+"\n")
		}, 20*time.Second, 10*time.Millisecond, "%s", want)
	}

	for _, file := range []string{"../docs/grafana.json", "../docs/alerts.yml"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		names := regexp.MustCompile(`\bnatty_[a-z_]+`).FindAllString(string(text), -1)
		require.NotEmpty(t, names)
		for _, name := range names {
			assert.Regexp(t, `(?m)^`+name+`[{ ]`, body, "%s names %s", file, name)
		}
		// name{label="…", and label_values(name, label)
		for _, selector := range regexp.MustCompile(`\b(natty_[a-z_]+)(?:\{([^}]*)\})?(?:, ([a-z]+)\))?`).FindAllStringSubmatch(string(text), -1) {
			labels := regexp.MustCompile(`([a-z]+)=`).FindAllStringSubmatch(selector[2], -1)
			if selector[3] != "" {
				labels = append(labels, []string{"", selector[3]})
			}
			for _, label := range labels {
				assert.Regexp(t, `(?m)^`+selector[1]+`\{.*\b`+label[1]+`="`, body, "%s: %s", file, selector[0])
			}
		}
	}

	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	assert.Empty(t, problems)
	for _, name := range []string{"pending", "ack_pending", "max_ack_pending"} {
		assert.Regexp(t, "(?m)^# HELP natty_consumer_"+name+"_messages .*take max by", body)
	}
}

// dashboard is what Grafana reads of docs/grafana.json.
type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Inputs        []any `json:"__inputs"` // which only an import by hand fills in
	Templating    struct {
		List []struct {
			Name, Type, Definition string
			Datasource             struct{ UID string }
		}
	}
	Panels []struct {
		ID          int
		Type, Title string
		Datasource  struct{ UID string }
		GridPos     struct{ X, W, H int }
		Panels      []any // of a row that is folded
		Targets     []struct {
			Expr       string
			Datasource struct{ UID string }
		}
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	text, err := os.ReadFile("../docs/grafana.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &d))
	return d
}

func TestDashboardIsProvisionedAsItStands(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	assert.Equal(t, "natty", d.UID)
	assert.NotEmpty(t, d.Title)
	assert.Empty(t, d.Inputs)
	assert.GreaterOrEqual(t, d.SchemaVersion, 36, "data sources are objects since this version")
	assert.Equal(t, "datasource", d.Templating.List[0].Type)
	variables := []string{"__rate_interval"}
	uses := func(where, text string) {
		for _, used := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(text, -1) {
			assert.Contains(t, variables, used[1], where)
		}
	}
	for i, v := range d.Templating.List {
		if i > 0 {
			assert.Equal(t, "query", v.Type)
			assert.Equal(t, "${datasource}", v.Datasource.UID, v.Name)
		}
		uses(v.Name, v.Definition)
		variables = append(variables, v.Name)
	}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		assert.False(t, ids[p.ID], "panel %d is there twice", p.ID)
		ids[p.ID] = true
		assert.NotEmpty(t, p.Title)
		assert.Empty(t, p.Panels, "the panels of %q would not be looked at here", p.Title)
		assert.True(t, p.GridPos.W > 0 && p.GridPos.H > 0 && p.GridPos.X+p.GridPos.W <= 24, "%q has no place", p.Title)
		assert.Equal(t, p.Type == "row", len(p.Targets) == 0, p.Title)
		if p.Type != "row" {
			assert.Equal(t, "${datasource}", p.Datasource.UID, p.Title)
		}
		for _, target := range p.Targets {
			assert.Equal(t, "${datasource}", target.Datasource.UID, p.Title)
			assert.NotEmpty(t, target.Expr, p.Title)
			uses(p.Title, target.Expr)
		}
	}
}

// promtool runs promtool, or says that it is not there.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("NOT RUN: promtool is not on PATH; Debian has it in the package prometheus")
		return
	}
	out, err := exec.CommandContext(testCtx(t), path, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestPrometheusUnderstandsEachPanel(t *testing.T) {
	t.Parallel()
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			rules = append(rules, rule{fmt.Sprintf("panel:%d:%d", p.ID, len(rules)), expr})
		}
	}
	group := map[string]any{"name": "panels", "rules": rules}
	text, err := json.Marshal(map[string]any{"groups": []any{group}}) // JSON is YAML
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "panels.yml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	promtool(t, "check", "rules", file)
}

func TestAlertsFireWhenTheyShould(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "rules", "../docs/alerts.yml")
	promtool(t, "test", "rules", "testdata/alerts_test.yml")
}

// fixed has a Health that does not change.
type fixed natty.Health

func (f *fixed) Health() natty.Health { return natty.Health(*f) }

func TestConsumersOfOneDurableAreOne(t *testing.T) {
	t.Parallel()
	m := nattyprom.New(nattyprom.WithBuckets(1), nattyprom.WithDestination(func(s string) string { return s }))
	now := time.Now()
	one := natty.ConsumerHealth{
		Stream: "S", Durable: "d", State: natty.ConsumerRunning, Pending: 7, Held: 2, Handling: 1, OldestHandling: now.Add(-time.Hour),
	}
	two := one
	two.Pending, two.State, two.Warning = 8, natty.ConsumerStopped, "ended"
	two.OldestHandling, two.LastMessage = time.Time{}, time.UnixMilli(1500)
	m.Watch("a", &fixed{Consumers: []natty.ConsumerHealth{one, two}})
	b := &fixed{}
	m.Watch("b", &fixed{Connected: true})
	stop := m.Watch("b", b)
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(m))
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP natty_connection_up 1 if there is a connection to a server. Of this instance.
# TYPE natty_connection_up gauge
natty_connection_up{client="a"} 0
natty_connection_up{client="b"} 0
# HELP natty_consumer_pending_messages Messages that are not delivered yet. Of the whole group, by the server: take max by (stream, durable), not sum.
# TYPE natty_consumer_pending_messages gauge
natty_consumer_pending_messages{client="a",durable="d",stream="S"} 8
# HELP natty_consumer_held_messages Messages that are buffered or in a handler. Of this instance.
# TYPE natty_consumer_held_messages gauge
natty_consumer_held_messages{client="a",durable="d",stream="S"} 4
# HELP natty_consumer_last_message_timestamp_seconds When the last message arrived; 0 if none has. Of this instance.
# TYPE natty_consumer_last_message_timestamp_seconds gauge
natty_consumer_last_message_timestamp_seconds{client="a",durable="d",stream="S"} 1.5
# HELP natty_consumer_warning 1 while Health warns that something keeps messages from being delivered, or soon will. Of this instance.
# TYPE natty_consumer_warning gauge
natty_consumer_warning{client="a",durable="d",stream="S"} 1
`), "natty_connection_up", "natty_consumer_pending_messages", "natty_consumer_held_messages",
		"natty_consumer_last_message_timestamp_seconds", "natty_consumer_warning"))
	stop()
	stop()
	n, err := testutil.GatherAndCount(registry, "natty_connection_up")
	require.NoError(t, err)
	assert.Equal(t, 1, n)
}
